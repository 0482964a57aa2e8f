"""The variational bound as a training loss, masks of single rows, and the losses of a blind guess."""

import math

import pytest
import tiny
import torch

from showo_hf.schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler
from showo_hf.training.bound import bound_guess, bound_loss, masked_guess


CONFIG = tiny.showo_config()
MODEL = tiny.showo()
IDS = {"image_token_offset": CONFIG.image_token_offset, "mask_token_id": CONFIG.mask_token_id}
TOKENS = tiny.SIDE * tiny.SIDE


def scheduler(times=10, **options) -> MaskAndReplaceScheduler:
    return MaskAndReplaceScheduler(mask_token_id=tiny.CODES, num_train_timesteps=times, **options)


def rows(count: int) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Text-to-image ids with different prompts, and the images' codebook indices."""
    ids = [[CONFIG.t2i_token_id, 0, 5 + row, 0, *tiny.image(CONFIG, row)] for row in range(count)]
    ids = torch.tensor(ids)
    return ids, ids[:, -TOKENS - 1 : -1] - CONFIG.image_token_offset


@pytest.mark.parametrize("mask_share", [1.0, 0.6])
def test_the_loss_is_that_of_the_scheduler_on_whole_sequences(mask_share):
    """Against `training_loss` of the logits of all positions and ids, without chunks."""
    made, (ids, tokens) = scheduler(mask_share=mask_share), rows(3)
    times, shares = torch.tensor([1, 4, 10]), torch.tensor([0.2, 0.1, 0.05])
    found = bound_loss(MODEL, ids, tokens, made, [7, 8, 9], **IDS, timesteps=times, probabilities=shares)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    sample = made.add_noise(tokens, times, generators)
    noised = ids.clone()
    noised[:, -TOKENS - 1 : -1] = sample + CONFIG.image_token_offset  # the mask's id follows the codebook
    first = CONFIG.image_token_offset
    logits = MODEL(noised).logits[:, -TOKENS - 1 : -1, first : first + tiny.CODES]
    wanted = made.training_loss(logits, tokens, sample, times, shares)
    torch.testing.assert_close(found.loss, wanted.loss.mean() / TOKENS)
    torch.testing.assert_close(found.bound, (wanted.bound + wanted.prior).mean() / TOKENS)
    torch.testing.assert_close(found.cross_entropy, wanted.auxiliary.mean() / TOKENS)
    torch.testing.assert_close(found.terms, wanted.term)
    assert found.count == 3 * TOKENS and found.timesteps.tolist() == [1, 4, 10]
    weight = MODEL.lm_head.weight
    (ours,) = torch.autograd.grad(found.loss, weight)
    (theirs,) = torch.autograd.grad(wanted.loss.mean() / TOKENS, weight)
    torch.testing.assert_close(ours, theirs)


def test_a_row_does_not_depend_on_its_batch():
    ids, tokens = rows(4)
    seeds = [3, 1, 4, 1 << 63]
    whole = bound_loss(MODEL, ids, tokens, scheduler(), seeds, **IDS)
    alone = [
        bound_loss(MODEL, ids[i : i + 1], tokens[i : i + 1], scheduler(), seeds[i : i + 1], **IDS) for i in range(4)
    ]
    assert whole.timesteps.tolist() == [one.timesteps.item() for one in alone]
    torch.testing.assert_close(whole.terms, torch.cat([one.terms for one in alone]))
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in alone]).mean())
    together = bound_loss(MODEL, ids, tokens, scheduler(), seeds, **IDS, rows_at_once=3)
    torch.testing.assert_close(together.loss, whole.loss)


def test_rows_draw_every_time():
    ids, tokens = rows(1)
    with torch.no_grad():
        found = bound_loss(
            MODEL, ids.expand(200, -1), tokens.expand(200, -1), scheduler(5), range(200), **IDS, rows_at_once=200
        )
    assert found.timesteps.bincount(minlength=6)[1:].min() > 20 and found.timesteps.max() == 5


def test_a_step_on_the_bound_lowers_it():
    torch.manual_seed(0)
    model, (ids, tokens) = tiny.showo().train(), rows(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = []
    for _ in range(4):
        loss = bound_loss(model, ids, tokens, scheduler(), [1, 2, 3], **IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.01


@pytest.mark.parametrize("mask_share", [1.0, 0.6, 0.0])
def test_the_guess_is_the_mean_loss_of_equal_probabilities(mask_share):
    """Against a mean over drawn noise of a model whose logits are all equal."""
    made = scheduler(4, mask_share=mask_share, auxiliary_weight=0.01)
    model, (ids, tokens) = tiny.showo(), rows(1)
    model.lm_head.weight.data.zero_()
    count = 400
    times = torch.arange(count) % 4 + 1
    with torch.no_grad():
        found = bound_loss(
            model,
            ids.expand(count, -1),
            tokens.expand(count, -1),
            made,
            range(count),
            **IDS,
            timesteps=times,
            rows_at_once=count,
        )
    assert found.loss.item() == pytest.approx(bound_guess(made), rel=0.02)


def test_the_guess_of_absorbing_diffusion_is_that_of_masked_tokens():
    """Each token is unmasked once, and costs ln K then."""
    made = scheduler(20, mask_share=1.0, auxiliary_weight=0.0)
    assert bound_guess(made) == pytest.approx(math.log(tiny.CODES), rel=1e-6)
    assert masked_guess(8192) == pytest.approx(9.0109, abs=1e-4)


def test_wrong_arguments_are_refused():
    ids, tokens = rows(2)
    made = scheduler()
    with pytest.raises(ValueError, match="`noise_seeds` must hold one seed for each of the 2 rows, got 1"):
        bound_loss(MODEL, ids, tokens, made, [1], **IDS)
    with pytest.raises(ValueError, match=r"`input_ids` must hold 2 rows of at least 18 ids .* got \(2, 9\)"):
        bound_loss(MODEL, ids[:, :9], tokens, made, [1, 2], **IDS)
    with pytest.raises(ValueError, match="`scheduler` must have the model's codebook of 64 tokens, got one with 8"):
        bound_loss(MODEL, ids, tokens, MaskAndReplaceScheduler(mask_token_id=8), [1, 2], **IDS)
    with pytest.raises(ValueError, match="`probabilities` are those of `timesteps`"):
        bound_loss(MODEL, ids, tokens, made, [1, 2], **IDS, probabilities=torch.ones(2))
