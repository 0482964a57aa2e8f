"""Noising of image tokens for mask-token prediction. Pure functions; every draw takes a generator."""

import torch

from ..schedulers.masking_schedules import MaskingSchedule, cosine


def mask_tokens(
    image_tokens: torch.LongTensor,
    mask_id: int,
    generator: torch.Generator,
    schedule: MaskingSchedule = cosine,
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    Replace a random share of each image's tokens by the mask (MaskGIT, arXiv:2202.04200, section 3.1).

    The share is `schedule(u)` for a uniform u, at least one token.

    Args:
        image_tokens (`torch.LongTensor` of shape `(batch, tokens)`).

    Returns:
        the noised tokens and where they are masked, both (batch, tokens).
    """
    batch_size, num_tokens = image_tokens.shape
    ratio = schedule(torch.rand(batch_size, 1, generator=generator))
    count = (num_tokens * ratio).round().clamp(min=1)
    rank = torch.rand(image_tokens.shape, generator=generator).argsort(-1).argsort(-1)
    masked = rank < count
    return torch.where(masked, mask_id, image_tokens), masked


def drop_conditions(texts: list[str], share: float, generator: torch.Generator) -> list[str]:
    """Empty a share of the texts at random, so that the model learns the unconditional image for guidance."""
    dropped = torch.rand(len(texts), generator=generator) < share
    return ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]
