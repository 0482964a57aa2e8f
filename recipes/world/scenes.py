"""
Scenes of the small world: what stands where, in which colour and style, on which background.

A scene is a description from which its image, captions and questions follow. Things stand on the grid of 12 x 12 cells
of 8 pixels that an image tokenizer with 8x downsampling sees, so that a thing has the same tokens wherever it stands.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from recipes.world.held_out import Combination, above, coloured, counted, left_of, pair, split_of, styled
from recipes.world.words import THINGS


CELLS = 12  # cells in a row and in a column of an image
THING_CELLS = 5  # cells that a thing takes in each direction
PLAIN_BACKGROUNDS = ("white", "yellow", "blue", "pink")
SCENERY = ("grass", "sea", "night")
BACKGROUNDS = PLAIN_BACKGROUNDS + SCENERY

_APART = 5  # cells between two things that are left and right, or above and below
_LEVEL = 4  # fewer cells than this in the other direction, and for above and below no more


@dataclass(frozen=True)
class Item:
    """
    One thing in a scene.

    Args:
        thing: a name in `THINGS`.
        colour: a colour other than its own, or None.
        column, row: the cell of its upper left corner, from 0.
    """

    thing: str
    colour: str | None
    column: int
    row: int

    @property
    def seen_colour(self) -> str | None:
        """The colour it has, given or its own; None if it has no clear one."""
        return self.colour or THINGS[self.thing].own_colour

    def moved(self, column: int, row: int) -> "Item":
        """The same thing somewhere else."""
        return dataclasses.replace(self, column=column, row=row)


@dataclass(frozen=True)
class Scene:
    """
    A scene. Items of one thing have one colour.

    Args:
        items: one to four things, which do not overlap.
        style: "flat", "fluent", "noto" or "3d".
        background: one of `BACKGROUNDS`.
    """

    items: tuple[Item, ...]
    style: str
    background: str = "white"

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many there are of each thing, in the order of the items."""
        return dict(Counter(item.thing for item in self.items))

    @cached_property
    def combinations(self) -> frozenset[Combination]:
        """All that is put together here."""
        found: set[Combination] = set()
        things = list(self.counts)
        for item in self.items:
            found.add(styled(item.thing, self.style))
            if item.colour is not None:
                found.add(coloured(item.thing, item.colour))
        found |= {counted(thing, number) for thing, number in self.counts.items() if number > 1}
        found |= {pair(one, other) for at, one in enumerate(things) for other in things[at + 1 :]}
        for one in self.items:
            for other in self.items:
                placed = relation(one, other)
                if one.thing != other.thing and placed in ("left", "above"):
                    found.add((left_of if placed == "left" else above)(one.thing, other.thing))
        return frozenset(found)

    @property
    def split(self) -> str:
        """ "train", "validation" or "test"."""
        return split_of(self.combinations)

    def item(self, thing: str) -> Item:
        """The first item that is this thing."""
        return next(item for item in self.items if item.thing == thing)


def relation(one: Item, other: Item) -> str | None:
    """Where `one` is, seen from `other`: "left", "right", "above", "below"; None if it is not clear."""
    across, down = other.column - one.column, other.row - one.row
    if abs(across) >= _APART and abs(down) < _LEVEL:
        return "left" if across > 0 else "right"
    if abs(down) >= _APART and abs(across) <= _LEVEL:
        return "above" if down > 0 else "below"
    return None


def place(item: Item) -> str | None:
    """Where an item stands in the image: "left", "top right", ...; "middle"; None if it is not clear."""
    end = CELLS - THING_CELLS
    across = "left" if item.column <= 1 else "right" if item.column >= end - 1 else ""
    down = "top" if item.row <= 1 else "bottom" if item.row >= end - 1 else ""
    if not across and not 3 <= item.column <= 4 or not down and not 3 <= item.row <= 4:
        return None
    return f"{down} {across}".strip() or "middle"
