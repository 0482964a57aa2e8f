"""A training step like the original Show-o code: one padded batch, a dense mask, logits of the whole vocabulary.

The baseline of `training.py`. It uses the same model and gives the same losses.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from showo_hf import ShowoForCausalLM


def one_batch(
    parts: Mapping[str, tuple[torch.LongTensor, torch.LongTensor]], pad_token_id: int
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Ids and labels (rows, length) of all tasks, padded on the right to one length."""
    length = max(ids.shape[1] for ids, _ in parts.values())
    ids = [F.pad(ids, (0, length - ids.shape[1]), value=pad_token_id) for ids, _ in parts.values()]
    labels = [F.pad(labels, (0, length - labels.shape[1]), value=-100) for _, labels in parts.values()]
    return torch.cat(ids), torch.cat(labels)


def dense_mask(input_ids: torch.LongTensor, config) -> torch.Tensor:
    """The additive attention mask (rows, 1, length, length) in float32, made position by position."""
    length = input_ids.shape[1]
    positions = torch.arange(length, device=input_ids.device)
    opens = (input_ids == config.soi_token_id).long().argmax(-1, keepdim=True)
    ends = (input_ids == config.eoi_token_id).long().argmax(-1, keepdim=True)  # 0 in a row without an image
    opens = opens - (input_ids[:, :1] == config.mmu_token_id).long()  # the task token belongs to the image
    in_image = (positions >= opens) & (positions <= ends) & (ends > 0)
    seen = (positions[:, None] >= positions) | (in_image[:, :, None] & in_image[:, None, :])
    first = (input_ids != config.pad_token_id).long().argmax(-1, keepdim=True)
    left_pad = positions < first
    # A pad sees itself, because a softmax over no column is not a number.
    seen = seen & ~left_pad[:, None, :] | torch.eye(length, dtype=torch.bool, device=input_ids.device)
    mask = torch.zeros(seen.shape, device=input_ids.device).masked_fill(~seen, torch.finfo(torch.float32).min)
    return mask.unsqueeze(1)


def plain_losses(
    model: ShowoForCausalLM, input_ids: torch.LongTensor, labels: torch.LongTensor, rows: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """
    The mean losses of a batch whose rows are ordered by task: "t2i", "lm", "mmu".

    Args:
        input_ids, labels: (rows, length).
        rows: the number of rows of each task.
    """
    mask = dense_mask(input_ids, model.config)
    logits = model(input_ids, attention_mask=mask, use_cache=False).logits.float()  # (rows, length, vocab_size)
    losses = {}
    for (name, count), task_logits, task_labels in zip(
        rows.items(), logits.split(list(rows.values())), labels.split(list(rows.values())), strict=True
    ):
        if not count:
            continue
        if name == "t2i":  # an image token is predicted at its own position
            task_logits, task_labels = task_logits[:, 1:], task_labels[:, 1:]
        else:
            task_logits, task_labels = task_logits[:, :-1], task_labels[:, 1:]
        losses[name] = F.cross_entropy(task_logits.flatten(0, 1), task_labels.flatten(), ignore_index=-100)
    return losses
