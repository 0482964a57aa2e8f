"""The closed forms of mask-and-replace diffusion, against matrices in float64."""

import itertools

import pytest
import torch
from diffusers import VQDiffusionScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from transition_matrices import bayes, one_step, product

from showo_hf.schedulers.mask_and_replace import (
    LOG_ZERO,
    Transition,
    ancestor,
    between,
    cumulative,
    guided_log_probabilities,
    kl_divergence,
    log_posterior,
    noised,
    prior_divergence,
    redraw_unlikely,
    transition_matrix,
)


CODES = 4
STATES = CODES + 1
ONES = torch.ones(STATES, dtype=torch.float64)
seeds = st.integers(0, 2**31)


@st.composite
def chains(draw):
    """The transitions from time 0 to each time, from random steps, and the steps' matrices."""
    steps = draw(st.integers(2, 5))
    keeps, masks, matrices = [1.0], [0.0], []
    for _ in range(steps):
        keep = draw(st.floats(0.05, 1))
        mask = draw(st.sampled_from([0.0, 1.0, 0.3])) * (1 - keep)
        keeps.append(keeps[-1] * keep)
        masks.append(1 - (1 - masks[-1]) * (1 - mask))
        matrices.append(one_step(keep, mask, CODES))
    keeps, masks = (torch.tensor(values, dtype=torch.float64) for values in (keeps, masks))
    return [cumulative(a, c, CODES) for a, c in zip(keeps, masks, strict=True)], matrices


def batched(transition: Transition) -> Transition:
    return Transition(*(value.view(1, 1) for value in (transition.keep, transition.replace, transition.mask)))


def pair(mask_share, keeps=(0.7, 0.2)) -> list[Transition]:
    """Two times, with the same share of lost tokens masked."""
    keeps = torch.tensor(keeps, dtype=torch.float64)
    return [batched(cumulative(keep, mask_share * (1 - keep), CODES)) for keep in keeps]


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sure_of(code, dtype=torch.float64) -> torch.Tensor:
    return torch.full((1, 1, CODES), -torch.inf, dtype=dtype).index_fill(-1, torch.tensor(code), 0.0)


# Transitions


@given(chains())
def test_rows_sum_to_one_and_products_are_the_cumulative(chain):
    times, matrices = chain
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(-1), ONES)
    for s, t in itertools.combinations(range(len(times)), 2):
        found = transition_matrix(between(times[s], times[t]), CODES)
        torch.testing.assert_close(found.sum(-1), ONES)
        torch.testing.assert_close(found, product(matrices[s:t], CODES), rtol=0, atol=1e-9)
    torch.testing.assert_close(transition_matrix(times[-1], CODES), product(matrices, CODES), rtol=0, atol=1e-9)


def test_columns_or_a_share_for_the_mask_do_not_sum_to_one():
    """What goes around in write-ups: the same with columns for rows, and with the replaced share over K + 1."""
    right = one_step(0.6, 0.1, CODES)
    assert torch.allclose(right.sum(-1), ONES) and not torch.allclose(right.sum(0), ONES)
    wrong = right.clone()
    wrong[:CODES, :CODES] += 0.3 / STATES - 0.3 / CODES
    assert (wrong.sum(-1)[:CODES] < 0.95).all()


# The posterior


@settings(max_examples=50, deadline=None)
@given(chains())
def test_the_posterior_is_bayes_rule_for_every_pair_of_states_and_every_stride(chain):
    times, matrices = chain
    for s, t in itertools.combinations(range(len(times)), 2):
        wanted = bayes(product(matrices[:s], CODES), product(matrices[s:t], CODES))
        for i, k in itertools.product(range(STATES), range(CODES)):
            if product(matrices[:t], CODES)[k, i] < 1e-9:
                continue
            found = log_posterior(sure_of(k), torch.tensor([[i]]), batched(times[s]), batched(times[t])).exp()
            torch.testing.assert_close(found[0, 0], wanted[i, k], rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(chains(), seeds)
def test_the_model_s_posterior_is_the_mixture(chain, seed):
    times, matrices = chain
    p0 = torch.randn(CODES, generator=generator(seed), dtype=torch.float64).softmax(-1)
    s, t = 1, len(times) - 1
    wanted = bayes(product(matrices[:s], CODES), product(matrices[s:t], CODES))
    for i in range(STATES):
        if (product(matrices[:t], CODES)[:CODES, i] < 1e-9).any():
            continue
        found = log_posterior(p0.log()[None, None], torch.tensor([[i]]), batched(times[s]), batched(times[t])).exp()
        torch.testing.assert_close(found[0, 0], p0 @ wanted[i], rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.integers(0, CODES), st.floats(0.1, 20))
def test_the_posterior_sums_to_one_for_any_model_and_any_token(seed, mask_share, i, scale):
    """Also for a mask in the uniform kind, and for a code that the model does not believe in absorbing diffusion."""
    log_p0 = (scale * torch.randn(1, 1, CODES, generator=generator(seed), dtype=torch.float64)).log_softmax(-1)
    for keeps in [(0.7, 0.2), (0.7, 0.0), (1.0, 0.2)]:
        found = log_posterior(log_p0, torch.tensor([[i]]), *pair(mask_share, keeps)).exp()
        assert found.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 3e-3)])
