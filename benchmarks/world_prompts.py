"""The prompts of benchmarks.world: GenEval's six kinds (arXiv:2310.11513) on the small world, and a word baseline."""

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from benchmarks.world_judging import Wish, described

from recipes.world.held_out import DEFAULT_STYLE, Combination
from recipes.world.objects import Objects
from recipes.world.phrases import (
    OPPOSITE,
    RELATIONS,
    background_phrase,
    content,
    groups_of,
    listed,
    named,
    style_word,
)
from recipes.world.scene_maker import KEY_KINDS, SceneMaker
from recipes.world.scenes import Scene, relation


KINDS = tuple(KEY_KINDS)
#: Kinds whose prompts do not say where things are.
WITHOUT_PLACES = ("two_objects", "binding")
_DRAWS = 10  # scenes that are drawn for a prompt, at most


@dataclass(frozen=True)
class Prompt:
    """
    A prompt and the scene that it describes.

    Args:
        kind: one of `KINDS`.
        scene: what must be in the image.
        text: the canonical prompt.
    """

    kind: str
    scene: Scene
    text: str

    @property
    def wish(self) -> Wish:
        """What the text asks for."""
        return Wish(self.scene) if self.kind in WITHOUT_PLACES else described(self.scene)

    @property
    def combinations(self) -> frozenset[Combination]:
        """The combinations that its kind is about. In an unseen scene, they are what is unseen."""
        return frozenset(one for one in self.scene.combinations if one.kind in KEY_KINDS[self.kind])


def prompt_text(scene: Scene, kind: str, reordered: bool = False) -> str:
    """
    The canonical prompt of a scene, which names what its kind is about.

    Args:
        scene: the scene.
        kind: one of `KINDS`. Two objects and bound colours are named without their places.
        reordered: name the style first, and two things in the other order.
    """
    if kind in WITHOUT_PLACES:
        names = [named(group) for group in groups_of(scene)]
        what = listed(names[::-1] if reordered else names)
    elif reordered and len(scene.counts) == len(scene.items) == 2:
        what = seen_from_the_other(scene)
    else:
        what = content(scene)
    parts = " ".join(filter(None, (what, background_phrase(scene.background))))
    style = f"{style_word(scene.style)} style"
    return f"{style}: {parts}" if reordered else f"{parts}, {style}"


def seen_from_the_other(scene: Scene) -> str:
    """What a scene of two things shows, with the second one first: "a cat to the right of a dog"."""
    one, other = groups_of(scene)
    side = OPPOSITE[relation(one.items[0], other.items[0])]
    return f"{named(other)} {RELATIONS[side][0]} {named(one)}"


def draw_prompts(objects: Objects, split: str, kind: str, count: int, seed: int = 0) -> list[Prompt]:
    """
    `count` different prompts of a kind, by turns of each combination. Seen ones have the split "train".

    No thing is held out in the default style, so seen ones of the kind "single" have another style, too.

    There are fewer if the split has not so many, and the combinations come several times if there are fewer than `count`.
    """
    maker = SceneMaker(objects, random.Random(f"prompts {seed} {split} {kind}"))
    found: dict[frozenset[Combination], dict[str, Prompt]] = {}
    for _ in range(_DRAWS * count):
        scene = maker.scene(split, kind)
        if kind == "single" and scene.style == DEFAULT_STYLE:
            continue
        prompt = Prompt(kind, scene, prompt_text(scene, kind))
        found.setdefault(prompt.combinations, {}).setdefault(prompt.text, prompt)
        if len(found) == count:
            break
    turns = zip_longest(*(prompts.values() for prompts in found.values()))
    return [prompt for turn in turns for prompt in turn if prompt is not None][:count]


def prompts_by_turns(objects: Objects, split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, by turns of each kind; fewer if the split has not so many."""
    each = [draw_prompts(objects, split, kind, -(-count // len(KINDS)), seed) for kind in KINDS]
    return [prompt for turn in zip_longest(*each) for prompt in turn if prompt is not None][:count]


class NearestByWords:
    """
    Answers every prompt with the training scene whose prompt shares most words with it, the rare ones counting more.

    An unseen combination is in no training scene, so on unseen prompts it scores about 0 by construction.

    Args:
        objects: the cut-outs.
        scenes: how many training scenes it knows.
        seed: seed of the scenes.
    """

    def __init__(self, objects: Objects, scenes: int, seed: int = 0):
        maker = SceneMaker(objects, random.Random(f"nearest {seed}"))
        known: dict[str, Scene] = {}
        for number in range(scenes):
            kind = KINDS[number % len(KINDS)]
            scene = maker.scene("train", kind)
            known.setdefault(prompt_text(scene, kind), scene)
        self.texts, self.known = list(known), list(known.values())
        words = [_words(text) for text in self.texts]
        counts = Counter(word for some in words for word in some)
        self.weights = {word: math.log(len(words) / count) for word, count in counts.items()}
        places: dict[str, list[int]] = {word: [] for word in counts}
        for number, some in enumerate(words):
            for word in some:
                places[word].append(number)
        self._places = {word: np.array(numbers) for word, numbers in places.items()}  # of the texts with a word
        self._sums = np.array([sum(self.weights[word] for word in sorted(some)) for some in words])

    def answer(self, text: str) -> Scene:
        """The nearest training scene, by the weighted share of common words (Jaccard)."""
        asked, common = _words(text), np.zeros(len(self.known))
        for word in sorted(asked & set(self._places)):  # in a fixed order, because sums of floats depend on it
            common[self._places[word]] += self.weights[word]
        union = self._sums + sum(self.weights.get(word, 1.0) for word in sorted(asked)) - common
        return self.known[int((common / union.clip(1e-9)).argmax())]


def _words(text: str) -> set[str]:
    return set(text.replace(",", " ").replace(":", " ").split())
