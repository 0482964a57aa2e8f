"""The time of a training step on this machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..utils.validation import check_count


@dataclass(frozen=True)
class StepTime:
    """Seconds of measured steps, after the first, which compiles and allocates."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the steps."""
        return statistics.median(self.seconds)


def measure_step_time(
    batch: Callable[[], object], update: Callable[[], object], accumulation: int = 1, repeats: int = 3
) -> StepTime:
    """
    Time a training step on this machine.

    Args:
        batch: runs forward and backward of one accumulated batch. It is called once more than `repeats` times.
        update: changes the weights. It is called as often.
        accumulation: batches in a step. The time of one counts so many times.
    """
    check_count("repeats", repeats)
    times = []
    for _ in range(repeats + 1):
        seconds = []
        for work in (batch, update):
            start = time.perf_counter()
            work()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
        times.append(accumulation * seconds[0] + seconds[1])
    return StepTime(times[1:])
