"""Omni-attention: which token sees which, from the token ids alone (section 3.2 of arXiv:2408.12528).

Every position sees the positions before it, and no position sees a pad. The positions of an image, from `soi` to
`eoi`, also see each other in full. In an understanding sequence, the task token right before `soi` belongs to the
image. The functions return block ids. `transformers.masking_utils.create_causal_mask` turns them into the mask of any
attention implementation.
"""

from collections.abc import Callable

import torch

from .configuration_showo import ShowoConfig


def image_block_ids(input_ids: torch.LongTensor, config: ShowoConfig) -> torch.LongTensor:
    """
    Number the image blocks of each row.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`).

    Returns:
        `torch.LongTensor` of shape `(batch, length)`: 0 for the row's first image, 1 for the second, and so on; -1
        outside of images and at pads. A block consists of `soi`, image tokens (or mask tokens or placeholders), and
        `eoi`. Text ends a block without `eoi`.
    """
    opens = input_ids == config.soi_token_id
    first, end = config.image_token_offset, config.image_token_offset + config.codebook_size
    is_token = (input_ids >= first) & (input_ids < end)
    is_token |= (input_ids == config.mask_token_id) | (input_ids == config.image_token_id)
    count = opens.cumsum(-1)  # images started so far
    # A position is in an image if the last soi is later than the last position that ended an image before it.
    positions = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
    last_open = torch.where(opens, positions, -1).cummax(-1).values
    closed_before = torch.where(opens | is_token, -1, positions).cummax(-1).values.roll(1, -1)
    closed_before[..., :1] = -1
    inside = (last_open >= 0) & (last_open > closed_before)
    inside &= opens | is_token | (input_ids == config.eoi_token_id)
    block_ids = torch.where(inside, count - 1, -1)
    # The task token of an understanding sequence belongs to the image after it.
    task = (input_ids[..., :-1] == config.mmu_token_id) & opens[..., 1:]
    block_ids[..., :-1] = torch.where(task, block_ids[..., 1:], block_ids[..., :-1])
    return block_ids


def without_seen(block_ids: torch.LongTensor, seen: torch.BoolTensor) -> torch.LongTensor:
    """
    Block ids (batch, length) of [`image_block_ids`], with -1 for every block that holds a position marked in `seen`.

    Every position sees such features, see [`seen_by_all`], so they form no block.
    """
    slots = block_ids + 1  # from 0
    counts = torch.zeros(len(slots), slots.shape[1] + 1, dtype=torch.long, device=slots.device)
    counts.scatter_add_(1, slots, seen.long())
    return torch.where(counts.gather(1, slots) > 0, -1, block_ids)


def starts_with(input_ids: torch.LongTensor, token_id: int, pad_token_id: int | None) -> torch.BoolTensor:
    """Whether the first non-pad id of each row (batch, length) is `token_id`: (batch,) bool."""
    if pad_token_id is None:
        return input_ids[:, 0] == token_id
    first = (input_ids != pad_token_id).int().argmax(-1, keepdim=True)
    return input_ids.gather(-1, first).squeeze(-1) == token_id


def seen_by_all(columns: torch.BoolTensor) -> Callable[[int, int, int, int], torch.Tensor]:
    """
    Mask function by which every position sees the marked columns, even those after it.

    `columns` is (batch, keys). The CLIP variant uses this rule for image features.
    """

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        return columns[batch_idx, kv_idx]

    return inner_mask
