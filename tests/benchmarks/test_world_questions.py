"""The world's benchmark: which answers are right, what is asked, the baselines, and the rows of the tables."""

import pytest
from benchmarks import world_tables
from benchmarks.world_understanding import (
    ASKED,
    DETAIL_ROWS,
    MAIN_ROWS,
    Baselines,
    draw_questions,
    first_word,
    is_in_the_picture,
    is_none,
    normal,
    row_of,
    same_answer,
    understanding,
    yes_or_no,
)

from recipes.world.questions import KINDS_OF_QUESTION, Question
from recipes.world.scenes import Item, Scene


@pytest.fixture(scope="module")
def baselines(objects):
    return Baselines(objects, 200)


@pytest.mark.parametrize(
    "given, right, same",
    [
        (" It is  Blue.", "it is blue.", True),
        ("it is red.", "it is blue.", False),
        ("this is a dog.", "there is a dog.", True),
        ("there is a dog", "This is a dog.", True),
        ("this is a cat.", "there is a dog.", False),
        ("is this a dog", "is there a dog", False),
        ("many things, such as a cat, an apple or a car.", "many things, such as a dog, a cow or a tree.", True),
        ("many things, such as a cat, a cat or a car.", "many things, such as a dog, a cow or a tree.", False),
        ("many things, such as a cat, a xylograph or a car.", "many things, such as a dog, a cow or a tree.", False),
        ("many things.", "many things, such as a dog, a cow or a tree.", False),
        ("", "yes.", False),
    ],
)
def test_answers_are_right_if_they_say_the_same(given, right, same):
    assert same_answer(given, right) == same


def test_first_words():
    assert first_word("No, it is red.") == "no" and first_word("yes") == "yes" and first_word(" ") == ""
    assert normal("This is so.") == "there is so" and normal("this island") == "this island"


def test_what_is_asked(objects):
    assert set(ASKED) == {*KINDS_OF_QUESTION, "how_many_2_to_4", "which_kind"}
    for kind, wanted in (("is_kind", True), ("which_kind", False)):
        assert {yes_or_no(one) for _, one in draw_questions(objects, "validation", kind, 12)} == {wanted}
    counts = {one.answer for _, one in draw_questions(objects, "validation", "how_many_2_to_4", 20)}
    assert counts <= {f"there are {number}." for number in ("two", "three", "four")} and len(counts) > 1
    where = draw_questions(objects, "validation", "where", 30)
    assert {scene.split for scene, _ in where} == {"validation"}
    places = [question.answer for _, question in where if is_in_the_picture(question.answer)]
    assert any("corner" in one for one in places) and 10 < len(places) < 25
    assert {scene.split for scene, _ in draw_questions(objects, "validation", "odd", 5)} == {"train"}
    assert draw_questions(objects, "validation", "what", 3) != draw_questions(objects, "validation", "what", 3, seed=1)


def test_places_in_the_picture_are_told_from_others():
    inside = ("it is in the top left corner.", "it is on the left.", "it is at the top.", "it is in the middle.")
    others = ("it is to the left of the dog.", "it is above the dog.", "there is none.")
    assert all(map(is_in_the_picture, inside)) and not any(map(is_in_the_picture, others))
    assert is_none("There is none.") and not is_none("there is one.")


def test_the_baselines_know_training_questions(objects, baselines):
    asked = draw_questions(objects, "train", "describe", 4, seed=3)
    known = [one.answer for _, one in baselines.known["describe"]]
    found = baselines.answers("describe", asked)
    assert set(found["nearest"]) <= set(known) and len(set(found["blind"])) == 1
    assert found["blind"][0] in known
    assert baselines.answers("is_there", draw_questions(objects, "train", "is_there", 2))["blind"][0] == "yes."
    assert first_word(baselines.answers("is_kind", asked)["blind"][0]) in ("yes", "no")
    assert first_word(baselines.answers("which_kind", asked)["blind"][0]) in ("it", "they")


def test_baselines_that_know_no_such_question_say_nothing(objects):
    asked = draw_questions(objects, "train", "odd", 2)
    assert Baselines(objects, 1).answers("odd", asked) == {"blind": ["", ""], "nearest": ["", ""]}


def test_the_nearest_question_is_one_about_a_similar_image(objects):
    baselines = Baselines(objects, 1500)
    asked = [one for one in draw_questions(objects, "train", "background", 40, seed=5) if one[0].background != "white"]
    right = {
        who: [given == one.answer for given, (_, one) in zip(some, asked, strict=True)]
        for who, some in baselines.answers("background", asked).items()
    }
    assert sum(right["nearest"]) > 0.4 * len(asked) and not any(right["blind"])


def test_the_nearest_question_is_near_in_words_first_and_then_in_the_image(objects):
    baselines = Baselines(objects, 3)
    texts = ("which colour has the dog now?", "which colour has the dog?", "which colour has the dog?")
    answers = ("other words", "other image", "nearest")
    known = [Question("colour", text, answer) for text, answer in zip(texts, answers, strict=True)]
    baselines.known["colour"] = list(enumerate(known))
    baselines.features[:] = [[1.0], [0.0], [0.1]]  # all white, black, and nearly black
    asked = [(Scene((Item("dog", None, 4, 4),), "flat"), Question("colour", texts[1], "it is brown."))]
    assert baselines.answers("colour", asked)["nearest"] == ["nearest"]


def asked_of(objects, baselines, kind, count, say):
    asked = draw_questions(objects, "validation", kind, count)
    answers = [say(question.answer) for _, question in asked]
    return understanding(lambda images, texts: answers, objects, "validation", kind, count, baselines)


def test_a_perfect_model_is_right_in_every_row(objects, baselines):
    results = {kind: asked_of(objects, baselines, kind, 6, str.upper) for kind in ASKED}
    for result in results.values():
        assert result["model"] == 1.0 and len(result["answers"]) == 6
    main, detail = world_tables.understanding(results)
    assert [row[0] for row in main[2]] == ["what", "how many", "colour", "where", "yes/no"]
    assert main[2][-1][1] == "24" and {row[2] for row in (*main[2], *detail[2])} == {"100%"}
    assert any(row[0] == "odd (trained combinations)" for row in detail[2])


def test_the_first_word_counts_apart_from_the_sentence(objects, baselines):
    results = {
        kind: asked_of(objects, baselines, kind, 8, lambda right: right.split(",")[0].rstrip(".") + ".")
        for kind in ("is_there", "is_colour", "is_related", "is_kind")
    }
    rows = {row.name: row for row in (*MAIN_ROWS, *DETAIL_ROWS)}
    count, shares = row_of(rows["yes/no, first word"], results)
    assert count == 32 and shares["model"] == 1.0
    assert row_of(rows["yes/no"], results)[1]["model"] < 1.0, "the sentence after 'no' is missing"
    nothing = {"beside": {"answers": []}}
    assert row_of(rows["beside, nothing"], nothing) is None
