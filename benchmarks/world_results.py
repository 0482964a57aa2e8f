"""The files of benchmarks.world: one for each part with its settings, one with all tables of a split."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import print_table


def write_json(file: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)


class Results:
    """
    The results in a folder.

    Args:
        folder: the folder; it need not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def part(self, name: str, make: Callable[[], dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
        """
        The result of a part: from its file if that has the same settings, else made and written.

        Args:
            name: the name of the file, without ".json". It contains the split.
            make: makes the result.
            settings: all that the result depends on, as JSON can hold it.
        """
        file = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in a file
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["settings"] == settings:
                return stored["result"]
        result = make()
        write_json(file, {"settings": settings, "result": result})
        print(f"{name}: done", file=sys.stderr, flush=True)
        return result

    def table(
        self, split: str, title: str, head: Sequence[str], rows: Sequence[Sequence[object]], settings: dict[str, Any]
    ) -> None:
        """
        Print a table, and put it into tables-SPLIT.json, which recipes.world.publish reads.

        Args:
            split: "validation" or "test".
            title: what the table shows. A table with the same title is replaced, and tables of other weights are removed.
            head: the names of the columns.
            rows: the rows.
            settings: what all its results depend on.
        """
        print(f"{title} ({split})\n")
        print_table(head, rows)
        file = self.folder / f"tables-{split}.json"
        tables = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        cells = [[str(cell) for cell in row] for row in rows]
        if "model_weights" in settings:  # the judge alone has none
            own = (None, settings["model_weights"])
            tables = {name: one for name, one in tables.items() if one["settings"].get("model_weights") in own}
        tables[title] = {"head": list(head), "rows": cells, "settings": settings}
        write_json(file, tables)
