"""Classifier-free guidance: its formula, and how its scale goes over the steps. Pure functions."""

import math

import torch

from showo_hf.utils.validation import check_number


def guide(guidance_scale: float, conditional: torch.Tensor, unconditional: torch.Tensor | None = None) -> torch.Tensor:
    """Guided logits `g c - (g - 1) u`; c where there is no u."""
    if unconditional is None:
        return conditional
    return guidance_scale * conditional - (guidance_scale - 1) * unconditional


#: How much of `g - 1` there is when the share r in [0, 1] of the steps is done. Rising ones leave the first tokens, which
#: settle the layout, to chance, and are strict with the last ones (Muse, arXiv:2301.00704, section 2.7).
GUIDANCE_SCHEDULES = {
    "constant": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "cosine": lambda ratio: (1 - math.cos(math.pi * ratio)) / 2,
}


def guidance_at(
    guidance_scale: float,
    step: int,
    num_steps: int,
    schedule: str = "constant",
    interval: tuple[float, float] = (0, 1),
) -> float:
    """
    The guidance scale of a step; 1, which is none, outside of the interval and for a scale below it.

    An interval of the steps that are guided is from "Applying guidance in a limited interval", arXiv:2404.07724.

    Args:
        step: from 0.
        schedule: a key of `GUIDANCE_SCHEDULES`.
        interval: first and last share of the steps, in [0, 1].
    """
    ratio = step / max(1, num_steps - 1)
    if guidance_scale <= 1 or not interval[0] <= ratio <= interval[1]:
        return 1.0
    share = GUIDANCE_SCHEDULES[schedule](ratio)
    return guidance_scale if share == 1 else 1 + (guidance_scale - 1) * share


def check_guidance(guidance_scale: float, schedule: str, interval: tuple[float, float]):
    """Raise `ValueError` for a scale that is no number, a schedule that does not exist, or an interval not in [0, 1]."""
    check_number("guidance_scale", guidance_scale)
    if schedule not in GUIDANCE_SCHEDULES:
        raise ValueError(f"`guidance_schedule` must be one of {sorted(GUIDANCE_SCHEDULES)}, got {schedule!r}.")
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise ValueError(f"`guidance_interval` must be two numbers, got {interval!r}.")
    for end in interval:
        check_number("guidance_interval", end)
    if not interval[0] <= interval[1] <= 1:
        raise ValueError(f"`guidance_interval` must be two rising numbers in [0, 1], got {interval!r}.")
