"""Files that commands write: names, atomic writes, and JSON lines."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf.commands.errors import CommandError, UsageError
from showo_hf.commands.files import append_text, json_lines, numbered, read_json_lines, replace_file, save_numbered


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_numbered():
    path = Path("some.where") / "apple.v2.png"
    assert numbered(path, 1) == [path]
    assert numbered(path, 2) == [path.with_name("apple.v2-0.png"), path.with_name("apple.v2-1.png")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else():
    path = Path("apple.png")
    path.write_bytes(b"old")

    def write_half(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(CommandError, match="'apple.png': No space left on device"):
        replace_file(path, write_half)
    assert files() == ["apple.png"]
    assert path.read_bytes() == b"old"


def test_a_written_file_has_the_usual_permissions():
    Path("plain.png").touch()
    replace_file(Path("apple.png"), Image.new("RGB", (8, 8)).save)
    assert files() == ["apple.png", "plain.png"]
    assert Path("apple.png").stat().st_mode == Path("plain.png").stat().st_mode


def test_save_numbered_uses_the_next_free_name():
    Path("a-1.png").write_bytes(b"mine")
    saved = []
    for _ in range(3):
        start = saved[-1][1] + 1 if saved else 0
        saved.append(save_numbered(Path(), "a", ".png", start, lambda path: path.write_bytes(b"new")))
    assert saved == [(Path("a-0.png"), 0), (Path("a-2.png"), 2), (Path("a-3.png"), 3)]
    assert Path("a-1.png").read_bytes() == b"mine"
    assert files() == ["a-0.png", "a-1.png", "a-2.png", "a-3.png"]


def test_a_failed_save_numbered_leaves_no_file():
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CommandError, match="'a-0.png': No space left on device"):
        save_numbered(Path(), "a", ".png", 0, fail)
    assert files() == []
    with pytest.raises(CommandError, match="cannot write 'missing/a-0.png'"):
        save_numbered(Path("missing"), "a", ".png", 0, fail)


RECORDS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.none() | st.floats(0, 1)), max_size=4)


@given(records=RECORDS, data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_json_lines_keep_all_complete_records(records, data):
    lines = [json_lines([record]).encode("ascii") for record in records]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    Path("a.jsonl").write_bytes(whole[:cut])
    found, clean = read_json_lines("-o", Path("a.jsonl"))
    ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]
    assert found == [
        record for record, end in zip(records, ends, strict=True) if cut >= end - 1
    ]  # without its newline
    assert clean == (cut in {0, *ends})
    if clean:
        append_text(Path("a.jsonl"), json_lines([{"more": 1}]))
        assert read_json_lines("-o", Path("a.jsonl")) == ([*found, {"more": 1}], True)


def test_json_lines_contain_any_text():
    record = {"image": "caf\udce9\u2028\n.png"}
    append_text(Path("a.jsonl"), json_lines([record, record]))
    assert Path("a.jsonl").read_bytes().count(b"\n") == 2
    assert read_json_lines("-o", Path("a.jsonl")) == ([record, record], True)
    assert read_json_lines("-o", Path("b.jsonl")) == ([], True)


@pytest.mark.parametrize("line", ["", "milk", "[1]", "3", '{"a": 1', "\x00"])
def test_a_line_that_is_not_json_is_named_by_its_number(line):
    Path("a.jsonl").write_text(f"{json.dumps({'a': 1})}\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="`-o` must be a file of JSON lines, but line 2 of 'a.jsonl'"):
        read_json_lines("-o", Path("a.jsonl"))


def test_an_unwritable_file_is_named():
    with pytest.raises(CommandError, match="cannot write 'missing/a.jsonl': No such file"):
        append_text(Path("missing/a.jsonl"), "x")
