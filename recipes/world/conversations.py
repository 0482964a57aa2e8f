"""Conversations about scenes: draw, change, ask about what was drawn or shown, small talk."""

import random
from dataclasses import dataclass
from typing import Any

from recipes.world.captions import DEFAULT_STYLE, REQUESTS, caption
from recipes.world.changes import change
from recipes.world.held_out import trained
from recipes.world.phrases import content_and_background, style_word
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
    """

    kind: str
    text: str
    answer: str
    shown: Scene | None = None
    made: tuple[Scene, ...] = ()

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """All images of the turn."""
        return self.made if self.shown is None else (self.shown, *self.made)


_SKILLS = "i draw things and answer questions about pictures. i can change what i drew."
_TALK = (
    (("hello!", "hello", "hi", "hi there", "hey", "good morning"), "hello! tell me what to draw, or show me a picture."),
    (("what can you do?", "what are you able to do?", "help", "how does this work?", "what do you do?"), _SKILLS),
    (("who are you?", "what are you?", "what is your name?"), "i am a small show-o model. i know a small world of things."),
    (("which styles do you know?", "what styles can you draw?", "which styles are there?"),
     "flat, fluent, noto and 3d style."),
    (("which colours do you know?", "what colors can you draw?"), "red, orange, yellow, green, blue, purple and pink."),
    (("thank you", "thanks", "thank you very much", "thanks a lot"), "you are welcome."),
    (("nice", "very nice", "great", "i like it", "well done", "lovely"), "i am glad you like it."),
    (("goodbye", "bye", "see you"), "goodbye!"),
    (("how are you?", "how do you do?"), "i am fine. what shall i draw?"),
)  # fmt: skip
_TWO_REQUESTS = (
    "draw {}, then {}", "show me {}, then {}", "draw {}, and then {}", "first {}, then {}", "please draw {}, then {}",
    "show me {} and after that {}", "draw two pictures: {}; {}", "can you draw {}, and then {}?",
)  # fmt: skip
_THINGS_QUESTIONS = ("what can you draw?", "which things do you know?", "what do you know?", "what should i ask for?")


def small_talk(rng: random.Random) -> Turn:
    """A turn without a picture."""
    if rng.random() < 0.2:
        names = [THINGS[name].name.with_article for name in rng.sample(list(THINGS), 3)]
        return Turn(
            "talk", rng.choice(_THINGS_QUESTIONS), f"many things, such as {names[0]}, {names[1]} or {names[2]}."
        )
    questions, answer = rng.choice(_TALK)
    return Turn("talk", rng.choice(questions), answer)


def drawn(scene: Scene, rng: random.Random) -> Turn:
    """A request for a scene."""
    text = caption(scene, rng)
    if rng.random() < 0.5 and text.startswith(("a ", "an ", "two ", "three ", "four ")):
        text = rng.choice(REQUESTS[:20]).format(text)
    return Turn("draw", text, announced(scene), made=(scene,))


def drawn_twice(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """A request for two images in one answer."""
    asked = [_wish(scene, rng) for scene in (first, second)]
    return Turn("draw", rng.choice(_TWO_REQUESTS).format(*asked), announced(first), made=(first, second))


def _wish(scene: Scene, rng: random.Random) -> str:
    """What a scene shows, as a part of a request. The default style is not said."""
    style = "" if scene.style == DEFAULT_STYLE else f" in {style_word(scene.style, rng)} style"
    return content_and_background(scene, rng) + style


def announced(scene: Scene) -> str:
    """The text before a generated image: "here is a dog to the left of a cat at night:"."""
    parts = content_and_background(scene)
    verb = "are" if parts.startswith(("two ", "three ", "four ")) else "is"
    return f"here {verb} {parts}:"


class Talker:
    """
    Makes conversations. All random choices come from the `rng` of the maker.

    Args:
        maker: draws the scenes.
        split: "train" for trained combinations alone; otherwise the first scene has an unseen one of this split.
    """

    def __init__(self, maker: SceneMaker, split: str = "train"):
        self.maker, self.rng, self.split = maker, maker.rng, split

    def conversation(self, turns: int, images: int = 4) -> list[Turn]:
        """
        A conversation.

        Args:
            turns: number of turns.
            images: at most so many images.
        """
        rng, made = self.rng, [small_talk(self.rng)] if self.rng.random() < 0.15 else []
        scene = self.maker.scene(self.split)
        if rng.random() < 0.35:
            question = Asker(scene, rng).ask()
            made.append(Turn("ask", question.text, question.answer, shown=scene))
        elif images > 1 and rng.random() < 0.12:
            second = self.maker.scene()
            made.append(drawn_twice(scene, second, rng))
            scene = second
        else:
            made.append(drawn(scene, rng))
        while len(made) < turns:
            turn = self._next(scene, images - sum(len(turn.scenes) for turn in made))
            scene = turn.made[-1] if turn.made else scene
            made.append(turn)
        return made[:turns]

    def _next(self, scene: Scene, room: int) -> Turn:
        """The next turn, with at most `room` images."""
        draw = self.rng.random()
        if room and draw < 0.4:
            changed = change(scene, self.maker, split=self.split)
            if changed is not None:
                return Turn("change", changed.text, announced(changed.scene), made=(changed.scene,))
        if room > 1 and draw > 0.97:
            return drawn_twice(self.maker.scene(), self.maker.scene(), self.rng)
        if room and draw < 0.48:
            return drawn(self.maker.scene(), self.rng)
        if draw > 0.93:
            return small_talk(self.rng)
        question = Asker(scene, self.rng).ask()
        assert trained(question.names)
        return Turn("ask", question.text, question.answer)


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
