"""One command in several processes, started by `accelerate launch` or torchrun: each process does its share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar


T = TypeVar("T")
LONGEST_WAIT = timedelta(days=100)  # shares take different times


@dataclass(frozen=True)
class Processes:
    """
    The processes of a command.

    Args:
        index: the number of this process.
        count: how many there are.
        state: accelerate's state, if there are several.
    """

    index: int = 0
    count: int = 1
    state: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.index == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every `count`-th of the items, from `index` on."""
        return islice(items, self.index, None, self.count)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()


def process_count() -> int:
    """How many processes the launcher started, read without torch."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() and int(text) > 0 else 1


def first_process() -> bool:
    """Whether this is the first process of the command, read without torch."""
    return os.environ.get("RANK", "0") == "0"


def join_processes(device: str) -> Processes:
    """The processes that the launcher started, connected. Raises `RuntimeError` if they cannot reach each other."""
    if process_count() == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, state)
