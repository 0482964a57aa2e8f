"""The benchmark of conversations in miniature: its table, its records, and that it goes on where it was stopped."""

import itertools
import json
from pathlib import Path

import conversation_turns
import pytest

from showo_hf import ShowoAnyToAnyPipeline


@pytest.fixture
def run(taught_folder, tmp_path, capsys):
    def call(*more: str) -> list[str]:
        options = ["--model", taught_folder, "--records", str(tmp_path / "said.jsonl"), "--request", "{}"]
        options += ["--question", "what?", "--turns", "2", "--steps", "2", "--names", "owl,owl"]
        conversation_turns.main([*options, *more])
        return capsys.readouterr().out.splitlines()

    return call


def test_the_table_and_the_records(run, tmp_path):
    heading, head, rule, *rows = run("--conversations", "2")
    assert heading == "2 of 2 conversations" and set(rule) == set("|-: ")
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "turn", "one picture", "then named right", "context used",
    ]  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [record["number"] for record in records] == [0, 1]
    for number, row in enumerate(rows):
        turns = [record["turns"][number] for record in records]
        shares = [f"{sum(turn[part] for turn in turns) / 2:.0%}" for part in ("picture", "named")]
        assert [cell.strip() for cell in row.strip("|").split("|")][:3] == [str(number + 1), *shares]
    assert all(turns[0]["ids"] <= turns[1]["ids"] for turns in (record["turns"] for record in records))


def test_a_turn_is_right_with_one_picture_and_the_name(taught_folder):
    """The model answers "an owl" with one picture, "two hearts" with two, and "what?" with "two red hearts."."""
    pipe = ShowoAnyToAnyPipeline.from_pretrained(taught_folder)
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for request, name in itertools.product(("an owl", "two hearts"), ("hearts", "heart")):
        (turn,) = conversation_turns.converse(pipe, [name], request, "what?", seed=0, steps=2)
        found[request, name] = turn["picture"], turn["named"]
    assert found == {
        ("an owl", "hearts"): (True, True),
        ("an owl", "heart"): (True, False),
        ("two hearts", "hearts"): (False, False),
        ("two hearts", "heart"): (False, False),
    }


def test_it_goes_on_where_it_was_stopped(run, tmp_path):
    file = Path(tmp_path / "said.jsonl")
    assert run("--conversations", "2", "--seconds", "-1") == ["0 of 2 conversations"]
    first = run("--conversations", "1")
    kept = file.read_text()
    whole = run("--conversations", "2")
    assert file.read_text().startswith(kept) and len(file.read_text().splitlines()) == 2
    assert run("--conversations", "2") == whole and run("--conversations", "1") == first
    file.unlink()
    assert run("--conversations", "2") == whole
    with pytest.raises(SystemExit, match="other settings"):
        run("--seed", "3")


def test_names_are_checked(run, capsys):
    with pytest.raises(SystemExit):
        run("--turns", "3")
    assert "--names must have a name for each of the 3 turns, got 2" in capsys.readouterr().err


def test_articles():
    assert [conversation_turns.with_article(name) for name in ("owl", "red apple")] == ["an owl", "a red apple"]
