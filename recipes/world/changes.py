"""Changes of a scene that words can ask for: "make the car blue", "add a cat to the left", "the same at night"."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from recipes.world.held_out import pair, trained
from recipes.world.phrases import RELATIONS, bare, groups_of, noun_of, one_of, style_word
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import BACKGROUNDS, CELLS, THING_CELLS, Item, Scene
from recipes.world.words import THINGS


class Change(NamedTuple):
    """
    A request and what comes of it.

    Args:
        kind: a key of `KINDS_OF_CHANGE`.
        text: the request.
        scene: the scene after it.
    """

    kind: str
    text: str
    scene: Scene


RECOLOUR = (
    "make {} {}", "make {} {} please", "can you make {} {}?", "paint {} {}", "i want {} to be {}", "{} in {}",
)  # fmt: skip
RECOLOUR_IT = RECOLOUR[:-1]
ADD = ("add {} {}", "please add {} {}", "put {} {}", "can you add {} {}?", "now add {} {}", "{} {} too")
ADD_ANOTHER = ("add another {}", "one more {}", "add one more {}", "now another {}", "please add another {}")
REMOVE = ("remove the {}", "take away the {}", "delete the {}", "please remove the {}", "no {} please")
REPLACE = (
    "replace the {old} with {new}", "replace the {old} by {new}", "{new} instead of the {old}",
    "change the {old} to {new}", "turn the {old} into {new}",
)  # fmt: skip
SWAP = ("swap them", "swap the two", "the other way round", "now the other way around")
PLAIN = ("on a {} background", "the same on a {} background", "make the background {}", "now on {}")
STYLE = ("the same in {} style", "now in {} style", "in {} style please", "draw it in {} style")
IN_SCENERY = {
    "grass": ("the same on the grass", "put it on the grass", "now in a meadow"),
    "sea": ("the same at sea", "put it on the water", "now by the sea"),
    "night": ("the same at night", "make it night", "now in the dark", "now at night"),
}
_SIDES = {"left": "to the left", "right": "to the right", "above": "above", "below": "below"}
_EDGES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}


def recolour(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "make the car blue"."""
    groups = [one for one in groups_of(scene) if one.thing in maker.objects.colours]
    if not groups:
        return None
    group, rng = maker.rng.choice(groups), maker.rng
    colour = rng.choice([one for one in maker.objects.colours[group.thing] if one != group.colour])
    items = tuple(dataclasses.replace(item, colour=colour) if item in group.items else item for item in scene.items)
    noun = noun_of(group.thing, rng, countable=True)
    name = f"the {noun.plural if group.count > 1 else noun.singular}"
    if len(scene.items) == 1 and rng.random() < 0.3:
        name = "it"
    wording = rng.choice(RECOLOUR_IT if name == "it" else RECOLOUR)
    return Change("recolour", wording.format(name, colour), dataclasses.replace(scene, items=items))


