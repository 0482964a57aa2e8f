"""RemaskingScheduler: both rules compared with their formulas, and their purpose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_schedulers import (
    CODEBOOK_SIZE,
    MASK,
    all_masked,
    final_sample,
    generator,
    grids,
    logits,
    make_scheduler,
    run,
    schedules,
    seeds,
)

from showo_hf import MaskGITScheduler, RemaskingScheduler


REMDM = pytest.mark.parametrize("kind", ["remdm, cap", "remdm, rescale"])
STEPS = 8


# Correction of mistakes


def model(sample: torch.LongTensor) -> torch.Tensor:
    """
    A model of an image of ones that makes one mistake.

    While all tokens are masked, it predicts 9 at position 0. As soon as one is known, it is certain of ones everywhere.
    """
    p = torch.full((*sample.shape, CODEBOOK_SIZE), 1e-4)
    blind = (sample == MASK).all(-1)  # (batch,)
    p[..., 1] = torch.where(blind, 0.5, 0.99).unsqueeze(-1)
    p[..., 2] = torch.where(blind, 0.4, 1e-4).unsqueeze(-1)
    p[blind, 0, 1], p[blind, 0, 9] = 0.1, 0.8
    return p.log()


def images(scheduler, batch=1) -> torch.LongTensor:
    sample, draws = all_masked(batch, 16), generator()
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(model(sample), timestep, sample, generator=draws).prev_sample
    return sample


def test_mask_predict_corrects_an_early_mistake():
    settings = {"mask_token_id": MASK, "temperature": 0.0, "top_k": 1}
    assert images(MaskGITScheduler(**settings))[0].tolist() == [9] + [1] * 15, "MaskGIT keeps the mistake"
    assert images(RemaskingScheduler(**settings))[0].tolist() == [1] * 16


@REMDM
def test_remdm_corrects_early_mistakes(kind):
    def mistakes(eta):
        scheduler = make_scheduler(kind, eta=eta, top_k=1, masking_schedule="linear")
        return (images(scheduler, batch=400)[:, 0] == 9).float().mean().item()

    assert mistakes(0.0) > 0.09
    assert mistakes(0.5) < 0.5 * mistakes(0.0)


# Mask-Predict


@settings(deadline=None, max_examples=60)
@given(grids(), schedules, st.integers(1, 8), seeds)
def test_mask_predict_masks_the_least_confident_tokens_of_all_steps(grid, schedule, steps, seed):
    size, sample = grid
    scheduler = make_scheduler("mask-predict", steps, size, masking_schedule=schedule, temperature=0.0)
    stored = torch.zeros(sample.shape)
    free = sample == MASK
    for step, (before, after, output) in enumerate(run(scheduler, sample, generator(seed), model_seed=seed)):
        p = logits(sample.shape, seed + step).softmax(-1)
        chosen = p.gather(-1, output.pred_original_sample.unsqueeze(-1)).squeeze(-1)
        stored = torch.where(before == MASK, chosen, stored)
        for row in range(len(sample)):
            positions = free[row].nonzero().flatten()
            masked = after[row][positions] == MASK
            share = int((len(positions) * scheduler.mask_ratio((step + 1) / steps)).floor())
            wanted = 0 if step == steps - 1 else min(max(1, min(len(positions) - 1, share)), len(positions) - 1)
            assert masked.sum() == wanted
            if masked.any():
                assert stored[row][positions][masked].max() <= stored[row][positions][~masked].min()


def test_temperature_changes_which_tokens_are_kept():
    cold, hot = (
        make_scheduler("mask-predict", 4, temperature=t).step(logits((2, 9)), 3, all_masked(), generator=generator())
        for t in (0.0, 50.0)
    )
    assert torch.equal(cold.pred_original_sample, hot.pred_original_sample)
    assert not torch.equal(cold.prev_sample, hot.prev_sample)


# ReMDM


@REMDM
@settings(deadline=None, max_examples=60)
@given(schedule=schedules, steps=st.integers(1, 40), eta=st.floats(0, 1), data=st.data())
def test_remdm_probabilities_keep_the_share_of_known_tokens(kind, schedule, steps, eta, data):
    """Equation 5: `a (1 - sigma) + (1 - a) unmask = b`, with sigma up to its limit."""
    scheduler = make_scheduler(kind, steps, eta=eta, masking_schedule=schedule)
    step = data.draw(st.integers(0, steps - 1))
    before, after = (1 - max(0.0, scheduler.mask_ratio(i / steps).item()) for i in (step, step + 1))
    unmask, sigma = scheduler.remdm_probabilities(step)
    assert -1e-6 <= unmask <= 1 + 1e-6 and 0 <= sigma <= 1
    assert before * (1 - sigma) + (1 - before) * unmask == pytest.approx(after, abs=1e-6)
    limit = min(1, (1 - after) / before) if before > 1e-9 else 1
    wanted = min(eta, limit) if kind == "remdm, cap" else eta * limit
    assert sigma == pytest.approx(wanted, abs=1e-5)


@REMDM
def test_the_share_of_known_tokens_follows_the_schedule(kind):
    scheduler = make_scheduler(kind, STEPS, masking_schedule="linear")
    shares = [
        (after != MASK).float().mean().item() for _, after, _ in run(scheduler, all_masked(20, 400), generator())
    ]
    assert shares == pytest.approx([(i + 1) / STEPS for i in range(STEPS)], abs=0.03)


@REMDM
def test_tokens_are_masked_again_with_probability_sigma(kind):
    scheduler = make_scheduler(kind, STEPS, masking_schedule="linear")
    for step, (before, after, _) in enumerate(run(scheduler, all_masked(20, 400), generator())):
        known = before != MASK
        if known.any() and step < STEPS - 1:
            masked_again = (after[known] == MASK).float().mean().item()
            assert masked_again == pytest.approx(scheduler.remdm_probabilities(step)[1], abs=0.04)


def test_eta_zero_masks_nothing_again():
    for before, after, _ in run(make_scheduler("remdm, cap", eta=0.0), all_masked(4, 25), generator()):
        assert torch.equal(after[before != MASK], before[before != MASK])


# State between steps


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["mask-predict", "remdm, cap", "remdm, rescale"]), grids(), st.integers(2, 8), seeds)
def test_tokens_set_between_steps_stay(kind, grid, steps, seed):
    size, sample = grid
    scheduler, draws = make_scheduler(kind, steps, size), generator(seed)
    written = torch.full_like(sample, MASK)
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(logits(sample.shape, step), timestep, sample, generator=draws).prev_sample
        assert torch.equal(sample[written != MASK], written[written != MASK])
        if step == 0:  # a token that the model did not sample there
            position = seed % sample.shape[1]
            written[:, position] = sample[:, position] = (sample[:, position] + 1) % CODEBOOK_SIZE
    assert (sample < MASK).all()


@pytest.mark.parametrize("kind", ["mask-predict", "remdm, cap"])
def test_tokens_masked_between_steps_are_sampled_again(kind):
    scheduler, draws = make_scheduler(kind), generator()
    sample = torch.zeros(1, 9, dtype=torch.int64)
    sample[:, 4:] = MASK
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(logits(sample.shape, step), timestep, sample, generator=draws).prev_sample
        if step == 2:
            sample[:, 0] = MASK
    assert (sample < MASK).all()


@pytest.mark.parametrize("kind", ["mask-predict", "remdm, cap"])
def test_the_state_is_cleared_after_the_last_step(kind):
    scheduler = make_scheduler(kind)
    final_sample(scheduler, all_masked(), generator())
    assert scheduler.given is scheduler.confidence is scheduler.latest is None


def test_another_batch_before_the_last_step_is_refused():
    scheduler = make_scheduler("mask-predict")
    scheduler.step(logits((2, 9)), 5, all_masked(2, 9), generator=generator())
    with pytest.raises(ValueError, match=r"`sample` must be \(2, 9\), as at the step before, got \(3, 9\)"):
        scheduler.step(logits((3, 9)), 4, all_masked(3, 9), generator=generator())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "random"}, "`rule` must be 'mask_predict' or 'remdm', got 'random'"),
        ({"sigma_rule": "max"}, "`sigma_rule` must be 'cap' or 'rescale', got 'max'"),
        ({"temperature_rule": "none"}, "`temperature_rule` must be 'compound' or 'linear', got 'none'"),
        ({"temperature": -1.0}, "`temperature` must be a finite number that is not negative, got -1.0"),
        ({"eta": 1.5}, "`eta` must be a number from 0 to 1, got 1.5"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RemaskingScheduler(**options)
