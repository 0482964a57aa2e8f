"""The results of `showo-hf caption` and `showo-hf ask`: records, where they are written, and how a run resumes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import append_text, check_output, json_lines, read_json_lines, replace_file


Record = dict[str, Any]


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
                print(f"showo-hf: error: '{record['image']}' cannot be read: {record['error']}", file=sys.stderr)
        if self.output is not None:
            append_text(self.output, json_lines(records))
        elif self.as_json:
            print(json_lines(records), end="", flush=True)
        else:
            lines = [printable(self.line(record)) for record in records if "error" not in record]
            print("".join(f"{line}\n" for line in lines), end="", flush=True)


def printable(text: str) -> str:
    """Escape the characters of `text` that the encoding of stdout lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def one_line(*parts: str) -> str:
    """Join texts with spaces to one line."""
    return " ".join(" ".join(parts).split())


def resume(output: Path, images: Iterable[str]) -> list[Record]:
    """
    Read the records that an earlier run left in `output`, and prepare the file for more lines.

    Removes an incomplete last line, and the errors of `images`, which are tried again. At the end of the run every
    question has one line.

    Raises:
        UsageError: if the file cannot be written, or was not written by these commands.
    """
    check_output("--output", output, (".jsonl",))
    records, whole = read_json_lines("--output", output)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("image"), str):
            raise UsageError(
                f"`--output` must be a file of this command, but line {number} of '{output}' has no image"
            )
    asked = set(images)
    kept = [record for record in records if not ("error" in record and record["image"] in asked)]
    if not whole or len(kept) < len(records):
        replace_file(output.resolve(), lambda temporary: temporary.write_text(json_lines(kept), encoding="utf-8"))
    return kept
