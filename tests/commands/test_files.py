"""Files that commands write: names, atomic writes, and JSON lines."""

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf.commands.errors import CommandError, UsageError
from showo_hf.commands.files import (
    append_text,
    check_folder,
    check_new_folder,
    check_numbered,
    check_output,
    json_lines,
    numbered,
    read_json_lines,
    replace_file,
    save_numbered,
)
from showo_hf.utils.atomic_folder import atomic_folder, temporary_name


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


def test_an_error_of_the_clean_up_does_not_hide_the_error_of_the_work():
    def lock_out(temporary: Path) -> None:
        temporary.parent.rmdir()
        Path("folder").touch()  # what is below it cannot be removed now
        raise OSError(28, "No space left on device")

    Path("folder").mkdir()
    with pytest.raises(CommandError, match="'folder/apple.png': No space left on device"):
        replace_file(Path("folder/apple.png"), lock_out)


LONGEST = 255  # bytes of a name, on all usual file systems


def test_every_name_that_is_not_too_long_can_be_written():
    for length in range(LONGEST - 30, LONGEST + 1):
        path = Path("a" * (length - 4) + ".png")
        check_output("-o", path, (".png",))
        replace_file(path, lambda temporary: temporary.write_bytes(b"new"))
        assert path.read_bytes() == b"new"
        path.unlink()
    assert files() == []


@pytest.mark.parametrize("check", [partial(check_output, suffixes=(".png",)), check_folder])
def test_a_name_that_is_too_long_is_refused(check, monkeypatch):
    # From Python 3.14 on, these methods say False of such a name and raise no error.
    for name in ("exists", "is_dir", "is_file"):
        real = getattr(Path, name)

        def quiet(self, real=real, **options):
            try:
                return real(self, **options)
            except OSError:
                return False

        monkeypatch.setattr(Path, name, quiet)
    path = Path("a" * (LONGEST - 3) + ".png")
    with pytest.raises(UsageError, match="`-o` cannot be written: 'aaa.*: File name too long"):
        check("-o", path)


def test_a_name_that_is_too_long_is_refused_in_a_folder_that_is_not_there_yet():
    check_folder("-o", Path("new") / ("a" * LONGEST) / "b")
    with pytest.raises(UsageError, match="File name too long"):
        check_folder("-o", Path("new") / ("a" * (LONGEST + 1)) / "b")


def test_a_new_folder_is_one_that_can_be_written_atomically():
    longest = Path("a" * (LONGEST - len(temporary_name(Path("a")).name) + 1))
    check_new_folder("-o", longest, False)
    with atomic_folder(longest):
        pass
    with pytest.raises(UsageError, match="`-o` must be a new folder, but 'aaa.* exists already; add `--overwrite`"):
        check_new_folder("-o", longest, False)
    check_new_folder("-o", longest, True)
    with pytest.raises(UsageError, match="File name too long"):
        check_new_folder("-o", Path(f"{longest}a"), False)
    for named in (Path("/"), Path(), Path("..")):
        check_new_folder("-o", named, True)


@pytest.mark.parametrize("count", [1, 3, 11])
def test_numbered_names_are_checked(count):
    check = partial(check_numbered, "-o", count=count, suffixes=(".png",))
    longest = "a" * (LONGEST - 4 - (0 if count == 1 else len(f"-{count - 1}")))
    check(Path(f"{longest}.png"))
    with pytest.raises(UsageError, match="File name too long"):
        check(Path(f"{longest}a.png"))
    for other in ("b-01.png", "b-11.png", "b-x.png", "b-1.gif", "bb-1.png"):  # none of them is written
        Path(other).mkdir()
    check(Path("b.png"))
    for path in numbered(Path("b.png"), count):
        path.mkdir()
        with pytest.raises(UsageError, match=f"`-o` must be a file, but '{path}' is a folder"):
            check(Path("b.png"))
        path.rmdir()
        path.touch()
    check(Path("b.png"))  # files are replaced


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
