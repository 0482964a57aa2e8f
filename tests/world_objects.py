"""Cut-outs for tests, without fetching packages."""

import zlib

import numpy as np

from recipes.world.held_out import DEFAULT_STYLE
from recipes.world.objects import SIDE, STYLES, CutOut, Objects, other_colours
from recipes.world.recolouring import PALETTE
from recipes.world.words import THINGS, Thing


def given_colours(thing: Thing, style: str) -> tuple[str, ...]:
    """The colours that a thing is given in a style."""
    given = thing.recoloured and style == DEFAULT_STYLE
    return other_colours({thing.own_colour, *thing.near_colours}) if given else ()


def drawn_objects() -> Objects:
    """All cut-outs as filled squares with a margin: recoloured ones in their colour, others in one of their own."""
    cutouts = [
        CutOut(name, style, colour)
        for name, thing in THINGS.items()
        for style in STYLES
        for colour in (None, *given_colours(thing, style))
    ]
    shades = np.array([
        PALETTE[one.colour] if one.colour else tuple(zlib.crc32(f"{one.thing} {one.style}".encode()).to_bytes(4)[:3])
        for one in cutouts
    ], dtype=np.uint8)  # fmt: skip

    images = np.zeros((len(cutouts), SIDE, SIDE, 4), dtype=np.uint8)
    images[:, 2:-2, 2:-2, :3] = shades[:, None, None]
    images[:, 2:-2, 2:-2, 3] = 255
    return Objects(cutouts, images)
