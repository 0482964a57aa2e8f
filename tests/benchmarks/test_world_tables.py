"""The tables of the world's benchmark, from results by hand."""

from benchmarks import world_goals as goals
from benchmarks import world_tables as tables
from benchmarks.world_prompts import KINDS
from benchmarks.world_understanding import ASKED, MAIN_ROWS


def result(right, error, **others):
    """A result of the part "images"."""
    return {
        "right": right, "standard_error": error, "as_geneval": 0.75, "standard_error_as_geneval": 0.05, "style": 1.0,
        "background": 1.0, "detail": 0.9, "prompts": 10, "combinations": 5, "seconds": 12.0, **others,
    }  # fmt: skip


def columns(table):
    """The rows of a table by their first cell, each by its columns."""
    _, head, rows = table
    assert all(len(row) == len(head) for row in rows)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_every_measured_kind_has_a_goal():
    assert list(goals.IMAGES) == list(KINDS)
    assert list(goals.QUESTIONS) == [row.name for row in MAIN_ROWS]


def test_images_stand_beside_their_goals_and_say_how_long_they_take():
    (table,) = tables.images({"two_objects": result(0.5, 0.05)})
    found = columns(table)["two objects"]
    assert (found["right"], found["at least"], found["goal"]) == ("50% ± 5", "75%", "88%")
    assert found["images of combinations"] == "10 of 5" and found["seconds an image"] == "1.2"


def test_trained_combinations_are_compared_with_unseen_ones():
    (table,) = tables.trained({
        "single": (result(0.5, 0.03), result(0.57, 0.04)),
        "binding": (result(0.5, None), result(0.4, 0.04)),
    })  # fmt: skip
    found = columns(table)
    assert found["single"]["right"] == "57% ± 4" and found["single"]["right, minus unseen, points"] == "+7 ± 5"
    assert found["binding"]["right, minus unseen, points"] == "-10", "no error where one is unknown"
    assert found["single"]["at least"] == "at most 8 points" and found["single"]["goal"] == "at most 5 points"


def test_wordings_inpainting_and_turns_stand_beside_their_goals():
    same = {"right": 0.5, "same_ids": True, "difference": 0.0, "standard_error": 0.0}
    made = {"canonical": same, "reordered": {**same, "same_ids": False, "difference": -0.1, "standard_error": 0.04}}
    found = columns(tables.wordings({"position": made})[0])["position"]
    assert found["reordered"] == "50% (-10 ± 4)" and (found["at least"], found["goal"]) == tuple(goals.WORDINGS)
    values = {"object": 0.5, "rest": 0.5, "right": 0.5, "standard_error": None}
    (_, head, rows) = tables.inpainting({name: {"model": values, "copy": values} for name in ("unseen", "trained")})[0]
    assert head[-2:] == ["at least", "goal"]
    assert [row[-2:] for row in rows] == [["70%", "90%"], ["", ""], ["", ""], ["", ""]]
    turns = [{"kind": "talk", "name": "talk", "right": True, "about": None}]
    (_, _, rows) = tables.conversations(turns)[0]
    assert rows == [["all", "1", "100%", "60%", "85%"], ["talk", "1", "100%", "", ""]]


def test_questions_stand_beside_their_goals():
    answer = {"question": "?", "right": "yes.", "model": "yes.", "blind": "no.", "nearest": "yes."}
    main, detail = tables.understanding({kind: {"answers": [answer]} for kind in ASKED})
    found = columns(main)
    assert list(found) == list(goals.QUESTIONS)
    assert found["yes/no"]["model"] == "100%" and found["yes/no"]["at least"] == "85%"
    assert "goal" not in detail[1] and len(detail[2]) > 5
