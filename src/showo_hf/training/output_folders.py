"""Where a run writes, and what it may replace. Imports no torch."""

from pathlib import Path

from .errors import TrainingError


def checkpoint_root(output: Path) -> Path:
    """The folder of a run's checkpoints, beside its output."""
    return output.with_name(output.name + "-checkpoints")


def check_replaced(output: Path, model: str | None, resumed: Path | None):
    """
    Raise `TrainingError` if the result would replace a folder that is not an earlier result of the same run.

    Args:
        model: the model that is trained.
        resumed: the checkpoint that the run continues from. Without one, no result is the run's own.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return
    is_result = any((output / name).is_file() for name in ("model_index.json", "adapter_config.json", "config.json"))
    is_model = model is not None and Path(model).is_dir() and Path(model).resolve() == output.resolve()
    if resumed is None or not is_result or is_model:
        what = "is the model that is trained" if is_model else "is not a result of this run"
        raise TrainingError(f"The folder '{output}' exists and {what}. Give another `output`, or delete the folder.")
