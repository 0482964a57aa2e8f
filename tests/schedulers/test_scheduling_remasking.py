"""Taking back what was chosen: both rules against their formulas, and what they are for."""

import pytest
import torch
from filling import CODES, MASK, final, generator, grids, logits, run, scheduler, schedules, seeds, unknown
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf import MaskGITScheduler, RemaskingScheduler


REMDM = pytest.mark.parametrize("kind", ["remdm, cap", "remdm, rescale"])
STEPS = 8


# What it is for


def model(sample: torch.LongTensor) -> torch.Tensor:
    """
    An image of ones, with a trap: as long as all is unknown, place 0 looks like a nine.

    Once anything is known the model is sure of ones everywhere.
    """
    p = torch.full((*sample.shape, CODES), 1e-4)
    blind = (sample == MASK).all(-1)  # (batch,)
    p[..., 1] = torch.where(blind, 0.5, 0.99).unsqueeze(-1)
    p[..., 2] = torch.where(blind, 0.4, 1e-4).unsqueeze(-1)
    p[blind, 0, 1], p[blind, 0, 9] = 0.1, 0.8
    return p.log()


def images(made, batch=1) -> torch.LongTensor:
    sample, draws = unknown(batch, 16), generator()
    made.set_timesteps(STEPS)
    for timestep in made.timesteps:
        sample = made.step(model(sample), timestep, sample, generator=draws).prev_sample
    return sample


def test_mask_predict_takes_an_early_mistake_back():
    settings = {"mask_token_id": MASK, "temperature": 0.0, "top_k": 1}
    assert images(MaskGITScheduler(**settings))[0].tolist() == [9] + [1] * 15, "the trap works"
    assert images(RemaskingScheduler(**settings))[0].tolist() == [1] * 16


@REMDM
def test_remdm_takes_early_mistakes_back(kind):
    def mistakes(eta):
        made = scheduler(kind, eta=eta, top_k=1, masking_schedule="linear")
        return (images(made, batch=400)[:, 0] == 9).float().mean().item()

    assert mistakes(0.0) > 0.09
    assert mistakes(0.5) < 0.5 * mistakes(0.0)


# Mask-Predict


@settings(deadline=None, max_examples=60)
@given(grids(), schedules, st.integers(1, 8), seeds)
def test_mask_predict_masks_the_least_confident_whenever_they_were_chosen(grid, schedule, steps, seed):
    size, sample = grid
    made = scheduler("mask-predict", steps, size, masking_schedule=schedule, temperature=0.0)
    noted = torch.zeros(sample.shape)
    free = sample == MASK
    for step, (before, after, output) in enumerate(run(made, sample, generator(seed), model_seed=seed)):
        p = logits(sample.shape, seed + step).softmax(-1)
        chosen = p.gather(-1, output.pred_original_sample.unsqueeze(-1)).squeeze(-1)
        noted = torch.where(before == MASK, chosen, noted)
        for row in range(len(sample)):
            places = free[row].nonzero().flatten()
            masked = after[row][places] == MASK
            share = int((len(places) * made.mask_ratio((step + 1) / steps)).floor())
            wanted = 0 if step == steps - 1 else min(max(1, min(len(places) - 1, share)), len(places) - 1)
            assert masked.sum() == wanted
            if masked.any():
                assert noted[row][places][masked].max() <= noted[row][places][~masked].min()


def test_temperature_changes_which_tokens_are_kept():
    cold, hot = (
        scheduler("mask-predict", 4, temperature=t).step(logits((2, 9)), 3, unknown(), generator=generator())
        for t in (0.0, 50.0)
    )
    assert torch.equal(cold.pred_original_sample, hot.pred_original_sample)
    assert not torch.equal(cold.prev_sample, hot.prev_sample)


# ReMDM


