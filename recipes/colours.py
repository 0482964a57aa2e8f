"""The main colour of an image. Pure functions on arrays."""

import numpy as np


#: Colour names of pixels. "white" is also the background, so it is never the main colour of an image.
COLOUR_NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
CLEAR_SHARE = 0.55  # smallest share of the main colour among the pixels that are not white
LEAST_PIXELS = 0.02  # smallest share of pixels that are not white for an image to have a main colour

# Upper limits of the hues in degrees. Hues above the last limit are red again.
_HUE_ENDS = (
    (14, "red"),
    (37, "orange"),
    (68, "yellow"),
    (165, "green"),
    (255, "blue"),
    (305, "purple"),
    (336, "pink"),
)


def pixel_colours(image: np.ndarray) -> np.ndarray:
    """The index into [`COLOUR_NAMES`] of every pixel: uint8 (..., 3) to int64 (...)."""
    rgb = image.astype(np.float32) / 255
    value, low = rgb.max(-1), rgb.min(-1)
    spread = value - low
    saturation = spread / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, np.maximum(spread, 1e-6))
    names = np.full(value.shape, COLOUR_NAMES.index("red"))
    start = 0
    for end, name in _HUE_ENDS:
        names[(hue >= start) & (hue < end)] = COLOUR_NAMES.index(name)
        start = end

    def put(mask: np.ndarray, name: str):
        names[mask] = COLOUR_NAMES.index(name)

    put(((hue < 42) | (hue >= 345)) & (value < 0.68) & (saturation > 0.25), "brown")
    put(((hue < 14) | (hue >= 320)) & (saturation < 0.55) & (value > 0.75), "pink")
    put(saturation < 0.18, "grey")
    put((value < 0.25) | ((value < 0.35) & (saturation < 0.4)), "black")
    put((saturation < 0.12) & (value > 0.9), "white")
    return names


def _hue(rgb: np.ndarray, value: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The HSV hue of pixels in [0, 1], in degrees, [0, 360)."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    sector = np.where(
        value == red,
        (green - blue) / spread % 6,
        np.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return sector * 60 % 360


def main_colour(image: np.ndarray) -> str | None:
    """
    The colour of at least 55% of the pixels that are not white; None if there is no such colour.

    Args:
        image: uint8 (H, W, 3).
    """
    counts = np.bincount(pixel_colours(image).reshape(-1), minlength=len(COLOUR_NAMES))[:-1]
    total = counts.sum()
    if total < LEAST_PIXELS * image.shape[0] * image.shape[1] or counts.max() < CLEAR_SHARE * total:
        return None
    return COLOUR_NAMES[int(counts.argmax())]
