"""Limits of CPU time that a slow machine can keep."""

import time
from statistics import median


USUAL = 0.05  # seconds of `loop` on the machines for which the limits were chosen


def loop() -> float:
    """The CPU time of a million additions."""
    start, total = time.process_time(), 0
    for number in range(10**6):
        total += number
    return time.process_time() - start


def within(seconds: float, limit: float) -> bool:
    """Whether seconds of CPU time are below a limit, which is higher while the machine takes longer than `USUAL`."""
    return seconds < limit or seconds < limit * median(loop() for _ in range(3)) / USUAL
