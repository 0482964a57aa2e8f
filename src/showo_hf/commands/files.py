"""The files that commands write."""

import os
from collections.abc import Callable
from pathlib import Path

from .errors import CommandError, UsageError


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `path` is one that a file with one of these suffixes can be written to."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"`{option}` must end in {', '.join(suffixes)}, got '{path}'")
    if path.is_dir():
        raise UsageError(f"`{option}` must be a file, but '{path}' is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"`{option}` must lie in a folder that exists, but '{path.parent}' does not")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"`{option}` must lie in a folder that can be written to, but '{path.parent}' cannot")


def numbered(path: Path, count: int) -> list[Path]:
    """`path` itself for one file; for more of them apple-0.png, apple-1.png ... for apple.png."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: no half-written file is ever seen."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
