"""
Progressive distillation of diffusion decoders (arXiv:2202.00512): one step of a student lands where two of its teacher do.

The teacher is a frozen decoder, deterministic from its noise on. So the student learns a function, not a mean over
many images, and is as sharp as the teacher with half of its steps. Distilled again and again, one step is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..models.configuration_diffusion_decoder import NOISE_LEVELS
from ..models.modeling_diffusion_decoder import ShowoDiffusionDecoder


if TYPE_CHECKING:
    from .diffusion_decoder import NoisedImages


def on_grid(times: torch.Tensor, steps: int) -> torch.Tensor:
    """Times in (0, 1], each moved up to the next of the `steps` times at which a sampler predicts: 1/steps, ..., 1."""
    return (times * steps).ceil().clamp(min=1) / steps


@torch.no_grad()
def two_steps(
    teacher: ShowoDiffusionDecoder,
    noised: torch.Tensor,
    times: torch.Tensor,
    codes: torch.Tensor,
    image: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """
    Where a teacher of flows lands after two Euler steps that are together as long as one of the student's.

    Args:
        teacher ([`ShowoDiffusionDecoder`]): predicts flows.
        noised (`torch.Tensor` of shape `(batch, 3, H, W)`): z_t.
        times (`torch.Tensor` of shape `(batch,)`): t in [1 / steps, 1].
        codes, image: see [`ShowoDiffusionDecoder.forward`].
        steps (`int`): steps of the student from 1 to 0.

    Returns:
        `torch.Tensor` of shape `(batch, 3, H, W)`: z at the time t - 1 / steps.
    """
    half = 1 / (2 * steps)
    for now in (times, times - half):
        noised = noised - half * teacher(noised, now * NOISE_LEVELS, codes, image).float()
    return noised


def distilled(
    teacher: ShowoDiffusionDecoder, draws: NoisedImages, codes: torch.Tensor, image: torch.Tensor, steps: int
) -> NoisedImages:
    """
    The same noised images with the teacher's targets: the `denoised` and `noise` between which one step of the student
    goes straight through where the teacher starts and lands.

    With s = t - 1 / steps, the student's flow must be `u = (z_t - z_s) / (t - s)`, so the image at the end of the
    line is `z_t - t u` and the noise at its start `z_t + (1 - t) u`.
    """
    times = draws.timestep / NOISE_LEVELS
    landed = two_steps(teacher, draws.noised, times, codes, image, steps)
    flow = (draws.noised - landed) * steps
    share = times.view(-1, 1, 1, 1)
    return type(draws)(
        denoised=draws.noised - share * flow,
        noise=draws.noised + (1 - share) * flow,
        noised=draws.noised,
        timestep=draws.timestep,
    )
