"""Streams of shards that are read from front to back, in an order that can be saved and resumed exactly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from datasets import IterableDataset

from .order import permuted, stable_hash


Row = dict[str, Any]

#: Rows that a reader holds to shuffle them, over all streams of a worker.
SHUFFLED_ROWS = 1024


class StreamReader:
    """
    Reads one stream of shards, epoch after epoch.

    The order of the shards is drawn for each epoch. Rows are read in blocks, and the rows of a block are permuted. A block
    never spans two epochs, so each epoch has each row once. `datasets` loses the rows in its own shuffle buffer when it
    resumes; here the cursor is the start of a block, and a resumed reader reads the block again.

    Args:
        name: the source, for messages.
        dataset: the whole source. It is not shuffled.
        shards: the shards of this stream.
        seed: seed of the stream.
        block: rows of a block.
        cursor: where to start: `cursor` of another reader of the same stream. None starts at position 0.
    """

    def __init__(
        self,
        name: str,
        dataset: IterableDataset,
        shards: list[int],
        seed: int,
        block: int,
        cursor: dict[str, Any] | None = None,
    ):
        self.name, self.dataset, self.shards, self.seed, self.block = name, dataset, shards, seed, block
        #: JSON-able: the first position of the block, its epoch, which of the epoch's shards, the row in the shard, and
        #: the state of `datasets` there.
        self.cursor = cursor or {"position": 0, "epoch": 0, "turn": 0, "row": 0, "state": None}
        self.held: list[tuple[str, Row]] = []
        self.rows: Iterator[tuple[str, Row]] | None = None
        self.here: tuple[IterableDataset | None, dict[str, Any]] = (None, self.cursor)

    def read(self, position: int) -> tuple[str, Row]:
        """
        The row at a position, not before the cursor, and a name for it.

        Raises:
            ValueError: if the stream has no rows, or `position` is before the cursor.
        """
        if position < self.cursor["position"]:
            raise ValueError(f"`position` must not be before {self.cursor['position']}, got {position}.")
        while position >= self.cursor["position"] + len(self.held):
            self.next_block()
        start, epoch = self.cursor["position"], self.cursor["epoch"]
        return self.held[permuted(position - start, len(self.held), stable_hash(self.seed, "block", epoch, start))]

    def next_block(self) -> None:
        """Read the next block into `held`, and move the cursor to its start."""
        start = self.cursor["position"] + len(self.held)
        if self.rows is None:
            self.rows = self.rows_of_epoch()
        mark = self.mark()
        held = list(islice(self.rows, self.block))
        if not held:
            if mark["turn"] == mark["row"] == 0 and mark["state"] is None:
                raise ValueError(f"`{self.name}` has no rows in shard {', '.join(map(str, self.shards[:5]))}.")
            mark = {"epoch": mark["epoch"] + 1, "turn": 0, "row": 0, "state": None}
            self.here = (None, mark)
            self.rows = self.rows_of_epoch()
        self.held = held
        self.cursor = {"position": start, **mark}

    def mark(self) -> dict[str, Any]:
        """Where the next row will be read."""
        dataset, mark = self.here
        state = mark["state"] if dataset is None else dataset.state_dict()
        return {"epoch": mark["epoch"], "turn": mark["turn"], "row": mark["row"], "state": state}

    def rows_of_epoch(self) -> Iterator[tuple[str, Row]]:
        """The rest of an epoch, from `here` on."""
        start = self.here[1]
        epoch, row, state = start["epoch"], start["row"], start["state"]
        for turn in range(start["turn"], len(self.shards)):
            seed = stable_hash(self.seed, "shards", epoch)
            shard = self.shards[permuted(turn, len(self.shards), seed)]
            dataset = self.dataset.shard(num_shards=self.dataset.num_shards, index=shard)
            if state is not None:
                dataset.load_state_dict(state)
            # Batches of one row: a plain loop over the data set would split its shards again in a worker of `DataLoader`.
            for batch in dataset.iter(batch_size=1):
                content = {name: values[0] for name, values in batch.items()}
                row += 1
                self.here = (dataset, {"epoch": epoch, "turn": turn, "row": row, "state": None})
                yield f"{self.name} shard {shard} row {row - 1}", content
            row, state = 0, None
            self.here = (None, {"epoch": epoch, "turn": turn + 1, "row": 0, "state": None})
