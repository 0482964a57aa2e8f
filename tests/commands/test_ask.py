"""`showo-hf ask`, run with a small model with known answers."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from showo_hf import ShowoMMUPipeline, cli


@pytest.fixture
def ask(taught_folder):
    """Run the command with the small model."""

    def run(*arguments: str) -> int:
        options = ["--model", taught_folder, "--device", "cpu", "--quiet", "--max-new-tokens", "6"]
        return cli.main(["ask", *options, *arguments])

    return run


@pytest.fixture(scope="session")
def pipe(taught_folder) -> ShowoMMUPipeline:
    return ShowoMMUPipeline.from_pretrained(taught_folder)


@pytest.fixture(autouse=True)
def images(empty_folder):
    """Two images, with copies in the folder `p`."""
    Path("p").mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        image = Image.radial_gradient("L").resize((20, 16)).convert("RGB")
        image.paste(colour, (2, 2, 9, 9))
        image.save(name)
        image.save(f"p/{name}")


def records() -> list[dict]:
    return [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "IMAGE... QUESTION"),
        (["what?"], "got only 'what?'"),
        (["a.png"], "'a.png' is an image"),
        (["a.png", "b.png"], "'b.png' is an image"),
        (["a.png", "p"], "'p' is an image"),
        (["a.png", "https://example.org/b.png"], "is an image"),
        (["c.png", "what?"], "'c.png'"),
        (["a.png", ""], "`QUESTION` must contain words"),
        (["a.png", "-Q", "what?", "-Q", " "], "`QUESTION` must contain words"),
        (["a.png", "what?", "--choices", "yes"], "--choices"),
        (["a.png", "what?", "--choices", "yes", "yes "], "--choices"),
        (["a.png", "what?", "--choices", "yes", ""], "--choices"),
        (["a.png", "what?", "-o", "out.txt"], ".jsonl"),
    ],
)
def test_invalid_arguments_are_refused(arguments, named, refused):
    refused(["ask", *arguments], named)


def test_a_word_that_is_no_image_is_left_out_where_questions_are_options(ask, capsys):
    assert ask("a.png", "what?", "-Q", "what?") == cli.FAILED
    printed = capsys.readouterr()
    assert printed.out.startswith("a.png") and "'what?'" in printed.err


def test_a_question(ask, pipe, capsys):
    assert ask("a.png", "what?") == cli.GOOD
    assert capsys.readouterr().out == "an owl.\n"
    assert ask("p", "a.png", "what?") == cli.GOOD
    assert capsys.readouterr().out == "p/a.png: an owl.\np/b.png: an owl.\na.png: an owl.\n"
    assert ask("a.png", "two hearts") == cli.GOOD
    (expected,) = pipe("a.png", "two hearts", max_new_tokens=6).texts
    assert capsys.readouterr().out == f"{expected}\n"


def test_long_images_of_which_little_is_seen_are_named(taught_folder, capsys):
    for name, size in (("tall.png", (10, 21)), ("wide.png", (20, 10))):
        Image.new("RGB", size).save(name)
    words = ["ask", "tall.png", "wide.png", "a.png", "what?", "--model", taught_folder, "--device", "cpu"]
    assert cli.main([*words, "--max-new-tokens", "1"]) == 0
    seen = [line for line in capsys.readouterr().err.splitlines() if "middle" in line]
    assert seen == ["showo-hf: the model sees the square in the middle, which is less than half of tall.png"]
    assert cli.main([*words, "--max-new-tokens", "1", "--quiet"]) == 0
    assert "middle" not in capsys.readouterr().err


def test_options_between_images(ask, capsys):
    assert ask("a.png", "--json", "b.png", "--batch-size", "1", "what?", "--debug") == cli.GOOD
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["an owl.", "an owl."]


def test_several_questions(ask, pipe, capsys):
    questions = ["what?", "is it an owl?", "two hearts"]
    options = [word for question in [*questions, "what?"] for word in ("--question", question)]
    assert ask("a.png", "b.png", *options, "--json") == cli.GOOD
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [
        {"image": image, "question": question, "answer": pipe(image, question, max_new_tokens=6).texts[0]}
        for image in ("a.png", "b.png")
        for question in questions
    ]
    assert ask("a.png", *options) == cli.GOOD
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(question) for question, line in zip(questions, lines, strict=True)] == [True] * 3
    assert lines[0] == "what? an owl."
    assert ask("a.png", "b.png", "-Q", "what?", "-Q", "two hearts") == cli.GOOD
    assert capsys.readouterr().out.splitlines()[::2] == ["a.png: what? an owl.", "b.png: what? an owl."]


def test_choices(ask, pipe, capsys):
    choices = ["two red hearts.", "an owl."]
    (scores,) = pipe.score("a.png", "what?", choices).log_likelihoods
    expected = torch.softmax(scores.double(), -1).tolist()
    assert expected[1] > 0.5
    assert ask("a.png", "what?", "--choices", *choices) == cli.GOOD
    assert capsys.readouterr().out == f"an owl. (two red hearts. {expected[0]:.3f}, an owl. {expected[1]:.3f})\n"

    options = ["-Q", "what?", "-Q", "is it an owl?", "--json", "--choices", "yes.", "no.", "an owl."]
    assert ask("a.png", "b.png", *options) == cli.GOOD
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = [(image, question) for image in ("a.png", "b.png") for question in ("what?", "is it an owl?")]
    assert [(record["image"], record["question"]) for record in found] == asked
    for record in found:
        assert record["choices"] == ["yes.", "no.", "an owl."]
        (scores,) = pipe.score(record["image"], record["question"], record["choices"]).log_likelihoods
        assert record["probabilities"] == pytest.approx(scores.double().softmax(-1).tolist(), abs=1e-4)
        assert record["answer"] == record["choices"][scores.argmax()]
    assert found[0]["answer"] == "an owl."


def test_only_new_questions_are_appended_to_the_results(ask):
    Path("p/c.png").write_text("not an image", encoding="utf-8")
    assert ask("p", "what?", "-o", "out.jsonl") == cli.FAILED
    assert [record.get("answer") for record in records()] == ["an owl.", "an owl.", None]
    Path("p/c.png").unlink()
    assert ask("p", "-Q", "what?", "-Q", "is it an owl?", "-o", "out.jsonl") == cli.GOOD
    assert [(record["image"], record.get("question")) for record in records()] == [
        ("p/a.png", "what?"),
        ("p/b.png", "what?"),
        ("p/c.png", None),  # the file is gone, so the question is not asked again
        ("p/a.png", "is it an owl?"),
        ("p/b.png", "is it an owl?"),
    ]
    before = records()
    for choices in (["yes.", "no."], ["yes.", "no."], ["yes.", "maybe."]):
        assert ask("a.png", "what?", "-o", "out.jsonl", "--choices", *choices) == cli.GOOD
    assert [record["choices"] for record in records()[len(before) :]] == [["yes.", "no."], ["yes.", "maybe."]]


def test_images_can_have_different_open_questions(ask):
    assert ask("p/a.png", "what?", "-o", "out.jsonl") == cli.GOOD
    assert ask("p", "a.png", "-Q", "what?", "-Q", "an owl", "-o", "out.jsonl", "--batch-size", "4") == cli.GOOD
    asked = [(record["image"], record["question"]) for record in records()]
    assert asked == [
        ("p/a.png", "what?"),
        ("p/a.png", "an owl"),
        ("p/b.png", "what?"),
        ("p/b.png", "an owl"),
        ("a.png", "what?"),
        ("a.png", "an owl"),
    ]
    assert all(record["answer"] == "an owl." for record in records() if record["question"] == "what?")
