"""Turns: of the called jobs of one kind, one computes at a time, and the others wait between two of their steps."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable


LEAD = 1.0  # seconds
MAX_ADDRESSES = 10_000  # whose time is kept while the line is not empty


class Turn:
    """
    The time in which one job computes.

    It begins when the turn is made. A turn that is given to [`Turns.enlist`] begins when the job gets it.

    Args:
        kind (`str`): the kind of work. Jobs of two kinds compute at the same time.
        address (`str`): whose job it is.
        number (`int`): its number in the line.
        stopped: tells whether the job should end.
    """

    def __init__(
        self, kind: str = "", address: str = "", number: int = 0, stopped: Callable[[], bool] = lambda: False
    ):
        self.kind, self.address, self.number, self.stopped = kind, address, number, stopped
        self.before = 0.0  # seconds of its earlier parts
        self.since: float | None = time.monotonic()  # None while others compute

    @property
    def seconds(self) -> float:
        """How long the job has computed."""
        since = self.since
        return self.before + (0.0 if since is None else time.monotonic() - since)


class Turns:
    """
    Gives each kind's turn to the job whose address has computed for the least time; of several, to the oldest job.

    A job is enlisted, takes the turn, and keeps it until [`Turns.pass_on`] or [`Turns.give_up`]. Threads may share this.

    Args:
        lead (`float`): a job passes its turn on when its address has computed for so many seconds more than a waiting
            job's address. So short jobs run from their beginning to their end, and jobs of equal length do not all end last.
    """

    def __init__(self, lead: float = LEAD):
        self.lead = lead
        self.changed = threading.Condition()
        self.used: dict[str, float] = defaultdict(float)  # by address: seconds since the line was empty
        self.holders: dict[str, Turn] = {}  # by kind
        self.waiting: list[Turn] = []

    def key(self, turn: Turn) -> tuple[float, int]:
        """Who is next: the least key."""
        return self.used.get(turn.address, 0.0), turn.number

    def holds(self, turn: Turn) -> bool:
        """Whether a job computes now."""
        return self.holders.get(turn.kind) is turn

    def enlist(self, turn: Turn) -> None:
        """Let a job have the turn as soon as it is next, even before its thread has begun."""
        with self.changed:
            turn.since = None
            self.waiting.append(turn)
            self.hand_over(turn.kind)

    def take(self, turn: Turn) -> None:
        """Wait until an enlisted job gets the turn, or is stopped."""
        with self.changed:
            self.wait(turn)

    def pass_on(self, turn: Turn) -> None:
        """Let another job compute if its address is behind by the lead; wait until the turn comes back, or a stop."""
        with self.changed:
            self.count(turn)
            rivals = [one for one in self.waiting if one.kind == turn.kind]
            if any(self.key(one)[0] + self.lead < self.key(turn)[0] for one in rivals):
                self.release(turn)
                self.waiting.append(turn)
                self.hand_over(turn.kind)
                self.wait(turn)

    def give_up(self, turn: Turn) -> None:
        """The job is over."""
        with self.changed:
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif self.holds(turn):
                self.count(turn)
                self.release(turn)
                self.hand_over(turn.kind)

    def wake(self) -> None:
        """Let the waiting jobs see that they are stopped."""
        with self.changed:
            self.changed.notify_all()

    def forget(self) -> None:
        """Begin to count from 0, as the line is empty."""
        with self.changed:
            self.used.clear()

    # With the lock

    def wait(self, turn: Turn) -> None:
        self.changed.wait_for(lambda: self.holds(turn) or turn.stopped())
        if not self.holds(turn):
            self.waiting.remove(turn)

    def count(self, turn: Turn) -> None:
        """Add the time since the last call to the address."""
        now = time.monotonic()
        assert turn.since is not None  # as it holds the turn
        self.used[turn.address] += now - turn.since
        turn.before, turn.since = turn.before + now - turn.since, now
        if len(self.used) > MAX_ADDRESSES:
            self.forget_short_times()

    def forget_short_times(self) -> None:
        """Begin to count from 0 for half of the addresses: those that used least, for which it makes least difference."""
        here = {turn.address for turn in (*self.holders.values(), *self.waiting)}
        others = sorted(self.used.keys() - here, key=self.used.__getitem__)
        for address in others[: len(self.used) // 2]:
            del self.used[address]

    def release(self, turn: Turn) -> None:
        turn.since = None
        del self.holders[turn.kind]

    def hand_over(self, kind: str) -> None:
        """Give a free turn to the one who is next."""
        waiting = [turn for turn in self.waiting if turn.kind == kind]
        if kind in self.holders or not waiting:
            return
        turn = self.holders[kind] = min(waiting, key=self.key)
        self.waiting.remove(turn)
        turn.since = time.monotonic()
        self.changed.notify_all()
