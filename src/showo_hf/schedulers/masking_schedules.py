"""
Masking schedules: the share of masked tokens over the course of sampling. Pure functions.

Each maps the share of the steps that are done, r in [0, 1], to the share of tokens that are masked, decreasing from 1
to 0 ("MaskGIT", arXiv:2202.04200, section 3.2).
"""

import math
from collections.abc import Callable
from functools import partial

import torch

from ..utils.masking_schedule_names import schedule_exponent


MaskingSchedule = Callable[[torch.Tensor], torch.Tensor]


def cosine(ratio: torch.Tensor) -> torch.Tensor:
    """`cos(pi r / 2)`."""
    return torch.cos(ratio * math.pi / 2)


def arccos(ratio: torch.Tensor) -> torch.Tensor:
    """`2 arccos(r) / pi`, as in Halton-MaskGIT (arXiv:2503.17076)."""
    return torch.arccos(ratio) * 2 / math.pi


def linear(ratio: torch.Tensor) -> torch.Tensor:
    """`1 - r`."""
    return power(ratio, 1.0)


def power(ratio: torch.Tensor, exponent: float) -> torch.Tensor:
    """`1 - r^n`."""
    return (1.0 - ratio**exponent).clamp(1e-6, 1.0)


def sigmoid(ratio: torch.Tensor, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> torch.Tensor:
    """A logistic curve from `start` to `end`, scaled to decrease from 1 to 0 (arXiv:2301.10972, section 2)."""
    first, last = (torch.sigmoid(torch.tensor(x / temperature)) for x in (start, end))
    value = torch.sigmoid((ratio * (end - start) + start) / temperature)
    return ((last - value) / (last - first)).clamp(1e-6, 1.0)


def get_masking_schedule(name: str) -> MaskingSchedule:
    """
    Look up a schedule: "arccos", "cosine", "linear", "sigmoid", or "pow<n>" with a positive n, such as "pow2" or
    "pow0.5".

    Raises:
        ValueError: for any other name.
    """
    exponent = schedule_exponent(name)
    if exponent is None:
        return {"arccos": arccos, "cosine": cosine, "linear": linear, "sigmoid": sigmoid}[name]
    return partial(power, exponent=exponent)  # not a lambda: the workers that load data pickle it
