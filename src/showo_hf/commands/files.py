"""The files that commands write."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """One line of JSON for each record, in ASCII: a file name that is no valid text must not stop the writing."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def read_json_lines(option: str, path: Path) -> tuple[list[dict[str, Any]], bool]:
    """
    The records of a file of JSON lines, and whether its last line is whole; nothing where there is no such file.

    A last line without its end was cut off by an interrupt. It is left out, unless it happens to hold a whole record.

    Raises:
        UsageError: if a line is no JSON object; `option` is what named the file.
    """
    if not path.exists():
        return [], True
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"`{option}` must be a file that can be read, got '{path}': {error.strerror}") from error
    records = [parse_record(line) for line in lines]
    if None in records:
        number = records.index(None) + 1
        raise UsageError(f"`{option}` must be a file of JSON lines, but line {number} of '{path}' is no JSON object")
    last = parse_record(rest)
    return [record for record in (*records, last) if record is not None], rest == b""


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line, None where there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append_text(path: Path, text: str) -> None:
    """Put `text` at the end of a file, in one piece as far as the system can."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error


def save_numbered(
    folder: Path, stem: str, suffix: str, start: int, write: Callable[[Path], object]
) -> tuple[Path, int]:
    """
    Write the first file from stem-<start> on that is not there yet; no file is ever overwritten.

    Returns:
        its path and its number.
    """
    while True:
        path = folder / f"{stem}-{start}{suffix}"
        try:
            path.touch(exist_ok=False)  # takes the name, also from another program that writes here
        except FileExistsError:
            start += 1
            continue
        except OSError as error:
            raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error
        try:
            replace_file(path, write)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, start