@pytest.mark.parametrize("mask_share", [0.0, 0.5, 1.0])
def test_the_posterior_in_any_dtype(mask_share, dtype, tolerance):
    log_p0 = torch.randn(1, STATES, CODES, dtype=torch.float64, generator=generator()).log_softmax(-1)
    sample = torch.arange(STATES)[None]
    exact = log_posterior(log_p0, sample, *pair(mask_share))
    found = log_posterior(log_p0.to(dtype), sample, *pair(mask_share))
    assert found.dtype == dtype and torch.isfinite(found).all()
    torch.testing.assert_close(found.double().exp(), exact.exp(), rtol=0, atol=tolerance)
    assert torch.equal(found < LOG_ZERO / 2, exact < LOG_ZERO / 2)


@pytest.mark.parametrize("t", [1, 4, 9])
def test_a_single_step_is_that_of_diffusers(t):
    theirs = VQDiffusionScheduler(
        STATES,
        num_train_timesteps=10,
        alpha_cum_start=0.95,
        alpha_cum_end=0.1,
        gamma_cum_start=0.02,
        gamma_cum_end=0.6,
    )
    log_p0 = torch.randn(1, STATES, CODES, generator=generator()).log_softmax(-1)
    sample = torch.arange(STATES)[None]
    early, late = (
        batched(
            cumulative(theirs.log_cumprod_at[time].double().exp(), theirs.log_cumprod_ct[time].double().exp(), CODES)
        )
        for time in (t - 1, t)
    )
    wanted = theirs.q_posterior(log_p0.transpose(1, 2), sample, t).transpose(1, 2).exp()
    torch.testing.assert_close(log_posterior(log_p0, sample, early, late).exp(), wanted, rtol=0, atol=1e-5)


