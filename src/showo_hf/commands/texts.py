"""Texts and paths of the user: their checks, and the names of options in errors of the pipelines."""

from __future__ import annotations

import re
from pathlib import Path

from ..utils.argument_types import quoted
from .errors import UsageError


#: The options of the command by the names of the pipelines' arguments.
OPTION_NAMES = {
    "height": "--size",
    "width": "--size",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "model_output": "--guidance",
    "text_temperature": "--temperature",
    "num_images_per_prompt": "--num",
    "mask_image": "--mask",
    "preserve_pixels": "--keep-pixels",
    "padding_mask_crop": "--crop",
    "generator": "--seed",
    "max_broken": "--max-broken",
    "output": "--output",
    "max_pixels": "--max-pixels",
    **{name: f"--{name.replace('_', '-')}" for name in (
        "temperature", "negative_prompt", "max_new_tokens", "max_images", "batch_size", "strength", "remasking",
        "direction", "extent", "rounds", "decoder_steps",
    )},
}  # fmt: skip


def check_text(name: str, text: str) -> None:
    """Raise `UsageError` unless `text` has words, and consists of characters that exist."""
    check_characters(name, text)
    if not text.strip():
        raise UsageError(f"`{name}` must contain words, got {quoted(text)}")


def check_characters(name: str, text: str) -> None:
    """Raise `UsageError` for a text with a NUL or with bytes that are not UTF-8. An empty text passes."""
    if "\0" in text:
        raise UsageError(f"`{name}` must be text, but has a NUL character: {quoted(text)}")
    # Python gives bytes of the command line that are not UTF-8 as lone surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"`{name}` must be text in UTF-8, got {quoted(text)}")


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this name. False for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def with_option_names(message: object) -> str:
    """The message of a pipeline's error with the names of the command's options."""
    named = re.sub(r"`(\w+)`", lambda match: f"`{OPTION_NAMES.get(match[1], match[1])}`", str(message))
    return re.sub(r"(`--[\w-]+`) and \1", r"\1", named)  # `height` and `width` are one option
