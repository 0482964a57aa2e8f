"""Pictures of unfinished images, confidence maps, and the page's HTML for them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image


GAP = 4  # white pixels between images
MASKED, LINES = (214, 219, 230), (160, 168, 187)  # a masked cell and its border
#: From unlikely to likely: readable in grey too, as its brightness rises all the way (after "viridis").
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)


def with_masked_cells(image: Image.Image, masked: np.ndarray) -> Image.Image:
    """
    Draw the cells that are still masked, with a border, over an image.

    Args:
        image: RGB.
        masked (`np.ndarray` of shape `(h, w)`): bool; its cells cover the image evenly.
    """
    pixels = np.array(image)
    height, width = pixels.shape[0] // masked.shape[0], pixels.shape[1] // masked.shape[1]
    hidden = masked.repeat(height, 0).repeat(width, 1)
    pixels[hidden] = MASKED
    line = max(1, min(height, width) // 8)
    rows, columns = np.indices(hidden.shape)
    pixels[hidden & ((rows % height < line) | (columns % width < line))] = LINES
    return Image.fromarray(pixels)


def confidence_map(shares: np.ndarray, patch: int) -> Image.Image:
    """
    Colour the probability of each token.

    Args:
        shares (`np.ndarray` of shape `(h, w)`): in [0, 1].
        patch (`int`): side of a token in pixels.
    """
    places = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(shares, places, channel) for channel in COLOURS.T], -1)
    return Image.fromarray(colours.round().astype(np.uint8).repeat(patch, 0).repeat(patch, 1))


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Join images of one size in rows of two, with white gaps."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    rows = (len(images) + 1) // 2
    sheet = Image.new("RGB", (2 * width + GAP, rows * height + (rows - 1) * GAP), "white")
    for number, image in enumerate(images):
        sheet.paste(image, ((number % 2) * (width + GAP), (number // 2) * (height + GAP)))
    return sheet


def on_canvas(image: Image.Image, size: tuple[int, int], corner: tuple[int, int], canvas: tuple[int, int]):
    """An image, scaled to `size`, with its upper left `corner` at a place on a plain canvas; all (width, height)."""
    sheet = Image.new("RGB", canvas, MASKED)
    sheet.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return sheet


def to_uri(image: Image.Image) -> str:
    """An image as a `data:` address, small."""
    buffer = io.BytesIO()
    small = max(image.size) <= 256
    image.save(buffer, "WEBP", lossless=small, quality=80 if not small else 60, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(uri: str, alternative: str, extra: str = "") -> str:
    """An `img` element."""
    return f'<img src="{uri}" alt="{html.escape(alternative, quote=True)}" {extra}>'


def stage(
    frames: Mapping[int, tuple[str, str]], confidence: tuple[str, str] | None = None, finished: bool = False
) -> str:
    """
    The HTML of the stage: the newest frame; when all are there, a time line, and the confidence map beside it.

    Args:
        frames: address and text alternative of the image after each step, by the number of the step. Steps may lack, but
            not the last one.
        confidence: address and text alternative of the map.
        finished (`bool`): whether all frames are there.
    """
    if not frames:
        return EMPTY_STAGE
    last = max(frames)
    images = "".join(
        picture(uri, text, f'data-step="{number}"' + " hidden" * (number < last))
        for number, (uri, text) in frames.items()
        if finished or number == last
    )
    figures = f'<figure class="showo-frame"><div class="showo-frames">{images}</div>'
    if finished and len(frames) > 1:
        figures += (
            f'<label class="showo-time">Time line: step <output>{last}</output> of {last}'
            f'<input type="range" min="1" max="{len(frames)}" value="{len(frames)}" '
            f'aria-label="Step of the image, 1 to {last}" aria-valuetext="{last}"></label>'
        )
    figures += "</figure>"
    if confidence:
        figures += (
            f'<figure class="showo-frame">{picture(*confidence)}<figcaption>Confidence: how likely the model finds each '
            "cell, from dark (unlikely) to bright (sure)</figcaption></figure>"
        )
    return f'<div class="showo-stage">{figures}</div>'


EMPTY_STAGE = (
    '<div class="showo-stage showo-empty"><p>Your image appears here, step by step, out of the masked cells.</p></div>'
)

#: Moves through the frames of the stage. The listener stays when the HTML is replaced.
STAGE_SCRIPT = """
element.addEventListener('input', event => {
  if (!event.target.matches('.showo-time input')) return;
  const place = Number(event.target.value);
  const figure = event.target.closest('figure');
  const images = [...figure.querySelectorAll('.showo-frames img')];
  images.forEach((image, index) => { image.hidden = index !== place - 1; });
  const step = images[place - 1].dataset.step;
  figure.querySelector('output').textContent = step;
  event.target.setAttribute('aria-valuetext', step);
});
"""


def status(text: str, kind: str = "") -> str:
    """The HTML of a status line. Screen readers announce it; `kind` is "error" for what went wrong."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="showo-status {kind}" role="{role}">{html.escape(text)}</p>'
