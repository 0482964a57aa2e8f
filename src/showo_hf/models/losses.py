"""The labels of each of Show-o's losses, and a cross-entropy that never holds the logits of all labels at once."""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .configuration_showo import ShowoConfig
from .omni_attention import image_block_ids, starts_with


LOSS_NAMES = ("t2i", "lm", "mmu")

# Logits that are computed at a time: 64 MB in float32. Fewer would hardly lower the peak of a training step, most of
# which is in the layers, and each chunk reads and writes the gradient of the whole head.
CHUNK_LOGITS = 2**24


def scored_positions(
    input_ids: torch.LongTensor, labels: torch.LongTensor, config: ShowoConfig
) -> dict[str, torch.BoolTensor]:
    """
    The labels that count for each loss, by the names in `LOSS_NAMES`.

    An image label counts for "t2i", at its own position. A text label counts for "mmu" in a row that starts with
    `mmu`, and for "lm" in other rows. Text labels of rows that start with `t2i` do not count. In all other rows a
    labelled `soi` counts as text as well, because the model starts an image by predicting it.

    Args:
        input_ids, labels (`torch.LongTensor` of shape `(batch, length)`): the ids, and the ids to predict, -100 where
            nothing is scored.
        config: has the ids of the special tokens. A [`ShowoProcessor`] of the model has them as well.

    Returns:
        Masks of the labels, `(batch, length)` bool. Text labels are predicted from the position before theirs, so that
        the first of a row never counts.
    """
    scored = labels != -100
    in_image = image_block_ids(input_ids, config) >= 0
    # For attention the task token belongs to the block, but it is not part of the image.
    in_image &= input_ids != config.mmu_token_id
    is_mmu = starts_with(input_ids, config.mmu_token_id, config.pad_token_id).unsqueeze(-1)
    is_t2i = starts_with(input_ids, config.t2i_token_id, config.pad_token_id).unsqueeze(-1)
    is_text = ~in_image | (input_ids == config.soi_token_id)
    text = scored & is_text & ~is_t2i
    text[:, :1] = False
    return {"t2i": scored & in_image, "lm": text & ~is_mmu, "mmu": text & is_mmu}


def check_labels(labels: torch.LongTensor, vocab_size: int):
    """
    Raise `ValueError` unless all labels (positions,) that count, at least one, are ids of the vocabulary.

    Python's indexing takes -1 for the last id. On a GPU this waits for the device, which the selection of the labels
    has just done.
    """
    if torch.compiler.is_compiling():  # a graph cannot branch on values
        return
    least, most = torch.stack(labels.aminmax()).tolist()
    if least < 0 or most >= vocab_size:
        raise ValueError(
            f"`labels` must be ids from 0 to {vocab_size - 1}, or -100 where nothing is scored, got {least} to {most}."
        )


def linear_cross_entropy(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.LongTensor
) -> torch.Tensor:
    r"""
    `F.cross_entropy(F.linear(hidden_states, weight, bias).float(), labels)` in chunks of `CHUNK_LOGITS` logits.

    The gradients `softmax(logits) - one_hot(labels)` times weight and hidden states are computed in the forward pass
    from the chunk's logits, which are then dropped. So nothing is computed twice. The products run in the dtype of the
    arguments, or in autocast's; softmax and loss are float32 or float64. `F.linear_cross_entropy` works in the same
    way, but rounds the loss to the dtype of the arguments, and on a CPU runs products in bfloat16 several times slower.

    Args:
        hidden_states (`torch.Tensor` of shape `(positions, hidden)`).
        weight (`torch.Tensor` of shape `(vocab_size, hidden)`).
        bias (`torch.Tensor` of shape `(vocab_size,)`, *optional*).
        labels (`torch.LongTensor` of shape `(positions,)`): ids in 0..vocab_size-1.

    Returns:
        The mean, of shape `()`. It has no second derivatives.
    """
    device = hidden_states.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_states.dtype
    return LinearCrossEntropy.apply(hidden_states, weight, bias, labels, dtype, torch.is_grad_enabled()) / len(labels)


class LinearCrossEntropy(torch.autograd.Function):
    """The sum that [`linear_cross_entropy`] divides by the number of labels. The products have `dtype`."""

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, dtype, with_gradients):
        needs = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden_states, weight, bias)]
        # The copies in `dtype` do not outlive this function, as autocast's would.
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden_states) if needs[0] else None
        grad_weight = torch.empty_like(weight) if needs[1] else None
        grad_bias = torch.zeros_like(bias) if needs[2] else None
        total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=labels.device)
        rows = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            log_probs = F.linear(hidden_states[chunk], weight, bias).to(total.dtype)  # (rows, vocab_size)
            log_probs = log_probs.log_softmax(-1)
            index = (torch.arange(len(log_probs), device=labels.device), labels[chunk])
            chosen = log_probs[index]
            total -= chosen.sum()
            if not any(needs):
                continue
            # The mean's factor is applied in the backward pass: float16 would round softmax / positions to 0.
            error = log_probs.exp_().to(dtype)
            del log_probs  # before the products, and before the next chunk's are made
            error[index] = torch.expm1(chosen).to(dtype)
            if grad_hidden is not None:
                torch.mm(error, weight, out=grad_hidden[chunk])
            if grad_weight is not None and start == 0:
                torch.mm(error.T, hidden_states[chunk], out=grad_weight)
            elif grad_weight is not None:
                grad_weight.addmm_(error.T, hidden_states[chunk])
            if grad_bias is not None:
                grad_bias += error.sum(0)
            del error
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        gradients = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            # In place on the copy, so that a gradient in the dtype of the weights exists once.
            gradients.append(None if gradient is None else gradient.to(dtype, copy=True).mul_(grad_total))
        return *gradients, None, None, None
