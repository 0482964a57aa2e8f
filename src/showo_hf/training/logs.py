"""The log of a training run: a file with one JSON object a line."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.atomic_folder import sync


logger = logging.getLogger(__name__)

# JSON has no numbers for these. As strings they survive every reader, and `RunLog.read` gives the numbers again.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunLog:
    """
    The rows that a run logs, in a file of JSON lines.

    Each row names its `step`. The trainer logs rows of training, such as `{"step": 10, "loss": 2.1, "loss_t2i": 1.9}`,
    and rows of validation, such as `{"step": 10, "eval_loss_t2i": 2.0}`. A row `{"step": 0, "blind_guess": {"loss_t2i":
    6.9}}` may give the losses of a blind guess. Numbers that are not finite are written as "NaN", "Infinity" and
    "-Infinity".

    A process that is killed while it writes leaves a half-written last line. It does not count, and the next `append`
    removes it. One process at a time may write.

    Args:
        file: path of the log. It is created by the first `append`, with its parents.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)

    def append(self, row: Mapping[str, Any]):
        """
        Write one row at the end.

        Args:
            row: `step`, an integer of at least 0, and values that JSON can hold. Tensors and arrays with one element
                are written as numbers.

        Raises:
            ValueError: if the row has no such `step`, or if JSON cannot hold a value.
            OSError: if the disk is full or not writable. The log ends with the row before.
        """
        check_step("row['step']", row.get("step"))
        content = line_of(row)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            end = end_of_last_line(handle)
            os.ftruncate(handle, end)
            os.lseek(handle, end, os.SEEK_SET)
            try:
                # In nearly all cases one call writes the whole line, so a killed process rarely leaves half of it.
                while content:
                    content = content[os.write(handle, content) :]
            except OSError:
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)

    def read(self) -> list[dict[str, Any]]:
        """
        All rows, in the order in which they were written; empty if there is no file.

        Raises:
            ValueError: if a line other than a half-written last one is not a row.
        """
        rows = []
        for number, line in enumerate(self.lines(), 1):
            row = row_of(line)
            if row is None:
                raise ValueError(f"line {number} of '{self.file}' is not a row of a log: {shown(line)}")
            rows.append(row)
        return rows

    def truncate_after(self, step: int) -> int:
        """
        Drop the rows of later steps, because a resumed run logs them again.

        The file is replaced atomically: after a kill it is the old one or the new one. Lines that cannot be read are
        dropped too.

        Args:
            step: the last step whose rows stay; 0 or less drops all but the rows of step 0.

        Returns:
            How many lines were dropped.
        """
        lines = self.lines()
        rows = [row_of(line) for line in lines]
        broken = [number for number, row in enumerate(rows, 1) if row is None]
        if broken:
            logger.warning("'%s' has lines that cannot be read, which are dropped: %s", self.file, broken)
        kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and row["step"] <= max(step, 0)]
        content = b"".join(line + b"\n" for line in kept)
        if self.file.is_file() and self.file.read_bytes() != content:
            fresh = self.file.with_name(f".{self.file.name}.new")
            fresh.write_bytes(content)
            sync(fresh)
            os.replace(fresh, self.file)
        return len(lines) - len(kept)

    def last_step(self) -> int | None:
        """The last step that a row names; None without rows."""
        return max((row["step"] for row in self.read()), default=None)

    def lines(self) -> list[bytes]:
        """All complete lines, without their ends."""
        content = self.file.read_bytes() if self.file.is_file() else b""
        return content.split(b"\n")[:-1]  # what stands behind the last end of a line is half-written or empty


def check_step(name: str, step: Any):
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"`{name}` must be an integer of at least 0, got {step!r}")


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as one line, with its end."""
    try:
        return json.dumps(plain(row), allow_nan=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"a row of the log can hold what JSON can hold, got {row!r}: {error}") from error


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if it is none."""
    try:
        row = json.loads(line)
        check_step("step", row["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return numbers(row)


def plain(value: Any) -> Any:
    """A value in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()  # a tensor, an array, or a number of numpy
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word, number in NOT_FINITE.items() if number == value or math.isnan(value))
    return value


def numbers(value: Any) -> Any:
    """The inverse of [`plain`] for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [numbers(one) for one in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def end_of_last_line(handle: int) -> int:
    """The position behind the last end of a line, in an open file."""
    position = os.lseek(handle, 0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 4096)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def shown(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
