"""Captions: articles, styles, skin tones, and determinism."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.emoji.captions import (
    STYLE_ADJECTIVES,
    canonical_caption,
    caption,
    kind_of,
    text_corpus,
    with_article,
    with_tone,
)
from recipes.emoji.emoji import STYLES, EmojiRecord


def record(
    name="red apple", style="twemoji", synonyms=(), tone=None, category="Food & Drink", subcategory="food-fruit"
):
    return EmojiRecord("1F34E", "1F34E", style, name, tuple(synonyms), tone, category, subcategory, False)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("unamused face", "an unamused face"),
        ("ewe", "a ewe"),
        ("euro banknote", "a euro banknote"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("x-ray", "an x-ray"),
        ("sos button", "an sos button"),
        ("t-shirt", "a t-shirt"),
        ("grapes", "grapes"),
        ("two hearts", "two hearts"),
        ("clapping hands", "clapping hands"),
        ("men holding hands", "men holding hands"),
        ("busts in silhouette", "busts in silhouette"),
        ("octopus", "an octopus"),
        ("rhinoceros", "a rhinoceros"),
        ("wine glass", "a wine glass"),
        ("person lifting weights", "a person lifting weights"),
        ("smiling face with hearts", "a smiling face with hearts"),
        ("skull and crossbones", "a skull and crossbones"),
        ("popcorn", "popcorn"),
        ("santa claus", "santa claus"),
        ("flag of france", "the flag of france"),
        ("statue of liberty", "the statue of liberty"),
    ],
)
def test_articles(name, expected):
    assert with_article(name) == expected


def test_canonical_captions():
    assert canonical_caption(record()) == "a red apple, flat style"
    assert canonical_caption(record(style="noto")) == "a red apple, noto style"
    assert canonical_caption(record(style="fluent3d")) == "a red apple, 3d style"
    hand = record("waving hand", tone="medium")
    assert canonical_caption(hand) == "a waving hand with medium skin tone, flat style"


def test_skin_tones():
    assert with_tone("man with white cane", "dark") == "man with white cane and dark skin tone"
    assert with_tone("people holding hands", "light and dark") == "people holding hands with light and dark skin tones"
    assert with_tone("baby", None) == "baby"


@given(st.integers(0, 2**32), st.sampled_from(STYLES), st.sampled_from([None, "dark"]))
def test_a_caption_names_the_thing_and_the_style(seed, style, tone):
    apple = record(style=style, synonyms=("apple",), tone=tone)
    text = caption(apple, random.Random(seed))
    assert "apple" in text and any(adjective in text for adjective in STYLE_ADJECTIVES[style])
    assert not any(adjective in text for other in STYLES if other != style for adjective in STYLE_ADJECTIVES[other])
    assert "{" not in text and "  " not in text
    assert "a apple" not in text and "an red" not in text and "a android" not in text
    if tone is None:
        assert "skin" not in text


@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_caption(seed):
    assert caption(record(), random.Random(seed)) == caption(record(), random.Random(seed))


def test_shares_of_captions():
    rng = random.Random(0)
    texts = [caption(record(synonyms=("pomme",), tone="medium"), rng) for _ in range(1000)]
    assert 0.8 < sum("medium skin tone" in text for text in texts) / 1000 < 0.9
    assert 0.25 < sum("pomme" in text for text in texts) / 1000 < 0.35
    assert len(set(texts)) > 40
    plain = {caption(record("smiling cat with heart-eyes"), rng) for _ in range(200)}
    assert "3d emoji of a smiling cat with heart eyes" in {
        caption(record("smiling cat with heart-eyes", "fluent3d"), rng) for _ in range(500)
    }
    assert any("heart-eyes" in text for text in plain)


def test_the_corpus_contains_captions_dialogues_and_stories():
    records = [record(f"{name} fruit", style) for name in ("red", "old", "big", "odd") for style in STYLES] * 5
    records += [record("dog face", category="Animals & Nature", subcategory="animal-mammal")] * 60
    records += [record("baby", tone="dark")]
    texts = list(text_corpus(records))
    assert texts == list(text_corpus(records)) and texts != list(text_corpus(records, seed=1))
    together = "\n".join(texts)
    for words in ("an old fruit, flat style", "USER: \n", "ASSISTANT: ", "colour", "yes, it is a fruit", "show me"):
        assert words in together
    assert "no, it is a fruit" in together and "is it a fruit? no, it is a fruit" not in together
    assert "{" not in together


def test_kinds():
    assert kind_of(record()) == "a fruit"
    assert kind_of(record(subcategory="dishware")) == "food"
