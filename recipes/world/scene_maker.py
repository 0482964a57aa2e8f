"""Draws random scenes of each kind, of one split."""

import random
from collections.abc import Callable

from recipes.world.drawing import contrasts
from recipes.world.held_out import DEFAULT_STYLE, Combination, split_of
from recipes.world.objects import Objects
from recipes.world.scenes import PLAIN_BACKGROUNDS, SCENERY, Item, Scene
from recipes.world.words import THINGS


#: How often a kind of scene is drawn for training.
KIND_WEIGHTS = {
    "single": 0.1,
    "colours": 0.1,
    "placed": 0.05,
    "counting": 0.15,
    "two_objects": 0.15,
    "position": 0.18,
    "binding": 0.17,
    "three_objects": 0.1,
}
#: The combination that each kind of scene is about, which the unseen scenes of the kind hold out; None for no one.
KEY_KINDS: dict[str, tuple[str, ...]] = {
    "single": ("style",),
    "colours": ("colour",),
    "counting": ("count",),
    "two_objects": ("pair",),
    "position": ("left", "above"),
    "binding": ("pair",),
}
#: How often a style is drawn where all things have their own colours. Recoloured things have the default style.
STYLE_WEIGHTS = {"flat": 0.4, "fluent": 0.2, "noto": 0.15, "3d": 0.25}
EVEN_STYLE_WEIGHTS = {"flat": 0.34, "fluent": 0.2, "noto": 0.22, "3d": 0.24}
#: How often a background is white, and how often it is plain in a colour. The others are scenery.
BACKGROUND_WEIGHTS = {"white": 0.6, "plain": 0.22, "scenery": 0.18}
EVEN_BACKGROUND_WEIGHTS = {"white": 0.38, "plain": 0.26, "scenery": 0.36}
# The columns and rows of things. Few of them, so that a model sees each thing often at each place.
_FIRST, _MIDDLE, _LAST = 0, 4, 7
#: The words for the places where a thing may stand alone, and their column and row.
PLACES = {
    "left": (_FIRST, _MIDDLE),
    "right": (_LAST, _MIDDLE),
    "top": (_MIDDLE, _FIRST),
    "bottom": (_MIDDLE, _LAST),
    "top left": (_FIRST, _FIRST),
    "top right": (_LAST, _FIRST),
    "bottom left": (_FIRST, _LAST),
    "bottom right": (_LAST, _LAST),
}
#: Where the things of a scene stand, by their number.
LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("left", "right"), ("top", "bottom")),
    3: (("top", "bottom left", "bottom right"), ("top left", "top right", "bottom")),
    4: (("top left", "top right", "bottom left", "bottom right"),),
}
_CONTRAST = 75  # a thing stands out from a background at least so far, in 0..441
_ATTEMPTS = 10_000


