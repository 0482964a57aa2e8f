"""The benchmark of the understanding of the embedded model: questions, judgement, and a run on a few images."""

import json
import random
from collections import Counter

import pytest
from benchmarks import embedded_understanding as benchmark
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_emoji import RECORDS, THINGS, make_record

from recipes.colours import main_colour
from recipes.emoji.conversations import Question, kinds_of
from recipes.emoji.emoji import load_emoji
from showo_hf import ShowoMMUPipeline


APPLE = make_record("1F34E", "twemoji")
PHRASES = benchmark.known_phrases(RECORDS)


def run(capsys, folder, model, *more) -> str:
    benchmark.main(["--data", str(folder), "--model", model, *more])
    return capsys.readouterr().out


# Questions


def test_all_questions_about_an_image():
    questions = benchmark.questions_about(APPLE, "red", RECORDS, random.Random(0))
    asked = {question.kind: (question.text, question.answer) for question in questions[:5]}
    assert asked == {
        "name": ("what is this?", "a red apple."),
        "caption": ("describe the picture.", "a red apple, flat style."),
        "style": ("in which style is it drawn?", "flat style."),
        "colour": ("what is the main colour?", "red."),
        "kind": ("what kind of thing is it?", "food."),
    }
    assert [question.kind for question in questions[5::2]] == [
        "yes/no name",
        "yes/no style",
        "yes/no kind",
        "yes/no colour",
    ]
    assert {question.text for question in questions if question.answer == "yes."} < {
        "is it a red apple?",
        "is it in flat style?",
        "is it food?",
        "is it a fruit?",
        "is it mostly red?",
    }


def test_questions_that_do_not_apply_are_not_asked():
    questions = benchmark.questions_about(make_record("1F4F0", "noto"), None, RECORDS, random.Random(0))
    kinds = [question.kind for question in questions]
    assert kinds == ["name", "caption", "style", "yes/no name", "yes/no name", "yes/no style", "yes/no style"]


@given(st.sampled_from(RECORDS), st.integers(0, 2**32))
def test_yes_and_no_are_balanced_and_a_no_is_never_true(record, seed):
    colour = THINGS[record.unified][3]
    questions = list(benchmark.yes_no_questions(record, colour, RECORDS, random.Random(seed)))
    answers = Counter((question.kind, question.answer) for question in questions)
    assert set(answers.values()) == {1} and len(answers) == len(questions) == 4 + 2 * bool(colour) + 2 * bool(
        kinds_of(record)
    )
    true = {
        "yes/no name": record.name,
        "yes/no style": {"twemoji": "flat", "fluent3d": "3d"}.get(record.style, "noto"),
    }
    for question in questions:
        if question.kind in true:
            assert (true[question.kind] in question.text) == (question.answer == "yes.")
        if question.kind == "yes/no kind":
            asked = question.text.removeprefix("is it ").removesuffix("?")
            assert (asked in kinds_of(record)) == (question.answer == "yes.")


# Judgement


@pytest.mark.parametrize(
    ("answer", "unified"),
    [
        ("a red apple.", "1F34E"),
        ("It is an Apple, I think", "1F34E"),  # a synonym
        ("a green apple, flat style.", "1F34F"),  # the longest phrase, although "apple" is a synonym of another emoji
        ("a whale", "1F433"),
        ("pineapple", None),
        ("a red pear", None),
        ("", None),
    ],
)
def test_named_emoji(answer, unified):
    assert benchmark.named_emoji(answer, PHRASES) == unified


def test_names_with_hyphens_and_full_stops_are_found():
    phrases = {benchmark.words("medium-light mrs. claus"): "X"}
    assert benchmark.named_emoji("it is Medium light Mrs. Claus, 3d style.", phrases) == "X"


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("a frog, flat style.", "twemoji"),
        ("Flat style", "twemoji"),
        ("3d style.", "fluent3d"),
        ("a flat frog", None),
        ("flat style and noto style", None),
    ],
)
def test_named_style(answer, style):
    assert benchmark.named_style(answer) == style


@pytest.mark.parametrize(
    ("kind", "right", "answer", "judged"),
    [
        ("name", "a red apple.", "a red apple.", {"name, word for word": True, "name": True}),
        ("name", "a red apple.", "an apple.", {"name, word for word": False, "name": True}),
        ("name", "a red apple.", "a frog.", {"name, word for word": False, "name": False}),
        (
            "caption",
            "a red apple, flat style.",
            "an apple, flat style",
            {"caption names the emoji": True, "caption has the right style": True},
        ),
        (
            "caption",
            "a red apple, flat style.",
            "a frog, 3d style.",
            {"caption names the emoji": False, "caption has the right style": False},
        ),
        ("style", "flat style.", "Flat style", {"style": True}),
        ("colour", "red.", "red and green.", {"main colour": False}),
        ("kind", "food.", "food.", {"kind": True}),
        ("yes/no name", "no.", "no", {"yes or no": True, "yes or no, name": True}),
        ("yes/no colour", "no.", "no, green.", {"yes or no": False, "yes or no, colour": False}),
    ],
)
def test_judgement(kind, right, answer, judged):
    assert benchmark.judge(Question(kind, "", right), APPLE, answer, PHRASES) == judged
    assert set(judged) <= set(benchmark.MEASURES)


