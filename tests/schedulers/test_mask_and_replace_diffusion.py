"""The closed forms of mask-and-replace diffusion, compared with matrices in float64."""

import itertools

import pytest
import torch
from diffusers import VQDiffusionScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from transition_matrices import bayes, one_step, product

from showo_hf.schedulers.mask_and_replace_diffusion import (
    LOG_ZERO,
    Transition,
    cumulative_transition,
    guided_log_probabilities,
    kl_divergence,
    log_posterior,
    prior_divergence,
    resample_truncated,
    sample_noised,
    sample_posterior,
    transition_between,
    transition_matrix,
)


CODEBOOK_SIZE = 4
STATES = CODEBOOK_SIZE + 1
ONES = torch.ones(STATES, dtype=torch.float64)
seeds = st.integers(0, 2**31)


@st.composite
def chains(draw):
    """Random steps: the transitions from time 0 to each time, and the matrix of each step."""
    steps = draw(st.integers(2, 5))
    keeps, masks, matrices = [1.0], [0.0], []
    for _ in range(steps):
        keep = draw(st.floats(0.05, 1))
        mask = draw(st.sampled_from([0.0, 1.0, 0.3])) * (1 - keep)
        keeps.append(keeps[-1] * keep)
        masks.append(1 - (1 - masks[-1]) * (1 - mask))
        matrices.append(one_step(keep, mask, CODEBOOK_SIZE))
    keeps, masks = (torch.tensor(values, dtype=torch.float64) for values in (keeps, masks))
    return [cumulative_transition(a, c, CODEBOOK_SIZE) for a, c in zip(keeps, masks, strict=True)], matrices


def batched(transition: Transition) -> Transition:
    return Transition(*(value.view(1, 1) for value in (transition.keep, transition.replace, transition.mask)))


def pair(mask_share, keeps=(0.7, 0.2)) -> list[Transition]:
    """The transitions to two times, with the same share of changed tokens masked."""
    keeps = torch.tensor(keeps, dtype=torch.float64)
    return [batched(cumulative_transition(keep, mask_share * (1 - keep), CODEBOOK_SIZE)) for keep in keeps]


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_hot(index, dtype=torch.float64) -> torch.Tensor:
    return torch.full((1, 1, CODEBOOK_SIZE), -torch.inf, dtype=dtype).index_fill(-1, torch.tensor(index), 0.0)


# Transitions


@settings(deadline=None)
@given(chains())
def test_rows_sum_to_one_and_products_equal_the_cumulative_transition(chain):
    times, matrices = chain
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(-1), ONES)
    for s, t in itertools.combinations(range(len(times)), 2):
        found = transition_matrix(transition_between(times[s], times[t]), CODEBOOK_SIZE)
        torch.testing.assert_close(found.sum(-1), ONES)
        torch.testing.assert_close(found, product(matrices[s:t], CODEBOOK_SIZE), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        transition_matrix(times[-1], CODEBOOK_SIZE), product(matrices, CODEBOOK_SIZE), rtol=0, atol=1e-9
    )


def test_two_wrong_matrices_do_not_sum_to_one():
    """Forms that occur in write-ups: the transposed matrix, and replacement over K + 1 states."""
    right = one_step(0.6, 0.1, CODEBOOK_SIZE)
    assert torch.allclose(right.sum(-1), ONES) and not torch.allclose(right.sum(0), ONES)
    wrong = right.clone()
    wrong[:CODEBOOK_SIZE, :CODEBOOK_SIZE] += 0.3 / STATES - 0.3 / CODEBOOK_SIZE
    assert (wrong.sum(-1)[:CODEBOOK_SIZE] < 0.95).all()


