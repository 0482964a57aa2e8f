"""Cut-outs for tests, without fetching packages."""

import zlib

import numpy as np

from recipes.world.objects import LARGE, SMALL, STYLES, CutOut, Objects, other_colours
from recipes.world.recolouring import PALETTE
from recipes.world.words import THINGS


def drawn_objects() -> Objects:
    """All cut-outs as filled squares with a margin: recoloured ones in their colour, others in one of their own."""
    cutouts = [
        CutOut(name, style, colour)
        for name, thing in THINGS.items()
        for style in STYLES
        for colour in (None, *(other_colours({thing.own_colour}) if thing.recoloured else ()))
    ]
    shades = np.array([
        PALETTE[one.colour] if one.colour else tuple(zlib.crc32(f"{one.thing} {one.style}".encode()).to_bytes(4)[:3])
        for one in cutouts
    ], dtype=np.uint8)  # fmt: skip

    def squares(side: int) -> np.ndarray:
        images = np.zeros((len(cutouts), side, side, 4), dtype=np.uint8)
        images[:, 2:-2, 2:-2, :3] = shades[:, None, None]
        images[:, 2:-2, 2:-2, 3] = 255
        return images

    return Objects(cutouts, squares(SMALL), squares(LARGE))
