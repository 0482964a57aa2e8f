"""Random access to files of JSON objects."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .examples import BrokenExample


#: Rows with random access: `len(table)`, and `table[i]` as a dictionary. One of ours, or a `datasets.Dataset`.
Table = Any


class JsonTable:
    """
    The rows of a file of JSON lines, or of a JSON list, as dictionaries.

    `datasets` wants one type for each field. Conversations and captions often mix types: a text here, a list there.

    JSON lines stay on disk; only where each line starts is held, 8 bytes a row. A JSON list is held as text.

    Args:
        file: `.jsonl`, or `.json` with a list of objects or with JSON lines.

    Raises:
        ValueError: if the file cannot be read, is empty, or is not of this form.
    """

    def __init__(self, file: Path):
        self.file = file
        self.content: bytes | None = None
        try:
            with open(file, "rb") as opened:
                if opened.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                    rows = json.loads(file.read_bytes())
                    self.content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                opened.seek(0)
                starts, start = [], 0
                for line in opened if self.content is None else io.BytesIO(self.content):
                    if line.strip():
                        starts.append(start)
                    start += len(line)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"`{file}` must be JSON lines or a list of JSON objects: {error}") from error
        if not starts:
            raise ValueError(f"`{file}` has no rows.")
        self.bounds = np.array([*starts, start])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row. `BrokenExample` names the file and the row if it is no JSON object."""
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be from 0 to {len(self) - 1}, got {index}.")
        start, end = (int(bound) for bound in self.bounds[index : index + 2])
        if self.content is not None:
            text = self.content[start:end]
        else:
            with open(self.file, "rb") as opened:
                opened.seek(start)
                text = opened.read(end - start)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BrokenExample(f"`{self.file}` row {index} must be a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise BrokenExample(f"`{self.file}` row {index} must be a JSON object, got {text[:80]!r}.")
        return row


class JoinedTable:
    """Several tables, one behind the other."""

    def __init__(self, tables: Sequence[Table]):
        self.tables = list(tables)
        self.ends = np.cumsum([len(table) for table in self.tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.tables[part][index - (int(self.ends[part - 1]) if part else 0)]
