"""Questions with answers from the data set."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.emoji import conversations
from recipes.emoji.captions import with_article
from recipes.emoji.conversations import ALL_KINDS, KINDS, STYLE_WORDS, Scene, kinds_of
from recipes.emoji.emoji import STYLES, EmojiRecord


def record(name, style="noto", subcategory="food-fruit"):
    return EmojiRecord(name, name, style, name, (), None, "Food & Drink", subcategory, held_out=False)


APPLE, PEAR, CAR = record("red apple"), record("pear", "twemoji"), record("car", "fluent3d", "transport-ground")
OTHERS = [APPLE, PEAR, CAR]
GRID = torch.arange(4).view(2, 2)


def scene(one=APPLE, colour="red"):
    return Scene(one, colour, GRID)


def words(messages) -> list[str]:
    return [
        message["content"]
        if isinstance(message["content"], str)
        else " ".join(part.get("text", "<picture>") for part in message["content"])
        for message in messages
    ]


def true_of(question, one: Scene) -> bool:
    """Whether the answer to "is it ...?" is yes, from its text."""
    asked = question.text.split(" ", 2)[2].removesuffix("?")
    facts = {*kinds_of(one.record), with_article(one.record.name), f"mostly {one.colour}"}
    return asked in facts | {f"in {STYLE_WORDS[one.record.style]} style"}


@given(st.integers(0, 10**9), st.sampled_from(OTHERS), st.sampled_from(["red", "blue", None]))
def test_yes_and_no_answers_are_true(seed, shown, colour):
    one = scene(shown, colour)
    question = conversations.yes_no_question(one, OTHERS, random.Random(seed))
    assert question.answer == ("yes." if true_of(question, one) else "no.")


def test_half_of_the_answers_of_each_topic_are_yes():
    rng = random.Random(0)
    counts: dict[str, list[int]] = {}
    for _ in range(4000):
        question = conversations.yes_no_question(scene(), OTHERS, rng)
        counts.setdefault(question.kind, []).append(question.answer == "yes.")
    assert set(counts) == {"yes/no name", "yes/no kind", "yes/no style", "yes/no colour"}
    assert all(abs(sum(said) / len(said) - 0.5) < 0.07 for said in counts.values())


def test_answers_to_open_questions():
    rng = random.Random(0)
    assert conversations.name_question(APPLE, rng).answer == "a red apple."
    assert conversations.caption_question(PEAR, rng).answer == "a pear, flat style."
    assert conversations.style_question(CAR, rng).answer == "3d style."
    assert conversations.kind_question(CAR, rng).answer == "a vehicle."
    assert conversations.colour_question("red", rng).answer == "red."
    assert conversations.colour_question(None, rng) is None
    assert conversations.kind_question(record("x", subcategory="household"), rng) is None


@given(st.integers(0, 10**9), st.integers(1, 4))
def test_no_answer_reveals_another(seed, turns):
    messages = conversations.questions_about(scene(), OTHERS, random.Random(seed), turns)
    said = words(messages)
    assert len(messages) == 2 * turns and said[0].startswith("<picture> ")
    assert not any("<picture>" in text for text in said[1:])
    names = [text for text in said[1::2] if "red apple" in text]
    assert len(names) <= 1


def test_generated_images_match_the_requests():
    rng = random.Random(0)
    drawn = conversations.drawing(scene(), OTHERS, rng)
    assert "apple" in words(drawn)[0] and words(drawn)[1] == "here is a red apple: <picture>"
    said = words(conversations.story(scene(), scene(CAR), rng))
    assert said[1] == "here is a red apple: <picture> and here is a car: <picture>"
    assert "a red apple" in said[0] and "a car" in said[0]
    restyled = words(conversations.restyling(scene(), scene(record("red apple", "fluent3d")), rng))
    assert restyled[0].startswith("<picture> ") and "3d style" in restyled[0]
    two = words(conversations.comparison(scene(), scene(CAR), rng))
    assert [text for text in two if "<picture>" in text] == two[::2] and two[1::2] == ["a red apple.", "a car."]


@pytest.mark.parametrize("shown", OTHERS)
def test_small_talk_is_true(shown):
    rng = random.Random(1)
    for _ in range(50):
        question, answer = words(conversations.small_talk(shown, OTHERS, rng))
        if question.startswith(f"is {with_article(shown.name)} "):
            kind = question.removeprefix(f"is {with_article(shown.name)} ").removesuffix("?")
            assert answer == ("yes." if kind in kinds_of(shown) else "no.")


def test_the_tables_are_complete():
    assert set(STYLE_WORDS) == set(STYLES)
    assert len(set(ALL_KINDS)) == len(ALL_KINDS) and all(KINDS.values())
