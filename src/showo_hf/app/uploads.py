"""Images from strangers: read once, with limits, outside of the model's worker."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.images import crop_to_aspect, load_image
from .settings import PNG_KEY, DrawSettings, Refusal


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 16_000_000
MAX_SCANS = 64  # of a progressive JPEG; each one costs as much as a whole picture
MAX_SIDE = 1024  # pixels that the pipelines get
MAX_ASPECT = 2  # of the longer to the shorter side; longer images are cropped to their center, as each part costs time
UNREADABLE = "This file cannot be read as an image."


def open_checked(source: str | Path | bytes, max_bytes: int) -> Image.Image:
    """
    Open an image file of a stranger and decode it. This is the one place where the app decodes an upload.

    Args:
        source: a path, or the bytes of a file.
        max_bytes (`int`): the largest file.

    Raises:
        Refusal: for a file that is too large in bytes or pixels, in no known format, or broken.
    """
    try:
        if not isinstance(source, bytes):
            if os.path.getsize(source) > max_bytes:
                raise Refusal(f"Please use a file of at most {max_bytes / 1e6:.3g} MB.")
            source = Path(source).read_bytes()
        if len(source) > max_bytes:
            raise Refusal(f"Please use a file of at most {max_bytes / 1e6:.3g} MB.")
        image = Image.open(io.BytesIO(source), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Refusal(f"Please use an image of at most {MAX_PIXELS // 10**6} million pixels.")
        if image.format == "JPEG" and source.count(b"\xff\xda") > MAX_SCANS:
            raise Refusal(UNREADABLE)
        image.load()
        return image
    except Refusal:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        raise Refusal(UNREADABLE) from error


def read_upload(source: Any, max_bytes: int, missing: str = "Please choose an image.") -> Image.Image:
    """
    Read an uploaded image as RGB, at most `MAX_SIDE` pixels along each side.

    Raises:
        Refusal: if there is none, or it cannot be read; see [`open_checked`].
    """
    if not source:
        raise Refusal(missing)
    image = open_checked(source, max_bytes)
    try:
        image = load_image(image, max_aspect=MAX_ASPECT)
    except ValueError as error:
        raise Refusal(UNREADABLE) from error
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def read_painting(value: Any, max_bytes: int) -> tuple[Image.Image, Image.Image | None]:
    """
    Read the value of the editor: the image, and the mask of what was painted (None if nothing was).

    Args:
        value: a dict with a file as "background" and a list of files as "layers".

    Returns:
        the image as RGB, and the mask as "L" of the same size, 255 where painted.
    """
    value = value if isinstance(value, dict) else {}
    image = read_upload(value.get("background"), max_bytes)
    whole = open_checked(value["background"], max_bytes).size
    mask = None
    for layer in list(value.get("layers") or [])[:4]:
        if not layer:
            continue
        alpha = open_checked(layer, max_bytes).convert("RGBA").getchannel("A").resize(whole)
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
