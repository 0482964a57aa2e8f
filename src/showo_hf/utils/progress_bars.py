"""The progress bars of the libraries that load, download and save models."""


def hide_progress_bars() -> None:
    """Switch them off: in a file or a pipe they are lines without a meaning."""
    import diffusers
    import huggingface_hub
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
