"""One sample of the training data, and what happens to samples whose image cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...processing.image_reader import MAX_PIXELS, TooLarge
from ...processing.images import load_image
from ...utils.validation import check_count


Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """
    One sample.

    Args:
        key: names the sample in messages, such as a file name, or a file and a row.
        noise_seed: seeds all random draws about the sample. From 0 to 2**63 - 1. It depends on the seed of the run, the
            task and the position of the sample in the order, and not on ranks, workers or rows of a step.
        image: an RGB image.
        image_tokens: int64 (h, w), where image tokens were stored.
        text: the text. A list holds alternatives, of which one is drawn.
        messages: a conversation in the format of [`ShowoProcessor.apply_chat_template`]. The images of its content parts
            are RGB images or int64 grids (h, w). `image` and `image_tokens` are None then.
    """

    key: str
    noise_seed: int
    image: Image.Image | None = None
    image_tokens: torch.LongTensor | None = None
    text: str | list[str] | None = None
    messages: list[Message] | None = None


class BrokenExample(ValueError):
    """A sample that cannot be read. The message is the reason."""


def check_unicode(texts: Iterable[str]) -> None:
    """Raise `BrokenExample` for half of a surrogate pair, which JSON can hold and no tokenizer takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the text must be valid Unicode, got half of a surrogate pair in {text!r:.80}"
            raise BrokenExample(message) from error


class BrokenExamples:
    """
    The samples that could not be read. A sample that is met again in a later epoch counts once.

    Args:
        max_broken: how many are skipped before the run ends.
    """

    def __init__(self, max_broken: int = 100):
        check_count("max_broken", max_broken, least=0)
        self.max_broken = max_broken
        self.reasons: dict[str, str] = {}

    @property
    def count(self) -> int:
        return len(self.reasons)

    @property
    def keys(self) -> list[str]:
        return list(self.reasons)

    def add(self, key: str, reason: str) -> None:
        """Count a sample. `ValueError` if there are more than `max_broken`; it names the first five and their reasons."""
        self.reasons.setdefault(key, reason)
        if self.count > self.max_broken:
            first = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:5])
            raise ValueError(
                f"`max_broken` allows {self.max_broken} samples that cannot be read, but there are {self.count}. "
                f"The first: {first}."
            )


def decode_image(value: Any, folder: Path | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Decode an image of a data set as RGB, as [`load_image`] does: EXIF orientation applied, transparency on white, 16-bit
    and CMYK converted.

    Args:
        value: a PIL image; bytes of an image file; a path; or `{"bytes": ..., "path": ...}`, the format of `datasets`.
        folder: where relative paths start.
        max_pixels: image files with more pixels are broken.

    Raises:
        BrokenExample: if there is no image, or it cannot be read. URLs are not fetched.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    try:
        if isinstance(value, (str, Path)):
            value = image_file(value, folder)
        elif not isinstance(value, (bytes, Image.Image)):
            raise BrokenExample("there is no image" if value is None else f"{type(value).__name__} is no image")
        return load_image(value, "image", max_pixels=max_pixels)
    except BrokenExample:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        if isinstance(error.__cause__, TooLarge):
            raise BrokenExample(
                f"the image cannot be read: {error.__cause__}; `max_pixels` raises the limit"
            ) from error
        raise BrokenExample(" ".join(str(error).split())[:200] or type(error).__name__) from error


def image_file(name: str | Path, folder: Path | None) -> Path:
    """The path of an image file. `BrokenExample` if it does not exist."""
    path = Path(name) if folder is None else folder / name
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        found = False
    if not found:
        raise BrokenExample(f"no such file: {str(name)[:100]}")
    return path
