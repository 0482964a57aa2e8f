"""Captions of scenes, in many wordings: with and without a style, as a polite request, in another order, mistyped."""

import random

from recipes.world.held_out import DEFAULT_STYLE
from recipes.world.known_words import known_words
from recipes.world.phrases import NUMBERS, background_phrase, content, content_and_background, is_or_are, style_word
from recipes.world.scenes import Scene
from recipes.world.words import article


#: How requests are worded. "{}" is the caption, "{are}" is the verb for it.
REQUESTS = (
    "draw {}", "draw {}", "please draw {}", "draw {} please", "can you draw {}?", "can you draw {} for me?",
    "could you draw {}?", "show me {}", "show {}", "i would like {}", "i'd like a picture of {}", "paint {}",
    "could you make a picture of {}?", "please make a picture of {}", "make {}", "make me {}", "create {}",
    "create an image of {}", "generate {}", "generate an image of {}", "i want {}", "i want to see {}", "give me {}",
    "let me see {}", "may i have {}?", "would you paint {} for me, please?", "an image of {}", "a picture of {}",
    "a drawing of {}", "emoji of {}", "there {are} {}", "we see {}",
)  # fmt: skip
_STYLE_SAID = 0.35  # of the scenes in the default style; the others are always said
REQUEST_SHARE = 0.3
_BARE_SHARE, _TYPO_SHARE = 0.06, 0.04
_PLACES = ("on ", "at ", "in ", "to ", "by ", "left ", "right ", "above ", "over ", "below ", "under", "beneath ")
# How a style is said, behind and before the rest.
_IN = ("{text} in {style} style", "{text} in {style} style", "{text} in the style of {style}")
_AFTER = (
    *_IN, "{text}, {style} style", "{text}, {style} style", "{text}, {style} style", "{text}, {style}",
    "{text}, drawn in {style} style",
)  # fmt: skip
_BEFORE = ("{style} style, {text}", "in {style} style, {text}")
_PICTURE_OF = ("{a_style} picture of {text}", "{a_style} emoji of {text}")
# Words that no typing error may make out of another one: "tree" of "three".
_KNOWN = {
    word
    for phrase in (
        *(phrase for group in known_words().values() for phrase in group),
        *NUMBERS.values(),
        *REQUESTS,
        *_PLACES,
    )
    for word in phrase.split()
}


def canonical_caption(scene: Scene) -> str:
    """The caption that names everything in the usual order: "a dog to the left of a cat at night, 3d style"."""
    return f"{content_and_background(scene)}, {style_word(scene.style)} style"


def caption(scene: Scene, rng: random.Random, requests: float = REQUEST_SHARE) -> str:
    """
    A random caption of a scene, in lower case. It says the truth, but not always everything.

    What is not said is the default: the flat style, a white background.

    Args:
        scene: the scene.
        rng: the source of the random choices.
        requests: the share of requests, such as "please draw a dog".
    """
    requested = rng.random() < requests
    request = rng.choice(REQUESTS) if requested else "{}"
    what, where = content(scene, rng), background_phrase(scene.background, rng)
    while requested and what.startswith(_PLACES):
        what = content(scene, rng)
    bare = not requested and rng.random() < _BARE_SHARE
    if bare:
        what = what.removeprefix("a ").removeprefix("an ")
    text = (
        f"{where}, {what}"
        if where and not requested and rng.random() < 0.12
        else " ".join(filter(None, (what, where)))
    )
    if scene.style != DEFAULT_STYLE or rng.random() < _STYLE_SAID:
        wordings = _AFTER if request.endswith(("{}", "{}?")) else _IN
        if not requested and not text.startswith(_PLACES):
            wordings += _BEFORE if bare else _BEFORE + _PICTURE_OF
        style = style_word(scene.style, rng)
        text = rng.choice(wordings).format(text=text, style=style, a_style=f"{article(style)} {style}")
    if requested:
        text = request.format(text, are=is_or_are(text))
    elif rng.random() < 0.1:
        text += "."
    return mistyped(text, rng) if rng.random() < _TYPO_SHARE else text


def mistyped(text: str, rng: random.Random) -> str:
    """
    The text with one typing error in a word of five letters or more: two letters swapped, one lost, or one twice.

    It stays as it is if the error would make another word of the world.
    """
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    at = rng.choice(long)
    word, spot = words[at], rng.randrange(1, len(words[at]) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        words[at] = word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
    elif kind == 1:
        words[at] = word[:spot] + word[spot + 1 :]
    else:
        words[at] = word[:spot] + word[spot] + word[spot:]
    return text if words[at] in _KNOWN else " ".join(words)
