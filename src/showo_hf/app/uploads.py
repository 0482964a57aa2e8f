"""Images from strangers: read once, by the package's checked reader, outside of the model's worker."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_reader import MAX_PIXELS, TooManyPixels, read_image_content
from ..processing.images import crop_to_aspect, load_grey, load_image
from ..utils.validation import check_same_aspect
from .settings import PNG_KEY, DrawSettings, Refusal


MAX_SIDE = 1024  # pixels that the pipelines get
MAX_ASPECT = 2  # of the longer to the shorter side; longer images are cropped to their center, as each part costs time
UNREADABLE = "This file cannot be read as an image."


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what a file of a stranger raises into a `Refusal`, which shows nothing of the machine."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        if isinstance(error, TooManyPixels) or isinstance(error.__cause__, TooManyPixels):
            raise Refusal(f"Please use an image of at most {MAX_PIXELS // 10**6} million pixels.") from error
        raise Refusal(UNREADABLE) from error


def content_of(source: str | Path | bytes, max_bytes: int) -> bytes:
    """The bytes of a file. Raises `Refusal` if they are more than `max_bytes`, before they are read."""
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if size > max_bytes:
        raise Refusal(f"Please use a file of at most {max_bytes / 1e6:.3g} MB.")
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def open_checked(source: str | Path | bytes, max_bytes: int) -> Image.Image:
    """
    Decode an image file of a stranger, in the mode of the file.

    Args:
        source: a path, or the bytes of a file.
        max_bytes (`int`): the largest file.

    Raises:
        Refusal: for a file that is too large in bytes or pixels, in no known format, or broken; see
            `processing.image_reader.read_image_content`.
    """
    with sentences():
        return read_image_content(content_of(source, max_bytes))


def open_rgb(source: str | Path | bytes, max_bytes: int, missing: str = "Please choose an image.") -> Image.Image:
    """
    Decode an image file of a stranger as RGB.

    Raises:
        Refusal: with `missing` if there is none; else as [`open_checked`].
    """
    if not source:
        raise Refusal(missing)
    with sentences():
        return load_image(content_of(source, max_bytes), max_aspect=math.inf)


def for_pipelines(image: Image.Image) -> Image.Image:
    """An image, cropped to its center if it is long, with at most `MAX_SIDE` pixels along each side."""
    image = crop_to_aspect(image, MAX_ASPECT)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def read_upload(source: Any, max_bytes: int, missing: str = "Please choose an image.") -> Image.Image:
    """
    Read an uploaded image as RGB, at most `MAX_SIDE` pixels along each side.

    Raises:
        Refusal: if there is none, or it cannot be read; see [`open_checked`].
    """
    return for_pipelines(open_rgb(source, max_bytes, missing))


def read_masked(image: Any, mask: Any, max_bytes: int) -> tuple[Image.Image, Image.Image]:
    """
    Read an uploaded image and its mask. The mask is cropped with the image, so that it marks the same place.

    Returns:
        the image as RGB, and the mask as "L" of the same size, white where the image changes.

    Raises:
        Refusal: if one is missing or cannot be read, or if their aspect ratios differ.
    """
    whole = open_rgb(image, max_bytes)
    if not mask:
        raise Refusal("Please send a mask.")
    with sentences():
        marked = load_grey(content_of(mask, max_bytes), "mask")
    try:
        check_same_aspect("mask", marked.size[::-1], whole.size[::-1])
    except ValueError:
        pixels = [f"{one.width} x {one.height} pixels" for one in (whole, marked)]
        raise Refusal(
            f"The mask must have the shape of the image: that has {pixels[0]}, and the mask {pixels[1]}."
        ) from None
    picture = for_pipelines(whole)
    return picture, crop_to_aspect(marked, MAX_ASPECT).resize(picture.size)


def read_painting(value: Any, max_bytes: int) -> tuple[Image.Image, Image.Image | None]:
    """
    Read the value of the editor: the image, and the mask of what was painted (None if nothing was).

    Args:
        value: a dict with a file as "background" and a list of files as "layers".

    Returns:
        the image as RGB, and the mask as "L" of the same size, 255 where painted.
    """
    value = value if isinstance(value, dict) else {}
    background: Any = value.get("background")
    whole = open_rgb(background, max_bytes)
    size, image = whole.size, for_pipelines(whole)
    mask = None
    for layer in list(value.get("layers") or [])[:4]:
        if not layer:
            continue
        alpha = open_checked(layer, max_bytes).convert("RGBA").getchannel("A").resize(size)
        painted = crop_to_aspect(alpha, MAX_ASPECT).resize(image.size)
        painted = painted.point([0] * 64 + [255] * 192)
        mask = painted if mask is None else Image.composite(painted, mask, painted)
    return image, mask if mask is not None and mask.getbbox() else None


def read_settings(source: Any, max_bytes: int) -> DrawSettings:
    """
    Read the settings that [`with_settings`] put into a PNG.

    Raises:
        Refusal: if the file is no image of this app.
    """
    if not source:
        raise Refusal("Please choose an image.")
    text = open_checked(source, max_bytes).info.get(PNG_KEY)
    if not isinstance(text, str):
        raise Refusal("This image holds no settings of this app.")
    return DrawSettings.from_json(text)


def with_settings(image: Image.Image, settings: DrawSettings) -> Image.Image:
    """A copy of an image whose PNG will hold its settings."""
    image = image.copy()
    image.info = {PNG_KEY: settings.to_json()}
    return image