def test_without_replacing_it_is_absorbing_diffusion():
    """As b goes to 0, what the model says of a masked token becomes the absorbing posterior, and codes stay."""
    log_p0 = torch.randn(1, 1, CODES, dtype=torch.float64, generator=generator()).log_softmax(-1)
    keeps, masked = (0.8, 0.5), torch.tensor([[CODES]])
    exact = log_posterior(log_p0, masked, *pair(1.0, keeps)).exp()[0, 0]
    wanted = torch.cat([log_p0[0, 0].exp() * (0.8 - 0.5) / 0.5, torch.tensor([0.2 / 0.5], dtype=torch.float64)])
    torch.testing.assert_close(exact, wanted)
    kept = log_posterior(log_p0, torch.tensor([[1]]), *pair(1.0, keeps)).exp()[0, 0]
    torch.testing.assert_close(kept, torch.eye(STATES, dtype=torch.float64)[1])
    gaps = [
        (log_posterior(log_p0, masked, *pair(1 - lost, keeps)).exp()[0, 0] - exact).abs().max().item()
        for lost in (1e-2, 1e-4, 1e-6)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-5


def test_the_prior_s_divergence_is_that_of_the_matrices():
    last = cumulative(torch.tensor(0.1), torch.tensor(0.6), CODES)
    row = transition_matrix(last, CODES)[0]
    prior = torch.tensor([0.1] * CODES + [0.6], dtype=torch.float64)
    torch.testing.assert_close(prior_divergence(last, CODES), kl_divergence(row.log(), prior.log()))
    absorbed = cumulative(torch.tensor(0.0), torch.tensor(1.0), CODES)
    assert prior_divergence(absorbed, CODES) == 0


# Draws


def frequencies(drawn: torch.Tensor) -> torch.Tensor:
    return drawn.flatten().bincount(minlength=STATES) / drawn.numel()


@pytest.mark.parametrize("mask_share", [0.0, 0.5, 1.0])
def test_draws_have_the_posterior_s_frequencies(mask_share):
    early, late = pair(mask_share)
    draws, shape = generator(), (1, 40_000)
    for i, k in itertools.product(range(STATES), range(CODES)):
        drawn = ancestor(
            torch.full(shape, i),
            torch.full(shape, k),
            early,
            late,
            (torch.rand(shape, generator=draws), torch.rand(shape, generator=draws)),
            torch.randint(CODES, shape, generator=draws),
            CODES,
        )
        wanted = log_posterior(sure_of(k), torch.tensor([[i]]), early, late).exp()[0, 0]
        assert (frequencies(drawn) - wanted).abs().max() < 0.015


def test_noised_tokens_have_the_cumulative_frequencies():
    to = cumulative(torch.tensor(0.3), torch.tensor(0.5), CODES)
    draws, shape = generator(), (1, 40_000)
    codes = torch.randint(CODES, shape, generator=draws)
    found = noised(torch.full(shape, 2), batched(to), torch.rand(shape, generator=draws), codes, CODES)
    assert (frequencies(found) - transition_matrix(to, CODES)[2]).abs().max() < 0.01


def likely_codes(row: torch.Tensor, rate: float) -> torch.Tensor:
    """A row of probabilities, 0 at all but the likeliest codes that reach `rate`, by a plain loop."""
    left, kept = row.clone(), torch.zeros_like(row)
    while kept.sum() < rate and left.max() > 0:
        best = left == left.max()  # all that are equally likely
        kept[best], left[best] = row[best], 0.0
    return kept


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.05, 0.99), st.floats(0.1, 5), st.booleans())
def test_truncated_draws_have_the_truncated_frequencies(seed, rate, scale, ties):
    logits = scale * torch.randn(6, generator=generator(seed))
    row = (logits.round() if ties else logits).softmax(-1)
    draws, count = generator(seed), 20_000
    probabilities = row.expand(2, count // 2, 6)
    drawn = torch.multinomial(row, count, replacement=True, generator=draws).view(2, -1)
    found = redraw_unlikely(probabilities, drawn, torch.rand(drawn.shape, generator=draws), rate)
    kept = likely_codes(row.double(), rate)
    shares = found.flatten().bincount(minlength=6) / count
    assert (shares - kept / kept.sum()).abs().max() < 0.025
    assert (shares[kept == 0] == 0).all()


def test_truncation_at_its_ends():
    row = torch.tensor([0.1, 0.6, 0.1, 0.2])
    probabilities = row.expand(1, 4, 4)
    every, uniform = torch.arange(4)[None], torch.tensor([[0.0, 0.3, 0.6, 1 - 2**-24]])
    assert redraw_unlikely(probabilities, every, uniform, 0.5).tolist() == [[1, 1, 1, 1]]
    assert redraw_unlikely(probabilities, every, uniform, 0.7).tolist() == [[1, 1, 1, 3]]
    assert redraw_unlikely(probabilities, every, uniform, 1.0).tolist() == [[0, 1, 2, 3]]
    flat = torch.full((1, 4, 4), 0.25)
    assert redraw_unlikely(flat, every, uniform, 0.3).tolist() == [[0, 1, 2, 3]]  # equally likely: all or none


# Guidance


@given(seeds, st.floats(0, 10))
def test_guided_logits_are_guided_log_probabilities(seed, scale):
    """`g c - (g - 1) u` of logits and of log-probabilities differ by a constant, which the softmax takes away."""
    c, u = 3 * torch.randn(2, 1, 5, CODES, generator=generator(seed), dtype=torch.float64)
    found = guided_log_probabilities(scale, c, u)
    torch.testing.assert_close(found, (scale * c - (scale - 1) * u).log_softmax(-1))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, 5, dtype=torch.float64))
    by_hand = c.softmax(-1) ** scale / u.softmax(-1) ** (scale - 1)
    torch.testing.assert_close(found.exp(), by_hand / by_hand.sum(-1, keepdim=True))


def test_truncating_before_guidance_is_another_thing():
    """The codes that are left differ, so guidance comes first: then both ways of guiding are truncated alike."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.1, 0.2])
    guided = guided_log_probabilities(4.0, p.log(), q.log()).exp()
    after = likely_codes(guided, 0.75)
    before = guided_log_probabilities(4.0, likely_codes(p, 0.75).clamp(1e-30).log(), q.log()).exp()
    assert (after > 0).tolist() == [False, True, False]
    assert (before > 1e-3).tolist() == [True, True, False]