# The posterior


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(chains())
def test_the_posterior_follows_bayes_rule_for_every_pair_of_states_and_stride(chain):
    times, matrices = chain
    for s, t in itertools.combinations(range(len(times)), 2):
        wanted = bayes(product(matrices[:s], CODEBOOK_SIZE), product(matrices[s:t], CODEBOOK_SIZE))
        for i, k in itertools.product(range(STATES), range(CODEBOOK_SIZE)):
            if product(matrices[:t], CODEBOOK_SIZE)[k, i] < 1e-9:
                continue
            found = log_posterior(one_hot(k), torch.tensor([[i]]), batched(times[s]), batched(times[t])).exp()
            torch.testing.assert_close(found[0, 0], wanted[i, k], rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(chains(), seeds)
def test_the_posterior_of_a_model_is_the_mixture(chain, seed):
    times, matrices = chain
    p0 = torch.randn(CODEBOOK_SIZE, generator=generator(seed), dtype=torch.float64).softmax(-1)
    s, t = 1, len(times) - 1
    wanted = bayes(product(matrices[:s], CODEBOOK_SIZE), product(matrices[s:t], CODEBOOK_SIZE))
    for i in range(STATES):
        if (product(matrices[:t], CODEBOOK_SIZE)[:CODEBOOK_SIZE, i] < 1e-9).any():
            continue
        found = log_posterior(p0.log()[None, None], torch.tensor([[i]]), batched(times[s]), batched(times[t])).exp()
        torch.testing.assert_close(found[0, 0], p0 @ wanted[i], rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.integers(0, CODEBOOK_SIZE), st.floats(0.1, 20))
def test_the_posterior_sums_to_one_for_any_model_and_any_token(seed, mask_share, i, scale):
    """Also for a mask in uniform diffusion, and for a known token that the model contradicts in absorbing diffusion."""
    log_p0 = (scale * torch.randn(1, 1, CODEBOOK_SIZE, generator=generator(seed), dtype=torch.float64)).log_softmax(-1)
    for keeps in [(0.7, 0.2), (0.7, 0.0), (1.0, 0.2)]:
        found = log_posterior(log_p0, torch.tensor([[i]]), *pair(mask_share, keeps)).exp()
        assert found.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 3e-3)])
@pytest.mark.parametrize("mask_share", [0.0, 0.5, 1.0])
def test_the_posterior_in_any_dtype(mask_share, dtype, tolerance):
    log_p0 = torch.randn(1, STATES, CODEBOOK_SIZE, dtype=torch.float64, generator=generator()).log_softmax(-1)
    sample = torch.arange(STATES)[None]
    exact = log_posterior(log_p0, sample, *pair(mask_share))
    found = log_posterior(log_p0.to(dtype), sample, *pair(mask_share))
    assert found.dtype == dtype and torch.isfinite(found).all()
    torch.testing.assert_close(found.double().exp(), exact.exp(), rtol=0, atol=tolerance)
    assert torch.equal(found < LOG_ZERO / 2, exact < LOG_ZERO / 2)


@pytest.mark.parametrize("t", [1, 4, 9])
def test_a_single_step_equals_diffusers(t):
    theirs = VQDiffusionScheduler(
        STATES,
        num_train_timesteps=10,
        alpha_cum_start=0.95,
        alpha_cum_end=0.1,
        gamma_cum_start=0.02,
        gamma_cum_end=0.6,
    )
    log_p0 = torch.randn(1, STATES, CODEBOOK_SIZE, generator=generator()).log_softmax(-1)
    sample = torch.arange(STATES)[None]
    early, late = (
        batched(
            cumulative_transition(
                theirs.log_cumprod_at[time].double().exp(), theirs.log_cumprod_ct[time].double().exp(), CODEBOOK_SIZE
            )
        )
        for time in (t - 1, t)
    )
    wanted = theirs.q_posterior(log_p0.transpose(1, 2), sample, t).transpose(1, 2).exp()
    torch.testing.assert_close(log_posterior(log_p0, sample, early, late).exp(), wanted, rtol=0, atol=1e-5)


def test_without_replacement_it_is_absorbing_diffusion():
    """As b approaches 0, masked tokens follow the absorbing posterior, and known tokens stay."""
    log_p0 = torch.randn(1, 1, CODEBOOK_SIZE, dtype=torch.float64, generator=generator()).log_softmax(-1)
    keeps, masked = (0.8, 0.5), torch.tensor([[CODEBOOK_SIZE]])
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


def test_the_divergence_from_the_prior_equals_that_of_matrices():
    last = cumulative_transition(torch.tensor(0.1), torch.tensor(0.6), CODEBOOK_SIZE)
    row = transition_matrix(last, CODEBOOK_SIZE)[0]
    prior = torch.tensor([0.1] * CODEBOOK_SIZE + [0.6], dtype=torch.float64)
    torch.testing.assert_close(prior_divergence(last, CODEBOOK_SIZE), kl_divergence(row.log(), prior.log()))
    absorbed = cumulative_transition(torch.tensor(0.0), torch.tensor(1.0), CODEBOOK_SIZE)
    assert prior_divergence(absorbed, CODEBOOK_SIZE) == 0


# Sampling


def frequencies(drawn: torch.Tensor) -> torch.Tensor:
    return drawn.flatten().bincount(minlength=STATES) / drawn.numel()


