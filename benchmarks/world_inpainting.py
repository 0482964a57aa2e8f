"""Inpainting on the small world: one of two things is painted over with another. Used by benchmarks.world."""

import dataclasses
import random
from collections.abc import Callable

import torch
from benchmarks.world_prompts import Found, prompt_text

from recipes.world.objects import Objects
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import SMALL_CELLS, Item, Scene


CELL = 8  # pixels
NEAR = 1  # a thing may be found so many cells beside its place


@dataclasses.dataclass(frozen=True)
class Replacement:
    """
    One thing of a scene becomes another.

    Args:
        before: the scene that is shown.
        after: the scene that is asked for. It differs in one item, which stands at the same place.
        changed: the number of this item.
    """

    before: Scene
    after: Scene
    changed: int

    @property
    def text(self) -> str:
        """The prompt: it describes the finished image."""
        return prompt_text(self.after, "position")

    def mask(self) -> torch.Tensor:
        """The mask (96, 96), 1 over the cells of the thing that goes and 0 elsewhere."""
        item, mask = self.before.items[self.changed], torch.zeros(96, 96)
        rows, columns = (slice(CELL * first, CELL * (first + SMALL_CELLS)) for first in (item.row, item.column))
        mask[rows, columns] = 1
        return mask


def draw_replacements(objects: Objects, split: str, count: int, seed: int = 0) -> list[Replacement]:
    """`count` replacements that lead to scenes of two things with an unseen relation, or to trained ones ("train")."""
    maker = SceneMaker(objects, random.Random(f"replacements {seed} {split}"))
    found: list[Replacement] = []
    while len(found) < count:
        after = maker.scene(split, "position")
        changed = maker.rng.randrange(2)
        other = dataclasses.replace(after.items[changed], thing=maker.rng.choice(maker.things), colour=None)
        items = tuple(other if number == changed else item for number, item in enumerate(after.items))
        before = dataclasses.replace(after, items=items)
        if len(before.counts) == 2 and before.split == "train" and maker.fits(before):
            found.append(Replacement(before, after, changed))
    return found


def stands_at(found: Found, wanted: Item) -> bool:
    """Whether a thing is found once, at its place, and in its colour."""
    items = [item for item, _ in found if item.thing == wanted.thing and item.colour == wanted.colour]
    return len(items) == 1 and max(abs(items[0].row - wanted.row), abs(items[0].column - wanted.column)) <= NEAR


def judged(replacement: Replacement, found: Found) -> dict[str, bool]:
    """
    "object": the new thing is at its place, and the old one is gone. "rest": the other thing is as before, and nothing has
    been added. "right": both.
    """
    things = [item.thing for item, _ in found]
    kept = replacement.after.items[1 - replacement.changed]
    object_is_right = stands_at(found, replacement.after.items[replacement.changed]) and (
        replacement.before.items[replacement.changed].thing not in things
    )
    rest_is_right = stands_at(found, kept) and len(things) <= 2
    return {"object": object_is_right, "rest": rest_is_right, "right": object_is_right and rest_is_right}


def measured(
    replacements: list[Replacement],
    inpaint: Callable[[list[Replacement]], torch.Tensor],
    detect: Callable[[torch.Tensor], list[Found]],
) -> dict[str, float]:
    """
    The shares of [`judged`].

    Args:
        replacements: what is asked for.
        inpaint: gives the images, (replacements, 3, 96, 96) in [-1, 1].
        detect: gives what is found in images.
    """
    results = [judged(one, found) for one, found in zip(replacements, detect(inpaint(replacements)), strict=True)]
    return {name: sum(one[name] for one in results) / len(results) for name in ("object", "rest", "right")}
