"""
Phrases for the parts of a scene: "three blue cars", "a dog to the left of a cat", "at night", "3d style".

Functions without a `random.Random` give the canonical phrase. With one, they choose among wordings.
"""

import random
import re
from dataclasses import dataclass

from recipes.world.recolouring import PALETTE
from recipes.world.scenes import Item, Scene, place, relation
from recipes.world.words import THINGS, Noun, article


NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
STYLE_WORDS = {
    "flat": ("flat", "flat", "twemoji"),
    "fluent": ("fluent", "fluent", "fluent flat"),
    "noto": ("noto", "noto", "android"),
    "3d": ("3d", "3d", "fluent 3d"),
}
SCENERY_PHRASES = {
    "grass": ("on the grass", "on grass", "in a meadow", "on the grass under a blue sky", "in the grass"),
    "sea": ("at sea", "by the sea", "on the sea", "on the water"),
    "night": ("at night", "at night", "in the night", "under the night sky", "in the dark"),
}
#: Of one thing, seen from another: canonical first.
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NEXT_TO = ("next to", "next to", "beside", "by the side of")
PLACE_PHRASES = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "at the top of the picture"),
    "bottom": ("at the bottom", "at the bottom of the picture"),
    "middle": ("in the middle", "in the centre", "in the center"),
    **{
        f"{down} {across}": (f"in the {down} {across} corner", f"at the {down} {across}", f"in the {down} {across}")
        for down in ("top", "bottom")
        for across in ("left", "right")
    },
}
# How a phrase begins that names more than one: "two cars", "a pair of dogs", "blue grapes".
_MANY_NOUNS = "|".join(noun.singular for thing in THINGS.values() for noun in thing.nouns if noun.is_many)
_MANY = re.compile(
    rf"({'|'.join(NUMBERS[count] for count in (2, 3, 4))}|[234]|a couple of|a pair of (?!{_MANY_NOUNS})"
    rf"|(({'|'.join(PALETTE)}) )*({_MANY_NOUNS}))\b"
)
_SYNONYM_SHARE, _OWN_COLOUR_SHARE, _DIGIT_SHARE = 0.25, 0.25, 0.3


@dataclass(frozen=True)
class Group:
    """All items of one thing in a scene: how many, and in which colour."""

    thing: str
    count: int
    colour: str | None
    items: tuple[Item, ...]


def groups_of(scene: Scene) -> list[Group]:
    """The groups of a scene, in the order of the items."""
    items = {thing: tuple(item for item in scene.items if item.thing == thing) for thing in scene.counts}
    return [Group(thing, len(some), some[0].colour, some) for thing, some in items.items()]


def noun_of(thing: str, rng: random.Random | None, countable: bool = False, singular: bool = False) -> Noun:
    """A noun for a thing: its name, or sometimes a synonym. `countable` ones have a plural, "is" follows `singular` ones."""
    nouns = THINGS[thing].nouns[1:]
    nouns = [noun for noun in nouns if (noun.plural or not countable) and not (noun.is_many and singular)]
    return rng.choice(nouns) if rng and nouns and rng.random() < _SYNONYM_SHARE else THINGS[thing].name


def one_of(thing: str, colour: str | None = None, rng: random.Random | None = None) -> str:
    """ "a dog", "a blue dog", "blue cheese"."""
    noun = noun_of(thing, rng)
    words = " ".join(filter(None, (_spelled(colour, rng), noun.singular)))
    return words if noun.plural is None else f"{article(words)} {words}"


def some_of(thing: str, count: int, colour: str | None = None, rng: random.Random | None = None) -> str:
    """ "a dog", "three blue dogs"."""
    if count == 1:
        return one_of(thing, colour, rng=rng)
    noun = noun_of(thing, rng, countable=True)
    number = NUMBERS[count]
    if rng and rng.random() < _DIGIT_SHARE:
        number = str(count)
    elif rng and count == 2 and "pair" not in noun.singular and rng.random() < 0.15:
        number = rng.choice(("a couple of", "a pair of"))
    return " ".join(filter(None, (number, _spelled(colour, rng), noun.plural)))


def bare(thing: str, rng: random.Random | None = None) -> str:
    """ "dog", "cheese": a noun without an article, which "is" can follow."""
    return noun_of(thing, rng, singular=True).singular


def is_or_are(phrase: str) -> str:
    """ "are" for "two cars and a dog" or "grapes", "is" for "a dog and two cars"."""
    return "are" if _MANY.match(phrase) else "is"