def test_commonest_answers():
    colours = [THINGS[record.unified][3] for record in RECORDS]
    frog = make_record("1F438", "twemoji")
    answers = benchmark.commonest_answers([*RECORDS, frog], [*colours, "green"])
    assert answers == {
        "name": "a frog.",
        "caption": "a frog, flat style.",
        "style": "flat style.",
        "colour": "green.",
        "kind": "an animal.",
    }
    newspaper = make_record("1F4F0", "noto")
    assert set(benchmark.commonest_answers([newspaper], [None])) == {"name", "caption", "style"}


def test_summary_of_known_answers():
    def asked(kind, right, model, commonest):
        return benchmark.Asked(APPLE, Question(kind, "", right), {"model": model, "commonest answer": commonest})

    answers = [
        asked("style", "flat style.", "flat style.", "noto style."),
        asked("style", "flat style.", "flat style.", "flat style."),
        asked("style", "flat style.", "", "noto style."),
        asked("yes/no name", "yes.", "yes.", "yes."),
        asked("yes/no name", "no.", "no.", "yes."),
        asked("yes/no kind", "yes.", "no.", "yes."),
        asked("yes/no kind", "no.", "no.", "yes."),
    ]
    assert benchmark.summarize(answers, PHRASES) == {
        "style": {"questions": 3, "model": pytest.approx(2 / 3), "commonest answer": pytest.approx(1 / 3)},
        "yes or no": {"questions": 4, "model": 0.75, "commonest answer": 0.5},
        "yes or no, name": {"questions": 2, "model": 1, "commonest answer": 0.5},
        "yes or no, kind": {"questions": 2, "model": 0.5, "commonest answer": 0.5},
    }


# Whole runs


def test_measured_images_have_no_skin_tone(folder):
    data = load_emoji(folder)
    chosen = benchmark.choose(data, held_out=None, training=4, seed=0)
    assert len(chosen["held out"]) == 5 and len(set(chosen["training"])) == 4
    for name, rows in chosen.items():
        assert all(data.records[row].tone is None for row in rows)
        assert {data.records[row].held_out for row in rows} == {name == "held out"}
    assert benchmark.choose(data, 2, 4, 0)["training"] == chosen["training"]
    assert benchmark.choose(data, 2, 100, 1)["held out"] != benchmark.choose(data, 2, 100, 2)["held out"]
    assert len(benchmark.choose(data, 2, 100, 1)["training"]) == 10


@pytest.mark.slow
def test_a_run_is_complete_and_repeatable(capsys, folder, model, tmp_path):
    path = tmp_path / "answers.jsonl"
    options = ["--captions", "2", "--held-out", "3", "--json"]
    result = json.loads(run(capsys, folder, model, *options, "--answers", str(path)))
    assert {name: summary["images"] for name, summary in result.items()} == {"held out": 3, "training": 2}
    for summary in result.values():
        assert set(summary) >= {"name", "caption has the right style", "yes or no", "yes or no, style"}
        assert summary["yes or no"]["commonest answer"] == 0.5
        assert all(0 <= row["model"] <= 1 for name, row in summary.items() if name != "images")
    assert json.loads(run(capsys, folder, model, *options, "--batch-size", "5")) == result

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    data, pipe = load_emoji(folder), ShowoMMUPipeline.from_pretrained(model)
    images = {(record.code, record.style): row for row, record in enumerate(data.records) if record.tone is None}
    for row in rows[:3] + rows[-3:]:
        image = Image.fromarray(data.images[images[row["code"], row["style"]]])
        white = Image.new("RGB", image.size, "white")
        for who, seen in (("model", image), ("white image", white)):
            assert row["answers"][who] == pipe(seen, row["text"], max_new_tokens=benchmark.MAX_NEW_TOKENS).texts[0]
    colours = {row["answer"] for row in rows if row["kind"] == "colour"}
    assert colours <= {f"{main_colour(image)}." for image in data.images}


def test_it_prints_one_table_per_set(capsys, folder, model):
    tables = run(capsys, folder, model, "--captions", "1", "--held-out", "2").strip().split("\n\n")
    assert tables[0] == "held out, 2 images" and tables[2] == "training, 1 images"
    head, rule, *rows = tables[1].splitlines()
    assert head == "| right answers | questions | model | white image | commonest answer | wanted |"
    assert set(rule) == set("|- ") and len(rows) >= 8
    assert any("at least 80%" in row for row in rows) and "at least" not in tables[3]
