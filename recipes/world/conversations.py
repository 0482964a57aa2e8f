"""Conversations about scenes: draw, change, ask about what was drawn or shown, small talk."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from recipes.world.captions import caption
from recipes.world.changes import change
from recipes.world.held_out import DEFAULT_STYLE, pair, trained
from recipes.world.phrases import content_and_background, is_or_are, style_word
from recipes.world.questions import Asker
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene
from recipes.world.words import THINGS


@dataclass(frozen=True)
class Turn:
    """
    A request or a question, and the answer.

    Args:
        kind: "draw", "change", "ask" or "talk".
        text: what the user says.
        answer: what the assistant says, before the images if there are some.
        shown: the image that the user sends along.
        made: the images of the answer. Each one after the first has words of its own before it.
        asks: the kind of question, a key of `KINDS_OF_QUESTION`; None for what is none.
    """

    kind: str
    text: str
    answer: str
    shown: Scene | None = None
    made: tuple[Scene, ...] = ()
    asks: str | None = None

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """All images of the turn."""
        return self.made if self.shown is None else (self.shown, *self.made)


_SKILLS = "i draw things and answer questions about pictures. i can change what i drew."
#: Small talk by where it belongs: "greeting" before all else, "about" anywhere, "praise" after a drawing, "goodbye" at the
#: end. What the user says, in many wordings, and the answer.
TALK: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "greeting": (
        (("hello!", "hello", "hi", "hi there", "hey", "good morning"),
         "hello! tell me what to draw, or show me a picture."),
        (("how are you?", "how do you do?"), "i am fine. what shall i draw?"),
    ),
    "about": (
        (("what can you do?", "what are you able to do?", "help", "how does this work?", "what do you do?"), _SKILLS),
        (("who are you?", "what are you?", "what is your name?"),
         "i am a small show-o model. i know a small world of things."),
        (("which styles do you know?", "what styles can you draw?", "which styles are there?"),
         "flat, fluent, noto and 3d style."),
        (("which colours do you know?", "what colors can you draw?"),
         "red, orange, yellow, green, blue, purple and pink."),
    ),
    "praise": (
        (("thank you", "thanks", "thank you very much", "thanks a lot"), "you are welcome."),
        (("nice", "very nice", "great", "i like it", "well done", "lovely"), "i am glad you like it."),
    ),
    "goodbye": ((("goodbye", "bye", "see you"), "goodbye!"),),
}  # fmt: skip
_REQUEST_SHARE = 0.6  # of the texts of drawings; the others are captions
CHANGES, TALK_SHARE = 0.4, 0.07  # of the turns after the first
TWO_REQUESTS = (
    "draw {}, then {}", "show me {}, then {}", "draw {}, and then {}", "first {}, then {}", "please draw {}, then {}",
    "show me {} and after that {}", "draw two pictures: {}; {}", "can you draw {}, and then {}?",
)  # fmt: skip
THINGS_QUESTIONS = ("what can you draw?", "which things do you know?", "what do you know?", "what should i ask for?")


def small_talk(rng: random.Random, *kinds: str) -> Turn:
    """A turn without a picture, of one of the `kinds`, which are keys of [`TALK`]; of any by default."""
    kind = rng.choice(kinds or tuple(TALK))
    if kind == "about" and rng.random() < 0.3:
        return _things(rng)
    questions, answer = rng.choice(TALK[kind])
    return Turn("talk", rng.choice(questions), answer)


def _things(rng: random.Random) -> Turn:
    """The question what there is to draw. The answer names three things, whose pairs are trained ones."""
    things: list[str] = []
    while len(things) < 3:
        thing = rng.choice(list(THINGS))
        if thing not in things and trained(pair(thing, other) for other in things):
            things.append(thing)
    names = [THINGS[thing].name.with_article for thing in things]
    return Turn("talk", rng.choice(THINGS_QUESTIONS), f"many things, such as {names[0]}, {names[1]} or {names[2]}.")


def drawn(scene: Scene, rng: random.Random) -> Turn:
    """A request for a scene."""
    return Turn("draw", caption(scene, rng, _REQUEST_SHARE), announced(scene), made=(scene,))


def drawn_twice(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """A request for two images in one answer."""
    asked = [_wish(scene, rng) for scene in (first, second)]
    return Turn("draw", rng.choice(TWO_REQUESTS).format(*asked), announced(first), made=(first, second))


def _wish(scene: Scene, rng: random.Random) -> str:
    """What a scene shows, as a part of a request. The default style is not said."""
    style = "" if scene.style == DEFAULT_STYLE else f" in {style_word(scene.style, rng)} style"
    return content_and_background(scene, rng) + style


def announced(scene: Scene) -> str:
    """The text before a generated image: "here is a dog to the left of a cat at night:"."""
    parts = content_and_background(scene)
    return f"here {is_or_are(parts)} {parts}:"


def named_together(things: Collection[str]) -> bool:
    """Whether training may name all these things in one request, or in one conversation."""
    return trained(pair(one, other) for one, other in combinations(set(things), 2))


class Talker:
    """
    Makes conversations. All random choices come from the `rng` of the maker.

    Args:
        maker: draws the scenes, of trained combinations alone.
        changes: the share of the turns after the first that ask for a change, as long as there is room for images.
        talk: the share of the turns after the first that are small talk, about.
    """

    def __init__(self, maker: SceneMaker, changes: float = CHANGES, talk: float = TALK_SHARE):
        self.maker, self.rng = maker, maker.rng
        self.changes, self.talk = changes, talk
        self.named: set[str] = set()  # things of the conversation, also those that were not there; but for small talk

    def conversation(self, turns: int, images: int = 4) -> list[Turn]:
        """
        A conversation.

        Args:
            turns: number of turns.
            images: at most so many images.
        """
        rng, made = self.rng, []
        if rng.random() < self.talk + 0.05:
            made.append(small_talk(rng, "greeting", "about"))
        self.named = set()
        if rng.random() < 0.35:
            scene = self._scene()
            made.append(self._question(scene, [], shown=scene))
        elif images > 1 and rng.random() < 0.12:
            made.append(self._two())
        else:
            made.append(drawn(self._scene(), rng))
        while len(made) < turns:
            made.append(self._next(made, images - sum(len(turn.scenes) for turn in made)))
        if turns > 2 and rng.random() < 0.05:
            made[turns - 1] = small_talk(rng, "goodbye")
        return made[:turns]

    def _next(self, made: list[Turn], room: int) -> Turn:
        """The next turn, with at most `room` images."""
        draw, scene = self.rng.random(), next(turn.scenes[-1] for turn in reversed(made) if turn.scenes)
        if room and draw < self.changes:
            changed = change(scene, self.maker)
            if changed is not None and named_together({*self.named, *changed.scene.counts}):
                self.named |= set(changed.scene.counts)
                return Turn("change", changed.text, announced(changed.scene), made=(changed.scene,))
        if room > 1 and draw > 0.97:
            return self._two()
        if room and draw < self.changes + 0.08:
            return drawn(self._scene(), self.rng)
        if draw > 1 - self.talk:
            turn = small_talk(self.rng, "praise" if made[-1].made and self.rng.random() < 0.6 else "about")
            if turn.answer not in [one.answer for one in made]:
                return turn
        return self._question(scene, made)

    def _two(self) -> Turn:
        """A request for two scenes."""
        return drawn_twice(self._scene(), self._scene(), self.rng)

    def _scene(self) -> Scene:
        """A random scene whose things may be named with those before."""
        while True:
            scene = self.maker.scene()
            if named_together({*self.named, *scene.counts}):
                self.named |= set(scene.counts)
                return scene

    def _question(self, scene: Scene, made: list[Turn], shown: Scene | None = None) -> Turn:
        """A question about a scene, of a kind that was not asked since it came; any, if all were."""
        last = max((at for at, turn in enumerate(made) if turn.scenes), default=0)
        asker, asked = Asker(scene, self.rng, self.named), [turn.asks for turn in made[last:]]
        question = asker.ask(without=asked) or asker.ask()
        assert trained(question.names)
        self.named = asker.named
        return Turn("ask", question.text, question.answer, shown, asks=question.kind)


def to_messages(turns: list[Turn], images: dict[Scene, Any]) -> list[dict[str, Any]]:
    """
    Turns as the messages of transformers.

    Args:
        turns: the conversation.
        images: the tokens of each scene, rows of integers.
    """
    messages: list[dict[str, Any]] = []
    for turn in turns:
        asked: list[dict[str, Any]] = [{"type": "text", "text": turn.text}]
        answer: list[dict[str, Any]] = [{"type": "text", "text": turn.answer}]
        for number, scene in enumerate(turn.made):
            if number:
                answer.append({"type": "text", "text": f"and {announced(scene)}"})
            answer.append({"type": "image", "image_tokens": images[scene]})
        if turn.shown is not None:
            asked.insert(0, {"type": "image", "image_tokens": images[turn.shown]})
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages
