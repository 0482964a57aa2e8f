"""Captions and questions: true and worded in many ways. No text of the training names a held-out combination."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.world import captions
from recipes.world.captions import REQUESTS, canonical_caption, caption, mistyped
from recipes.world.conversations import Talker, named_together
from recipes.world.held_out import coloured, counted, pair, trained
from recipes.world.objects import STYLES
from recipes.world.phrases import NUMBERS, STYLE_WORDS, is_or_are, listed, one_of, some_of
from recipes.world.questions import KINDS_OF_QUESTION, Asker
from recipes.world.recolouring import PALETTE
from recipes.world.scene_maker import KIND_WEIGHTS, SceneMaker
from recipes.world.scenes import Item, Scene
from recipes.world.words import ALSO_CALLED, THINGS


seeds = st.integers(0, 10**6)
TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "3d", "night")
STACKED = Scene((Item("dog", None, 4, 0), Item("fox", None, 4, 7)), "flat", "grass")
APPLE = Scene((Item("apple", None, 0, 7),), "flat")
BEES = Scene((Item("bee", None, 0, 3), Item("bee", None, 7, 3)), "noto")
THREE = Scene((Item("apple", None, 3, 0), Item("car", None, 0, 7), Item("car", None, 6, 7)), "flat")
CORNER = Scene((Item("dog", None, 4, 0), Item("bus", None, 0, 7), Item("cat", None, 7, 7)), "flat")
YES_NO = ("is_there", "is_colour", "is_related", "is_kind")


def ask(scene, kind, times=200, seed=0):
    rng = random.Random(seed)
    return [question for _ in range(times) if (question := Asker(scene, rng).ask(kind))]


def held_out_phrases():
    """What no training text may say: "blue dog", "three cats", "3 cats"."""
    for name, thing in THINGS.items():
        for colour in PALETTE:
            if colour != thing.own_colour and not trained([coloured(name, colour)]):
                yield from (
                    f"{colour} {form}" for noun in thing.nouns for form in (noun.singular, noun.plural) if form
                )
        for count in (2, 3, 4):
            if not trained([counted(name, count)]):
                plurals = [noun.plural for noun in thing.nouns if noun.plural]
                yield from (f"{number} {plural}" for plural in plurals for number in (NUMBERS[count], count))


# Captions


@pytest.mark.parametrize(
    "scene, expected",
    [
        (TWO, "a blue dog to the left of a fox at night, 3d style"),
        (THREE, "an apple above two cars, flat style"),
        (Scene((Item("sheep", None, 6, 0),), "noto", "pink"),
         "a sheep in the top right corner on a pink background, noto style"),
        (Scene((Item("pair of scissors", None, 4, 4),), "fluent", "sea"),
         "a pair of scissors at sea, fluent style"),
    ],
)  # fmt: skip
def test_canonical_captions(scene, expected):
    assert canonical_caption(scene) == expected


def test_captions_vary_and_say_what_is_there():
    rng = random.Random(0)
    texts = [caption(TWO, rng) for _ in range(400)]
    assert len(set(texts)) > 300
    dogs = sum(bool(re.search(r"\b(dog|doggy)\b", text)) for text in texts)
    assert dogs > 380 and sum("blue" in text for text in texts) > 380  # the others are mistyped
    assert sum(any(word in text for word in ("3d",)) for text in texts) > 380
    assert 40 < sum(bool(re.search("draw|paint|show|please", text)) for text in texts) < 200
    patterns = ("(dog|doggy) .*left of", "fox .*right of")
    left, right = (sum(bool(re.search(pattern, text)) for text in texts) for pattern in patterns)
    assert left > 40 and right > 40


def test_the_default_style_and_background_are_often_not_said():
    rng = random.Random(1)
    texts = [caption(Scene((Item("apple", None, 4, 4),), "flat"), rng) for _ in range(300)]
    assert 150 < sum(not any(word in text for word in STYLE_WORDS["flat"]) for text in texts) < 250
    other = [caption(Scene((Item("apple", None, 4, 4),), "noto"), rng) for _ in range(100)]
    assert sum("noto" in text or "android" in text for text in other) > 90


def test_requests_do_not_begin_with_a_place():
    rng = random.Random(2)
    texts = [caption(scene, rng) for scene in (TWO, STACKED) for _ in range(1500)]
    openings = {text.partition("{}")[0].format(are=verb) for text in REQUESTS for verb in ("is", "are")}
    opening = re.compile("|".join(sorted(map(re.escape, openings), key=len, reverse=True)))  # the longest one counts
    requested = [opening.sub("", text, count=1) for text in texts if opening.match(text)]
    assert len(requested) > 600 and not [text for text in requested if text.startswith(captions._PLACES)]
    assert sum(text.startswith(captions._PLACES) for text in texts) > 100, "other captions do"


def test_a_typing_error_changes_one_word_a_little():
    rng = random.Random(3)
    for _ in range(50):
        changed = mistyped("a yellow elephant", rng).split()
        assert len(changed) == 3 and changed[0] == "a"
        assert sum(one != other for one, other in zip(changed, "a yellow elephant".split(), strict=True)) <= 1
    assert mistyped("a red fox", rng) == "a red fox"


def test_a_typing_error_makes_no_other_word_of_the_world():
    rng = random.Random(3)
    made = {mistyped("three", rng) for _ in range(200)}
    assert len(made) > 4 and not made & {"tree", "there"}


def test_captions_are_english(objects):
    """Each pattern is an error that a wording made of another one."""
    maker = SceneMaker(objects, random.Random(13))
    made = [(scene, caption(scene, maker.rng)) for scene in (maker.scene() for _ in range(2000))]
    made += [(scene, text) for _ in range(200) for turn in Talker(maker).conversation(3) if turn.kind == "draw"
             for scene, text in [(turn.made[0], turn.text)]]  # fmt: skip
    a_picture = "(picture|emoji|image|drawing) of"
    wrong = {
        "a picture of a picture": rf"{a_picture} .*{a_picture}",
        "two are": r"\bthere is ([2-4]|two|three|four|a couple|a pair of (?!scissors|glasses|eyeglasses))",
        "one is": r"\bthere are an? (?!couple|pair)",
        "a style behind a comma goes on": rf", ({'|'.join(sum(STYLE_WORDS.values(), ()))})( style)? (for me|please)$",
        "two articles": r"\b(a|an|the) (a|an|the)\b",
    }
    for name, pattern in wrong.items():
        assert [text for _, text in made if re.search(pattern, text)] == [], name
    counted_once = [
        text for scene, text in made if len(scene.items) == 1 and re.search(rf"{a_picture} (?!an? )", text)
    ]
    uncounted = [noun.singular for thing in THINGS.values() for noun in thing.nouns if noun.plural is None]
    assert [text for text in counted_once if not any(noun in text for noun in uncounted)] == []


def test_phrases():
    rng = random.Random(4)
    assert one_of("elephant", "orange") == "an orange elephant" and one_of("unicorn") == "a unicorn"
    assert some_of("slice of pizza", 3) == "three slices of pizza"
    assert {some_of("dog", 2, "blue", rng) for _ in range(200)} >= {
        "two blue dogs",
        "2 blue dogs",
        "a pair of blue doggies",
    }
    assert {one_of("piece of cheese", rng=rng) for _ in range(100)} == {"a piece of cheese", "cheese"}
    assert [listed(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "phrase, verb",
    [("a dog and two cats", "is"), ("two cats and a dog", "are"), ("4 cars", "are"), ("a couple of blue dogs", "are"),
     ("a pair of dogs", "are"), ("a pair of scissors", "is"), ("purple grapes", "are"), ("french fries", "are"),
     ("cheese above grapes", "is"), ("an orange bunch of grapes", "is"), ("none", "is")],
)  # fmt: skip
def test_verbs(phrase, verb):
    assert is_or_are(phrase) == verb


def test_every_style_has_words():
    assert set(STYLE_WORDS) == set(STYLES)


# Questions


@pytest.mark.parametrize(
    "scene, kind, answers",
    [
        (TWO, "what", {"there is a blue dog and a fox."}),
        (APPLE, "what", {"there is an apple.", "this is an apple."}),
        (BEES, "what", {"there are two bees."}),
        (CORNER, "where", {"it is above the bus and the cat.", "it is below the dog.", "there is none."}),
        (CORNER, "beside", {"there is a dog.", "there is a bus and a cat.", "there is none."}),
        (TWO, "describe", {"a blue dog to the left of a fox at night."}),
        (TWO, "how_many", {"there is one.", "there are two.", "there is none."}),
        (TWO, "colour", {"it is blue.", "it is orange.", "there is none."}),
        (TWO, "where", {"it is to the left of the fox.", "it is to the right of the dog.", "there is none."}),
        (TWO, "beside", {"there is a blue dog.", "there is a fox.", "there is none."}),
        (TWO, "is_colour", {"yes.", "no, it is blue.", "no, it is orange."}),
        (TWO, "is_related", {"yes.", "no, it is to the left of it.", "no, it is to the right of it."}),
        (TWO, "background", {"it is night."}),
        (TWO, "style", {"it is drawn in 3d style."}),
        (THREE, "what", {"there is an apple and two cars."}),
        (THREE, "how_many", {"there is one.", "there are two.", "there are three.", "there is none."}),
        (THREE, "beside", {"there are two cars.", "there is none."}),
        (THREE, "odd", {"the apple, because the others are cars."}),
        (APPLE, "colour", {"it is red.", "there is none."}),
        (APPLE, "is_kind", {"yes.", "it is something to eat or drink.", "no, it is something to eat or drink."}),
        (BEES, "is_kind", {"yes.", "they are animals.", "no, they are animals."}),
        (APPLE, "where", {"it is in the bottom left corner.", "there is none."}),
    ],
)
def test_answers_are_exact(scene, kind, answers):
    asked = ask(scene, kind)
    assert {question.answer for question in asked} == answers
    assert len({question.text for question in asked}) >= 4


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from(list(KIND_WEIGHTS)))
def test_a_question_has_one_answer(objects, seed, kind):
    maker = SceneMaker(objects, random.Random(seed))
    scene, answers = maker.scene("train", kind), {}
    for _ in range(300):
        question = Asker(scene, maker.rng).ask()
        assert answers.setdefault(question.text, question.answer) == question.answer, (scene, question)


def test_sides_are_only_denied_where_nothing_stands_diagonally():
    """The bus is below the dog, and one could call it left of the dog too."""
    texts = [question.text for question in ask(CORNER, "is_related", 600)]
    doubtful = "bus.*left.*dog|dog.*right.*bus|(cat|kitty).*right.*dog|dog.*left.*(cat|kitty)"
    assert not [text for text in texts if re.search(doubtful, text)]
    assert {
        side for side in ("left", "right") for text in texts if re.search(f"(cat|kitty) .*{side}.* bus", text)
    } == {
        "left",
        "right",
    }
    assert not [one for one in ask(CORNER, "beside", 600) if re.search("(left|right).* dog", one.text)]


def test_names_that_something_else_answers_to_are_neither_counted_nor_missing():
    owl = Scene((Item("owl", None, 4, 4),), "flat", "night")
    texts = [
        question.text for kind in ("is_there", "how_many", "where", "colour") for question in ask(owl, kind, 1500)
    ]
    assert not [text for text in texts if re.search(r"\b(birds?|stars?)\b", text)]
    birds = Scene((Item("bird", None, 0, 3), Item("owl", None, 7, 3)), "flat")
    for kind in ("how_many", "colour", "where", "beside", "is_related", "is_colour"):
        assert not [question for question in ask(birds, kind, 500) if re.search(r"\bbirds?\b", question.text)], kind
    two = Scene((*birds.items, Item("bird", None, 4, 7)), "flat")
    asked = [question.text for question in ask(two, "is_there", 500)]
    assert any("a bird" in text for text in asked) and not any("birds" in text for text in asked)
    star = Scene((Item("star", None, 4, 4),), "flat", "night")
    assert not [one for kind in ("where", "colour") for one in ask(star, kind, 500) if one.answer != "there is none."]
    assert {*ALSO_CALLED, *(name for names in ALSO_CALLED.values() for name in names)} <= set(THINGS)


def test_plural_nouns_take_no_is(objects):
    scissors = Scene((Item("pair of scissors", "red", 0, 3), Item("pair of glasses", None, 7, 3)), "flat")
    texts = [question.text for kind in KINDS_OF_QUESTION for question in ask(scissors, kind, 300)]
    assert any("are there scissors" in text for text in texts)
    one = r"(?<!pair of )(?<!pairs of )\b(scissors|glasses|eyeglasses)\b"
    assert not [text for text in texts if re.search(rf"\b(is|does|where's|color of|colour of)\b.* {one}", text)]


def test_colours_that_a_thing_nearly_has_are_not_asked_for():
    sun = Scene((Item("sun", None, 4, 4),), "flat")
    texts = [question.text for kind in ("is_colour", "is_there") for question in ask(sun, kind, 500)]
    assert any("yellow" in text for text in texts) and not [text for text in texts if "orange" in text]


def test_a_question_of_three_kinds_of_things_finds_the_odd_one():
    scene = Scene((Item("dog", None, 0, 0), Item("bus", None, 7, 0), Item("cat", None, 3, 7)), "flat")
    assert {question.answer for question in ask(scene, "odd")} == {"the bus, because the others are animals."}
    all_different = Scene((Item("dog", None, 0, 0), Item("bus", None, 7, 0), Item("tree", None, 3, 7)), "flat")
    assert ask(all_different, "odd") == [] == ask(TWO, "odd")


def test_kinds_that_may_be_doubted_are_not_asked_for():
    """Fruit is also part of a plant, and everything is an object. Of several things, no kind is asked for."""
    asked = {(question.text, question.answer) for question in ask(APPLE, "is_kind")}
    assert not any("plant" in text or "object" in text for text, _ in asked)
    assert {answer for text, answer in asked if "food" in text} == {"yes."}
    assert ask(TWO, "is_kind") == []


def test_answers_about_things_that_are_not_there():
    for question in ask(TWO, "how_many"):
        names_it = re.search(r"\b(dogs|doggies|foxes|things|objects)\b", question.text) is not None
        assert (question.answer == "there is none.") != names_it


def test_half_of_the_checks_are_about_things_that_are_not_there(objects):
    maker, absent = SceneMaker(objects, random.Random(7)), 0
    for _ in range(400):
        question = Asker(maker.scene(), maker.rng).check()
        assert question.kind in ("how_many", "colour", "where", "is_there")
        absent += question.answer in ("no.", "there is none.")
    assert 150 < absent < 250


def test_yes_is_as_frequent_as_no(objects):
    maker = SceneMaker(objects, random.Random(5))
    counts: Counter = Counter()
    for _ in range(1200):
        scene = maker.scene()
        for kind in YES_NO:
            question = Asker(scene, maker.rng).ask(kind)
            if question and not question.text.startswith("what"):
                counts[kind, question.answer.startswith("yes")] += 1
    for kind in YES_NO:
        yes, no = counts[kind, True], counts[kind, False]
        assert abs(yes - no) < 4 * (yes + no) ** 0.5, kind


def test_relations_are_true_in_every_scene(objects):
    """Each answer about a place is checked against the columns and rows of the items."""
    maker = SceneMaker(objects, random.Random(6))
    checked = 0
    for _ in range(300):
        scene = maker.scene("train", "position")
        question = Asker(scene, maker.rng).ask("where")
        if question is None:  # one thing answers to the other's name
            continue
        found = re.fullmatch(r"it is (to the left of|to the right of|above|below) the (.*)\.", question.answer)
        if found:
            other = scene.item(found[2])
            one = next(item for item in scene.items if item is not other)
            where = {
                "to the left of": one.column < other.column, "to the right of": one.column > other.column,
                "above": one.row < other.row, "below": one.row > other.row,
            }  # fmt: skip
            assert where[found[1]]
            checked += 1
    assert checked > 200


# What is held out


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_no_training_text_names_a_held_out_combination(objects, seed):
    rng = random.Random(seed)
    maker = SceneMaker(objects, rng)
    texts = []
    for kind in KIND_WEIGHTS:
        scene = maker.scene("train", kind)
        texts += [caption(scene, rng) for _ in range(3)]
        asker = Asker(scene, rng)
        questions = [asker.check(), asker.check(), *asker.several(len(KINDS_OF_QUESTION))]
        assert all(trained(question.names) for question in questions)
        texts.append(" ".join(f"{question.text} {question.answer}" for question in questions))  # they are in one row
    for turns in (Talker(maker).conversation(6) for _ in range(4)):
        texts.append(" ".join(f"{turn.text} {turn.answer}" for turn in turns if turn.kind != "talk"))
        texts += [turn.answer for turn in turns if turn.kind == "talk"]
        scenes = [scene for turn in turns for scene in turn.scenes]
        assert all(scene.split == "train" for scene in scenes)
        assert named_together([thing for scene in scenes for thing in scene.counts])
    for text in texts:
        things = sorted({OF_FORM[form] for form in SAID.findall(text)})
        assert trained(pair(one, other) for at, one in enumerate(things) for other in things[at + 1 :]), text
    said = " | ".join(texts)
    found = [phrase for phrase in FORBIDDEN if phrase in said]
    found = [one for one in found if re.search(rf"\b{one}\b{LONGER.get(one.split(' ', 1)[1], '')}", said)]
    assert found == []


FORBIDDEN = sorted(set(held_out_phrases()))
OF_FORM = {
    form: name
    for name, thing in THINGS.items()
    for noun in thing.nouns
    for form in (noun.singular, noun.plural)
    if form
}
FORMS = set(OF_FORM)


def mistakes(text):
    """The text as it is, and with each of its typing errors: a seed picks one of some twenty."""
    return sorted({text, *(mistyped(text, random.Random(seed)) for seed in range(500))})


#: What must not follow a word, because another thing begins with it: "fire" is not meant in "fire engine" or "fire engien".
LONGER = {
    form: "".join(
        f"(?! (?:{'|'.join(mistakes(longer.removeprefix(form + ' ')))}))"
        for longer in FORMS
        if longer.startswith(form + " ")
    )
    for form in FORMS
}
SAID = re.compile("|".join(rf"\b{form}\b{LONGER[form]}" for form in sorted(FORMS, key=len, reverse=True)))


def test_a_typing_error_in_a_long_name_does_not_make_it_a_shorter_one():
    """The start of "fire engien" is not the thing "fire"."""
    texts = {mistyped("a green fire engine", random.Random(seed)) for seed in range(200)}
    assert len(texts) > 10 and all("fire" not in SAID.findall(text) for text in texts)
    assert SAID.findall("a fire engine and a green fire at night") == ["fire engine", "fire"]
