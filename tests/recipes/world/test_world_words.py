"""The table of things is consistent: every word means one thing."""

import re
import zlib
from collections import Counter
from pathlib import Path

import pytest

from recipes.world.known_words import known_words
from recipes.world.recolouring import PALETTE
from recipes.world.words import KINDS, THINGS, article, plural_of


NOUNS = [noun for thing in THINGS.values() for noun in thing.nouns]


def test_there_are_things_of_every_kind():
    assert 100 <= len(THINGS) <= 150
    assert set(KINDS) == {thing.kind for thing in THINGS.values()}
    assert sum(thing.recoloured for thing in THINGS.values()) >= 50


def test_the_order_of_the_things_is_the_one_of_trained_judges():
    """Recorded, because a judge numbers the things in this order."""
    assert zlib.crc32(",".join(THINGS).encode()) == 3533863899


def test_every_word_and_every_emoji_means_one_thing():
    words = Counter(form for noun in NOUNS for form in {noun.singular, noun.plural} if form)
    assert [word for word, count in words.items() if count > 1] == []
    assert len({thing.code for thing in THINGS.values()}) == len(THINGS)


def test_words_are_plain_and_codes_are_code_points():
    for noun in NOUNS:
        assert re.fullmatch(r"[a-z][a-z -]*", noun.singular)
    for thing in THINGS.values():
        assert re.fullmatch(r"[0-9A-F]{4,5}", thing.code)
        assert thing.name.plural is not None, "answers count things by their names"
        assert (
            not thing.recoloured
            or thing.own_colour is None
            or thing.own_colour in {*PALETTE, "grey", "brown", "white"}
        )


def test_no_thing_is_asked_for_in_a_colour_that_it_nearly_has():
    for thing in THINGS.values():
        assert set(thing.near_colours) <= set(PALETTE) and thing.own_colour not in thing.near_colours


def test_no_word_is_a_colour():
    assert not {noun.singular for noun in NOUNS} & set(PALETTE)


@pytest.mark.parametrize(
    "singular, plural",
    [("fox", "foxes"), ("lorry", "lorries"), ("volcano", "volcanoes"),
     ("slice of pizza", "slices of pizza"), ("mouse", "mice"), ("bus", "buses"),
     ("loaf of bread", "loaves of bread"), ("key", "keys"), ("couch", "couches"),
     ("bunch of grapes", "bunches of grapes")],
)  # fmt: skip
def test_plurals(singular, plural):
    assert plural_of(singular) == plural


def test_articles():
    words = ("apple", "unicorn", "ufo", "umbrella", "ewe", "orange", "egg", "dog")
    assert [article(word) for word in words] == ["an", "a", "a", "an", "a", "an", "an", "a"]
    assert THINGS["unicorn"].name.with_article == "a unicorn"
    cheese = next(noun for noun in THINGS["piece of cheese"].synonyms if noun.singular == "cheese")
    assert cheese.with_article == "cheese" and cheese.plural is None


def test_the_demo_draws_two_things():
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    (prompt,) = re.findall(r"^DEMO_PROMPT \?= (.+)$", makefile, re.MULTILINE)
    words = {noun.singular: name for name, thing in THINGS.items() for noun in thing.nouns}
    assert {name for word, name in words.items() if re.search(rf"\b{word}\b", prompt)} == {"apple", "car"}


def test_known_words_are_those_of_the_prompts():
    groups = known_words()
    words = [word for group in groups.values() for word in group]
    assert {form for noun in NOUNS for form in (noun.singular, noun.plural) if form} | set(PALETTE) <= set(words)
    assert len(words) - len(set(words)) <= len(PALETTE)  # "orange" is a thing and a colour
    assert {"flat", "twemoji", "fluent", "fluent flat", "noto", "android", "3d"} <= set(groups["styles"])
    assert {"gray", "brown", "white"} <= set(groups["colours"]) and "at night" in groups["backgrounds"]
    assert not {"two", "left"} & set(words), "a prompt with nothing else has nothing to draw"
