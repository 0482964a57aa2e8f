"""Inpainting on the small world: one of two things is painted over with another. Used by benchmarks.world."""

import dataclasses
import random
from collections.abc import Callable

import torch
from benchmarks.world_judging import Seen, near, standard_error
from benchmarks.world_prompts import prompt_text

from recipes.world.drawing import CELL, SIZE
from recipes.world.objects import Objects
from recipes.world.scene_maker import KEY_KINDS, SceneMaker
from recipes.world.scenes import THING_CELLS, Item, Scene


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
        item, mask = self.before.items[self.changed], torch.zeros(SIZE, SIZE)
        rows, columns = (slice(CELL * first, CELL * (first + THING_CELLS)) for first in (item.row, item.column))
        mask[rows, columns] = 1
        return mask


def draw_replacements(objects: Objects, split: str, count: int, seed: int = 0) -> list[Replacement]:
    """`count` replacements. The scene that is shown is a trained one; the one that is asked for is of the split."""
    maker = SceneMaker(objects, random.Random(f"replacements {seed} {split}"))
    found: list[Replacement] = []
    while len(found) < count:
        after = maker.scene(split, "position")
        changed = maker.rng.randrange(2)
        new = after.items[changed]
        old = dataclasses.replace(new, thing=maker.rng.choice(maker.things), colour=None)
        items = tuple(old if number == changed else item for number, item in enumerate(after.items))
        before = dataclasses.replace(after, items=items)
        if old.thing != new.thing and len(before.counts) == 2 and before.split == "train" and maker.fits(before):
            found.append(Replacement(before, after, changed))
    return found


def stands_at(seen: Seen, wanted: Item, style: str) -> bool:
    """Whether a thing is found once, at its place, in its colour and style."""
    found = [(item, drawn) for item, drawn in seen.things if item.thing == wanted.thing]
    if len(found) != 1 or found[0][0].seen_colour != wanted.seen_colour or found[0][1] != style:
        return False
    return near(found[0][0], wanted)


def judged(replacement: Replacement, seen: Seen) -> dict[str, bool]:
    """
    "object": the new thing is at its place, and the old one is gone. "rest": the other thing and the background are as
    before, and nothing has been added. "right": both.
    """
    before, after = replacement.before, replacement.after
    things = [item.thing for item in seen.items]
    object_is_right = stands_at(seen, after.items[replacement.changed], after.style) and (
        before.items[replacement.changed].thing not in things
    )
    rest_is_right = (
        stands_at(seen, after.items[1 - replacement.changed], after.style)
        and len(things) <= 2
        and seen.background == before.background
    )
    return {"object": object_is_right, "rest": rest_is_right, "right": object_is_right and rest_is_right}


def measured(
    replacements: list[Replacement],
    inpaint: Callable[[list[Replacement]], torch.Tensor],
    look: Callable[[torch.Tensor], list[Seen]],
) -> dict[str, float | None]:
    """
    The shares of [`judged`], and the standard error of the share that is right.

    Args:
        replacements: what is asked for.
        inpaint: gives the images, (replacements, 3, 96, 96) in [-1, 1].
        look: gives what is found in images.
    """
    results = [judged(one, seen) for one, seen in zip(replacements, look(inpaint(replacements)), strict=True)]
    found = {name: sum(one[name] for one in results) / len(results) for name in ("object", "rest", "right")}
    about = KEY_KINDS["position"]  # the unseen combination of the new scene, in whatever style
    clusters = [frozenset(some for some in one.after.combinations if some.kind in about) for one in replacements]
    return found | {"standard_error": standard_error([one["right"] for one in results], clusters)}
