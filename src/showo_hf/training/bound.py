"""
The variational bound of mask-and-replace diffusion as the loss of text-to-image rows, in place of the masked tokens'
cross-entropy (VQ-Diffusion, arXiv:2111.14822; docs/mathematics.md).

Both losses are in nats per token. `masked_guess` and `bound_guess` are what they are for a model that knows nothing:
one that gives every token of the codebook the same probability.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.modeling_showo import ShowoCausalLMOutputWithPast
from ..schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler
from .losses import Objective
from .masking import row_generator
from .rows import Part


@dataclass
class BoundLoss:
    """
    Output of [`bound_loss`], in nats.

    Args:
        loss: mean loss per token, of shape `()`. The only tensor with a gradient.
        bound: mean per token of the variational bound, with its constant term. Of shape `()`.
        cross_entropy: mean per token of the weighted cross-entropy of x_0, which is a part of `loss`. Of shape `()`.
        count: the number of tokens. Losses of several batches are averaged with it.
        timesteps: the time of each row, int64 of shape `(batch,)`.
        terms: the terms of the bound for `MaskAndReplaceScheduler.update_history`, of shape `(batch,)`.
    """

    loss: torch.Tensor
    bound: torch.Tensor
    cross_entropy: torch.Tensor
    count: int
    timesteps: torch.LongTensor
    terms: torch.Tensor


def bound_loss(
    model: Callable[..., ShowoCausalLMOutputWithPast],
    input_ids: torch.LongTensor,
    image_tokens: torch.LongTensor,
    scheduler: MaskAndReplaceScheduler,
    noise_seeds: Sequence[int],
    image_token_offset: int,
    mask_token_id: int,
    timesteps: torch.LongTensor | None = None,
    probabilities: torch.Tensor | None = None,
    rows_at_once: int = 1,
) -> BoundLoss:
    """
    Add noise to the images of text-to-image rows, and compute the loss of the model's predictions of them.

    A row's noise comes from its own seed, so it does not depend on the batch.

    Args:
        model: a `ShowoForCausalLM`, or a wrapper of one.
        input_ids (`torch.LongTensor` of shape `(batch, length)`): rows that end with `soi image eoi`. The image's ids
            are replaced.
        image_tokens (`torch.LongTensor` of shape `(batch, tokens)`): codebook indices without noise, in row-major
            order.
        scheduler: the noise. Its codebook must be the model's.
        noise_seeds (`Sequence[int]`): the seed of each row's time and noise.
        image_token_offset, mask_token_id (`int`): ids of the first image token and of the mask, as in the model's
            config.
        timesteps (`torch.LongTensor` of shape `(batch,)`, *optional*): the time of each row, from 1 to
            `num_train_timesteps`. By default each row draws its own, uniformly.
        probabilities (`torch.Tensor` of shape `(batch,)`, *optional*): the probabilities that `timesteps` were sampled
            with; uniform by default.
        rows_at_once (`int`, defaults to 1): rows whose loss is computed at a time. The loss holds tables of
            probabilities, about twenty times as large as the logits, which are computed again in the backward pass.

    Raises:
        ValueError: if shapes do not fit, if the scheduler has another codebook size than the model, or for
            `probabilities` without `timesteps`.
    """
    batch_size, num_tokens = image_tokens.shape
    codebook_size = scheduler.codebook_size
    check_rows(input_ids, image_tokens, noise_seeds)
    if codebook_size != mask_token_id - image_token_offset:
        raise ValueError(
            f"`scheduler` must have the model's codebook of {mask_token_id - image_token_offset} tokens, "
            f"got one with {codebook_size}."
        )
    if timesteps is None and probabilities is not None:
        raise ValueError("`probabilities` are those of `timesteps`, which must be given with them.")
    generators = [row_generator(seed) for seed in noise_seeds]
    if timesteps is None:
        last = scheduler.config.num_train_timesteps
        timesteps = torch.cat([torch.randint(1, last + 1, (1,), generator=one) for one in generators])
    device = input_ids.device
    timesteps, image_tokens = timesteps.to(device), image_tokens.to(device)
    sample = scheduler.add_noise(image_tokens, timesteps, generators)
    noised = input_ids.clone()
    noised[:, -num_tokens - 1 : -1] = torch.where(sample == codebook_size, mask_token_id, sample + image_token_offset)
    positions = torch.arange(input_ids.shape[1] - num_tokens - 1, input_ids.shape[1] - 1, device=device)
    logits = model(noised, logits_to_keep=positions, codebook_only=True, use_cache=False).logits

    def of_rows(logits, rows: slice) -> tuple[torch.Tensor, ...]:
        shares = None if probabilities is None else probabilities[rows]
        found = scheduler.training_loss(logits, image_tokens[rows], sample[rows], timesteps[rows], shares)
        return found.loss, found.bound + found.prior, found.auxiliary, found.term

    parts = []
    for start in range(0, batch_size, rows_at_once):
        rows = slice(start, start + rows_at_once)
        parts.append(checkpoint(of_rows, logits[rows], rows, use_reentrant=False, preserve_rng_state=False))
    loss, bound, cross_entropy, terms = (torch.cat(values) for values in zip(*parts, strict=True))
    return BoundLoss(
        loss=loss.mean() / num_tokens,
        bound=bound.detach().mean() / num_tokens,
        cross_entropy=cross_entropy.detach().mean() / num_tokens,
        count=batch_size * num_tokens,
        timesteps=timesteps,
        terms=terms.detach(),
    )


def bound_objective(scheduler: MaskAndReplaceScheduler, image_token_offset: int, mask_token_id: int) -> Objective:
    """The bound as the objective of text-to-image parts; see [`part_losses`]."""

    def objective(model: nn.Module, part: Part, device: torch.device) -> torch.Tensor:
        ids, tokens = part.input_ids.to(device), part.image_tokens.to(device)
        return bound_loss(model, ids, tokens, scheduler, part.noise_seeds, image_token_offset, mask_token_id).loss

    return objective


def check_rows(input_ids: torch.LongTensor, image_tokens: torch.LongTensor, noise_seeds: Sequence[int]):
    """Raise `ValueError` unless there are ids and a seed for each image, and place for it."""
    batch_size, num_tokens = image_tokens.shape
    if len(input_ids) != batch_size or input_ids.shape[1] < num_tokens + 2:
        raise ValueError(
            f"`input_ids` must hold {batch_size} rows of at least {num_tokens + 2} ids for `image_tokens` of shape "
            f"{tuple(image_tokens.shape)}, got {tuple(input_ids.shape)}."
        )
    if len(noise_seeds) != batch_size:
        raise ValueError(
            f"`noise_seeds` must hold one seed for each of the {batch_size} rows, got {len(noise_seeds)}."
        )


def masked_guess(codebook_size: int) -> float:
    """The cross-entropy of masked tokens if every token of the codebook is as likely: `ln K`, in nats."""
    return math.log(codebook_size)


def bound_guess(scheduler: MaskAndReplaceScheduler) -> float:
    """
    The expected [`BoundLoss.loss`] if every token of the codebook is as likely, in nats per token.

    By symmetry a token is in one of three states: the mask, x_0, or any other index. So the expectation over the noise
    is a sum of three terms for each time.
    """
    total, codebook_size = scheduler.config.num_train_timesteps, scheduler.codebook_size
    states = torch.tensor([[codebook_size, 0, codebook_size - 1]])
    original = torch.zeros_like(states)
    logits = torch.zeros(1, 3, codebook_size, dtype=torch.float64)
    expected = 0.0
    for time in range(1, total + 1):
        timesteps = torch.tensor([time])
        to = scheduler.cumulative_at(timesteps)
        chances = torch.cat([to.mask, to.keep + to.replace, (codebook_size - 1) * to.replace], -1)  # (1, 3)
        terms = scheduler.bound_terms(logits, original, states, timesteps)
        auxiliary = scheduler.training_loss(logits[:, :1], original[:, :1], states[:, :1], timesteps).auxiliary
        expected += (chances * terms).sum().item() + auxiliary.item() / total
    return expected
