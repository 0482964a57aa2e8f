"""
Questions about a scene, in many wordings, with exact answers in short plain sentences.

A question never names a held-out combination, not even where the answer is no, unless the scene itself shows it.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from recipes.world.held_out import Combination, above, coloured, counted, left_of, pair, trained
from recipes.world.phrases import (
    NEXT_TO,
    NUMBERS,
    OPPOSITE,
    PLACE_PHRASES,
    RELATIONS,
    Group,
    bare,
    content_and_background,
    groups_of,
    is_or_are,
    listed,
    noun_of,
    one_of,
    some_of,
    style_word,
)
from recipes.world.recolouring import PALETTE
from recipes.world.scenes import SCENERY, Item, Scene, place, relation
from recipes.world.words import ALSO_CALLED, KINDS, THINGS


@dataclass(frozen=True)
class Question:
    """
    A question with its answer.

    Args:
        kind: a key of `KINDS_OF_QUESTION`.
        text: the question.
        answer: the right answer.
        names: the combinations that the question or the answer name and the scene does not show.
    """

    kind: str
    text: str
    answer: str
    names: frozenset[Combination] = frozenset()


WHAT = (
    "what is in the picture?", "what do you see?", "what does the picture show?", "what can you see?", "what is there?",
    "what's in the image?", "which things are there?", "name everything in the picture.",
)  # fmt: skip
#: One thing alone is answered with "this is" to these, and with "there is" to the others.
WHAT_IS_THIS = ("what is this?", "what's this?", "what is it?", "what is shown here?")
DESCRIBE = (
    "describe the picture.",
    "describe it.",
    "describe the image.",
    "write a caption.",
    "tell me what you see.",
)
HOW_MANY = (
    "how many {many} are there?", "how many {many} do you see?", "count the {many}.", "how many {many} can you see?",
    "what is the number of {many}?", "how many {many}?",
)  # fmt: skip
HOW_MANY_ALL = ("how many things are there?", "how many objects do you see?", "how many things are in the picture?")
WHICH_COLOUR = (
    "what colour is the {one}?", "what color is the {one}?", "which colour does the {one} have?",
    "what is the colour of the {one}?", "which colour is the {one}?", "what's the color of the {one}?",
)  # fmt: skip
WHICH_COLOUR_MANY = ("what colour are the {many}?", "which color are the {many}?", "what is the colour of the {many}?")
MAIN_COLOUR = ("what is its colour?", "what colour does it have?", "which colour is it?", "what color is it?")
WHERE = ("where is the {one}?", "where do you see the {one}?", "where can i find the {one}?", "where's the {one}?")
WHAT_IS_BESIDE = (
    "what is {phrase} the {one}?",
    "what do you see {phrase} the {one}?",
    "which thing is {phrase} the {one}?",
)
IS_THERE = (
    "{are} there {a_one}?",
    "{are} there {a_one} in the picture?",
    "do you see {a_one}?",
    "can you see {a_one}?",
)
ARE_THERE = ("are there {some}?", "do you see {some}?", "are there {some} in the picture?")
IS_COLOUR = ("is the {one} {colour}?", "is the colour of the {one} {colour}?", "does the {one} look {colour}?")
IS_RELATED = ("is the {one} {phrase} the {other}?", "does the {one} stand {phrase} the {other}?")
WHICH_KIND = ("what kind of thing is it?", "what kind of thing is this?", "what sort of thing is it?")
WHICH_KIND_MANY = ("what kind of things are they?", "what kind of things are these?", "what sort of things are they?")
IS_KIND, ARE_KIND = ("is it {kind}?", "is this {kind}?"), ("are they {kind}?", "are these {kind}?")
#: Kinds that a thing of another kind surely is not: fruit is part of a plant, some animals and water are food, and
#: everything is an object.
SURELY_NOT = {
    "animal": ("vehicle", "plant"),
    "food": ("animal", "vehicle"),
    "vehicle": ("animal", "food", "plant"),
    "plant": ("animal", "vehicle"),
    "sky": ("animal", "vehicle", "plant"),
    "object": ("animal", "food", "vehicle", "plant"),
}
BACKGROUND = (
    "what is the background?",
    "which background does it have?",
    "what is in the background?",
    "describe the background.",
)
STYLE = (
    "what style is it?",
    "in which style is it drawn?",
    "which style is this?",
    "what is the style of the picture?",
)
ODD = (
    "which one is the odd one out?", "which thing does not belong?", "what is the odd one out?",
    "which one is different from the others?",
)  # fmt: skip
_NONE = "there is none."


class Asker:
    """
    Asks about one scene. All random choices come from `rng`.

    Args:
        scene: the scene.
        rng: the source of the random choices.
        named: things that were named before.
    """

    def __init__(self, scene: Scene, rng: random.Random, named: Collection[str] = ()):
        self.scene, self.rng = scene, rng
        self.groups = groups_of(scene)
        self.named = {*scene.counts, *named}  # with what is asked for although it is not there
        #: Those that nothing else in the scene could be meant by.
        self.clear = [group for group in self.groups if not self._also_called(group.thing)]

    def ask(self, kind: str | None = None, without: Collection[str | None] = ()) -> Question | None:
        """
        A question of a kind, or of a random one but those of `without`; None if this scene has no such question.
        """
        kinds = [kind] if kind else self.rng.sample(list(KINDS_OF_QUESTION), len(KINDS_OF_QUESTION))
        return next((made for one in kinds if one not in without and (made := KINDS_OF_QUESTION[one](self))), None)

    def several(self, count: int) -> list[Question]:
        """Up to `count` questions of different kinds."""
        found: dict[str, Question] = {}
        for kind in self.rng.sample(list(KINDS_OF_QUESTION), len(KINDS_OF_QUESTION)):
            question = self.ask(kind)
            if question is not None and len(found) < count:
                found[kind] = question
        return list(found.values())

    def check(self, absent_share: float = 0.5) -> Question:
        """
        A question that only the image answers: about a thing that is there or, in a share of them, one that is not.
        Where the question is whether there is a thing, the share is a half.
        """
        ask = self.rng.choice((Asker.how_many, Asker.colour, Asker.where, Asker._is_there_one))
        return ask(self, 0.5 if ask is Asker._is_there_one else absent_share) or self._is_there_one(0.5)

    # What is there

    def what(self) -> Question:
        """All things, with their numbers but without their places."""
        names = listed([some_of(group.thing, group.count, group.colour) for group in self.groups])
        wordings = WHAT_IS_THIS if self.rng.random() < 0.35 else WHAT
        this = wordings is WHAT_IS_THIS and len(self.scene.items) == 1
        answer = f"this is {names}." if this else f"there {is_or_are(names)} {names}."
        return Question("what", self.rng.choice(wordings), answer)

    def describe(self) -> Question:
        """Everything, as in the canonical caption without the style."""
        return Question("describe", self.rng.choice(DESCRIBE), f"{content_and_background(self.scene)}.")

    def how_many(self, absent_share: float = 0.2) -> Question:
        """How many there are of one thing; in a share of the questions, of one that is not there."""
        if self.rng.random() < absent_share:
            many = noun_of(self._absent(), self.rng, countable=True).plural
            return Question("how_many", self._say(HOW_MANY, many=many), _NONE)
        group = self.rng.choice(self.groups)
        if self._also_called(group.thing) or len(self.scene.items) > 1 and self.rng.random() < 0.15:
            return Question("how_many", self.rng.choice(HOW_MANY_ALL), _number(len(self.scene.items)))
        many = noun_of(group.thing, self.rng, countable=True).plural
        return Question("how_many", self._say(HOW_MANY, many=many), _number(group.count))

    def colour(self, absent_share: float = 0.08) -> Question | None:
        """The colour of a thing that has a clear one, or of one that is not there."""
        if self.rng.random() < absent_share:
            return Question("colour", self._say(WHICH_COLOUR, one=bare(self._absent(), self.rng)), _NONE)
        group = self._with_colour()
        if group is None:
            return None
        colour = group.items[0].seen_colour
        if len(self.scene.items) == 1 and self.rng.random() < 0.3:
            return Question("colour", self.rng.choice(MAIN_COLOUR), f"it is {colour}.")
        if group.count > 1:
            many = noun_of(group.thing, self.rng, countable=True).plural
            return Question("colour", self._say(WHICH_COLOUR_MANY, many=many), f"they are {colour}.")
        return Question("colour", self._say(WHICH_COLOUR, one=bare(group.thing, self.rng)), f"it is {colour}.")

    # Where it is

    def where(self, absent_share: float = 0.08) -> Question | None:
        """Where a thing is: in the picture if it is alone, else beside the others that it has on one side."""
        if self.rng.random() < absent_share:
            return Question("where", self._say(WHERE, one=bare(self._absent(), self.rng)), _NONE)
        if len(self.scene.items) == 1:
            where = place(self.scene.items[0])
            if where is None or not self.clear:
                return None
            one = bare(self.scene.items[0].thing, self.rng)
            return Question("where", self._say(WHERE, one=one), f"it is {PLACE_PHRASES[where][0]}.")
        related = self._related()
        if related is None:
            return None
        one = related[0]
        sides = {group.thing: relation(one, group.items[0]) for group in self.groups if group.count == 1}
        placed = next(side for side in sides.values() if side)  # as seen from the first of its neighbours, row by row
        others = listed([f"the {bare(thing)}" for thing, side in sides.items() if side == placed])
        return Question(
            "where", self._say(WHERE, one=bare(one.thing, self.rng)), f"it is {RELATIONS[placed][0]} {others}."
        )

    def beside(self) -> Question | None:
        """What is left of, right of, above, below or next to a thing; "there is none" where nothing is."""
        if len(self.groups) < 2:
            return None
        single = [group.items[0] for group in self.clear if group.count == 1]
        if not single:
            return None
        other = self.rng.choice(single)
        wanted = self.rng.choice(list(RELATIONS))
        found = [(group, _related_items(group, other, wanted)) for group in self.groups]
        found = [(group, count) for group, count in found if count]
        unclear = any(wanted in _sides(item, other) and relation(item, other) != wanted for item in self.scene.items)
        if unclear or not found and self.rng.random() < 0.6:  # mostly ask where something is
            return self.beside()
        phrase = self.rng.choice(RELATIONS[wanted])
        if found and wanted in ("left", "right") and len(self.scene.items) == 2 and self.rng.random() < 0.2:
            phrase = self.rng.choice(NEXT_TO)
        text = self._say(WHAT_IS_BESIDE, phrase=phrase, one=bare(other.thing, self.rng))
        names = listed([some_of(group.thing, count, group.colour) for group, count in found]) if found else "none"
        return Question("beside", text, f"there {is_or_are(names)} {names}.")

    # Yes or no, as often the one as the other

    def is_there(self) -> Question:
        """Whether there is a thing, in a colour or a number."""
        group, yes = self.rng.choice(self.groups), self.rng.random() < 0.5
        answer, clear = "yes." if yes else f"no, {_there(group)}.", group in self.clear
        if clear and group.count > 1 and self.rng.random() < 0.6:
            wrong = self._untold([counted(group.thing, n) for n in (2, 3, 4) if n != group.count])
            if yes or wrong:
                some = some_of(group.thing, group.count if yes else int(wrong.second), rng=self.rng)
                return Question("is_there", self._say(ARE_THERE, some=some), answer, _named(yes, wrong))
        if clear and group.count == 1 and group.colour is not None and self.rng.random() < 0.5:
            wrong = self._wrong_colour(group)
            if yes or wrong:
                asked = one_of(group.thing, group.colour if yes else wrong.second, rng=self.rng)
                text = self._say(IS_THERE, a_one=asked, are=is_or_are(asked))
                return Question("is_there", text, answer, _named(yes, wrong))
        return self._thing_is_there(group.thing if yes else self._absent(), yes)

    def is_colour(self) -> Question | None:
        """Whether a thing has a colour."""
        group = self._with_colour(single=True)
        wrong = self._wrong_colour(group) if group else None
        if wrong is None:
            return None
        seen, yes = group.items[0].seen_colour, self.rng.random() < 0.5
        text = self._say(IS_COLOUR, one=bare(group.thing, self.rng), colour=seen if yes else wrong.second)
        return Question("is_colour", text, "yes." if yes else f"no, it is {seen}.", _named(yes, wrong))

    def is_related(self) -> Question | None:
        """Whether a thing is left of, right of, above or below another; if not, then mostly on the opposite side."""
        related = self._related()
        if related is None:
            return None
        one, other, placed = related
        true = {placed, *_sides(one, other)}
        untrue = [side for side in (OPPOSITE[placed], OPPOSITE[placed], *RELATIONS) if side not in true]
        untrue = [side for side in untrue if trained([_relation_name(one.thing, other.thing, side)])]
        if not untrue:
            return None
        yes = self.rng.random() < 0.5
        asked = placed if yes else self.rng.choice(untrue)
        text = self._say(
            IS_RELATED,
            one=bare(one.thing, self.rng),
            other=bare(other.thing, self.rng),
            phrase=self.rng.choice(RELATIONS[asked]),
        )
        names = _named(yes, _relation_name(one.thing, other.thing, asked))
        return Question("is_related", text, "yes." if yes else f"no, it is {RELATIONS[placed][0]} it.", names)

    def is_kind(self) -> Question | None:
        """What kind of thing it is, or, more often, whether it is of a kind; for scenes of one thing or some of it."""
        if len(self.groups) > 1:
            return None
        group, yes = self.groups[0], self.rng.random() < 0.5
        kind, many = THINGS[group.thing].kind, group.count > 1
        answer = f"they are {KINDS[kind][1]}." if many else f"it is {KINDS[kind][0]}."
        if self.rng.random() < 0.4:
            return Question("is_kind", self.rng.choice(WHICH_KIND_MANY if many else WHICH_KIND), answer)
        asked = kind if yes else self.rng.choice(SURELY_NOT[kind])
        word = self.rng.choice(("food", KINDS[asked][many])) if asked == "food" else KINDS[asked][many]
        text = self._say(ARE_KIND if many else IS_KIND, kind=word)
        return Question("is_kind", text, "yes." if yes else f"no, {answer}")

    # The rest

    def background(self) -> Question:
        """What the background is."""
        background = self.scene.background
        if background in SCENERY:
            answer = {"grass": "it is on the grass.", "sea": "it is at sea.", "night": "it is night."}[background]
        else:
            answer = f"the background is {background}."
        return Question("background", self.rng.choice(BACKGROUND), answer)

    def style(self) -> Question:
        """In which style it is drawn."""
        return Question("style", self.rng.choice(STYLE), f"it is drawn in {style_word(self.scene.style)} style.")

    def odd(self) -> Question | None:
        """Of three things, the one of another kind; or of another thing, where two are the same."""
        if len(self.scene.items) != 3 or len(self.groups) == 1:
            return None
        if len(self.groups) == 2:
            alone, others = sorted(self.groups, key=lambda group: group.count)
            plural = THINGS[others.thing].name.plural
            return Question("odd", self.rng.choice(ODD), f"the {bare(alone.thing)}, because the others are {plural}.")
        kinds = [THINGS[group.thing].kind for group in self.groups]
        for group, kind in zip(self.groups, kinds, strict=True):
            rest = {other for other in kinds if other != kind}
            if kinds.count(kind) == 1 and len(rest) == 1:
                answer = f"the {bare(group.thing)}, because the others are {KINDS[rest.pop()][1]}."
                return Question("odd", self.rng.choice(ODD), answer)
        return None

    # Helpers

    def _say(self, wordings: tuple[str, ...], **words: str) -> str:
        return self.rng.choice(wordings).format(**words)

    def _is_there_one(self, absent_share: float) -> Question:
        yes = self.rng.random() >= absent_share
        return self._thing_is_there(self.rng.choice(self.groups).thing if yes else self._absent(), yes)

    def _thing_is_there(self, thing: str, yes: bool) -> Question:
        asked = one_of(thing, rng=self.rng)
        return Question("is_there", self._say(IS_THERE, a_one=asked, are=is_or_are(asked)), "yes." if yes else "no.")

    def _absent(self) -> str:
        """A thing that is not there. Training may name it with those that are, and with earlier ones that are not."""
        absent = [thing for thing in THINGS if thing not in self.scene.counts and not self._also_called(thing)]
        thing = self.rng.choice(
            [one for one in absent if trained(pair(one, other) for other in self.named if other != one)]
        )
        self.named.add(thing)
        return thing

    def _also_called(self, thing: str) -> bool:
        """Whether something else in the scene could be called by this name. At night the sky has stars."""
        return (
            thing == "star"
            and self.scene.background == "night"
            or any(other in self.scene.counts for other in ALSO_CALLED.get(thing, ()))
        )

    def _with_colour(self, single: bool = False) -> Group | None:
        found = [one for one in self.clear if one.items[0].seen_colour and (one.count == 1 or not single)]
        return self.rng.choice(found) if found else None

    def _wrong_colour(self, group: Group) -> Combination | None:
        near = () if group.colour else THINGS[group.thing].near_colours
        others = [colour for colour in PALETTE if colour not in (group.items[0].seen_colour, *near)]
        return self._untold([coloured(group.thing, colour) for colour in others])

    def _untold(self, combinations: list[Combination]) -> Combination | None:
        """One of the combinations that training may name."""
        allowed = [one for one in combinations if trained([one])]
        return self.rng.choice(allowed) if allowed else None

    def _related(self) -> tuple[Item, Item, str] | None:
        single = [group.items[0] for group in self.clear if group.count == 1]
        pairs = [(one, other) for one in single for other in single if relation(one, other)]
        if not pairs:
            return None
        one, other = self.rng.choice(pairs)
        return one, other, relation(one, other)


def _named(yes: bool, wrong: Combination | None) -> frozenset[Combination]:
    return frozenset() if yes or wrong is None else frozenset({wrong})


def _relation_name(one: str, other: str, placed: str) -> Combination:
    if placed in ("right", "below"):
        one, other, placed = other, one, OPPOSITE[placed]
    return (left_of if placed == "left" else above)(one, other)


def _sides(one: Item, other: Item) -> set[str]:
    """The sides of `other` on which one could say that `one` stands: two, if it is diagonally across."""
    across, down = one.column - other.column, one.row - other.row
    return {side for side, cells in zip(RELATIONS, (-across, across, -down, down), strict=True) if cells > 1}


def _related_items(group: Group, other: Item, wanted: str) -> int:
    return sum(relation(item, other) == wanted for item in group.items)


def _number(count: int) -> str:
    return "there is one." if count == 1 else f"there are {NUMBERS[count]}."


def _there(group: Group) -> str:
    if group.count > 1:
        return f"there are {NUMBERS[group.count]}"
    return f"it is {group.items[0].seen_colour}"


#: How each kind of question is asked.
KINDS_OF_QUESTION: dict[str, Callable[[Asker], Question | None]] = {
    "what": Asker.what,
    "describe": Asker.describe,
    "how_many": Asker.how_many,
    "colour": Asker.colour,
    "where": Asker.where,
    "beside": Asker.beside,
    "is_there": Asker.is_there,
    "is_colour": Asker.is_colour,
    "is_related": Asker.is_related,
    "is_kind": Asker.is_kind,
    "background": Asker.background,
    "style": Asker.style,
    "odd": Asker.odd,
}
