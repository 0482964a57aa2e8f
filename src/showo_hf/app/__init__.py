"""
The Gradio Space: layout, event wiring, limits and the line. The pipelines do the work.

`python app.py`, or `showo_hf.app.main()`, starts it. Environment variables set its model and its limits; see
[`SpaceOptions`].
"""

from .page import build_demo, build_space, launch, load_pipeline, main
from .settings import SpaceOptions


__all__ = ["SpaceOptions", "build_demo", "build_space", "launch", "load_pipeline", "main"]
