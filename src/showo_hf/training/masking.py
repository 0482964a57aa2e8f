"""Masking for the training of mask-token prediction. Pure functions; all random numbers come from a generator."""

import torch

from ..schedulers.masking_schedules import MaskingSchedule, cosine


def mask_tokens(
    image_tokens: torch.LongTensor,
    mask_id: int,
    generator: torch.Generator,
    schedule: MaskingSchedule = cosine,
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    Mask a random share of the tokens of each image (MaskGIT, arXiv:2202.04200, section 3.1).

    The share is `schedule(u)` with u uniform in [0, 1]. At least one token is masked.

    Args:
        image_tokens (`torch.LongTensor` of shape `(batch, tokens)`): the tokens of each image.
        mask_id (`int`): the id that replaces masked tokens.
        generator (`torch.Generator`): the source of all random numbers, on the CPU.
        schedule (`MaskingSchedule`, defaults to `cosine`): maps u to the share of masked tokens.

    Returns:
        the tokens with masks, and a boolean tensor that is True where they are masked, both (batch, tokens).
    """
    batch_size, num_tokens = image_tokens.shape
    ratio = schedule(torch.rand(batch_size, 1, generator=generator))
    count = (num_tokens * ratio).round().clamp(min=1)
    rank = torch.rand(image_tokens.shape, generator=generator).argsort(-1).argsort(-1)
    masked = rank < count
    return torch.where(masked, mask_id, image_tokens), masked


def row_generator(noise_seed: int) -> torch.Generator:
    """The source of all random draws about a row, on the CPU. So a row does not depend on its batch."""
    return torch.Generator().manual_seed(noise_seed)
