"""Classifier-free guidance: the formula, and schedules of its scale over the steps. Pure functions."""

import math

import torch

from showo_hf.utils.validation import MAX_SCALE, check_choice, check_number, shown


def guide(guidance_scale: float, conditional: torch.Tensor, unconditional: torch.Tensor | None = None) -> torch.Tensor:
    """Compute guided logits `g c - (g - 1) u`, or return c if there is no u."""
    if unconditional is None:
        return conditional
    return guidance_scale * conditional - (guidance_scale - 1) * unconditional


#: Factor of `g - 1` as a function of the share r in [0, 1] of finished steps. Rising schedules leave the first tokens, which
#: settle the layout, to chance, and guide the last ones strictly (Muse, arXiv:2301.00704, section 2.7).
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
    Compute the guidance scale of a step. It is 1 (no guidance) outside of `interval`, and if `guidance_scale` is at most 1.

    "Applying guidance in a limited interval" (arXiv:2404.07724) introduces the interval.

    Args:
        step (`int`): index of the step, from 0.
        schedule (`str`): a key of `GUIDANCE_SCHEDULES`.
        interval (`tuple[float, float]`): first and last share of the steps that are guided, in [0, 1].
    """
    ratio = step / max(1, num_steps - 1)
    if guidance_scale <= 1 or not interval[0] <= ratio <= interval[1]:
        return 1.0
    share = GUIDANCE_SCHEDULES[schedule](ratio)
    return guidance_scale if share == 1 else 1 + (guidance_scale - 1) * share


def check_guidance(guidance_scale: float, schedule: str, interval: tuple[float, float]):
    """Raise `ValueError` if the scale is not a number, the schedule is unknown, or the interval is not within [0, 1]."""
    check_number("guidance_scale", guidance_scale, most=MAX_SCALE)
    check_choice("guidance_schedule", schedule, GUIDANCE_SCHEDULES)
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise ValueError(f"`guidance_interval` must be two numbers, got {shown(interval)}.")
    for end in interval:
        check_number("guidance_interval", end)
    if not interval[0] <= interval[1] <= 1:
        raise ValueError(f"`guidance_interval` must be two rising numbers in [0, 1], got {shown(interval)}.")
