"""The files that commands write: atomic, numbered, and JSON lines."""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..utils.argument_types import quoted
from ..utils.atomic_folder import temporary_name
from .errors import CommandError, UsageError


def check_name(option: str, path: Path) -> None:
    """Raise `UsageError` for a name that no file can have: with a NUL character, or too long."""
    if "\0" in str(path):
        raise UsageError(f"`{option}` must be the name of a file or folder, got {quoted(path)}")
    try:
        os.lstat(path)  # from Python 3.14 on, the methods of `Path` raise no errors
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UsageError(f"`{option}` cannot be written: {quoted(path)}: {error.strerror}") from error


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `path` is a writable file path with one of these suffixes."""
    check_name(option, path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"`{option}` must end in {', '.join(suffixes)}, got {quoted(path)}")
    try:
        if path.is_dir():
            raise UsageError(f"`{option}` must be a file, but {quoted(path)} is a folder")
        if path.exists() and not path.is_file():
            raise UsageError(f"`{option}` must be a file, but {quoted(path)} is none")
        if not path.parent.is_dir():
            raise UsageError(f"`{option}` must be in an existing folder, but {quoted(path.parent)} does not exist")
    except OSError as error:  # for example a link into a folder of someone else
        raise UsageError(f"`{option}` cannot be written: {quoted(path)}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"`{option}` must be in a writable folder, but {quoted(path.parent)} is not")


def check_numbered(option: str, path: Path, count: int, suffixes: tuple[str, ...]) -> None:
    """Raise `UsageError` unless each of the files that [`numbered`] names can be written; see [`check_output`]."""
    check_output(option, path, suffixes)
    if count == 1:
        return
    check_output(option, number_name(path, count - 1), suffixes)  # the longest name
    # The numbers may be a hundred thousand, so the folder is read once.
    name = re.compile(rf"{re.escape(path.stem)}-(0|[1-9][0-9]*){re.escape(path.suffix)}")
    with suppress(PermissionError), os.scandir(path.parent) as entries:  # a folder may be writable and not readable
        for entry in entries:
            found = name.fullmatch(entry.name)
            if found and int(found[1]) < count and not entry.is_file():
                check_output(option, path.with_name(entry.name), suffixes)


def check_folder(option: str, path: Path) -> None:
    """Raise `UsageError` unless `path` is a writable folder, or can be made as one."""
    check_name(option, path)
    there = path
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise UsageError(f"`{option}` must be a folder, but {quoted(there)} is a file")
        for name in path.relative_to(there).parts:
            check_name(option, there / name)
    except OSError as error:  # for example a link into a folder of someone else
        raise UsageError(f"`{option}` cannot be written: {quoted(path)}: {error.strerror}") from error
    if not os.access(there, os.W_OK):
        raise UsageError(f"`{option}` must be a folder that can be written, but {quoted(there)} cannot")


def check_new_folder(option: str, path: Path, overwrite: bool) -> None:
    """Raise `UsageError` unless [`atomic_folder`] can write `path`, which is new unless `overwrite` is True."""
    check_folder(option, path)
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"`{option}` must be a new folder, but {quoted(path)} exists already; add `--overwrite`")
    target = Path(os.path.realpath(path))
    if target.name:  # the root has none
        check_folder(option, temporary_name(target))  # a longer name, beside the folder that a link leads to


def numbered(path: Path, count: int) -> list[Path]:
    """`path` itself for one file; else scene-0.png, scene-1.png ... for scene.png."""
    return [path] if count == 1 else [number_name(path, number) for number in range(count)]


def number_name(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` gets a temporary path beside `path`, which then replaces `path`."""
    temporary = path.with_name(f".showo-{secrets.token_hex(8)}{path.suffix}")  # `path` may have the longest name
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # an image that a format cannot hold
        raise CommandError(f"cannot write '{path}': {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):  # the error of the work tells more
            temporary.unlink()


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Format records as JSON lines. The output is ASCII, so that file names that are not valid text can be written."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def read_json_lines(option: str, path: Path) -> tuple[list[dict[str, Any]], bool]:
    """
    Read a file of JSON lines.

    An interrupted run can leave a last line without a newline. It is skipped unless it is a complete record.

    Returns:
        the records, and whether the last line ends with a newline. A missing file has no records.

    Raises:
        UsageError: if a line is not a JSON object. `option` is the option that named the file.
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
        raise UsageError(
            f"`{option}` must be a file of JSON lines, but line {number} of '{path}' is not a JSON object"
        )
    last = parse_record(rest)
    return [record for record in (*records, last) if record is not None], rest == b""


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None if the line is something else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append_text(path: Path, text: str) -> None:
    """Append `text` to a file in one write."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error


def save_numbered(
    folder: Path, stem: str, suffix: str, start: int, write: Callable[[Path], object]
) -> tuple[Path, int]:
    """
    Write to the first free name from `{stem}-{start}{suffix}` on. Never overwrites a file.

    Returns:
        the path and its number.
    """
    while True:
        path = folder / f"{stem}-{start}{suffix}"
        try:
            path.touch(exist_ok=False)  # reserves the name, also against other processes
        except FileExistsError:
            start += 1
            continue
        except OSError as error:
            raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error
        try:
            replace_file(path, write)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return path, start
