"""Giving a thing another colour: its main colour is replaced, its shading, outlines and details stay."""

import numpy as np

from recipes.colours import COLOUR_NAMES, pixel_colours


#: The colours that things can be given, sRGB.
PALETTE = {
    "red": (222, 40, 48),
    "orange": (247, 140, 30),
    "yellow": (255, 205, 40),
    "green": (60, 165, 70),
    "blue": (45, 115, 225),
    "purple": (135, 75, 190),
    "pink": (250, 130, 185),
}
#: How many other colours a thing gets at most.
OTHER_COLOURS = 6
_COLOURFUL = 0.4  # a thing is white or black if less of it has a colour
_BRIGHT = 0.3  # the share of white that the brightest pixels of a new colour get


def main_shade(rgba: np.ndarray) -> np.ndarray:
    """
    The shade that covers most of a cut-out: the mean of the largest cluster of its opaque pixels, float (3,) in 0..255.

    White and black pixels count only where there is nothing else, because they are outlines and details more often.

    Args:
        rgba: uint8 (H, W, 4).
    """
    opaque = rgba[..., :3][rgba[..., 3] > 200]
    names = pixel_colours(opaque)
    colourful = ~np.isin(names, [COLOUR_NAMES.index("white"), COLOUR_NAMES.index("black")])
    if colourful.mean() > _COLOURFUL:
        opaque, names = opaque[colourful], names[colourful]
    most = np.bincount(names).argmax()
    return opaque[names == most].astype(np.float64).mean(0)


def recoloured(rgba: np.ndarray, shade: np.ndarray, colour: str) -> np.ndarray:
    """
    A cut-out whose pixels of the hue of `shade` have the colour `colour`, uint8 (H, W, 4).

    The new pixel is the palette's colour, darker or mixed with white by as much as the old pixel was darker or brighter
    than `shade`. A pixel whose hue is far from that of `shade` stays, and between them there is a smooth transition.

    Args:
        rgba: uint8 (H, W, 4).
        shade: the cut-out's main shade, from [`main_shade`].
        colour: a name in [`PALETTE`].

    Raises:
        ValueError: for an unknown colour.
    """
    if colour not in PALETTE:
        raise ValueError(f"`colour` must be one of {', '.join(PALETTE)}, got {colour!r}")
    rgb = rgba[..., :3].astype(np.float64)
    weight = _belonging(rgb, shade)[..., None]
    ratio = (_luma(rgb) / max(_luma(shade), 1.0))[..., None]
    target = np.array(PALETTE[colour], dtype=np.float64)
    darker = target * np.minimum(ratio, 1.0)
    painted = darker + (255 - darker) * np.clip(ratio - 1.0, 0.0, 1.0) * _BRIGHT
    result = rgba.copy()
    result[..., :3] = np.clip(rgb + (painted - rgb) * weight, 0, 255).round()
    return result


def _luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def _belonging(rgb: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """How much each pixel (..., 3) has the hue of `shade`, in [0, 1]."""
    # Chroma divided by brightness does not change with shading, so a shadow of the same paint has distance 0.
    distance = np.linalg.norm(_relative_chroma(rgb) - _relative_chroma(shade), axis=-1)
    near = 0.14 + 0.3 * np.linalg.norm(_relative_chroma(shade))
    weight = np.clip((2 * near - distance) / near, 0.0, 1.0)
    bright = rgb.max(-1)
    dark = np.clip((bright - 25) / 35, 0.0, 1.0)  # black outlines stay
    grey = np.linalg.norm(_relative_chroma(shade)) < 0.12
    white = np.clip((250 - rgb.min(-1)) / 25, 0.0, 1.0) if grey and shade.mean() < 215 else 1.0
    return weight * dark * white


def _relative_chroma(rgb: np.ndarray) -> np.ndarray:
    mean = rgb.mean(-1, keepdims=True)
    return (rgb - mean) / (mean + 40.0)