@REMDM
@settings(deadline=None, max_examples=60)
@given(schedule=schedules, steps=st.integers(1, 40), eta=st.floats(0, 1), data=st.data())
def test_remdm_s_probabilities_keep_the_share_of_known_tokens(kind, schedule, steps, eta, data):
    """Equation 5: `a (1 - sigma) + (1 - a) fill = b`, with sigma up to its limit."""
    made = scheduler(kind, steps, eta=eta, masking_schedule=schedule)
    step = data.draw(st.integers(0, steps - 1))
    before, after = (1 - max(0.0, made.mask_ratio(i / steps).item()) for i in (step, step + 1))
    fill, sigma = made.remdm_probabilities(step)
    assert -1e-6 <= fill <= 1 + 1e-6 and 0 <= sigma <= 1
    assert before * (1 - sigma) + (1 - before) * fill == pytest.approx(after, abs=1e-6)
    limit = min(1, (1 - after) / before) if before > 1e-9 else 1
    wanted = min(eta, limit) if kind == "remdm, cap" else eta * limit
    assert sigma == pytest.approx(wanted, abs=1e-5)


@REMDM
def test_the_share_of_known_tokens_is_the_schedule_s(kind):
    made = scheduler(kind, STEPS, masking_schedule="linear")
    shares = [(after != MASK).float().mean().item() for _, after, _ in run(made, unknown(20, 400), generator())]
    assert shares == pytest.approx([(i + 1) / STEPS for i in range(STEPS)], abs=0.03)


@REMDM
def test_tokens_are_masked_again_with_probability_sigma(kind):
    made = scheduler(kind, STEPS, masking_schedule="linear")
    for step, (before, after, _) in enumerate(run(made, unknown(20, 400), generator())):
        known = before != MASK
        if known.any() and step < STEPS - 1:
            taken_back = (after[known] == MASK).float().mean().item()
            assert taken_back == pytest.approx(made.remdm_probabilities(step)[1], abs=0.04)


def test_an_eta_of_nothing_takes_nothing_back():
    for before, after, _ in run(scheduler("remdm, cap", eta=0.0), unknown(4, 25), generator()):
        assert torch.equal(after[before != MASK], before[before != MASK])


# What it keeps between steps


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["mask-predict", "remdm, cap", "remdm, rescale"]), grids(), st.integers(2, 8), seeds)
def test_tokens_that_come_from_outside_between_steps_stay(kind, grid, steps, seed):
    size, sample = grid
    made, draws = scheduler(kind, steps, size), generator(seed)
    written = torch.full_like(sample, MASK)
    for step, timestep in enumerate(made.timesteps):
        sample = made.step(logits(sample.shape, step), timestep, sample, generator=draws).prev_sample
        assert torch.equal(sample[written != MASK], written[written != MASK])
        if step == 0:  # a code that the model cannot have chosen there
            place = seed % sample.shape[1]
            written[:, place] = sample[:, place] = (sample[:, place] + 1) % CODES
    assert (sample < MASK).all()


@pytest.mark.parametrize("kind", ["mask-predict", "remdm, cap"])
def test_tokens_that_are_masked_from_outside_are_filled_in_again(kind):
    made, draws = scheduler(kind), generator()
    sample = torch.zeros(1, 9, dtype=torch.int64)
    sample[:, 4:] = MASK
    for step, timestep in enumerate(made.timesteps):
        sample = made.step(logits(sample.shape, step), timestep, sample, generator=draws).prev_sample
        if step == 2:
            sample[:, 0] = MASK
    assert (sample < MASK).all()


@pytest.mark.parametrize("kind", ["mask-predict", "remdm, cap"])
def test_what_is_kept_is_dropped_at_the_end(kind):
    made = scheduler(kind)
    final(made, unknown(), generator())
    assert made.given is made.confidence is made.latest is None


def test_another_batch_within_a_run_is_refused():
    made = scheduler("mask-predict")
    made.step(logits((2, 9)), 5, unknown(2, 9), generator=generator())
    with pytest.raises(ValueError, match=r"`sample` must be \(2, 9\), as at the step before, got \(3, 9\)"):
        made.step(logits((3, 9)), 4, unknown(3, 9), generator=generator())


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
