"""The prompts of benchmarks.world, and when an image is right: GenEval's six kinds (arXiv:2310.11513) on the small world."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.world.objects import Objects
from recipes.world.phrases import background_phrase, content, groups_of, listed, named, style_word
from recipes.world.scene_maker import KEY_KINDS, SceneMaker
from recipes.world.scenes import Item, Scene, relation


KINDS = tuple(KEY_KINDS)
Found = Sequence[tuple[Item, str]]
#: Wordings of a canonical prompt that say the same, and are in no training text.
WORDINGS = {
    "canonical": "{}",
    "polite": "would you kindly sketch {} for me",
    "very polite": "good day, might i ask you for {}, if it is no trouble",
}


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


def prompt_text(scene: Scene, kind: str, reordered: bool = False) -> str:
    """
    The canonical prompt of a scene, which names what its kind is about.

    Args:
        scene: the scene.
        kind: one of `KINDS`. Two objects and bound colours are named without their places.
        reordered: name the style first, and the things in the other order where order has no meaning.
    """
    if kind in ("two_objects", "binding"):
        names = [named(group) for group in groups_of(scene)]
        what = listed(names[::-1] if reordered else names)
    else:
        what = content(scene)
    parts = " ".join(filter(None, (what, background_phrase(scene.background))))
    style = f"{style_word(scene.style)} style"
    return f"{style}: {parts}" if reordered else f"{parts}, {style}"


def draw_prompts(objects: Objects, split: str, kind: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts of a kind, as different as the split has combinations for. Seen ones have the split "train"."""
    maker = SceneMaker(objects, random.Random(f"prompts {seed} {split} {kind}"))
    found: dict[str, Prompt] = {}
    for _ in range(50 * count):
        scene = maker.scene(split, kind)
        text = prompt_text(scene, kind)
        found.setdefault(text, Prompt(kind, scene, text))
        if len(found) == count:
            break
    return list(found.values())


def is_right(prompt: Prompt, found: Found) -> bool:
    """
    Whether every point that the prompt names is right: things, numbers, colours, places, and the style of a single object.

    Args:
        prompt: the prompt.
        found: the items in the image with their styles.
    """
    wanted, items = prompt.scene.items, [item for item, _ in found]
    if Counter(item.thing for item in items) != Counter(item.thing for item in wanted):
        return False
    if any(item.colour != one.colour for item in items for one in wanted if one.thing == item.thing and one.colour):
        return False
    if prompt.kind == "single" and any(style != prompt.scene.style for _, style in found):
        return False
    if prompt.kind != "position":
        return True
    one, other = (next(item for item in items if item.thing == asked.thing) for asked in wanted)
    return relation(one, other) == relation(*wanted)


def in_style(prompt: Prompt, found: Found) -> float:
    """The share of the found things that are drawn in the style of the prompt; 0 if nothing was found."""
    return sum(style == prompt.scene.style for _, style in found) / len(found) if found else 0.0


def exactly(scene: Scene) -> Found:
    """What a perfect detector finds in a scene."""
    return [(item, scene.style) for item in scene.items]


class NearestByWords:
    """
    Answers every prompt with the training scene whose prompt shares most words with it, the rare ones counting more.

    Args:
        objects: the cut-outs.
        scenes: how many training scenes it knows.
    """

    def __init__(self, objects: Objects, scenes: int = 20_000, seed: int = 0):
        rng = random.Random(f"nearest {seed}")
        maker = SceneMaker(objects, rng)
        self.known: list[tuple[set[str], Scene]] = []
        for number in range(scenes):
            kind = KINDS[number % len(KINDS)]
            scene = maker.scene("train", kind)
            self.known.append((_words(prompt_text(scene, kind)), scene))
        counts = Counter(word for words, _ in self.known for word in words)
        self.weights = {word: math.log(scenes / count) for word, count in counts.items()}

    def answer(self, text: str) -> Scene:
        """The nearest training scene, by the weighted share of common words (Jaccard)."""
        asked = _words(text)

        def nearness(words: set[str]) -> float:
            union = sum(self.weights.get(word, 1.0) for word in words | asked)
            return sum(self.weights.get(word, 1.0) for word in words & asked) / union

        return max(self.known, key=lambda one: nearness(one[0]))[1]


def _words(text: str) -> set[str]:
    return set(text.replace(",", " ").replace(":", " ").split())
