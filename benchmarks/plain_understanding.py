"""Answers about an image as the original Show-o code writes them: no cache, and everything again for each new id.

It is the yardstick of `understanding_speed.py`, written for clarity; it shares the model's weights with `generate`.
"""

import torch

from showo_hf import ShowoForCausalLM


@torch.no_grad()
def plain_answer(model: ShowoForCausalLM, input_ids: torch.LongTensor, max_new_tokens: int) -> torch.LongTensor:
    """
    The likeliest ids (1, max_new_tokens) behind `mmu soi image eoi sot text` (1, length), one after the other.

    Each step runs the whole sequence through the model, and makes the logits of the whole vocabulary at every place.
    """
    ids, mask = input_ids, omni_mask(input_ids, model.config.eoi_token_id, model.dtype)
    for _ in range(max_new_tokens):
        logits = model(ids, attention_mask=mask, use_cache=False).logits  # (1, length, vocab_size)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        mask = with_one_more_id(mask)
    return ids[:, input_ids.shape[1] :]


def omni_mask(input_ids: torch.LongTensor, eoi_token_id: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the attention scores, (1, 1, length, length): 0 where a row sees a column, else the least number."""
    length = input_ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    image_end = int((input_ids[0] == eoi_token_id).nonzero()[0])
    seen[:, : image_end + 1] = True  # the image, and the task token before it
    return torch.zeros(1, 1, length, length, dtype=dtype, device=input_ids.device).masked_fill(~seen, lowest(dtype))


def with_one_more_id(mask: torch.Tensor) -> torch.Tensor:
    """The mask of a sequence that has grown by an id, which sees all that the last one saw, and itself."""
    column = torch.full_like(mask[..., :1], lowest(mask.dtype))  # nobody before it sees the new id
    wider = torch.cat([mask, column], dim=-1)
    row = wider[..., -1:, :].clone()
    row[..., -1] = 0
    return torch.cat([wider, row], dim=-2)


def lowest(dtype: torch.dtype) -> float:
    """The least finite number."""
    return torch.finfo(dtype).min
