"""`--yes`: work that would take hours is stopped after its first steps, unless the user agreed to it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from .errors import UsageError


LONG_WORK = 3600.0  # seconds


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="also start what will take more than an hour")


class TimeLimit:
    """
    A `callback_on_step_end` that measures the first steps and estimates the whole work.

    Args:
        agreed: `--yes` was given, so nothing is measured.
        calls: number of pipeline calls of the work.
        longest: seconds of work that need no `--yes`.
        clock: the time in seconds.
    """

    def __init__(
        self, agreed: bool, calls: int, longest: float = LONG_WORK, clock: Callable[[], float] = time.monotonic
    ):
        self.decided, self.calls, self.longest, self.clock = agreed, calls, longest, clock
        self.callback: Callable | None = None
        self.last = clock()

    def before(self, callback: Callable | None) -> Callable:
        """
        What a call of the pipeline gets as its callback: the limit, and `callback`.

        Every call gets it, also when all is decided: with a callback, a pipeline prepares for another guidance, and its
        images may differ in rounding.
        """
        self.callback = callback
        self.last = self.clock()
        return self

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        if not self.decided:
            now = self.clock()
            seconds = (now - self.last) * pipe.num_timesteps * self.calls
            self.last = now
            # The first step includes what is done once, such as the first use of a kernel. If it says that the work is
            # long, the second one decides.
            if seconds <= self.longest or step > 0 or pipe.num_timesteps == 1:
                self.decided = True
                if seconds > self.longest:
                    raise UsageError(f"this would take about {duration(seconds)} on this machine; add --yes to do it")
        return callback_kwargs if self.callback is None else self.callback(pipe, step, timestep, callback_kwargs)


def duration(seconds: float) -> str:
    """A length of time in words: "50 minutes", "3.4 hours", "12 days"."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size or unit == "minutes":
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 10 else f"{count:,.0f} {unit}"
    raise AssertionError(seconds)
