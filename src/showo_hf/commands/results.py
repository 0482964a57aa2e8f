"""The results of `showo-hf caption` and `showo-hf ask`: records, where they are written, and how a run resumes."""

from __future__ import annotations

import glob
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..utils.argument_types import quoted
from ..utils.messages import for_stdout
from .errors import UsageError
from .files import append_text, check_output, json_lines, read_json_lines, replace_file
from .info import package_version
from .saved_model import read_json
from .texts import exists


Record = dict[str, Any]
PART = ".showo-hf-part-"
QUESTION_FIELDS = ("image", "prompt", "question", "choices")  # the fields that identify a question


def question_key(record: Record) -> str:
    """A string that identifies the question of a record."""
    return json.dumps([record.get(field) for field in QUESTION_FIELDS])


class Results:
    """
    Writes records to a file of JSON lines, or prints them. Errors are also printed to stderr.

    Args:
        output: the file to append to; None prints to stdout.
        as_json: print JSON lines.
        line: formats a record for stdout where `as_json` is False.
    """

    def __init__(self, output: Path | None, as_json: bool, line: Callable[[Record], str]):
        self.output, self.as_json, self.line = output, as_json, line
        self.failed = 0

    def put(self, records: list[Record]) -> None:
        for record in records:
            if "error" in record:
                self.failed += 1
                name, problem = quoted(record["image"], longest=200), record["error"]
                print(f"showo-hf: error: {name} cannot be read: {problem}", file=sys.stderr)
        if self.output is not None:
            append_text(self.output, json_lines(records))
        elif self.as_json:
            print(json_lines(records), end="", flush=True)
        else:
            lines = [for_stdout(self.line(record)) for record in records if "error" not in record]
            print("".join(f"{line}\n" for line in lines), end="", flush=True)


def one_line(*parts: str) -> str:
    """Join texts with spaces to one line."""
    return " ".join(" ".join(parts).split())


# Files of results


def resume(output: Path, images: Iterable[str], collect: bool = True) -> list[Record]:
    """
    Read the records that an earlier run left in `output`.

    At the end of the run every question has one line.

    Args:
        output: the file of JSON lines.
        images: the images of this run. Their errors are left out, because they are tried again.
        collect: prepare the file for more lines: add what processes of an earlier run left, and remove an incomplete
            last line and the errors of `images`. Otherwise nothing is written.

    Raises:
        UsageError: if the file cannot be written, or was not written by these commands.
    """
    check_output("--output", output, (".jsonl",))
    check_output("--output", settings_file(output), (".json",))
    if collect:
        collect_parts(output)
    records, whole = read_records(output)
    for part in parts_of(output):  # of an earlier run; a later call collects them
        read_records(part)
    asked = set(images)
    kept = [record for record in records if not ("error" in record and record["image"] in asked)]
    if collect:
        if not whole or len(kept) < len(records):
            replace_file(output.resolve(), lambda temporary: temporary.write_text(json_lines(kept), encoding="utf-8"))
        append_text(output, "")  # fails before the work if the file is not writable
    return kept


def read_records(path: Path) -> tuple[list[Record], bool]:
    """
    The records in a file, and whether its last line is complete; see [`read_json_lines`].

    Raises:
        UsageError: if a line is no record of these commands.
    """
    records, whole = read_json_lines("--output", path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("image"), str):
            raise UsageError(
                f"`--output` must be a file of this command, but line {number} of {quoted(path)} has no image"
            )
    return records, whole


def part_of(output: Path, process: int) -> Path:
    """Where one of several processes writes its records: .out.jsonl.showo-hf-part-0 for out.jsonl."""
    return output.with_name(f".{output.name}{PART}{process}")


def parts_of(output: Path) -> list[Path]:
    """The files of [`part_of`] that are there."""
    start = f".{output.name}{PART}"
    found = output.parent.glob(f"{glob.escape(start)}*")
    return sorted(path for path in found if re.fullmatch("[0-9]+", path.name.removeprefix(start)))


def collect_parts(output: Path, images: Iterable[str] = ()) -> list[Record]:
    """
    Move the records of all processes to the end of `output`, in the order of `images`. Returns them.

    A run that is killed here can leave records in both places. Those stay as they are in `output`.

    Raises:
        UsageError: if a file has a line that is no record. Nothing is changed.
    """
    parts = parts_of(output)
    order = {image: number for number, image in enumerate(images)}
    before, _ = read_json_lines("--output", output) if parts else ([], True)
    there = {question_key(record) for record in before}
    found = [record for part in parts for record in read_records(part)[0] if question_key(record) not in there]
    found.sort(key=lambda record: order.get(record["image"], len(order)))
    if found:
        text = json_lines([*before, *found])
        replace_file(output.resolve(), lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for part in parts:
        part.unlink()
    return found


def settings_file(output: Path) -> Path:
    return output.with_suffix(".settings.json")


def check_settings(output: Path, settings: Record) -> None:
    """Raise `UsageError` if the records in `output` were made with other settings."""
    before = read_json(settings_file(output)) if exists(output) else {}
    for name, value in settings.items():
        if name in before and before[name] != value:
            raise UsageError(
                f"`--output` {quoted(output)} holds answers with {name} {quoted(before[name])}, and {quoted(value)} is "
                "asked for now; use another file"
            )


def write_settings(output: Path, settings: Record) -> None:
    """Write the settings beside `output`."""
    text = json.dumps(settings | {"showo_hf": package_version("showo-hf")}, indent=2) + "\n"
    replace_file(settings_file(output).resolve(), lambda temporary: temporary.write_text(text, encoding="utf-8"))
