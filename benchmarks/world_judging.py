"""When an image is right: every point that the words name counts, or fewer, as GenEval counts. Used by benchmarks.world."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from benchmarks.world_detector import Detector, detect

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import CELL, background_image
from recipes.world.phrases import RELATIONS, content, groups_of, named
from recipes.world.scenes import BACKGROUNDS, CELLS, THING_CELLS, Item, Scene, place, relation


Pairs = frozenset[frozenset[str]]
#: What can be wrong in an image. "colours" are the named ones; a thing without one must have its own colours.
POINTS = ("things", "colours", "own colours", "sides", "place", "style", "background")
#: The points that count "as GenEval" (arXiv:2310.11513).
GENEVAL = frozenset({"things", "colours", "sides"})
NEAR = 1  # a thing may be found so many cells beside its place


@dataclass(frozen=True)
class Seen:
    """
    What the judge finds in an image.

    Args:
        things: its items, each with its style.
        background: one of `BACKGROUNDS`.
    """

    things: tuple[tuple[Item, str], ...]
    background: str

    @property
    def items(self) -> list[Item]:
        """The items without their styles."""
        return [item for item, _ in self.things]

    @property
    def words(self) -> list[str]:
        """What is found, for a reader."""
        said = [f"{item.colour or 'own'} {item.thing} {item.column},{item.row} {style}" for item, style in self.things]
        return [*said, f"background {self.background}"]


@dataclass(frozen=True)
class Wish:
    """
    What words ask for: things, numbers, colours, style and background of a scene, and what they say of its places.

    Words that name no style mean flat, those that name no background mean white, and those that name no place of a lone
    thing mean the middle, because training captions do. So style and background always count.

    Args:
        scene: the scene.
        related: the pairs of things whose sides are said, or were shown.
        placed: whether the place of a lone thing is said, meant or shown.
    """

    scene: Scene
    related: Pairs = frozenset()
    placed: bool = False

    @property
    def places_are_known(self) -> bool:
        """Whether questions about places have one right answer."""
        things = list(self.scene.counts)
        if len(things) == 1:
            return len(self.scene.items) > 1 or self.placed
        return all(frozenset({one, other}) in self.related for one in things for other in things if one != other)


def stated(scene: Scene) -> Pairs:
    """The pairs of things whose sides the canonical words say."""
    words, groups = content(scene), groups_of(scene)
    for group in groups:
        if any(words.startswith(f"{named(group)} {phrases[0]} ") for phrases in RELATIONS.values()):
            return frozenset(frozenset({group.thing, other.thing}) for other in groups if other is not group)
    return frozenset()


def described(scene: Scene) -> Wish:
    """What the canonical words of a scene ask for."""
    return Wish(scene, stated(scene), placed=len(scene.items) == 1 and place(scene.items[0]) is not None)


def shown(scene: Scene) -> Wish:
    """What is known of a scene whose image was shown: everything."""
    things = list(scene.counts)
    pairs = frozenset(frozenset({one, other}) for one in things for other in things if one != other)
    clear = frozenset(pair for pair in pairs if None not in sides(scene.items, pair))
    return Wish(scene, clear, placed=True)


def changed(wish: Wish, kind: str, scene: Scene) -> Wish:
    """
    What is asked for after a change. What was said of places before it still holds for what stays.

    Args:
        wish: what was asked for, or shown, before.
        kind: a key of `recipes.world.changes.KINDS_OF_CHANGE`.
        scene: the scene after the change.
    """
    if kind == "add":
        return Wish(scene, stated(scene))
    if kind == "add_another":
        return Wish(scene)
    names = {}
    if kind == "replace":
        names = {old.thing: new.thing for old, new in zip(wish.scene.items, scene.items, strict=True)}
    pairs = [frozenset(names.get(thing, thing) for thing in pair) for pair in wish.related]
    return Wish(scene, frozenset(pair for pair in pairs if pair <= set(scene.counts)), wish.placed)


def sides(items: Sequence[Item], pair: frozenset[str]) -> set[str | None]:
    """Where the items of one of two things (the first by name) are, seen from those of the other."""
    one, other = sorted(pair)
    return {relation(a, b) for a in items if a.thing == one for b in items if b.thing == other}


# The background


@cache
def _backgrounds() -> torch.Tensor:
    return to_pixel_values(np.stack([background_image(name) for name in BACKGROUNDS]))


def background_of(pixel_values: torch.Tensor, items: Sequence[Item]) -> str:
    """
    The background that is nearest in the cells that no item covers, or in all cells if none is left.

    Args:
        pixel_values: an image (3, 96, 96) in [-1, 1].
        items: what is found in it.
    """
    free = torch.ones(CELLS, CELLS, dtype=torch.bool)
    for item in items:
        rows, columns = (slice(max(first, 0), first + THING_CELLS) for first in (item.row, item.column))
        free[rows, columns] = False
    if not free.any():
        free[:] = True
    distance = (_backgrounds() - pixel_values).abs().reshape(-1, 3, CELLS, CELL, CELLS, CELL).mean((1, 3, 5))
    return BACKGROUNDS[int(distance[:, free].mean(1).argmin())]


def look(detector: Detector, pixel_values: torch.Tensor) -> list[Seen]:
    """What the judge finds in images (batch, 3, 96, 96) in [-1, 1]."""
    return [
        Seen(tuple(found), background_of(image, [item for item, _ in found]))
        for image, found in zip(pixel_values, detect(detector, pixel_values), strict=True)
    ]


def exactly(scene: Scene) -> Seen:
    """What a perfect judge finds in the image of a scene."""
    return Seen(tuple((item, scene.style) for item in scene.items), scene.background)


# Right and wrong


def faults(wish: Wish, seen: Seen) -> set[str]:
    """
    The `POINTS` that are wrong in an image; none if it is right.

    Colours, sides and place are only compared if the things are right.

    Args:
        wish: what is asked for.
        seen: what is found.
    """
    scene, items, found = wish.scene, seen.items, set()
    if seen.background != scene.background:
        found.add("background")
    if any(style != scene.style for _, style in seen.things):
        found.add("style")
    if Counter(item.thing for item in items) != Counter(scene.counts):
        return found | {"things"}
    for item in items:
        wanted = scene.item(item.thing)
        if item.seen_colour != wanted.seen_colour:
            found.add("colours" if wanted.colour else "own colours")
    if any(sides(items, pair) != sides(scene.items, pair) for pair in wish.related):
        found.add("sides")
    if len(items) == 1 and wish.placed and not (in_place(items[0], scene.items[0]) or near(items[0], scene.items[0])):
        found.add("place")
    return found


def in_place(item: Item, wanted: Item) -> bool:
    """Whether a thing stands where words say that another one stands."""
    return place(wanted) is None or place(item) == place(wanted)


def near(item: Item, wanted: Item) -> bool:
    """Whether a thing is found where another one stands, or `NEAR` it."""
    return max(abs(item.row - wanted.row), abs(item.column - wanted.column)) <= NEAR


def scores(wishes: Sequence[Wish], seen: Sequence[Seen]) -> dict[str, Any]:
    """
    The shares of right images ("right") and of images that GenEval would count ("as_geneval"), of things in the right
    style and of right backgrounds; and for each of the `POINTS` the share of the images in which it is wrong.
    """
    found, count = [faults(wish, one) for wish, one in zip(wishes, seen, strict=True)], len(wishes)
    return {
        "right": sum(not one for one in found) / count,
        "as_geneval": sum(not one & GENEVAL for one in found) / count,
        "style": sum(map(in_style, wishes, seen)) / count,
        "background": sum("background" not in one for one in found) / count,
        "wrong_points": {point: sum(point in one for one in found) / count for point in POINTS},
    }


def in_style(wish: Wish, seen: Seen) -> float:
    """The share of the found things that are drawn in the right style; 0 if nothing was found."""
    return sum(style == wish.scene.style for _, style in seen.things) / len(seen.things) if seen.things else 0.0


def standard_error(right: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    r"""
    The standard error of a share whose values are alike within clusters; None for a single cluster.

    \( \sqrt{\frac{G}{G-1} \sum_g (\sum_{i \in g} (y_i - \bar y))^2} / n \) for G clusters (Cameron and Miller,
    "A practitioner's guide to cluster-robust inference", 2015).

    Args:
        right: the values.
        clusters: the cluster of each value.
    """
    mean, sums = sum(right) / len(right), Counter[Hashable]()
    for value, cluster in zip(right, clusters, strict=True):
        sums[cluster] += value - mean
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(one**2 for one in sums.values())) / len(right)
