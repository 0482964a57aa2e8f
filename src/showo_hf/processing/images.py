"""Whatever a user gives as an image, checked and turned into what an image processor takes."""

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
#: Of an image that is longer than this many times its shorter side, the middle is kept: processors look at no more.
MAX_ASPECT = 8


def is_token_grid(image: Any) -> bool:
    """Whether an image is given as codes, an int64 tensor (h, w)."""
    return isinstance(image, torch.Tensor) and image.dtype == torch.int64 and image.ndim == 2


def flatten_images(images: Any) -> list[Any]:
    """
    One image, a batch as an array or tensor of four dimensions, or (nested) lists of them, to a flat list.
    """
    return list(_flatten(images))


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from _flatten(image)
    elif images is not None:
        yield images


def load_image(image: Any, name: str = "images", max_aspect: float = MAX_ASPECT) -> Image.Image:
    """
    An image as RGB.

    Transparency is laid on white, the first frame of an animation is taken, the camera's orientation is applied, and
    grey of 16 bits, or of floats, is scaled to 8 bits. Of a very long image only the middle is kept.

    Args:
        image: a PIL image; an array or tensor (H, W, 1, 3 or 4 channels), (channels, H, W) or (H, W), uint8 or floats
            in [0, 1]; a path, a URL, or base64.
        name: the argument that errors name.
        max_aspect: of an image that is longer than this many times its shorter side, the middle is kept.

    Raises:
        ValueError: if it cannot be read, or an array has another shape or range.
        TypeError: for anything else.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return crop_to_aspect(to_rgb(array_to_image(image, name)), max_aspect)
    return crop_to_aspect(to_rgb(read_image(image, name)), max_aspect)


def load_grey(image: Any, name: str) -> Image.Image:
    """An image as 8-bit grey, what is transparent as black; kinds and errors as in [`load_image`], without arrays."""
    rgba = read_image(image, name).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")


def read_image(image: str | Path | Image.Image, name: str) -> Image.Image:
    """The whole image, in a mode of 8 bits, the camera's orientation applied; errors as in [`load_image`]."""
    if not isinstance(image, (str, Path, Image.Image)):
        raise TypeError(
            f"`{name}` must hold PIL images, arrays, tensors, paths or URLs, got {type(image).__name__}: {image!r:.80}."
        )
    try:
        pil_image = open_image(image)
        pil_image.load()
        pil_image = ImageOps.exif_transpose(pil_image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"`{name}` holds an image that is too large: {describe(image)}. {error}") from error
    except Exception as error:  # Pillow's plugins, httpx and base64 raise what they like
        reason = "no image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"`{name}` holds an image that cannot be read: {describe(image)} ({reason:.200}).") from error
    if not (pil_image.width and pil_image.height):
        raise ValueError(f"`{name}` holds an empty image: {describe(image)}.")
    return in_eight_bits(pil_image, name)


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """The image as it is stored, without any conversion. `FileNotFoundError` for a text that names none."""
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
        return f"a {image.width}x{image.height} {image.mode} image"
    text = str(image)
    if len(text) > MAX_PATH or text.startswith("data:"):
        return "a base64 text"
    return f"{text if text.startswith(('http://', 'https://')) else Path(text).name!r:.80}"


def array_to_image(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """An array of pixels as an image; see [`load_image`]."""
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


def in_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits, or of floats up to 1 or to 255, to 8 bits; others as they are. `ValueError` for other floats."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError(
                f"`{name}` must have floats from 0 to 1, or to 255, got {values.min():.3g} to {values.max():.3g}."
            )
        values = values * (255 if values.max() <= 1 else 1)
    else:
        values = values / (257 if values.max() > 255 else 1)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of 8 bits to RGB, transparency on white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def crop_to_aspect(image: Image.Image, max_aspect: float = MAX_ASPECT) -> Image.Image:
    """The middle of an image that is longer than `max_aspect` times its shorter side; others as they are."""
    longest = max_aspect * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
