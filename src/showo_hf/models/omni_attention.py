"""Which token sees which, from the token ids alone (omni-attention, section 3.2 of arXiv:2408.12528).

Text is causal. An image's positions, from `soi` to `eoi`, see each other in full; in an understanding sequence the
task token right before `soi` belongs to them. Everything sees what came before it, and nobody sees a pad.
These functions give block ids; `transformers.masking_utils.create_causal_mask` turns them into the mask of any
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
        outside images and at pads. A block is `soi`, what stands for an image's tokens (codes, the mask token,
        placeholders), and `eoi`. Text ends a block that was not closed.
    """
    opens = input_ids == config.soi_token_id
    first_code, end = config.image_token_offset, config.image_token_offset + config.codebook_size
    is_token = (input_ids >= first_code) & (input_ids < end)
    is_token |= (input_ids == config.mask_token_id) | (input_ids == config.image_token_id)
    count = opens.cumsum(-1)  # images opened so far
    # A position is inside while the last soi is later than the last end of an image before it.
    positions = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
    last_open = torch.where(opens, positions, -1).cummax(-1).values
    closed_before = torch.where(opens | is_token, -1, positions).cummax(-1).values.roll(1, -1)
    closed_before[..., :1] = -1
    inside = (last_open >= 0) & (last_open > closed_before)
    inside &= opens | is_token | (input_ids == config.eoi_token_id)
    block_ids = torch.where(inside, count - 1, -1)
    # The task token of an understanding sequence belongs to the image that follows it.
    task = (input_ids[..., :-1] == config.mmu_token_id) & opens[..., 1:]
    block_ids[..., :-1] = torch.where(task, block_ids[..., 1:], block_ids[..., :-1])
    return block_ids


def starts_with(input_ids: torch.LongTensor, token_id: int, pad_token_id: int | None) -> torch.BoolTensor:
    """Whether the first id of each row, after its pads, is `token_id`: (batch, length) ids to (batch,) bool."""
    if pad_token_id is None:
        return input_ids[:, 0] == token_id
    first = (input_ids != pad_token_id).int().argmax(-1, keepdim=True)
    return input_ids.gather(-1, first).squeeze(-1) == token_id


def seen_by_all(columns: torch.BoolTensor) -> Callable[[int, int, int, int], torch.Tensor]:
    """
    Mask function that lets every position see the marked columns, also those behind it.

    It is the CLIP variant's rule for image features; `columns` is (batch, keys).
    """

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        return columns[batch_idx, kv_idx]

    return inner_mask
