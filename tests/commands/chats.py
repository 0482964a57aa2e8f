"""What tests of `showo-hf chat` share: a chat, and the files in its working folder."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from showo_hf import ShowoAnyToAnyPipeline
from showo_hf.commands.chat import Chat
from showo_hf.utils.argument_types import MAX_PIXELS


def paint(name: str) -> str:
    """Save an image to a file."""
    Image.radial_gradient("L").resize((20, 16)).convert("RGB").save(name)
    return name


def pixels(path) -> np.ndarray:
    """The pixels of an image file."""
    with Image.open(path) as image:
        return np.asarray(image)


def files() -> list[str]:
    """The names of the files."""
    return sorted(path.name for path in Path().iterdir())


def conversation(pipe: ShowoAnyToAnyPipeline, interactive=False, **options) -> Chat:
    """A chat with default options."""
    names = ("max_new_tokens", "max_images", "steps", "guidance", "temperature", "decoder_steps", "load")
    defaults = {"output": ".", "quiet": True, "debug": False, "max_pixels": MAX_PIXELS, **dict.fromkeys(names)}
    values = {**defaults, **options}
    return Chat(pipe, argparse.Namespace(**{**values, "output": Path(values["output"])}), 0, interactive)