def add(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "add a cat to the left", to a scene of one thing."""
    if len(scene.items) != 1:
        return None
    rng, old = maker.rng, scene.items[0]
    thing, side = rng.choice([one for one in THINGS if one != old.thing]), rng.choice(list(_SIDES))
    things = [(thing, None), (old.thing, old.colour)]
    items = maker.arrange(things if side in ("left", "above") else things[::-1])
    across = items[0].row - items[1].row if side in ("left", "right") else items[0].column - items[1].column
    if abs(across) > 2:  # arranged in the other direction: turn it by 90 degrees
        items = [item.moved(item.row, item.column) for item in items]
    what = one_of(thing, rng=rng)
    where = rng.choice((_SIDES[side], _EDGES[side], f"{RELATIONS[side][0]} it"))
    return Change("add", rng.choice(ADD).format(what, where), dataclasses.replace(scene, items=tuple(items)))


def add_another(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "add another dog", to one to three of a thing."""
    if len(scene.counts) != 1 or len(scene.items) == 4:
        return None
    rng, old = maker.rng, scene.items[0]
    items = maker.arrange([(old.thing, old.colour)] * (len(scene.items) + 1))
    text = rng.choice(ADD_ANOTHER)
    noun = noun_of(old.thing, rng, countable=True).singular
    return Change("add_another", text.format(noun), dataclasses.replace(scene, items=tuple(items)))


def remove(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "remove the star". What stays does not move."""
    groups = groups_of(scene)
    if len(groups) < 2:
        return None
    group = maker.rng.choice(groups)
    noun = noun_of(group.thing, maker.rng, countable=True)
    text = maker.rng.choice(REMOVE)
    items = tuple(item for item in scene.items if item not in group.items)
    name = noun.plural if group.count > 1 else noun.singular
    return Change("remove", text.format(name), dataclasses.replace(scene, items=items))


def replace(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "replace the dog with a cat", where there is one of it."""
    groups = [one for one in groups_of(scene) if one.count == 1]
    if not groups:
        return None
    rng, old = maker.rng, maker.rng.choice(groups).items[0]
    # The request names both, so this pair has to be a trained one too.
    thing = rng.choice([one for one in THINGS if one not in scene.counts and trained([pair(one, old.thing)])])
    items = tuple(dataclasses.replace(old, thing=thing, colour=None) if item is old else item for item in scene.items)
    before, after = bare(old.thing, rng), one_of(thing, rng=rng)
    text = rng.choice(REPLACE).format(old=before, new=after)
    return Change("replace", text, dataclasses.replace(scene, items=items))


def swap(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "swap them", of two different things."""
    if len(scene.items) != 2 or len(scene.counts) != 2:
        return None
    one, other = scene.items
    items = (other.moved(one.column, one.row), one.moved(other.column, other.row))
    text = maker.rng.choice(SWAP)
    return Change("swap", text, dataclasses.replace(scene, items=items))


def move_behind(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "the same at night", "on a yellow background"."""
    background = maker.rng.choice([one for one in BACKGROUNDS if one != scene.background])
    text = maker.rng.choice(IN_SCENERY.get(background, PLAIN)).format(background)
    return Change("background", text, dataclasses.replace(scene, background=background))


def restyle(scene: Scene, maker: SceneMaker) -> Change | None:
    """ "the same in 3d style"."""
    rng = maker.rng
    style = rng.choice([one for one in ("flat", "fluent", "noto", "3d") if one != scene.style])
    return Change("style", rng.choice(STYLE).format(style_word(style, rng)), dataclasses.replace(scene, style=style))


#: How each kind of change is made.
KINDS_OF_CHANGE: dict[str, Callable[[Scene, SceneMaker], Change | None]] = {
    "recolour": recolour,
    "add": add,
    "add_another": add_another,
    "remove": remove,
    "replace": replace,
    "swap": swap,
    "background": move_behind,
    "style": restyle,
}


def change(scene: Scene, maker: SceneMaker, kind: str | None = None, split: str = "train") -> Change | None:
    """
    A random change of a scene, of one kind or of any, after which it is in the split or in "train"; None if none is.

    Args:
        scene: the scene before.
        maker: draws, and knows what stands out from which background.
        kind: a key of `KINDS_OF_CHANGE`.
        split: "train", "validation" or "test".
    """
    kinds = [kind] if kind else maker.rng.sample(list(KINDS_OF_CHANGE), len(KINDS_OF_CHANGE))
    for one in kinds:
        for _ in range(20):
            made = KINDS_OF_CHANGE[one](scene, maker)
            if made is None:
                break
            if made.scene.split in ("train", split) and maker.fits(made.scene) and _inside(made.scene.items):
                return made
    return None


def _inside(items: tuple[Item, ...]) -> bool:
    last = CELLS - THING_CELLS
    return all(item.column <= last and item.row <= last for item in items)
