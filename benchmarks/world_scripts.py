"""The scripted conversations of benchmarks.world: what is said, and when a turn is right."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.world_detector import Detector
from benchmarks.world_judging import GENEVAL, Wish, changed, described, faults, look, shown
from benchmarks.world_understanding import same_answer
from benchmarks.world_wordings import DRAW, DRAW_TWO, change_text, reworded, talk
from PIL import Image

from recipes.image_tokens import to_pixel_values
from recipes.world.captions import canonical_caption
from recipes.world.changes import change
from recipes.world.conversations import announced
from recipes.world.drawing import draw
from recipes.world.objects import Objects
from recipes.world.questions import Asker, Question
from recipes.world.rows import CONVERSATION_IMAGES
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene


_ABOUT_PLACES = ("where", "beside", "is_related", "describe")
# Shares of turns, about as often as in training.
_TALK_FIRST, _SHOWN_FIRST, _TWO_FIRST = 0.15, 0.35, 0.1
_CHANGE, _DRAW, _TALK = 0.4, 0.08, 0.07  # of the later turns; the others are questions
_PRAISE = 0.6  # of the small talk after a drawing
_GOODBYE = 0.05  # of the last turns
_ATTEMPTS = 100  # to ask a question of a new kind


@dataclass(frozen=True)
class Step:
    """
    A turn of the user, and what must come of it.

    Args:
        kind: "draw", "change", "ask" or "talk".
        name: the kind of change or question; else as `kind`.
        text: what the user says.
        answer: the right words, which count if no image is asked for.
        image: the scene whose image the user sends along.
        wishes: what the images of the answer must show.
        about: what is asked about: an image that was "shown", or one that the model has "drawn"; None for other kinds.
    """

    kind: str
    name: str
    text: str
    answer: str
    image: Scene | None = None
    wishes: tuple[Wish, ...] = ()
    about: str | None = None

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """All images of the turn."""
        made = tuple(wish.scene for wish in self.wishes)
        return made if self.image is None else (self.image, *made)


def script(objects: Objects, split: str, number: int, seed: int = 0) -> list[Step]:
    """
    One conversation of six or seven turns, with at most as many images as a training row has. Small talk stands where
    training conversations have it: greetings first, praise after a drawing, a goodbye last.

    Every drawn or shown scene has an unseen combination of the split; a change leads to a scene of the split or of
    trained combinations. All wordings are those of benchmarks.world_wordings, which are in no training text.

    Args:
        objects: the cut-outs.
        split: "validation" or "test".
        number: the number of the conversation.
        seed: another seed gives other conversations.
    """
    rng = reworded(f"conversation {seed} {split} {number}")
    return _Writer(SceneMaker(objects, rng), split).steps(rng.randint(6, 7))


class _Writer:
    """
    Writes a script, and keeps what is known of the last image: `wish`, who made it: `about`, and the kinds of questions
    that were asked about it.
    """

    def __init__(self, maker: SceneMaker, split: str):
        self.maker, self.rng, self.split = maker, maker.rng, split
        self.room = CONVERSATION_IMAGES

    def steps(self, count: int) -> list[Step]:
        made = [self.talk("greeting", "about")] if self.rng.random() < _TALK_FIRST else []
        first = self.rng.random()
        if first < _SHOWN_FIRST:
            made.append(self.shown())
        else:
            made.append(self.drawn_twice() if first < _SHOWN_FIRST + _TWO_FIRST else self.drawn())
        while len(made) < count:
            made.append(self.next(made))
        if self.rng.random() < _GOODBYE:
            made[-1] = self.talk("goodbye")
        return made

    def next(self, made: list[Step]) -> Step:
        kind = self.rng.random()
        if kind < _CHANGE:
            return (self.changed() if self.room else None) or self.asked()
        if kind < _CHANGE + _DRAW:
            return self.drawn() if self.room else self.asked()
        if kind < _CHANGE + _DRAW + _TALK:
            turn = self.talk("praise" if made[-1].wishes and self.rng.random() < _PRAISE else "about")
            if turn.answer not in [one.answer for one in made]:
                return turn
        return self.asked()

    def talk(self, *kinds: str) -> Step:
        turn = talk(self.rng, *kinds)
        return Step("talk", "talk", turn.text, turn.answer)

    def see(self, wish: Wish, about: str, images: int = 1) -> None:
        self.wish, self.about, self.asked_kinds = wish, about, set[str]()
        self.room -= images

    def shown(self) -> Step:
        scene = self.maker.scene(self.split)
        self.see(shown(scene), "shown")
        question = self.question()
        return Step("ask", question.kind, question.text, question.answer, image=scene, about="shown")

    def asked(self) -> Step:
        question = self.question()
        return Step("ask", question.kind, question.text, question.answer, about=self.about)

    def question(self) -> Question:
        """
        A question of a new kind that has one right answer. Where things are is only asked if it was said or shown. Kinds
        come again where a scene has no others.
        """
        for _ in range(_ATTEMPTS):
            question = Asker(self.wish.scene, self.rng).ask()
            has_one_answer = self.wish.places_are_known or question.kind not in _ABOUT_PLACES
            if has_one_answer and question.kind not in self.asked_kinds:
                self.asked_kinds.add(question.kind)
                return question
        self.asked_kinds.clear()
        return self.question()

    def drawn(self) -> Step:
        self.see(described(self.maker.scene(self.split)), "drawn")
        text = self.rng.choice(DRAW).format(canonical_caption(self.wish.scene))
        return Step("draw", "draw", text, announced(self.wish.scene), wishes=(self.wish,))

    def drawn_twice(self) -> Step:
        wishes = tuple(described(self.maker.scene(self.split)) for _ in range(2))
        self.see(wishes[-1], "drawn", images=2)
        text = self.rng.choice(DRAW_TWO).format(*(canonical_caption(wish.scene) for wish in wishes))
        return Step("draw", "draw two", text, announced(wishes[0].scene), wishes=wishes)

    def changed(self) -> Step | None:
        made = change(self.wish.scene, self.maker, split=self.split)
        if made is None:
            return None
        text = change_text(made.kind, self.wish.scene, made.scene, self.rng)
        self.see(changed(self.wish, made.kind, made.scene), "drawn")
        return Step("change", made.kind, text, announced(made.scene), wishes=(self.wish,))


# Right and wrong


def image_faults(wishes: tuple[Wish, ...], images: list[Image.Image], detector: Detector) -> list[set[str]] | None:
    """What is wrong in each image; None if there are more or fewer than were asked for."""
    if len(images) != len(wishes):
        return None
    pixels = to_pixel_values(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return [faults(wish, seen) for wish, seen in zip(wishes, look(detector, pixels), strict=True)]


def judged(step: Step, parts: list[dict[str, Any]], detector: Detector, drawing_is_right: bool) -> dict[str, Any]:
    """
    Whether an answer is right: its words to a question, or its images to a request.

    A question about a wrong drawing has no right answer that the script knows: "right" is None, and
    "as_in_the_script" says whether the words are those of the script.

    Args:
        step: what was asked, and the right answer.
        parts: the content of the answer.
        detector: the judge of images.
        drawing_is_right: whether the last image that the model drew was right.
    """
    images = [part["image"] for part in parts if part["type"] == "image"]
    if step.wishes:
        found = image_faults(step.wishes, images, detector)
        return {
            "right": found is not None and not any(found),
            "as_geneval": found is not None and not any(one & GENEVAL for one in found),
            "faults": ["number of images"] if found is None else sorted(set().union(*found)),
            "last_is_right": found is not None and not found[-1],
        }
    said = " ".join(part["text"] for part in parts if part["type"] == "text")
    same = not images and same_answer(said, step.answer)
    if step.about == "drawn" and not drawing_is_right:
        return {"right": None, "as_in_the_script": same, "about": "wrong drawing"}
    return {"right": same, "about": step.about}


def unanswered(step: Step) -> dict[str, Any]:
    """The result of a turn that comes when the model's context is full."""
    counted: dict[str, Any] = {"as_geneval": False} if step.wishes else {"about": step.about}
    return {"right": False, "faults": ["context is full"], **counted}


