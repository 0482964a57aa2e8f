"""Questions of benchmarks.world: what is asked, two baselines, which answers are right, and the rows of the tables."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from recipes.world.drawing import draw
from recipes.world.objects import Objects
from recipes.world.questions import KINDS_OF_QUESTION, Asker, Question
from recipes.world.rows import QUESTIONS
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene
from recipes.world.words import THINGS


Asked = tuple[Scene, Question]
_NONE = "there is none"
_IN_THE_PICTURE = ("it is in the", "it is at the", "it is on the left", "it is on the right")
_MANY_THINGS = re.compile(r"many things, such as (.+), (.+) or (.+)")
_NAMES = {noun.with_article: name for name, thing in THINGS.items() for noun in thing.nouns}


def normal(answer: str) -> str:
    """
    An answer without what does not matter: case, spaces at the ends, the full stop.

    "this is" and "there is" mean the same: training answers draw one of them for a lone thing.
    """
    text = " ".join(answer.lower().split()).removesuffix(".")
    return re.sub(r"^this is\b", "there is", text)


def same_answer(given: str, right: str) -> bool:
    """Whether an answer says what the right one says. Of "many things, such as", any three known ones will do."""
    given, right = normal(given), normal(right)
    if _MANY_THINGS.fullmatch(right):
        named = _MANY_THINGS.fullmatch(given)
        known = {_NAMES[name] for name in named.groups() if name in _NAMES} if named else set()
        return len(known) == 3
    return given == right


def first_word(answer: str) -> str:
    """ "yes" of "Yes.", "no" of "no, it is red."."""
    word = re.match(r"\w+", normal(answer))
    return word[0] if word else ""


def yes_or_no(question: Question) -> bool:
    """Whether it is answered by yes or no."""
    return first_word(question.answer) in ("yes", "no")


# What is asked


def _any_scene(maker: SceneMaker, split: str, number: int) -> Scene:
    return maker.scene(split)


def _trained_three(maker: SceneMaker, split: str, number: int) -> Scene:
    return maker.scene("train", "three_objects")  # no unseen scene has three different things


def _placed_by_turns(maker: SceneMaker, split: str, number: int) -> Scene:
    """Every other scene is one thing at a place, which is in no unseen kind."""
    if number % 2:
        return maker.scene(split)
    while True:
        scene = maker.placed()
        if scene.split == split and maker.fits(scene):
            return scene


@dataclass(frozen=True)
class Kind:
    """
    A kind of question.

    Args:
        name: a key of `KINDS_OF_QUESTION`.
        wanted: which of its questions.
        scene: draws a scene of a split, for the question of a number.
    """

    name: str
    wanted: Callable[[Question], bool] = lambda question: True
    scene: Callable[[SceneMaker, str, int], Scene] = _any_scene


#: Every kind that is asked. The open questions about the kind of a thing stand apart from those with yes or no.
ASKED = {name: Kind(name) for name in KINDS_OF_QUESTION} | {
    "how_many_2_to_4": Kind("how_many", lambda one: normal(one.answer).startswith("there are ")),
    "where": Kind("where", scene=_placed_by_turns),
    "is_kind": Kind("is_kind", yes_or_no),
    "which_kind": Kind("is_kind", lambda one: not yes_or_no(one)),
    "odd": Kind("odd", scene=_trained_three),
}


def draw_questions(objects: Objects, split: str, kind: str, count: int, seed: int = 0) -> list[Asked]:
    """`count` questions of a kind in `ASKED`, each about another scene of the split (odd: of trained combinations)."""
    maker = SceneMaker(objects, random.Random(f"questions {seed} {split} {kind}"))
    found: list[Asked] = []
    while len(found) < count:
        scene = ASKED[kind].scene(maker, split, len(found))
        question = Asker(scene, maker.rng).ask(ASKED[kind].name)
        if question is not None and ASKED[kind].wanted(question):
            found.append((scene, question))
    return found


# The baselines


class Baselines:
    """
    Two ways to answer without understanding, from scenes of trained combinations with questions.

    Args:
        objects: the cut-outs.
        rows: scenes, with up to `QUESTIONS` questions each.
        seed: seed of the scenes.
    """

    def __init__(self, objects: Objects, rows: int, seed: int = 0):
        self.objects = objects
        maker = SceneMaker(objects, random.Random(f"baselines {seed}"))
        self.features = np.empty((rows, 12 * 12 * 3), dtype=np.float32)
        self.known: dict[str, list[tuple[int, Question]]] = defaultdict(list)  # the row of each question
        for row in range(rows):
            scene = maker.scene()
            self.features[row] = self._features(scene)
            for question in Asker(scene, maker.rng).several(QUESTIONS):
                self.known[question.kind].append((row, question))

    def _features(self, scene: Scene) -> np.ndarray:
        image = draw(scene, self.objects).astype(np.float32) / 255
        return image.reshape(12, 8, 12, 8, 3).mean((1, 3)).reshape(-1)

    def answers(self, kind: str, asked: list[Asked]) -> dict[str, list[str]]:
        """
        The answers to questions of a kind: "blind" gives the most common one of this kind, "nearest" copies the answer of
        the question which is nearest in words and, among these, in the image. Both know the kind.
        """
        known = [(row, one) for row, one in self.known[ASKED[kind].name] if ASKED[kind].wanted(one)]
        if not known:
            return {name: [""] * len(asked) for name in ("blind", "nearest")}
        common = Counter(one.answer for _, one in known).most_common(1)[0][0]
        words = [frozenset(one.text.split()) for _, one in known]
        features = self.features[[row for row, _ in known]]
        nearest = []
        for scene, question in asked:
            own = frozenset(question.text.split())
            shared = np.array([len(own & some) / len(own | some) for some in words])
            distance = np.square(features - self._features(scene)).mean(1)
            distance[shared < shared.max()] = np.inf
            nearest.append(known[int(np.argmin(distance))][1].answer)
        return {"blind": [common] * len(asked), "nearest": nearest}


WHO = ("model", "blind", "nearest")


def understanding(
    answer: Callable[[list[Image.Image], list[str]], list[str]],
    objects: Objects,
    split: str,
    kind: str,
    count: int,
    baselines: Baselines,
    seed: int = 0,
) -> dict[str, Any]:
    """
    The answers to a kind of question: the model's, a blind guess's, and the nearest neighbour's; and the shares that are
    right.

    Args:
        answer: gives the answers to questions about images, one for each image.
        objects: the cut-outs.
        split: "train", "validation" or "test".
        kind: a key of `ASKED`.
        count: number of questions.
        baselines: what is known without the image.
        seed: seed of the questions.
    """
    asked = draw_questions(objects, split, kind, count, seed)
    images = [Image.fromarray(draw(scene, objects)) for scene, _ in asked]
    given = {"model": answer(images, [question.text for _, question in asked]), **baselines.answers(kind, asked)}
    answers = [
        {"question": question.text, "right": question.answer, **{who: given[who][at] for who in WHO}}
        for at, (_, question) in enumerate(asked)
    ]
    return {**{who: share(answers, who) for who in WHO}, "answers": answers}


# The rows of the tables


class Row(NamedTuple):
    """
    One row of a table.

    Args:
        name: what it is called.
        kinds: keys of `ASKED`.
        wanted: which questions, by their right answers.
        same: whether a given answer is as good as the right one.
    """

    name: str
    kinds: tuple[str, ...]
    wanted: Callable[[str], bool] = lambda answer: True
    same: Callable[[str, str], bool] = same_answer


def _starts_alike(given: str, right: str) -> bool:
    return first_word(given) == first_word(right)


def is_in_the_picture(answer: str) -> bool:
    """Whether an answer says a place in the picture, "in the top left corner", not one seen from another thing."""
    return normal(answer).startswith(_IN_THE_PICTURE)


def is_none(answer: str) -> bool:
    """Whether an answer says that there is no such thing."""
    return normal(answer) == _NONE


YES_NO = ("is_there", "is_colour", "is_related", "is_kind")
#: The rows that the goals are about.
MAIN_ROWS = (
    Row("what", ("what",)),
    Row("how many", ("how_many",)),
    Row("colour", ("colour",)),
    Row("where", ("where",)),
    Row("yes/no", YES_NO),
)
DETAIL_ROWS = (
    Row("how many, 2 to 4", ("how_many_2_to_4",)),
    Row("where, in the picture", ("where",), is_in_the_picture),
    Row("where, from another thing", ("where",), lambda right: not (is_in_the_picture(right) or is_none(right))),
    Row("beside, something", ("beside",), lambda right: not is_none(right)),
    Row("beside, nothing", ("beside",), is_none),
    Row("yes/no, first word", YES_NO, same=_starts_alike),
    *(Row(kind.replace("_", " "), (kind,)) for kind in YES_NO),
    *(
        Row("odd (trained combinations)" if kind == "odd" else kind.replace("_", " "), (kind,))
        for kind in ASKED
        if kind not in (*YES_NO, "what", "how_many", "how_many_2_to_4", "colour", "where", "beside")
    ),
)


def share(answers: Iterable[dict[str, str]], who: str, same: Callable[[str, str], bool] = same_answer) -> float:
    """The share of the right answers that "model", "blind" or "nearest" gives."""
    right = [same(one[who], one["right"]) for one in answers]
    return sum(right) / len(right)


def row_of(row: Row, results: dict[str, dict[str, Any]]) -> tuple[int, dict[str, float]] | None:
    """
    The number of questions in a row, and the shares of right answers; None if it has none.

    Args:
        row: the row.
        results: by kind, what [`understanding`] gave.
    """
    answers = [one for kind in row.kinds for one in results[kind]["answers"] if row.wanted(one["right"])]
    return (len(answers), {who: share(answers, who, row.same) for who in WHO}) if answers else None
