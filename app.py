"""Starts the Gradio Space, `showo_hf.app`. `SHOWO_MODEL` selects a model folder or Hub name; see docs/deploying.md."""

from showo_hf.app import main


if __name__ == "__main__":
    main()
