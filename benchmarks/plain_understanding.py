"""Answers about an image like the original Show-o code: no cache, so every new id runs the whole sequence again.

The baseline of `understanding_speed.py`. It uses the same model as `generate`.
"""

import torch

from showo_hf import ShowoForCausalLM


@torch.no_grad()
def plain_answer(model: ShowoForCausalLM, input_ids: torch.LongTensor, max_new_tokens: int) -> torch.LongTensor:
    """
    Decode greedily: the ids (1, max_new_tokens) after `mmu soi image eoi sot text` (1, length).

    Every step runs the whole sequence, and computes the logits of the whole vocabulary at every position.
    """
    ids, mask = input_ids, omni_mask(input_ids, model.config.eoi_token_id, model.dtype)
    for _ in range(max_new_tokens):
        logits = model(ids, attention_mask=mask, use_cache=False).logits  # (1, length, vocab_size)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        mask = with_one_more_id(mask)
    return ids[:, input_ids.shape[1] :]


def omni_mask(input_ids: torch.LongTensor, eoi_token_id: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive attention mask (1, 1, length, length): 0 where a row attends to a column, else the lowest number."""
    length = input_ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    image_end = int((input_ids[0] == eoi_token_id).nonzero()[0])
    seen[:, : image_end + 1] = True  # the image and the task token before it
    return torch.zeros(1, 1, length, length, dtype=dtype, device=input_ids.device).masked_fill(~seen, lowest(dtype))


def with_one_more_id(mask: torch.Tensor) -> torch.Tensor:
    """The mask after one more id, which attends to everything that the last id attends to, and to itself."""
    column = torch.full_like(mask[..., :1], lowest(mask.dtype))  # no earlier id attends to the new one
    wider = torch.cat([mask, column], dim=-1)
    row = wider[..., -1:, :].clone()
    row[..., -1] = 0
    return torch.cat([wider, row], dim=-2)


def lowest(dtype: torch.dtype) -> float:
    """The lowest finite number."""
    return torch.finfo(dtype).min
