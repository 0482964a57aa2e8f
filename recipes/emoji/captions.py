"""English captions of the emoji data set, and the corpus of the text tokenizer.

All functions are deterministic. Random choices come from the `random.Random` that the caller passes.
"""

import random
import re
from collections.abc import Iterator, Sequence

from recipes.emoji.emoji import EmojiRecord


# The words of each style, and caption templates. A template that is listed more often is drawn more often.
STYLE_ADJECTIVES = {"noto": ("noto", "android"), "twemoji": ("flat", "twemoji"), "fluent3d": ("3d", "fluent 3d")}
CANONICAL_STYLE = {"noto": "noto style", "twemoji": "flat style", "fluent3d": "3d style"}
_TEMPLATES = (
    "{thing}, {style} style",
    "{thing}, {style} style",
    "{thing}, {style} style",
    "{bare}, {style} style",
    "{thing} in {style} style",
    "{bare} in {style} style",
    "{article_style} emoji of {thing}",
    "{style} emoji of {thing}",
    "{style} {bare}",
    "{article_style} picture of {thing}",
    "{thing}, {style}",
    "emoji of {thing} in {style} style",
)

SYNONYM_SHARE = 0.3
TONE_SHARE = 0.85
SIMPLER_SHARE = 0.3  # how often "heart-eyes" becomes "heart eyes"

_PREPOSITIONS = (
    "with", "of", "in", "on", "at", "without", "behind", "showing", "pointing", "over", "under", "facing", "for",
    "holding", "kissing", "and", "fluttering", "curving", "pointed", "tilted", "from", "increasing", "decreasing",
    "hugging", "wrestling", "not", "up", "down",
)  # fmt: skip
_PEOPLE = {"person", "man", "woman", "baby", "male", "female", "bald", "pregnant", "deaf", "face", "child"}
_PLURALS = {"people", "men", "women", "children", "feet", "teeth", "two", "thumbs", "skis"}
_SINGULAR_ENDINGS = ("ss", "us", "is")
_SINGULARS = {"lens", "rhinoceros", "vhs"}
_WITHOUT_ARTICLE = {
    "applause", "bacon", "beer", "bento", "bread", "broccoli", "bubble tea", "butter", "candy", "canned food",
    "champagne", "coffee", "cooked rice", "coral", "corn", "curry", "curry rice", "dango", "falafel", "fire",
    "flatbread", "fog", "garlic", "ginger root", "leafy green", "mahjong", "mate",
    "mount fuji", "mrs. claus", "mother christmas", "oden", "poop", "popcorn", "pouring liquid", "ramen",
    "rice", "sake", "salt", "santa", "santa claus", "shaved ice", "soap", "soft ice cream", "ice cream", "spaghetti",
    "stuffed flatbread", "sushi", "tea", "thread", "tokyo tower", "wood", "yarn", "baguette bread",
    "dna", "money with wings", "performing arts",
}  # fmt: skip
_DEFINITE = {"milky way galaxy", "statue of liberty", "kaaba"}
_AN = re.compile(r"^(?:[aeiou]|hour|heir|honest|x-ray|sos\b|ng\b|atm\b|8|11|18)")
_NOT_AN = re.compile(r"^(?:eu|ewe|one\b|one-|once|uni(?!n)|us\b|use|ut[ei]|uk\b)")


def is_plural(name: str) -> bool:
    """Whether a noun phrase such as "two hearts" or "clapping hands" is plural, from its head noun."""
    words = re.findall(r"[\w'.-]+", name)
    if words[0] in _PLURALS:
        return True
    if words[0] in _PEOPLE:
        return False
    head = next((i for i, word in enumerate(words) if i and word in _PREPOSITIONS), len(words)) - 1
    noun = words[head]
    if noun in _PLURALS:
        return True
    return noun.endswith("s") and not noun.endswith(_SINGULAR_ENDINGS) and noun not in _SINGULARS


