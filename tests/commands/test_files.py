"""Files that commands write: names, and no half-written ones."""

from pathlib import Path

import pytest
from PIL import Image

from showo_hf.commands.errors import CommandError
from showo_hf.commands.files import numbered, replace_file


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