def named(group: Group, rng: random.Random | None = None) -> str:
    """A group with its number and colour: "three blue cars". Its own colour is said sometimes: "a red apple"."""
    colour = group.colour
    if rng and colour is None and rng.random() < _OWN_COLOUR_SHARE:
        colour = THINGS[group.thing].own_colour
    if group.count > 1:
        return some_of(group.thing, group.count, colour, rng)
    return one_of(group.thing, colour, rng)


def listed(phrases: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def content(scene: Scene, rng: random.Random | None = None) -> str:
    """What a scene shows, and where: "a dog to the left of a blue cat". Without wordings, positions are named."""
    groups = groups_of(scene)
    if len(groups) == 1:
        return _one_group(groups[0], rng)
    if len(scene.items) == 2:
        return _two_items(groups, rng)
    return _three_items(groups, rng)


def _one_group(group: Group, rng: random.Random | None) -> str:
    where = place(group.items[0]) if group.count == 1 else None
    if where is None or where == "middle" and not (rng and rng.random() < 0.05):
        return named(group, rng)
    what = one_of(group.thing, group.colour, rng)
    if rng and rng.random() < 0.2:
        return f"{rng.choice(PLACE_PHRASES[where])}, {what}"
    return f"{what} {rng.choice(PLACE_PHRASES[where]) if rng else PLACE_PHRASES[where][0]}"


def _two_items(groups: list[Group], rng: random.Random | None) -> str:
    one, other = groups
    placed = relation(one.items[0], other.items[0])
    if rng is None:
        return f"{named(one)} {RELATIONS[placed][0]} {named(other)}"
    if rng.random() < 0.5:  # the same position, said from the other side
        one, other, placed = other, one, OPPOSITE[placed]
    first, second = named(one, rng), named(other, rng)
    phrase, back = rng.choice(RELATIONS[placed]), rng.choice(RELATIONS[OPPOSITE[placed]])
    ends = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
    wordings = [f"{first} {phrase} {second}"] * 8 + [
        f"{phrase} {second}, {first}",
        f"{first} {ends[placed]} and {second} {ends[OPPOSITE[placed]]}",
        f"{ends[placed]} {first}, {ends[OPPOSITE[placed]]} {second}",
        f"{second}, and {phrase} it {first}",
        f"{first} that is {phrase} {second}",
        f"{first}, {back} it {second}",
    ]
    if placed in ("left", "right"):
        wordings += [f"{first} {rng.choice(NEXT_TO)} {second}"] * 2
    return rng.choice([rng.choice(wordings), rng.choice(wordings), _together([first, second], rng)])


def _three_items(groups: list[Group], rng: random.Random | None) -> str:
    if rng is not None:
        groups = rng.sample(groups, len(groups))
    names = [named(group, rng) for group in groups]
    for at, group in enumerate(groups):
        others = [item for other in groups for item in other.items if other is not group]
        placed = {relation(group.items[0], item) for item in others}
        if group.count == 1 and len(placed) == 1 and None not in placed and (rng is None or rng.random() < 0.5):
            phrases = RELATIONS[placed.pop()]
            rest = listed(names[:at] + names[at + 1 :])
            return f"{names[at]} {rng.choice(phrases) if rng else phrases[0]} {rest}"
    return _together(names, rng) if rng else listed(names)


def _together(names: list[str], rng: random.Random) -> str:
    names = rng.sample(names, len(names))
    if len(names) == 2 and rng.random() < 0.15:
        return f"{names[0]} with {names[1]}"
    return ", ".join(names) if rng.random() < 0.2 else listed(names)


def content_and_background(scene: Scene, rng: random.Random | None = None) -> str:
    """ "a dog to the left of a cat at night": all but the style."""
    return " ".join(filter(None, (content(scene, rng), background_phrase(scene.background, rng))))


def background_phrase(background: str, rng: random.Random | None = None) -> str:
    """ "on a yellow background", "at night"; "" for white, which is only said sometimes."""
    if background in SCENERY_PHRASES:
        phrases = SCENERY_PHRASES[background]
        return rng.choice(phrases) if rng else phrases[0]
    if background == "white" and (rng is None or rng.random() > 0.12):
        return ""
    colour = _spelled(background, rng)
    if rng is None:
        return f"on a {colour} background"
    return rng.choice((f"on a {colour} background", f"on a {colour} background", f"on {colour}"))


def style_word(style: str, rng: random.Random | None = None) -> str:
    """The word for a style."""
    return rng.choice(STYLE_WORDS[style]) if rng else STYLE_WORDS[style][0]


def _spelled(colour: str | None, rng: random.Random | None) -> str | None:
    return "gray" if colour == "grey" and rng and rng.random() < 0.4 else colour