def indefinite_article(words: str) -> str:
    """ "a" or "an", by the pronunciation of `words`."""
    return "an" if _AN.match(words) and not _NOT_AN.match(words) else "a"


def with_article(name: str) -> str:
    """A noun phrase with its article, if any: "a red apple", "an owl", "grapes", "the flag of france"."""
    if name in _DEFINITE or name.startswith("flag of "):
        return f"the {name}"
    if name in _WITHOUT_ARTICLE or is_plural(name):
        return name
    return f"{indefinite_article(name)} {name}"


def with_tone(name: str, tone: str | None) -> str:
    """A noun phrase with its skin tone: "waving hand with medium skin tone"."""
    if tone is None:
        return name
    noun = "skin tones" if " and " in tone else "skin tone"
    joint = "and" if " with " in name else "with"
    return f"{name} {joint} {tone} {noun}"


def canonical_caption(record: EmojiRecord) -> str:
    """The canonical caption of an image: "a red apple, flat style"."""
    thing = with_article(record.name)
    return f"{with_tone(thing, record.tone)}, {CANONICAL_STYLE[record.style]}"


def caption(record: EmojiRecord, rng: random.Random) -> str:
    """A random caption of an image: "3d emoji of a red apple", "an apple in flat style"."""
    name = record.name
    if record.synonyms and rng.random() < SYNONYM_SHARE:
        name = rng.choice(record.synonyms)
    tone = record.tone if rng.random() < TONE_SHARE else None
    simpler = rng.random() < SIMPLER_SHARE
    style = rng.choice(STYLE_ADJECTIVES[record.style])
    template = rng.choice(_TEMPLATES)
    text = _fill(template, name, tone, style)
    return text.replace("-", " ") if simpler and tone is None else text


def _fill(template: str, name: str, tone: str | None, style: str) -> str:
    return template.format(
        thing=with_tone(with_article(name), tone),
        bare=with_tone(name, tone),
        style=style,
        article_style=f"{indefinite_article(style)} {style}",
    )


# --- The corpus of the text tokenizer. It contains the kinds of text of all tasks.

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "light blue",
    "dark green", "gold", "beige",
)  # fmt: skip
_KINDS = {
    "Animals & Nature": "an animal or a plant",
    "Food & Drink": "food",
    "Travel & Places": "a place or a vehicle",
    "Activities": "a game or a sport",
    "Objects": "an object",
    "Symbols": "a symbol",
    "Flags": "a flag",
    "People & Body": "a person or a part of the body",
    "Smileys & Emotion": "a face or a feeling",
    "Component": "a colour",
}
_KINDS_OF_SUBCATEGORY = {
    "animal-mammal": "a mammal",
    "animal-bird": "a bird",
    "animal-bug": "an insect",
    "animal-marine": "a sea animal",
    "animal-reptile": "a reptile",
    "animal-amphibian": "an amphibian",
    "plant-flower": "a flower",
    "plant-other": "a plant",
    "food-fruit": "a fruit",
    "food-vegetable": "a vegetable",
    "food-sweet": "something sweet",
    "drink": "a drink",
    "clothing": "clothing",
    "musical-instrument": "a musical instrument",
    "tool": "a tool",
    "transport-ground": "a vehicle",
    "transport-water": "a boat or a ship",
    "transport-air": "an aircraft",
    "place-building": "a building",
    "sport": "a sport",
    "heart": "a heart",
    "cat-face": "the face of a cat",
    "country-flag": "the flag of a country",
}
_QUESTIONS = (
    ("what is this?", "this is {thing}."),
    ("what is in the picture?", "the picture shows {thing}."),
    ("what do you see?", "i see {thing} in {style} style."),
    ("describe the picture.", "it is {thing} on a white background, drawn in {style} style."),
    ("is it {kind}?", "yes, it is {kind}."),
    ("is it {other_kind}?", "no, it is {kind}. it shows {thing}."),
    ("what kind of thing is it?", "it is {kind}."),
    ("what is the main colour?", "the main colour is {colour}."),
    ("which colours are there?", "mostly {colour}, and some {other_colour}."),
    ("is the main colour {colour}?", "yes, it is {colour}."),
    ("is it {other_colour}?", "no, it is {colour}."),
    ("in which style is it drawn?", "it is drawn in {style} style."),
    ("is there {other} in the picture?", "no, there is {thing}."),
    ("are the two pictures the same?", "no, the first shows {thing}, the second shows {other}."),
    ("how many pictures are there?", "there are two pictures: {thing} and {other}."),
)
_INSTRUCTIONS = (
    "show me {thing}, then {other}.",
    "draw {thing} in {style} style.",
    "make a picture of {thing}. then tell me what it is.",
    "first {thing}, then {other}, and last {third}.",
    "paint the same thing in {style} style.",
    "make it {colour}.",
    "replace the {bare} by {other}.",
    "fill in the missing part of {thing}.",
    "here is {thing}: what comes next?",
)
_STORIES = (
    "once there was {thing}. one day it met {other}, and they were happy together.",
    "i went to the market and saw {thing} next to {other}. it was very {colour}!",
    "a short story: {thing} looks for {other}, but finds {third}.",
    "step 1: take {thing}. step 2: add {other}. now there are {number} things.",
)


