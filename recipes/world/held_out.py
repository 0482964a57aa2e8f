"""
Which combinations are never trained: each has a split, "train", "validation" or "test", by the crc32 of its name.

A combination is a pair of things, a thing in a colour other than its own, a number of things, a thing in a style, or
one thing left of or above another. A scene belongs to "train" only if all its combinations do, so a model that was
trained on such scenes has seen every word, but none of these combinations.
"""

import zlib
from collections.abc import Iterable
from typing import NamedTuple


SPLITS = ("train", "validation", "test")
#: Styles that draw most things alike. A thing is held out in all styles of a family at once.
STYLE_FAMILIES = {"flat": "flat", "fluent": "fluent", "3d": "fluent", "noto": "noto"}

#: What people get who name no style. No thing is held out in it.
DEFAULT_STYLE = "flat"
# Of `_PARTS` equal parts of each kind's combinations, so many are validation, and so many are test.
_PARTS = 20
_HELD_OUT = {"pair": 1, "colour": 2, "count": 2, "left": 1, "above": 1, "style": 1}


class Combination(NamedTuple):
    """
    What is put together.

    Args:
        kind: "pair", "colour", "count", "left" (the first thing is left of the second), "above" or "style".
        first: the name of a thing.
        second: the name of another thing, a colour, a number, or a family of styles.
    """

    kind: str
    first: str
    second: str

    @property
    def split(self) -> str:
        """ "train", "validation" or "test"; "train" for every thing in the default style."""
        if self.kind == "style" and self.second == DEFAULT_STYLE:
            return "train"
        place = zlib.crc32("|".join(self).encode()) % _PARTS
        held_out = _HELD_OUT[self.kind]
        return "test" if place < held_out else "validation" if place < 2 * held_out else "train"


def pair(one: str, other: str) -> Combination:
    """Two different things, in any order."""
    first, second = sorted((one, other))
    return Combination("pair", first, second)


def coloured(thing: str, colour: str) -> Combination:
    """A thing in a colour other than its own."""
    return Combination("colour", thing, colour)


def counted(thing: str, number: int) -> Combination:
    """Two or more of a thing."""
    return Combination("count", thing, str(number))


def styled(thing: str, style: str) -> Combination:
    """A thing in a style, and in the styles that are like it."""
    return Combination("style", thing, STYLE_FAMILIES[style])


def left_of(one: str, other: str) -> Combination:
    """One thing left of another. The other one is then right of it."""
    return Combination("left", one, other)


def above(one: str, other: str) -> Combination:
    """One thing above another. The other one is then below it."""
    return Combination("above", one, other)


def split_of(combinations: Iterable[Combination]) -> str:
    """The split of all combinations together: "test" if one is in it, else "validation" if one is, else "train"."""
    found = {one.split for one in combinations}
    return next((split for split in ("test", "validation") if split in found), "train")


def trained(combinations: Iterable[Combination]) -> bool:
    """Whether training may show or name all these combinations."""
    return split_of(combinations) == "train"
