"""
The order of the rows, as arithmetic.

The rows of a task are numbered over all ranks and steps. A step takes as many of the next numbers as it has rows on all
ranks together, and row n belongs to rank n % ranks. So a step contains the same rows whatever the number of ranks.

Each row belongs to a source, to a stream of this source, and has a position in this stream:

- The source is a draw by the sources' weights, a function of the seed and the row number.
- A source with random access has one stream. Its positions walk through one permutation of its rows after another, one
  for each epoch, and any rank can read any position.
- A source that can only be read from front to back has several streams of shards, fixed when a run starts. Row numbers
  are dealt to the streams such that each worker of each rank has streams of its own (see [`StreamLayout`]). Another
  number of ranks or workers later on changes who reads a row, but not which row it is.
- The position is the number of earlier rows of the same stream.

So the count of rows of each stream is the whole state: nothing is repeated and nothing left out, however often a run is
interrupted and whatever its number of ranks, workers and rows is afterwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


#: Streams of a source in each worker and for up to this many ranks. More streams mix the shards better, and keep more
#: files open.
MAX_STREAMS = 48


def stable_hash(*parts: int | str) -> int:
    """Hash integers and strings to 63 bits: the same on every machine and in every version of Python."""
    words = "".join(f"{len(text)}:{text}" for text in map(str, parts))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


def permuted(index: int, size: int, seed: int) -> int:
    """
    Where a seeded permutation of `range(size)` puts `index`.

    It needs no memory: a Feistel network on the two digits of the index in base ceil(sqrt(size)), walked again while it
    leaves the range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    base = math.isqrt(size - 1) + 1
    key = seed.to_bytes(8, "little")
    while True:
        left, right = divmod(index, base)
        for turn in range(6):
            word = hashlib.blake2b(right.to_bytes(8, "little"), digest_size=8, key=key, salt=bytes([turn])).digest()
            left, right = right, (left + int.from_bytes(word, "little")) % base
        index = left * base + right
        if index < size:
            return index


@dataclass(frozen=True)
class StreamLayout:
    """
    How row numbers are dealt to the streams of a source. Fixed when a run starts.

    Workers of a rank make whole steps in turn, so step t belongs to worker t % workers. The streams are dealt to workers
    first. The rows of a worker's steps go to its streams in turn. So each rank has streams of its own, if the number of
    ranks divides the number of a worker's streams; if not, ranks share streams, and read more than they use.

    Args:
        streams: number of streams. 1 for random access.
        rows_per_step: rows of all ranks in a step when the run started.
        workers: workers of a rank when the run started.
    """

    streams: int
    rows_per_step: int
    workers: int

    @classmethod
    def of_shards(cls, shards: int, rows_per_step: int, ranks: int, workers: int) -> StreamLayout:
        """As many streams as `shards` allow, and [`MAX_STREAMS`]; each has one shard or more."""
        per_worker = max(1, min(shards // workers, max(MAX_STREAMS, ranks)))
        if per_worker >= ranks:
            per_worker -= per_worker % ranks
        return cls(min(shards, per_worker * workers), rows_per_step, workers)

    def stream(self, row: int) -> int:
        """The stream of a row number."""
        if self.streams == 1:
            return 0
        step, place = divmod(row, self.rows_per_step)
        turn, worker = divmod(step, self.workers)
        per_worker = max(1, self.streams // self.workers)
        return (worker + self.workers * ((turn * self.rows_per_step + place) % per_worker)) % self.streams

    def shards_of(self, stream: int, shards: int) -> list[int]:
        """The shards of a stream: every `streams`-th, from `stream` on."""
        return list(range(stream, shards, self.streams))


class Place(NamedTuple):
    """Where a row of a task is found: the index of its source, the stream, and the position in the stream."""

    source: int
    stream: int
    position: int


class RowOrder:
    """
    Walks through the rows of a task. All readers walk through all of them, and read their own.

    Args:
        seed: seed of the run.
        task: name of the task.
        weights: weight of each source.
        layouts: layout of each source.
        row: number of the first row.
        counts: rows before `row`, by source and stream. None starts at row 0.
    """

    def __init__(
        self,
        seed: int,
        task: str,
        weights: Sequence[float],
        layouts: Sequence[StreamLayout],
        row: int = 0,
        counts: Sequence[Sequence[int]] | None = None,
    ):
        if counts is None:
            counts = [[0] * layout.streams for layout in layouts]
        self.seed, self.task, self.layouts = seed, task, layouts
        self.bounds = [sum(weights[: index + 1]) / sum(weights) for index in range(len(weights))]
        self.row, self.counts = row, [list(of_source) for of_source in counts]

    def next_place(self) -> Place:
        """Go on by one row."""
        source = 0
        if len(self.bounds) > 1:
            draw = stable_hash(self.seed, self.task, "source", self.row) / 2**63
            source = next((index for index, bound in enumerate(self.bounds) if draw < bound), len(self.bounds) - 1)
        stream = self.layouts[source].stream(self.row)
        position = self.counts[source][stream]
        self.counts[source][stream] += 1
        self.row += 1
        return Place(source, stream, position)

    def noise_seed(self, place: Place) -> int:
        """The seed of all draws about the sample at `place`, 63 bits."""
        return stable_hash(self.seed, self.task, "noise", *place)

    def table_index(self, place: Place, size: int) -> int:
        """The index of the sample at `place` in a source of `size` rows with random access."""
        epoch, index = divmod(place.position, size)
        return permuted(index, size, stable_hash(self.seed, self.task, "epoch", place.source, epoch))