def kind_of(record: EmojiRecord) -> str:
    """The kind of thing a record shows: "a fruit", "an animal or a plant"."""
    return _KINDS_OF_SUBCATEGORY.get(record.subcategory, _KINDS[record.category])


def text_corpus(records: Sequence[EmojiRecord], seed: int = 0) -> Iterator[str]:
    """Texts for training a tokenizer: captions, questions and answers, instructions, short stories.

    Every base emoji has the same weight, with or without skin tones. Colours and numbers are random words, not facts
    about the images.

    Args:
        records: the data set, or a part of it.
        seed: seed of the random choices.
    """
    rng = random.Random(seed)
    bases = [record for record in records if record.tone is None]
    toned = [record for record in records if record.tone is not None]
    for record in bases:
        yield canonical_caption(record)
        yield from (caption(record, rng) for _ in range(4))
        yield _conversation(record, bases, rng)
        yield _filled(rng.choice(_INSTRUCTIONS), record, bases, rng)
        if rng.random() < 0.5:
            yield _filled(rng.choice(_STORIES), record, bases, rng)
    for record in rng.sample(toned, min(len(toned), len(bases))):
        yield caption(record, rng)


def _conversation(record: EmojiRecord, bases: Sequence[EmojiRecord], rng: random.Random) -> str:
    question, answer = _filled("|".join(rng.choice(_QUESTIONS)), record, bases, rng).split("|")
    opening = rng.choice(("USER: \n{} ASSISTANT: {}", "USER: {} ASSISTANT: {}", "{} {}"))
    text = opening.format(question, answer)
    return _capitalised(text) if rng.random() < 0.3 else text


def _capitalised(text: str) -> str:
    return re.sub(r"(^|[.?!:]\s+)([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)


def _filled(template: str, record: EmojiRecord, bases: Sequence[EmojiRecord], rng: random.Random) -> str:
    third = rng.choice(bases)
    others = (rng.choice(bases) for _ in range(20))  # must be of another kind, because of "no, it is ..."
    other = next((base for base in others if kind_of(base) != kind_of(record)), third)
    colour, other_colour = rng.sample(COLOURS, 2)
    return template.format(
        thing=with_article(record.name),
        bare=record.name,
        other=with_article(other.name),
        third=with_article(third.name),
        kind=kind_of(record),
        other_kind=kind_of(other),
        style=rng.choice(STYLE_ADJECTIVES[record.style]),
        colour=colour,
        other_colour=other_colour,
        number=rng.choice(("two", "three", "4", "5", "10", "12")),
    )