@pytest.mark.parametrize("mask_share", [0.0, 0.5, 1.0])
def test_samples_have_the_frequencies_of_the_posterior(mask_share):
    early, late = pair(mask_share)
    draws, shape = generator(), (1, 40_000)
    for i, k in itertools.product(range(STATES), range(CODEBOOK_SIZE)):
        drawn = sample_posterior(
            torch.full(shape, i),
            torch.full(shape, k),
            early,
            late,
            (torch.rand(shape, generator=draws), torch.rand(shape, generator=draws)),
            torch.randint(CODEBOOK_SIZE, shape, generator=draws),
            CODEBOOK_SIZE,
        )
        wanted = log_posterior(one_hot(k), torch.tensor([[i]]), early, late).exp()[0, 0]
        assert (frequencies(drawn) - wanted).abs().max() < 0.015


def test_noised_tokens_have_the_frequencies_of_the_cumulative_transition():
    to = cumulative_transition(torch.tensor(0.3), torch.tensor(0.5), CODEBOOK_SIZE)
    draws, shape = generator(), (1, 40_000)
    random_tokens = torch.randint(CODEBOOK_SIZE, shape, generator=draws)
    found = sample_noised(
        torch.full(shape, 2), batched(to), torch.rand(shape, generator=draws), random_tokens, CODEBOOK_SIZE
    )
    assert (frequencies(found) - transition_matrix(to, CODEBOOK_SIZE)[2]).abs().max() < 0.01


def truncate_row(row: torch.Tensor, rate: float) -> torch.Tensor:
    """Keep the most likely entries of a row until they reach `rate`, by a plain loop."""
    left, kept = row.clone(), torch.zeros_like(row)
    while kept.sum() < rate and left.max() > 0:
        best = left == left.max()  # ties count as one
        kept[best], left[best] = row[best], 0.0
    return kept


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.05, 0.99), st.floats(0.1, 5), st.booleans())
def test_truncated_samples_have_the_truncated_frequencies(seed, rate, scale, ties):
    logits = scale * torch.randn(6, generator=generator(seed))
    row = (logits.round() if ties else logits).softmax(-1)
    draws, count = generator(seed), 20_000
    probabilities = row.expand(2, count // 2, 6)
    drawn = torch.multinomial(row, count, replacement=True, generator=draws).view(2, -1)
    found = resample_truncated(probabilities, drawn, torch.rand(drawn.shape, generator=draws), rate)
    kept = truncate_row(row.double(), rate)
    shares = found.flatten().bincount(minlength=6) / count
    assert (shares - kept / kept.sum()).abs().max() < 0.025
    assert (shares[kept == 0] == 0).all()


def test_truncation_with_extreme_rates():
    row = torch.tensor([0.1, 0.6, 0.1, 0.2])
    probabilities = row.expand(1, 4, 4)
    every, uniform = torch.arange(4)[None], torch.tensor([[0.0, 0.3, 0.6, 1 - 2**-24]])
    assert resample_truncated(probabilities, every, uniform, 0.5).tolist() == [[1, 1, 1, 1]]
    assert resample_truncated(probabilities, every, uniform, 0.7).tolist() == [[1, 1, 1, 3]]
    assert resample_truncated(probabilities, every, uniform, 1.0).tolist() == [[0, 1, 2, 3]]
    flat = torch.full((1, 4, 4), 0.25)
    assert resample_truncated(flat, every, uniform, 0.3).tolist() == [[0, 1, 2, 3]]  # ties are kept together


# Guidance


@settings(deadline=None)
@given(seeds, st.floats(0, 10))
def test_guided_logits_equal_guided_log_probabilities(seed, scale):
    """`g c - (g - 1) u` of logits and of log-probabilities differ by a constant, which the softmax removes."""
    c, u = 3 * torch.randn(2, 1, 5, CODEBOOK_SIZE, generator=generator(seed), dtype=torch.float64)
    found = guided_log_probabilities(scale, c, u)
    torch.testing.assert_close(found, (scale * c - (scale - 1) * u).log_softmax(-1))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, 5, dtype=torch.float64))
    by_hand = c.softmax(-1) ** scale / u.softmax(-1) ** (scale - 1)
    torch.testing.assert_close(found.exp(), by_hand / by_hand.sum(-1, keepdim=True))


def test_truncation_before_guidance_differs():
    """The kept tokens differ. With guidance first, guided logits and guided log-probabilities are truncated alike."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.1, 0.2])
    guided = guided_log_probabilities(4.0, p.log(), q.log()).exp()
    after = truncate_row(guided, 0.75)
    before = guided_log_probabilities(4.0, truncate_row(p, 0.75).clamp(1e-30).log(), q.log()).exp()
    assert (after > 0).tolist() == [False, True, False]
    assert (before > 1e-3).tolist() == [True, True, False]
