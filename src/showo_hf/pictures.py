"""Whatever a user gives as a picture, checked and turned into what an image processor takes."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


URL_TIMEOUT = 20.0  # seconds
MAX_PATH = 1024  # characters; a longer text is base64
#: Of a picture that is longer than this many times its shorter side, the middle is kept: processors look at no more.
MAX_ASPECT = 8


def is_token_grid(picture: Any) -> bool:
    """Whether a picture is given as codes, an int64 tensor (h, w)."""
    return isinstance(picture, torch.Tensor) and picture.dtype == torch.int64 and picture.ndim == 2


def flatten_pictures(images: Any) -> list[Any]:
    """
    One picture, a batch as an array or tensor of four dimensions, or (nested) lists of them, to a flat list.
    """
    return list(_flatten(images))


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from _flatten(image)
    elif images is not None:
        yield images


def load_picture(image: Any, name: str = "images", max_aspect: float = MAX_ASPECT) -> Image.Image:
    """
    A picture as RGB.

    Transparency is laid on white, the first frame of an animation is taken, the camera's orientation is applied, and
    grey of 16 bits, or of floats, is scaled to 8 bits. Of a very long picture only the middle is kept.

    Args:
        image: a PIL picture; an array or tensor (H, W, 1, 3 or 4 channels), (channels, H, W) or (H, W), uint8 or floats
            in [0, 1]; a path, a URL, or base64.
        name: the argument that errors name.
        max_aspect: of a picture that is longer than this many times its shorter side, the middle is kept.

    Raises:
        ValueError: if it cannot be read, or an array has another shape or range.
        TypeError: for anything else.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return crop_to_aspect(to_rgb(array_to_picture(image, name)), max_aspect)
    return crop_to_aspect(to_rgb(read_picture(image, name)), max_aspect)


def load_grey(image: Any, name: str) -> Image.Image:
    """A picture as 8-bit grey, what is transparent as black; kinds and errors as in [`load_picture`], without arrays."""
    rgba = read_picture(image, name).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")


def read_picture(image: str | Path | Image.Image, name: str) -> Image.Image:
    """The whole picture, in a mode of 8 bits, the camera's orientation applied; errors as in [`load_picture`]."""
    if not isinstance(image, (str, Path, Image.Image)):
        raise TypeError(
            f"`{name}` must hold PIL pictures, arrays, tensors, paths or URLs, got {type(image).__name__}: {image!r:.80}."
        )
    try:
        picture = open_picture(image)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"`{name}` holds a picture that is too large: {describe(image)}. {error}") from error
    except Exception as error:  # Pillow's plugins, httpx and base64 raise what they like
        reason = "no picture in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(
            f"`{name}` holds a picture that cannot be read: {describe(image)} ({reason:.200})."
        ) from error
    if not (picture.width and picture.height):
        raise ValueError(f"`{name}` holds an empty picture: {describe(image)}.")
    return in_eight_bits(picture, name)


def open_picture(image: str | Path | Image.Image) -> Image.Image:
    """The picture as it is stored, without any conversion. `FileNotFoundError` for a text that names none."""
    if isinstance(image, Image.Image):
        return image
    text = str(image)
    if text.startswith(("http://", "https://")):
        response = httpx.get(text, timeout=URL_TIMEOUT, follow_redirects=True).raise_for_status()
        return Image.open(io.BytesIO(response.content))
    if text.startswith("data:image/") or len(text) > MAX_PATH:
        return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1], validate=True)))
    if os.path.isfile(text):
        with open(text, "rb") as file:
            return Image.open(io.BytesIO(file.read()))
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    except (ValueError, UnidentifiedImageError):
        raise FileNotFoundError("no such file, URL or base64 text") from None


def describe(image: str | Path | Image.Image) -> str:
    """A short name for error messages; of a path its last part alone."""
    if isinstance(image, Image.Image):
        return f"a {image.width}x{image.height} {image.mode} picture"
    text = str(image)
    if len(text) > MAX_PATH or text.startswith("data:"):
        return "a base64 text"
    return f"{text if text.startswith(('http://', 'https://')) else Path(text).name!r:.80}"


def array_to_picture(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """An array of pixels as a picture; see [`load_picture`]."""
    shape, dtype = tuple(array.shape), array.dtype
    values = array.detach().float().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            f"`{name}` as arrays must be (H, W), (H, W, channels) or (channels, H, W) with 1, 3 or 4 channels, "
            f"got shape {shape}."
        )
    if "float" in str(dtype):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"`{name}` as floats must be in [0, 1], got {values.min():.3g} to {values.max():.3g}.")
        values = (values * 255).round()
    elif "uint8" not in str(dtype):
        raise ValueError(f"`{name}` as arrays must be uint8 or floats, got {dtype}.")
    values = values.astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def in_eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits, or of floats up to 1 or to 255, to 8 bits; others as they are. `ValueError` for other floats."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError(
                f"`{name}` must have floats from 0 to 1, or to 255, got {values.min():.3g} to {values.max():.3g}."
            )
        values = values * (255 if values.max() <= 1 else 1)
    else:
        values = values / (257 if values.max() > 255 else 1)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode of 8 bits to RGB, transparency on white."""
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def crop_to_aspect(picture: Image.Image, max_aspect: float = MAX_ASPECT) -> Image.Image:
    """The middle of a picture that is longer than `max_aspect` times its shorter side; others as they are."""
    longest = max_aspect * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    width, height = (min(side, longest) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
