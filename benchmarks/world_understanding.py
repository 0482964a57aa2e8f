"""Questions and conversations of benchmarks.world: what is asked, the baselines, and when a turn is right."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.world_detector import Detector, detect
from benchmarks.world_prompts import WORDINGS, Prompt, is_right
from PIL import Image

from recipes.image_tokens import to_pixel_values
from recipes.world.conversations import Talker, Turn
from recipes.world.drawing import draw
from recipes.world.objects import Objects
from recipes.world.questions import KINDS_OF_QUESTION, Asker, Question
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene


Asked = tuple[Scene, Question]


def draw_questions(objects: Objects, split: str, kind: str, count: int, seed: int = 0) -> list[Asked]:
    """`count` questions of a kind, each about another scene of the split."""
    maker = SceneMaker(objects, random.Random(f"questions {seed} {split} {kind}"))
    kinds = ("three_objects",) if kind == "odd" else None  # no held-out scene has three different things
    found: list[Asked] = []
    while len(found) < count:
        scene = maker.scene("train", "three_objects") if kinds else maker.scene(split)
        question = Asker(scene, maker.rng).ask(kind)
        if question is not None:
            found.append((scene, question))
    return found


def normal(answer: str) -> str:
    """An answer without what does not matter: case, spaces at the ends, the full stop."""
    return " ".join(answer.lower().split()).removesuffix(".")


class Baselines:
    """
    Two ways to answer without understanding, from `count` training questions of each kind.

    Args:
        objects: the cut-outs.
        count: training questions of a kind.
    """

    def __init__(self, objects: Objects, count: int = 400):
        self.objects = objects
        self.known = {kind: draw_questions(objects, "train", kind, count, seed=1) for kind in KINDS_OF_QUESTION}
        self.features = {
            kind: np.stack([self._features(scene) for scene, _ in asked]) for kind, asked in self.known.items()
        }
        self.words = {
            kind: [set(question.text.split()) for _, question in asked] for kind, asked in self.known.items()
        }

    def _features(self, scene: Scene) -> np.ndarray:
        image = draw(scene, self.objects).astype(np.float32) / 255
        return image.reshape(12, 8, 12, 8, 3).mean((1, 3)).reshape(-1)

    def blind(self, kind: str) -> str:
        """The most common answer to questions of this kind."""
        return Counter(question.answer for _, question in self.known[kind]).most_common(1)[0][0]

    def nearest(self, kind: str, scene: Scene, question: Question) -> str:
        """The answer to the training question that is nearest in words and, among these, in the image."""
        asked = set(question.text.split())
        shared = np.array([len(asked & words) / len(asked | words) for words in self.words[kind]])
        distance = np.square(self.features[kind] - self._features(scene)).mean(1)
        return self.known[kind][int(np.argmin(distance - shared))][1].answer


def understanding(
    answer: Callable[[list[Image.Image], list[str]], list[str]],
    objects: Objects,
    split: str,
    kind: str,
    count: int,
    baselines: Baselines,
) -> dict[str, Any]:
    """
    The shares of right answers to a kind of question: the model's, a blind guess's, and the nearest neighbour's.

    Args:
        answer: gives the answers to questions about images, one for each image.
        objects: the cut-outs.
        split: "train", "validation" or "test".
        kind: a key of `KINDS_OF_QUESTION`.
        count: number of questions.
        baselines: what is known without the image.
    """
    asked = draw_questions(objects, split, kind, count)
    images = [Image.fromarray(draw(scene, objects)) for scene, _ in asked]
    given = answer(images, [question.text for _, question in asked])
    right = [normal(question.answer) for _, question in asked]
    others = {
        "model": given,
        "blind": [baselines.blind(kind)] * len(asked),
        "nearest": [baselines.nearest(kind, scene, question) for scene, question in asked],
    }
    shares = {
        name: sum(normal(one) == good for one, good in zip(texts, right, strict=True)) / len(right)
        for name, texts in others.items()
    }
    wrong = [
        {"question": question.text, "right": question.answer, "given": one}
        for (_, question), one, good in zip(asked, given, right, strict=True)
        if normal(one) != good
    ]
    return {**shares, "questions": len(asked), "wrong": wrong[:20]}


# Conversations


def script(objects: Objects, split: str, number: int) -> list[Turn]:
    """One scripted conversation of six or seven turns. Its requests to draw are worded as in no training row."""
    rng = random.Random(f"conversation {split} {number}")
    turns = Talker(SceneMaker(objects, rng), split).conversation(rng.randint(6, 7), images=4)
    wording = WORDINGS["polite"]
    return [
        Turn(turn.kind, wording.format(turn.answer.removeprefix("here is ").removeprefix("here are ").removesuffix(":")),
             turn.answer, turn.shown, turn.made) if len(turn.made) == 1 and turn.kind == "draw" else turn
        for turn in turns
    ]  # fmt: skip


def has_place(scene: Scene) -> bool:
    """Whether a scene shows two different things, one on a side of the other."""
    return len(scene.items) == len(scene.counts) == 2


def judged(turn: Turn, parts: list[dict[str, Any]], detector: Detector) -> bool:
    """
    Whether an answer is right: its words to a question, or its images to a request.

    Args:
        turn: what was asked, and the right answer.
        parts: the content of the answer.
        detector: finds the things in an image.
    """
    images = [part["image"] for part in parts if part["type"] == "image"]
    if not turn.made:
        said = " ".join(part["text"] for part in parts if part["type"] == "text")
        return not images and normal(said) == normal(turn.answer)
    if len(images) != len(turn.made):
        return False
    found = detect(detector, to_pixel_values(np.stack([np.asarray(image.convert("RGB")) for image in images])))
    prompts = [Prompt("position" if has_place(scene) else "counting", scene, turn.text) for scene in turn.made]
    return all(map(is_right, prompts, found))


def converse(
    pipe: Any, turns: list[Turn], objects: Objects, detector: Detector, **options: Any
) -> list[dict[str, Any]]:
    """The turns of one conversation, each with whether it was right. The model goes on from what it said itself."""
    talk, results = pipe.start(), []
    for number, turn in enumerate(turns):
        message: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": turn.text}]}
        if turn.shown is not None:
            message["content"].insert(0, {"type": "image", "image": Image.fromarray(draw(turn.shown, objects))})
        generator = torch.Generator().manual_seed(number)
        content = talk.send(message, generator=generator, **options).content
        said = " ".join(part["text"] for part in content if part["type"] == "text")
        results.append({"kind": turn.kind, "asked": turn.text, "right answer": turn.answer, "said": said,
                        "right": judged(turn, content, detector)})  # fmt: skip
    return results
