"""Batches of several tasks, with the state to go on from after each."""

from __future__ import annotations

import builtins
import copy
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import fsspec.asyn
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...utils.validation import check_count
from .examples import BrokenExample, BrokenExamples, Example
from .order import Place, RowOrder, StreamLayout, stable_hash
from .sources import DataSource, OpenedSource, open_source
from .streams import SHUFFLED_ROWS, Row, StreamReader


State = dict[str, Any]
Collate = Callable[[dict[str, list[Example]]], Any]


@dataclass(frozen=True)
class TaskData:
    """
    The data of a task.

    Args:
        sources: mixed by their weights. A source that is open already is taken as it is.
        rows: rows of each rank in a step.
    """

    sources: tuple[DataSource | OpenedSource, ...]
    rows: int

    def __post_init__(self):
        check_count("rows", self.rows)
        if not self.sources:
            raise ValueError("`sources` must hold at least one `DataSource`, got none.")


class StepLoader:
    """
    Loads the rows of this rank, step by step, without an end.

    `for batch, state in loader` gives `collate({task: [Example, ...]})` and the position after this batch, which can be
    stored as JSON. A step has the same rows whatever the number of ranks; see `order.py`. Samples that cannot be read are
    left out of the batch, named on stderr and counted in `broken`, so a batch may have fewer rows, down to an empty list
    for a task.

    A second loop goes on after the last batch of the first.

    Args:
        tasks: the data of each task.
        collate: makes a batch of lists of examples. It runs in the workers, or in a thread. Workers need it to be
            picklable where processes are not forked.
        seed: seed of the order and of the examples' `noise_seed`.
        rank, world_size: which rank this is, and of how many.
        num_workers: processes that load. 0 loads in a thread.
        prefetch: batches that each worker, or the thread, prepares ahead.
        state: where to start: a state of this loader, if there is one rank, or else what [`merge_states`] makes of the
            states of all ranks. Ranks, workers and rows may have other numbers than when it was saved.
        max_broken: number of unreadable samples of this rank above which loading ends with a `ValueError`.
        tokenizer_checksum: `image_tokenizer_checksum(model)`. Stored tokens of another image tokenizer are refused.

    Raises:
        ValueError: for arguments out of range, for sources that cannot be opened or lack a column, and for a `state` of
            other tasks, sources or another seed.
    """

    def __init__(
        self,
        tasks: dict[str, TaskData],
        collate: Collate,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        state: State | None = None,
        max_broken: int = 100,
        tokenizer_checksum: str | None = None,
    ):
        check_count("world_size", world_size)
        check_count("rank", rank, least=0)
        check_count("num_workers", num_workers, least=0)
        check_count("prefetch", prefetch)
        if rank >= world_size:
            raise ValueError(f"`rank` must be less than `world_size` ({world_size}), got {rank}.")
        if not tasks:
            raise ValueError("`tasks` must hold at least one task, got none.")
        self.collate, self.num_workers, self.prefetch = collate, num_workers, prefetch
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.rows = {task: data.rows * world_size for task, data in tasks.items()}  # of all ranks in a step
        self.sources = {
            task: [
                source if isinstance(source, OpenedSource) else open_source(source, task, tokenizer_checksum)
                for source in data.sources
            ]
            for task, data in tasks.items()
        }
        self.broken = BrokenExamples(max_broken)
        self.met: dict[str, set[str]] = {task: set() for task in tasks}  # what this loader itself could not read
        self.unread: dict[str, int] = dict.fromkeys(tasks, 0)  # rows in succession, over whole steps
        if state is None:
            state = self.first_state()
        self.check_state(state)
        #: The state after the last batch that was taken.
        self.state = copy.deepcopy(state)
        self.broken.reasons.update(state["broken"])

    def first_state(self) -> State:
        """The state before the first step of a run."""
        tasks = {}
        for task, sources in self.sources.items():
            states = []
            for opened in sources:
                layout = StreamLayout(1, self.rows[task], max(1, self.num_workers))
                if opened.table is None:
                    layout = StreamLayout.of_shards(opened.size, layout.rows_per_step, self.world_size, layout.workers)
                states.append(
                    {
                        "size": opened.size,
                        "streams": layout.streams,
                        "rows_per_step": layout.rows_per_step,
                        "workers": layout.workers,
                        "block": max(4, SHUFFLED_ROWS * layout.workers // layout.streams),
                        "counts": [0] * layout.streams,
                        "cursors": {},
                    }
                )
            tasks[task] = {"row": 0, "sources": states}
        return {"seed": self.seed, "tasks": tasks, "broken": {}}

    def check_state(self, state: State) -> None:
        """Raise `ValueError` unless `state` is of the same seed, tasks and sources."""
        if state["seed"] != self.seed:
            raise ValueError(f"`seed` must equal the saved position's, {state['seed']}, got {self.seed}.")
        if set(state["tasks"]) != set(self.sources):
            saved = ", ".join(state["tasks"])
            raise ValueError(f"`tasks` must be those of the saved position, {saved}, got {', '.join(self.sources)}.")
        for task, sources in self.sources.items():
            saved_sizes = [source["size"] for source in state["tasks"][task]["sources"]]
            sizes = [opened.size for opened in sources]
            if saved_sizes != sizes:
                names = ", ".join(opened.name for opened in sources)
                raise ValueError(
                    f"the sources of {task} must be those of the saved position. They had {saved_sizes} rows or "
                    f"shards, and now have {sizes}: {names}."
                )

    def __iter__(self) -> Iterator[tuple[Any, State]]:
        steps = Steps(self.sources, self.rows, self.collate, self.seed, self.rank, self.world_size, self.state)
        made = self.from_workers(steps) if self.num_workers else self.from_thread(steps)
        try:
            for step in made:
                if step.failure is not None:
                    raise step.failure.error()
                for task, key, reason in step.broken:
                    self.leave_out(task, key, reason)
                self.check_successes(step)
                self.state = self.state_after(step)
                yield step.batch, self.state
        finally:
            made.close()

    def leave_out(self, task: str, key: str, reason: str) -> None:
        """Count and name a sample that cannot be read. `ValueError` if there are too many, or all are like this."""
        if key not in self.broken.reasons:
            print(f"showo-hf: left out: {key}: {reason}", file=sys.stderr, flush=True)
        self.broken.add(key, reason)
        self.met[task].add(key)
        tables = [opened.table for opened in self.sources[task]]
        if None not in tables and len(self.met[task]) == sum(map(len, tables)):
            raise ValueError(f"`data` has no sample for {task} that can be read. One of them is {key}: {reason}.")

    def check_successes(self, step: Step) -> None:
        """Raise `ValueError` if a task had no row for so long that its streams cannot be read at all."""
        for task, rows in self.rows.items():
            broken = sum(one == task for one, *_ in step.broken)
            self.unread[task] = self.unread[task] + broken if broken == rows // self.world_size else 0
            if self.unread[task] > self.broken.max_broken:
                raise ValueError(
                    f"`data` had {self.unread[task]} rows for {task} in succession that cannot be read, and "
                    f"`max_broken` allows {self.broken.max_broken}. The last is {step.broken[-1][1]}."
                )

    def from_workers(self, steps: Steps) -> Generator[Step]:
        """The steps, made by processes in turn."""
        yield from DataLoader(
            steps,
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch,
            collate_fn=as_it_is,
            # Without one, each start draws from the global generator, and a resumed run would have other random numbers.
            generator=torch.Generator(),
        )

    def from_thread(self, steps: Steps) -> Generator[Step]:
        """The steps, made by one thread ahead of time. The executor joins its thread when Python ends."""
        with ThreadPoolExecutor(1, thread_name_prefix="step-loader") as pool:
            made = iter(steps)
            ahead = deque(pool.submit(next, made) for _ in range(self.prefetch))
            try:
                while True:
                    step = ahead.popleft().result()
                    ahead.append(pool.submit(next, made))
                    yield step
            finally:
                pool.shutdown(cancel_futures=True)

    def state_after(self, step: Step) -> State:
        """The state after a step, given that `self.state` is the one before."""
        tasks = {}
        for task, old in self.state["tasks"].items():
            sources = [
                source | {"counts": counts, "cursors": source["cursors"] | cursors}
                for source, counts, cursors in zip(old["sources"], step.counts[task], step.cursors[task], strict=True)
            ]
            tasks[task] = {"row": old["row"] + self.rows[task], "sources": sources}
        return {"seed": self.seed, "tasks": tasks, "broken": dict(self.broken.reasons)}


def merge_states(states: Sequence[State], rank: int = 0, world_size: int = 1) -> State:
    """
    The state of a run, from the states of all its ranks after the same step.

    Args:
        states: the state of each rank that saved it.
        rank, world_size: which rank goes on from it, and of how many. If there are as many as before, the rank has its
            own broken samples, because each rank counts those that it met itself. Otherwise it has those of all.

    Raises:
        ValueError: if there are none, or they are not of the same step.
    """
    if not states:
        raise ValueError("`states` must hold the state of each rank, got none.")
    merged = copy.deepcopy(states[0])
    for state in states[1:]:
        merged["broken"] |= state["broken"]
        for task, one in merged["tasks"].items():
            other = state["tasks"][task]
            if [one["row"], *(s["counts"] for s in one["sources"])] != [
                other["row"],
                *(s["counts"] for s in other["sources"]),
            ]:
                raise ValueError(
                    f"`states` must be of the same step, but row {one['row']} and row {other['row']} of {task} are next."
                )
            for source, more in zip(one["sources"], other["sources"], strict=True):
                # Where two ranks read one stream, the one that is ahead has less to skip. It is not beyond the step.
                for stream, cursor in more["cursors"].items():
                    if stream not in source["cursors"] or source["cursors"][stream]["position"] < cursor["position"]:
                        source["cursors"][stream] = copy.deepcopy(cursor)
    if len(states) == world_size:
        merged["broken"] = dict(states[rank]["broken"])
    return merged


@dataclass
class Failure:
    """An exception of a worker, which may not be picklable itself."""

    kind: str
    message: str
    trace: str

    def error(self) -> Exception:
        """The exception to raise in the consumer. Types other than Python's own become `RuntimeError`."""
        kind = getattr(builtins, self.kind, RuntimeError)
        try:
            error = kind(self.message)
        except TypeError:  # for example UnicodeDecodeError, which takes five arguments
            error = RuntimeError(f"{self.kind}: {self.message}")
        error.add_note(self.trace)
        return error


@dataclass
class Step:
    """What a worker makes: a batch, what was broken, and the counts and changed cursors by task and source."""

    batch: Any = None
    broken: list[tuple[str, str, str]] = field(default_factory=list)  # task, key, reason
    counts: dict[str, list[list[int]]] = field(default_factory=dict)
    cursors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failure: Failure | None = None


class Steps(IterableDataset):
    """The steps of a rank from `state` on. Of several workers, each makes every n-th. Arguments as of [`StepLoader`]."""

    def __init__(
        self,
        sources: dict[str, list[OpenedSource]],
        rows: dict[str, int],
        collate: Collate,
        seed: int,
        rank: int,
        world_size: int,
        state: State,
    ):
        self.sources, self.rows, self.collate = sources, rows, collate
        self.seed, self.rank, self.world_size, self.state = seed, rank, world_size, state

    def __iter__(self) -> Iterator[Step]:
        info = get_worker_info()
        if info is not None:
            fsspec.asyn.reset_lock()  # a forked process has the lock of its parent, which nobody releases
        yield from self.made_by(*((0, 1) if info is None else (info.id, info.num_workers)))

    def made_by(self, worker: int, workers: int) -> Iterator[Step]:
        """The steps of one of `workers` workers. It ends after the first that fails."""
        try:
            readers = {task: TaskReader(self, task) for task in self.sources}
            for number in count():
                own = number % workers == worker
                step, examples = Step(), {}
                for task, reader in readers.items():
                    examples[task] = reader.read(step) if own else reader.skip()
                if own:
                    step.batch = self.collate(examples)
                    yield step
        except Exception as error:
            message = str(
                error.args[0] if len(error.args) == 1 else error
            )  # the text of a KeyError has quotes around it
            yield Step(failure=Failure(type(error).__name__, message, traceback.format_exc()))


class TaskReader:
    """Reads the rows of one task and rank."""

    def __init__(self, steps: Steps, task: str):
        self.task, self.rows = task, steps.rows[task]
        self.rank, self.world_size = steps.rank, steps.world_size
        self.sources = steps.sources[task]
        state = steps.state["tasks"][task]
        self.states = state["sources"]
        self.layouts = [StreamLayout(one["streams"], one["rows_per_step"], one["workers"]) for one in self.states]
        self.order = RowOrder(
            steps.seed,
            task,
            [opened.source.weight for opened in self.sources],
            self.layouts,
            state["row"],
            [one["counts"] for one in self.states],
        )
        self.streams: dict[tuple[int, int], StreamReader] = {}

    def skip(self) -> list[Example]:
        """Go past a step of another worker."""
        for _ in range(self.rows):
            self.order.next_place()
        return []

    def read(self, step: Step) -> list[Example]:
        """The examples of this rank in the next step. What is broken, the counts and the cursors are added to `step`."""
        places = []
        for _ in range(self.rows):
            number = self.order.row
            place = self.order.next_place()
            if number % self.world_size == self.rank:
                places.append(place)
        examples = []
        for place in places:
            opened = self.sources[place.source]
            key, row = self.row_at(place)  # errors of a stream have no row, and end the run
            try:
                examples.append(opened.example(row, key, self.order.noise_seed(place)))
            except BrokenExample as error:
                step.broken.append((self.task, key, str(error)))
        step.counts[self.task] = [list(counts) for counts in self.order.counts]
        cursors: list[dict[str, Any]] = [{} for _ in self.sources]
        for place in places:
            if (place.source, place.stream) in self.streams:
                cursors[place.source][str(place.stream)] = self.streams[place.source, place.stream].cursor
        step.cursors[self.task] = cursors
        return examples

    def row_at(self, place: Place) -> tuple[str, Row | BrokenExample]:
        """A name for the row at a place, and the row, or why it cannot be read."""
        opened = self.sources[place.source]
        if opened.table is not None:
            return opened.row(self.order.table_index(place, len(opened.table)))
        reader = self.streams.get((place.source, place.stream))
        if reader is None:
            reader = self.streams[place.source, place.stream] = self.open_stream(place)
        name, row = reader.read(place.position)
        return opened.key(row, name), row

    def open_stream(self, place: Place) -> StreamReader:
        opened, layout = self.sources[place.source], self.layouts[place.source]
        assert opened.stream is not None
        return StreamReader(
            opened.name,
            opened.stream,
            layout.shards_of(place.stream, opened.size),
            stable_hash(self.order.seed, self.task, "stream", place.source, place.stream),
            self.states[place.source]["block"],
            self.states[place.source]["cursors"].get(str(place.stream)),
        )


def as_it_is(step: Step) -> Step:
    """A collate function for `DataLoader`, which would otherwise convert a batch to tensors."""
    return step
