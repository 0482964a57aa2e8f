"""Input images of every kind: paths, bytes, URLs, base64, PIL images, arrays and tensors, loaded as PIL images."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..utils.validation import check_count, is_number, shown
from .image_reader import (
    MAX_PIXELS,
    TooLarge,
    check_file_size,
    max_file_size,
    read_image_content,
    read_image_file,
)


URL_TIMEOUT = 20.0  # seconds
MAX_PATH = 1024  # characters; longer strings are base64
#: Images with a greater ratio of the longer to the shorter side are cropped to it. It bounds the memory for resizing, as
#: image processors only use the center of an image.
MAX_ASPECT = 8
LARGER = (
    "To read a larger file, pass what `showo_hf.load_image(file, max_pixels=...)` gives, or, for a file that you trust, "
    "`PIL.Image.open(file)`."
)


def is_token_grid(image: Any) -> bool:
    """Whether `image` is a grid of image tokens: an int64 tensor of shape (h, w)."""
    return isinstance(image, torch.Tensor) and image.dtype == torch.int64 and image.ndim == 2


def flatten_images(images: Any) -> list[Any]:
    """A flat list of images from one image, a batch (a 4D array or tensor), or (nested) lists of them."""
    return list(_flatten(images))


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from _flatten(image)
    elif images is not None:
        yield images


def load_image(
    image: Any, name: str = "image", max_aspect: float = MAX_ASPECT, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """
    Load an image as RGB.

    Applies the EXIF orientation, puts transparent images on a white background, takes the first frame of an animation,
    and scales 16-bit and float grayscale to 8 bits.

    Args:
        image: a PIL image; an array or tensor of shape (H, W), (H, W, channels) or (channels, H, W) with 1, 3 or 4
            channels, uint8 or floats in [0, 1]; the bytes of an image file, a path, a URL, or a base64 string.
        name: the argument name for error messages.
        max_aspect: maximum ratio of the longer to the shorter side. Longer images are cropped to their center.
        max_pixels: files with more pixels are refused before they are decoded. The pipelines and the processor read
            files with the default. For a larger one, give them the result of this function with a higher limit. A PIL
            image may have any size, so `PIL.Image.open` also opens a large file that you trust.

    Raises:
        ValueError: if the image cannot be read, or is larger than `max_pixels`, see
            [`image_reader.read_image_content`]; if an array has a wrong shape, dtype or range; or if `max_pixels` is no
            positive integer or `max_aspect` no number of at least 1.
        TypeError: for other types.
    """
    check_count("max_pixels", max_pixels)
    if not is_number(max_aspect) or not max_aspect >= 1:  # infinity is one, and NaN is not
        raise ValueError(f"`max_aspect` must be a number of at least 1, got {shown(max_aspect)}.")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return crop_to_aspect(to_rgb(array_to_image(image, name)), max_aspect)
    return crop_to_aspect(to_rgb(read_image(image, name, max_pixels)), max_aspect)


def load_grey(image: Any, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Load an image as 8-bit grayscale, with transparent pixels on black.

    Accepts and raises the same as [`load_image`], except for arrays and tensors.
    """
    check_count("max_pixels", max_pixels)
    rgba = read_image(image, name, max_pixels).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")