def has_room(pipe: Any, conversation: Any, message: dict[str, Any]) -> bool:
    """Whether the model's context has room for a message and some of its answer."""
    any_tokens = torch.zeros(pipe.default_grid, dtype=torch.int64)  # only the length of an image counts
    content = [part if part["type"] == "text" else {**part, "image": any_tokens} for part in message["content"]]
    return len(pipe.token_ids([*conversation.messages, {**message, "content": content}])) < pipe.context_length


def converse(
    pipe: Any, steps: list[Step], objects: Objects, detector: Detector, seed: int = 0, **options: Any
) -> list[dict[str, Any]]:
    """
    The turns of one conversation, each with whether it was right. The model goes on from what it said itself.

    A conversation whose context is full counts as wrong from there on.

    Args:
        pipe: the pipeline that answers.
        steps: the script.
        objects: the cut-outs.
        detector: the judge of images.
        seed: seed of the first turn's images; each further turn adds 1.
        options: arguments of the pipeline.
    """
    conversation, results, drawing_is_right, is_full = pipe.start(), [], False, False
    for number, step in enumerate(steps):
        message: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": step.text}]}
        if step.image is not None:
            message["content"].insert(0, {"type": "image", "image": Image.fromarray(draw(step.image, objects))})
        is_full = is_full or not has_room(pipe, conversation, message)
        if is_full:
            content, result = [], unanswered(step)
        else:
            generator = torch.Generator().manual_seed(seed + number)
            content = conversation.send(message, generator=generator, **options).content
            result = judged(step, content, detector, drawing_is_right)
        drawing_is_right = result.pop("last_is_right", drawing_is_right)
        said = " ".join(part["text"] for part in content if part["type"] == "text")
        asked = {"kind": step.kind, "name": step.name, "asked": step.text, "right answer": step.answer, "said": said}
        results.append(asked | result)
    return results


def turn_rows(turns: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """The rows of the table of conversations: what, how many turns, and the share that is right."""
    right: dict[str, list[bool]] = {"all": []}
    for turn in turns:
        if turn["right"] is None:
            right.setdefault("asked about a wrong drawing (not in all): as in the script", []).append(
                turn["as_in_the_script"]
            )
            continue
        kind = f"ask, {turn['about']} image" if turn["kind"] == "ask" else turn["kind"]
        for name in ("all", kind):
            right.setdefault(name, []).append(turn["right"])
        if "as_geneval" in turn:
            right.setdefault(f"{kind}, as GenEval", []).append(turn["as_geneval"])
        if turn["kind"] == "change":
            right.setdefault(f"change: {turn['name'].replace('_', ' ')}", []).append(turn["right"])
    return [(name, len(values), sum(values) / len(values)) for name, values in sorted(right.items()) if values]