class SceneMaker:
    """
    Draws scenes. All random choices come from `rng`.

    Args:
        objects: the cut-outs, which say what can be recoloured, and what stands out from which background.
        rng: the source of the random choices.
        even: draw what is not the default, such as noto style or grass, more often.
    """

    def __init__(self, objects: Objects, rng: random.Random, even: bool = False):
        self.objects, self.rng = objects, rng
        self.things = list(THINGS)
        self.styles = EVEN_STYLE_WEIGHTS if even else STYLE_WEIGHTS
        self.backgrounds = EVEN_BACKGROUND_WEIGHTS if even else BACKGROUND_WEIGHTS

    def scene(self, split: str = "train", kind: str | None = None) -> Scene:
        """
        A random scene whose combinations are all trained, or, for another split, one with a combination of that split.

        Of the combinations that a kind is about ([`KEY_KINDS`]), one is of the split; all others are trained. So what
        is measured with such scenes is this combination alone.

        Args:
            split: "train", "validation" or "test"; "any" for all scenes, as a judge of images is trained on them.
            kind: a key of [`KIND_WEIGHTS`]; a random one by default.

        Raises:
            ValueError: for a kind without held-out combinations in the split "validation" or "test".
        """
        unseen = split in ("validation", "test")
        if unseen and kind is not None and kind not in KEY_KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KEY_KINDS)} in the split {split}, got {kind!r}")
        kinds = {one: KIND_WEIGHTS[one] for one in KEY_KINDS} if unseen else KIND_WEIGHTS
        kind = kind or self.rng.choices(list(kinds), list(kinds.values()))[0]
        make: Callable[[], Scene] = getattr(self, kind)
        for _ in range(_ATTEMPTS):
            scene = make()
            if self.fits(scene) and belongs(scene, kind, split):
                return scene
        raise RuntimeError(f"no scene of the kind {kind!r} was found in the split {split!r}")

    def fits(self, scene: Scene) -> bool:
        """Whether every thing has a cut-out, and stands out from the background. On white, all do."""
        rows = [self.objects.rows.get((item.thing, scene.style, item.colour)) for item in scene.items]
        if None in rows:
            return False
        contrast = contrasts(self.objects)[scene.background]
        return scene.background == "white" or all(contrast[row] >= _CONTRAST for row in rows)

    # One function for each kind

    def single(self) -> Scene:
        """One thing in its own colours, in the middle."""
        return self._finish(self.arrange([(self._thing(), None)]))

    def colours(self) -> Scene:
        """One thing in another colour, in the middle."""
        return self._finish(self.arrange([self._recoloured()]))

    def placed(self) -> Scene:
        """One thing at a place other than the middle."""
        thing, colour = self._recoloured() if self.rng.random() < 0.3 else (self._thing(), None)
        return self._finish([Item(thing, colour, *PLACES[self.rng.choice(list(PLACES))])])

    def counting(self) -> Scene:
        """Two to four of a thing."""
        thing, colour = self._recoloured() if self.rng.random() < 0.25 else (self._thing(), None)
        return self._finish(self.arrange([(thing, colour)] * self.rng.randint(2, 4)))

    def two_objects(self) -> Scene:
        """Two things, sometimes recoloured."""
        return self.position(0.15)

    def position(self, recoloured_share: float = 0.1) -> Scene:
        """Two things, one left of or above the other."""
        things = self.rng.sample(self.things, 2)
        return self._finish(self.arrange([(thing, self._perhaps_colour(thing, recoloured_share)) for thing in things]))

    def binding(self) -> Scene:
        """Two things in two different colours that are not their own."""
        colours = self.objects.colours
        one, other = self.rng.sample(list(colours), 2)
        first = self.rng.choice(colours[one])
        second = self.rng.choice([colour for colour in colours[other] if colour != first])
        return self._finish(self.arrange([(one, first), (other, second)]))

    def three_objects(self) -> Scene:
        """Three things, or two of one and one of another."""
        names = self.rng.sample(self.things, 3)
        if self.rng.random() < 0.4:
            names[2] = names[self.rng.randrange(2)]
            self.rng.shuffle(names)
        colours = {name: self._perhaps_colour(name, 0.15) for name in names}
        return self._finish(self.arrange([(name, colours[name]) for name in names]))

    def four_objects(self) -> Scene:
        """Four different things. No other task has such scenes: they show a decoder more things in each image."""
        names = self.rng.sample(self.things, 4)
        # Half of the scenes have no other colours, which are all flat, so the other styles come as often.
        share = 0.5 if self.rng.random() < 0.5 else 0.0
        return self._finish(self.arrange([(name, self._perhaps_colour(name, share)) for name in names]))

    # Their parts

    def arrange(self, things: list[tuple[str, str | None]]) -> list[Item]:
        """Items for one to four things, which do not overlap. The first one is left or above, a single one in the middle."""
        if len(things) == 1:
            return [Item(*things[0], _MIDDLE, _MIDDLE)]
        places = self.rng.choice(LAYOUTS[len(things)])
        return [Item(*thing, *PLACES[place]) for thing, place in zip(things, places, strict=True)]

    def _thing(self) -> str:
        return self.rng.choice(self.things)

    def _recoloured(self) -> tuple[str, str]:
        thing = self.rng.choice(list(self.objects.colours))
        return thing, self.rng.choice(self.objects.colours[thing])

    def _perhaps_colour(self, thing: str, share: float) -> str | None:
        colours = self.objects.colours.get(thing)
        return self.rng.choice(colours) if colours and self.rng.random() < share else None

    def _finish(self, items: list[Item]) -> Scene:
        style = self.rng.choices(list(self.styles), list(self.styles.values()))[0]
        if any(item.colour for item in items):
            style = DEFAULT_STYLE
        draw, background = self.rng.random(), "white"
        if draw >= self.backgrounds["white"]:
            is_plain = draw < self.backgrounds["white"] + self.backgrounds["plain"]
            background = self.rng.choice(PLAIN_BACKGROUNDS[1:] if is_plain else SCENERY)
        return Scene(tuple(items), style, background)


def belongs(scene: Scene, kind: str, split: str) -> bool:
    """Whether a scene is in a split: for one other than "train", by the combination that its kind is about alone."""
    if split in ("train", "any"):
        return split == "any" or scene.split == "train"
    about = {one for one in scene.combinations if one.kind in KEY_KINDS[kind]}
    others: set[Combination] = set(scene.combinations - about)
    if kind in ("two_objects", "binding"):  # the relation of an unseen pair is unseen too
        others = {one for one in others if one.kind not in ("left", "above")}
    return split_of(about) == split and split_of(others) == "train" and split_of(scene.combinations) == split