def read_image(image: str | Path | bytes | Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Load an image completely, with its EXIF orientation applied, in an 8-bit mode. Raises as [`load_image`]."""
    if not isinstance(image, (str, Path, bytes, Image.Image)):
        raise TypeError(
            f"`{name}` must hold PIL images, arrays, tensors, paths or URLs, got {type(image).__name__}: {shown(image)}."
        )
    try:
        if isinstance(image, Image.Image):
            image.load()
            loaded = ImageOps.exif_transpose(image)
        else:
            loaded = open_image(image, max_pixels)
    except Exception as error:  # Pillow's plugins, httpx and base64 raise many types
        reason = "not in a known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        problem = ValueError(f"`{name}` holds an image that cannot be read: {describe(image)} ({reason:.200}).")
        if isinstance(error, TooLarge):  # a note stands in the traceback; commands name their option instead
            problem.add_note(LARGER)
        raise problem from error
    if not (loaded.width and loaded.height):
        raise ValueError(f"`{name}` holds an empty image: {describe(image)}.")
    return in_eight_bits(loaded, name)


def open_image(image: str | Path | bytes, max_pixels: int) -> Image.Image:
    """Read a path, URL, base64 string or file content. `FileNotFoundError` for a string that is none of them."""
    if isinstance(image, bytes):
        return read_image_content(image, max_pixels)
    text = str(image)
    if text.startswith(("http://", "https://")):
        return read_image_content(download(text, max_file_size(max_pixels)), max_pixels)
    if text.startswith("data:image/") or len(text) > MAX_PATH:
        check_file_size(len(text) * 3 // 4, max_pixels)
        return read_image_content(base64.b64decode(text.split(",", 1)[-1], validate=True), max_pixels)
    if os.path.isfile(text):
        return read_image_file(text, max_pixels)
    try:
        return read_image_content(base64.b64decode(text, validate=True), max_pixels)
    except (ValueError, UnidentifiedImageError):
        raise FileNotFoundError("no such file, URL or base64 string") from None


def download(url: str, max_bytes: int) -> bytes:
    """The content of a URL. `ValueError` if it is larger than `max_bytes` or takes longer than `URL_TIMEOUT`."""
    end = time.monotonic() + URL_TIMEOUT
    content = bytearray()
    # Without compression of the transfer: a small part of it could unpack to any size.
    headers = {"Accept-Encoding": "identity"}
    with httpx.stream("GET", url, timeout=URL_TIMEOUT, follow_redirects=True, headers=headers) as response:
        response.raise_for_status()
        for part in response.iter_raw():
            content += part
            if len(content) > max_bytes:
                raise TooLarge(f"it has more than the {max_bytes:,} bytes that are read")
            if time.monotonic() > end:
                raise ValueError(f"it takes longer than {URL_TIMEOUT:g} s")
    return bytes(content)


def describe(image: str | Path | bytes | Image.Image) -> str:
    """A short description for error messages. It shows only the file name of a path."""
    if isinstance(image, bytes):
        return f"a file of {len(image):,} bytes"
    if isinstance(image, Image.Image):
        return f"a {image.width}x{image.height} {image.mode} image"
    text = str(image)
    if len(text) > MAX_PATH or text.startswith("data:"):
        return "a base64 string"
    return f"{text if text.startswith(('http://', 'https://')) else Path(text).name!r:.80}"


def array_to_image(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """Convert an array or tensor of pixels to a PIL image; see [`load_image`] for shapes, dtypes and errors."""
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
    """
    Convert 16-bit and float grayscale to 8 bits. Other modes are unchanged.

    Floats are in [0, 1] or [0, 255]. `ValueError` for other floats. Images of 32-bit integers (mode "I") hold 16 bits if
    a value exceeds 255, and else 8 bits. The transparent value of a PNG file becomes an alpha channel.
    """
    if image.mode == "F":
        values = np.array(image)  # float32
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError(
                f"`{name}` must have floats from 0 to 1, or to 255, got {values.min():.3g} to {values.max():.3g}."
            )
        if values.max() <= 1:
            values *= 255
        return Image.fromarray(values.round().astype(np.uint8))
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        scale = 257 if image.mode != "I" or deep.max() > 255 else 1
        table = (np.arange(2**16) / scale).clip(0, 255).round().astype(np.uint8)
        grey = Image.fromarray(table[deep.clip(0, 2**16 - 1)])
        clear = image.info.get("transparency")
        if not isinstance(clear, int):
            return grey
        # In 8 bits, other values could be equal to the transparent one.
        alpha = Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to RGB, with transparent images on white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def crop_to_aspect(image: Image.Image, max_aspect: float = MAX_ASPECT) -> Image.Image:
    """Crop an image to its center if its longer side exceeds `max_aspect` times the shorter. Others are unchanged."""
    longest = max_aspect * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(side, int(longest)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
