"""Conversations about the emoji images: questions with answers from the data set, and mixed text and images.

All functions are deterministic. Random choices come from the `random.Random` that the caller passes. Messages have the
format of transformers; their images are token grids.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recipes.colours import COLOUR_NAMES
from recipes.emoji.captions import CANONICAL_STYLE, canonical_caption, caption, with_article
from recipes.emoji.emoji import STYLES, EmojiRecord


Message = dict[str, Any]

#: The kinds of a subcategory, the wider one first. There are no questions about kinds for other subcategories.
KINDS = {
    **{f"animal-{name}": ("an animal", kind) for name, kind in (
        ("mammal", "a mammal"), ("bird", "a bird"), ("bug", "an insect"), ("marine", "a sea animal"),
        ("reptile", "a reptile"), ("amphibian", "an amphibian"),
    )},
    "plant-flower": ("a plant", "a flower"), "plant-other": ("a plant",),
    "food-fruit": ("food", "a fruit"), "food-vegetable": ("food", "a vegetable"), "food-sweet": ("food", "a sweet"),
    "food-prepared": ("food", "a dish"), "food-asian": ("food", "a dish"), "drink": ("a drink",),
    **{f"face-{name}": ("a face",) for name in (
        "smiling", "affection", "tongue", "hand", "neutral-skeptical", "sleepy", "unwell", "hat", "glasses",
        "concerned", "negative", "costume",
    )},
    "cat-face": ("a face", "the face of a cat"), "monkey-face": ("a face", "the face of a monkey"), "heart": ("a heart",),
    **{f"person{name}": ("a person",) for name in (
        "", "-role", "-gesture", "-fantasy", "-activity", "-sport", "-resting",
    )},
    "family": ("a family",), "hands": ("a hand",), "body-parts": ("a part of the body",),
    **{f"hand-{name}": ("a hand",) for name in ("fingers-open", "fingers-partial", "single-finger", "fingers-closed")},
    "country-flag": ("a flag", "the flag of a country"), "flag": ("a flag",), "subdivision-flag": ("a flag",),
    "transport-ground": ("a vehicle",), "transport-air": ("a vehicle",), "transport-water": ("a vehicle", "a boat"),
    "place-building": ("a building",), "place-religious": ("a building",), "sky & weather": ("the sky",),
    "time": ("a clock",), "sport": ("a sport",), "game": ("a game",), "clothing": ("clothing",),
    "musical-instrument": ("a musical instrument",), "tool": ("a tool",), "computer": ("a machine",),
    **{name: ("a sign",) for name in (
        "transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "alphanum", "keycap", "math",
        "punctuation", "gender", "geometric", "other-symbol", "currency",
    )},
}  # fmt: skip
ALL_KINDS = tuple(dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds))
STYLE_WORDS = {"noto": "noto", "twemoji": "flat", "fluent3d": "3d"}
ANSWERED_COLOURS = tuple(name for name in COLOUR_NAMES if name != "white")

NAME_QUESTIONS = (
    "what is this?", "what is this?", "what is in the picture?", "what do you see?", "what does the picture show?",
    "What is this?",
)  # fmt: skip
CAPTION_QUESTIONS = (
    "describe the picture.", "describe it.", "write a caption.", "Please describe this image in detail.",
    "caption the picture.",
)  # fmt: skip
STYLE_QUESTIONS = ("in which style is it drawn?", "what style is it?", "which style is this?")
KIND_QUESTIONS = ("what kind of thing is it?", "what sort of thing is this?")
COLOUR_QUESTIONS = ("what is the main colour?", "which colour is it mostly?", "what colour is it?")
YES_NO_QUESTIONS = ("is it {}?", "is this {}?")


@dataclass(frozen=True)
class Scene:
    """An image with its facts.

    Args:
        record: what the image shows.
        colour: the main colour, or None; see [`colours.main_colour`].
        image_tokens: the image tokens, int64 (h, w).
    """

    record: EmojiRecord
    colour: str | None
    image_tokens: torch.LongTensor


@dataclass(frozen=True)
class Question:
    """A question about an image with its correct answer.

    Args:
        kind: "name", "caption", "style", "colour", "kind", or "yes/no" with a topic, such as "yes/no name".
        text: the question.
        answer: the correct answer.
    """

    kind: str
    text: str
    answer: str


def kinds_of(record: EmojiRecord) -> tuple[str, ...]:
    """The kinds of a record, the wider one first: ("food", "a fruit"); may be empty."""
    return KINDS.get(record.subcategory, ())


def name_question(record: EmojiRecord, rng: random.Random) -> Question:
    """ "what is this?", "a red apple." The answer has no skin tone."""
    return Question("name", rng.choice(NAME_QUESTIONS), f"{with_article(record.name)}.")


def caption_question(record: EmojiRecord, rng: random.Random) -> Question:
    """ "describe the picture.", "a red apple, flat style." """
    return Question("caption", rng.choice(CAPTION_QUESTIONS), f"{canonical_caption(record)}.")


def style_question(record: EmojiRecord, rng: random.Random) -> Question:
    return Question("style", rng.choice(STYLE_QUESTIONS), f"{CANONICAL_STYLE[record.style]}.")


def kind_question(record: EmojiRecord, rng: random.Random) -> Question | None:
    """None if the record has no kind."""
    kinds = kinds_of(record)
    return Question("kind", rng.choice(KIND_QUESTIONS), f"{kinds[0]}.") if kinds else None


def colour_question(colour: str | None, rng: random.Random) -> Question | None:
    """None if the image has no main colour."""
    return Question("colour", rng.choice(COLOUR_QUESTIONS), f"{colour}.") if colour else None


def yes_no_question(scene: Scene, others: Sequence[EmojiRecord], rng: random.Random) -> Question:
    """A question about the kind, style, colour or name. "yes" and "no" are equally likely."""
    record, right = scene.record, rng.random() < 0.5
    topics = ["name", "style", *(["kind"] * 2 if kinds_of(record) else []), *(["colour"] if scene.colour else [])]
    topic = rng.choice(topics)
    if topic == "kind":
        true = kinds_of(record)
        asked = rng.choice(true) if right else rng.choice([kind for kind in ALL_KINDS if kind not in true])
    elif topic == "style":
        style = record.style if right else rng.choice([style for style in STYLES if style != record.style])
        asked = f"in {STYLE_WORDS[style]} style"
    elif topic == "colour":
        colour = scene.colour if right else rng.choice([name for name in ANSWERED_COLOURS if name != scene.colour])
        asked = f"mostly {colour}"
    else:
        other = rng.choice([other for other in rng.sample(others, 2) if other.unified != record.unified] or [record])
        right = right or other.unified == record.unified
        asked = with_article(record.name if right else other.name)
    return Question(f"yes/no {topic}", rng.choice(YES_NO_QUESTIONS).format(asked), "yes." if right else "no.")


#: Sampling weights of the questions. Names are the hardest to learn.
QUESTION_WEIGHTS = {"name": 5, "caption": 3, "style": 1, "kind": 1, "colour": 1, "yes/no": 4}


def draw_question(scene: Scene, others: Sequence[EmojiRecord], rng: random.Random) -> Question:
    """A random question about a scene."""
    (sort,) = rng.choices(list(QUESTION_WEIGHTS), list(QUESTION_WEIGHTS.values()))
    question = {
        "name": lambda: name_question(scene.record, rng),
        "caption": lambda: caption_question(scene.record, rng),
        "style": lambda: style_question(scene.record, rng),
        "kind": lambda: kind_question(scene.record, rng),
        "colour": lambda: colour_question(scene.colour, rng),
        "yes/no": lambda: None,
    }[sort]()
    return question or yes_no_question(scene, others, rng)


# Messages


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def image_part(image_tokens: torch.LongTensor) -> dict[str, Any]:
    return {"type": "image", "image": image_tokens}


def turn(question: str, answer: str | list[dict], image: torch.LongTensor | None = None) -> list[Message]:
    """A question, with an image before it if given, and its answer."""
    parts = [text_part(question)] if image is None else [image_part(image), text_part(question)]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]


def questions_about(scene: Scene, others: Sequence[EmojiRecord], rng: random.Random, turns: int) -> list[Message]:
    """A conversation with an image and `turns` questions. No answer reveals another one."""
    messages: list[Message] = []
    asked: set[str] = set()
    while len(messages) < 2 * turns:
        question = draw_question(scene, others, rng)
        # A caption reveals the name, and the name reveals most of the caption.
        revealed = {"caption": {"caption", "name"}, "name": {"caption", "name"}}.get(question.kind, {question.kind})
        if not revealed & asked:
            messages += turn(question.text, question.answer, None if asked else scene.image_tokens)
            asked |= revealed
    return messages


_SINGLE_REQUESTS = ("draw {}.", "show me {}.", "make a picture of {}.", "Draw {}.", "please draw {}.", "{}")
_DOUBLE_REQUESTS = ("show me {}, then {}.", "draw {} and {}.", "first {}, then {}.", "Show me {}, then {}.")
_OPENINGS = ("here is {}:", "this is {}:")


def made_image(scene: Scene, opening: str) -> list[dict]:
    """The content "here is a red apple:" and the image."""
    return [text_part(opening.format(with_article(scene.record.name))), image_part(scene.image_tokens)]


def drawing(scene: Scene, others: Sequence[EmojiRecord], rng: random.Random) -> list[Message]:
    """A request, the generated image, and sometimes a question about it."""
    request = rng.choice(_SINGLE_REQUESTS).format(caption(scene.record, rng))
    messages = turn(request, made_image(scene, _OPENINGS[0]))
    if rng.random() < 0.4:
        question = draw_question(scene, others, rng)
        messages += turn(question.text, question.answer)
    return messages


def story(first: Scene, second: Scene, rng: random.Random) -> list[Message]:
    """A request for two images in one answer: "show me an apple, then a pear." """
    style = f" in {STYLE_WORDS[first.record.style]} style" if rng.random() < 0.5 else ""
    names = [with_article(scene.record.name) for scene in (first, second)]
    request = rng.choice(_DOUBLE_REQUESTS).format(names[0], names[1])
    request = request.removesuffix(".") + style + "."
    answer = [*made_image(first, "here is {}:"), *made_image(second, "and here is {}:")]
    return turn(request, answer)


def restyling(seen: Scene, made: Scene, rng: random.Random) -> list[Message]:
    """An input image, and a generated image of the same emoji in another style."""
    style = STYLE_WORDS[made.record.style]
    request = rng.choice(("the same in {} style.", "paint the same thing in {} style.", "now in {} style.")).format(
        style
    )
    return turn(request, made_image(made, _OPENINGS[0]), seen.image_tokens)


def comparison(first: Scene, second: Scene, rng: random.Random) -> list[Message]:
    """Two input images in one conversation, each with a question."""
    one, other = name_question(first.record, rng), name_question(second.record, rng)
    question = rng.choice((other.text, "and this?", "and what is this?"))
    return turn(one.text, one.answer, first.image_tokens) + turn(question, other.answer, second.image_tokens)


def small_talk(record: EmojiRecord, others: Sequence[EmojiRecord], rng: random.Random) -> list[Message]:
    """A conversation without images: about the model, or about the kinds of things."""
    if rng.random() < 0.15:
        return turn(*rng.choice(_ABOUT))
    kinds = kinds_of(record)
    if not kinds:
        return turn(*rng.choice(_ABOUT))
    right = rng.random() < 0.5
    asked = rng.choice(kinds if right else [kind for kind in ALL_KINDS if kind not in kinds])
    return turn(f"is {with_article(record.name)} {asked}?", "yes." if right else "no.")


_ABOUT = (
    ("hello!", "hello! tell me what to draw, or show me a picture."),
    ("hi", "hello! tell me what to draw, or show me a picture."),
    ("what can you do?", "i draw emoji in three styles, and i say what is in a picture of one."),
    ("who are you?", "i am a small show-o model that has learnt emoji."),
    ("which styles do you know?", "noto style, flat style and 3d style."),
)
