"""The training loss of mask-and-replace diffusion: the bound, its gradient, a special case, and sampling of times."""

import itertools
import math

import pytest
import torch
from transition_matrices import JointChain, steps_of

from showo_hf.schedulers.mask_and_replace_diffusion import cumulative_transition
from showo_hf.schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler
from showo_hf.training.masking import mask_tokens


CODEBOOK_SIZE = 3
KINDS = pytest.mark.parametrize("mask_share", [0.0, 0.6, 1.0])


def scheduler(times=5, codebook_size=CODEBOOK_SIZE, **options) -> MaskAndReplaceScheduler:
    return MaskAndReplaceScheduler(mask_token_id=codebook_size, num_train_timesteps=times, **options)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The bound, on two tokens with all states enumerated


def chain_of(made, tokens=2) -> JointChain:
    return JointChain(steps_of(made.cumulative.keep, made.cumulative.mask, made.codebook_size), tokens)


def prior_of(made) -> torch.Tensor:
    mask = made.cumulative.mask[-1]
    return torch.cat([((1 - mask) / made.codebook_size).expand(made.codebook_size), mask[None]])


def random_model(made, chain, seed=0) -> list[torch.Tensor]:
    """Logits of x_0 at each time, for each state: a list of (states, tokens, K)."""
    shape = (chain.times + 1, len(chain.states), chain.tokens, chain.codebook_size)
    return list(2 * torch.randn(shape, generator=generator(seed), dtype=torch.float64))


def true_model(chain, truth) -> list[torch.Tensor]:
    """The logits of the optimal model for the data distribution `truth`, (states,), by Bayes' rule."""
    one_hot = torch.nn.functional.one_hot(
        chain.states.clamp(max=chain.codebook_size - 1), chain.codebook_size
    ).double()
    logits = []
    for t in range(chain.times + 1):
        joint = truth[:, None] * chain.noising(t)  # [x_0, x_t]
        marginals = torch.einsum("pt,pik->tik", joint, one_hot)
        logits.append((marginals / marginals.sum(-1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-300).log())
    return logits


def whole_bound(made, chain, logits, image) -> float:
    """The sum of all terms of the bound in `training_loss`, with the exact expectation over x_t."""
    index = int((chain.states == image).all(-1).nonzero())
    count, total = len(chain.states), 0.0
    for t in range(1, chain.times + 1):
        loss = made.training_loss(
            logits[t], image.expand(count, -1), chain.states, torch.full((count,), t), torch.ones(count)
        )
        total += (chain.noising(t)[index] * loss.bound).sum().item()
    return total + loss.prior[0].item()


@KINDS
@pytest.mark.parametrize("left", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(2))
def test_the_bound_is_above_the_negative_log_likelihood(mask_share, left, seed):
    """Also if x_T depends on the image, so that the prior term is not 0."""
    made = scheduler(times=4, mask_share=mask_share)
    keep = 1 - (1 - left) * torch.linspace(0, 1, 5, dtype=torch.float64)
    made.cumulative = cumulative_transition(keep, mask_share * (1 - keep), CODEBOOK_SIZE)
    chain = chain_of(made)
    logits = random_model(made, chain, seed)
    p0 = [values.softmax(-1) for values in logits]
    likelihood = chain.likelihood(p0, prior_of(made))
    assert likelihood[chain.images].sum().item() == pytest.approx(1)
    for index in chain.images:
        image = chain.states[index]
        bound = whole_bound(made, chain, logits, image)
        assert bound == pytest.approx(chain.bound(p0, image, prior_of(made)), rel=1e-5)
        assert bound >= -math.log(likelihood[index]) - 1e-6


@KINDS
def test_the_bound_of_the_true_model_comes_near_the_entropy(mask_share):
    """For two dependent tokens, the mean bound is above the entropy and approaches it with more steps."""
    images = torch.tensor([[0.3, 0.05, 0.02], [0.03, 0.25, 0.05], [0.05, 0.05, 0.2]], dtype=torch.float64)
    entropy = -(images * images.log()).sum().item()
    bounds = []
    for times in (2, 6, 24):
        made = scheduler(times=times, mask_share=mask_share)
        chain = chain_of(made)
        truth = torch.zeros(len(chain.states), dtype=torch.float64)
        truth[chain.images] = images.flatten()
        logits = true_model(chain, truth)
        worse = random_model(made, chain)
        mean, other = (
            sum(truth[i].item() * whole_bound(made, chain, model, chain.states[i]) for i in chain.images)
            for model in (logits, worse)
        )
        assert entropy - 1e-6 <= mean < other
        bounds.append(mean)
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[2] == pytest.approx(entropy, abs=0.05)


@KINDS
def test_the_mean_loss_is_the_bound_for_any_distribution_of_times(mask_share):
    made = scheduler(times=4, mask_share=mask_share)
    x0 = torch.tensor([[0, 1, 2, 1]]).expand(4, -1)
    times = torch.arange(1, 5)
    sample = made.add_noise(x0, times, generator(1))
    logits = torch.randn(4, 4, CODEBOOK_SIZE, generator=generator(2))
    terms = made.bound_terms(logits, x0, sample, times).sum(-1)
    for shares in (torch.full((4,), 0.25), torch.tensor([0.1, 0.2, 0.3, 0.4])):
        loss = made.training_loss(logits, x0, sample, times, shares)
        torch.testing.assert_close(loss.term, terms)
        torch.testing.assert_close((shares * loss.bound).sum(), terms.sum())
    torch.testing.assert_close(made.training_loss(logits, x0, sample, times).bound.mean(), terms.sum())


def test_the_term_of_the_last_step_is_the_likelihood():
    """It is minus the log-probability of x_0, whether a token is masked or not."""
    made = scheduler(mask_share=0.6)
    logits = torch.randn(1, 2, CODEBOOK_SIZE, generator=generator(), dtype=torch.float64)
    x0, sample = torch.tensor([[0, 1]]), torch.tensor([[CODEBOOK_SIZE, 1]])
    terms = made.bound_terms(logits, x0, sample, torch.tensor([1]))
    p0 = logits.softmax(-1)[0]
    assert terms[0, 0].item() == pytest.approx(-p0[0, 0].log().item())
    assert terms[0, 1].item() == pytest.approx(-p0[1, 1].log().item())


# The auxiliary loss


def test_the_auxiliary_loss_is_the_weighted_cross_entropy():
    x0, times = torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([1, 3, 10])
    logits = torch.randn(3, 2, CODEBOOK_SIZE, generator=generator())
    entropy = -logits.log_softmax(-1).gather(-1, x0[..., None]).sum((1, 2))
    for adaptive, scale in ((True, torch.tensor([2.0, 1.8, 1.1])), (False, torch.ones(3))):
        made = scheduler(times=10, auxiliary_weight=0.01, adaptive_auxiliary=adaptive)
        loss = made.training_loss(logits, x0, x0, times, torch.full((3,), 0.5))
        torch.testing.assert_close(loss.auxiliary, 0.02 * scale * entropy)
        torch.testing.assert_close(loss.loss, loss.bound + loss.auxiliary)


# The gradient, and dtypes


@KINDS
@pytest.mark.parametrize("time", [1, 3, 5])
def test_the_gradient_of_the_loss_equals_finite_differences(mask_share, time):
    made = scheduler(mask_share=mask_share, auxiliary_weight=0.1)
    x0, times = torch.tensor([[0, 1, 2, 1]]), torch.tensor([time])
    sample = made.add_noise(x0, times, generator(1))
    logits = torch.randn(1, 4, CODEBOOK_SIZE, generator=generator(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: made.training_loss(values, x0, sample, times).loss, logits)
    (gradient,) = torch.autograd.grad(made.training_loss(logits, x0, sample, times).loss.sum(), logits)
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@KINDS
def test_losses_are_finite_in_any_dtype_and_for_certain_models(mask_share, dtype):
    made = scheduler(times=100, mask_share=mask_share)
    x0 = torch.randint(CODEBOOK_SIZE, (4, 8), generator=generator())
    timesteps = torch.tensor([1, 2, 50, 100])
    sample = made.add_noise(x0, timesteps, generator(1))
    for scale in (1.0, 1e3):
        logits = (scale * torch.randn(4, 8, CODEBOOK_SIZE, generator=generator(2))).to(dtype).requires_grad_()
        loss = made.training_loss(logits, x0, sample, timesteps)
        for part in (loss.loss, loss.bound, loss.auxiliary, loss.prior, loss.term):
            assert torch.isfinite(part).all() and part.shape == (4,) and (part > -1e-3).all()
            assert part.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        loss.loss.sum().backward()
        assert torch.isfinite(logits.grad).all()


# MaskGIT's loss


def test_terms_of_absorbing_diffusion_are_weighted_cross_entropies():
    """With b = 0, the weight depends only on the time, and tokens that are not masked contribute 0."""
    made = scheduler(times=10, mask_share=1.0, masking_schedule="cosine")
    x0 = torch.randint(CODEBOOK_SIZE, (2, 6), generator=generator())
    logits = torch.randn(2, 6, CODEBOOK_SIZE, generator=generator(1))
    for t in (1, 4, 10):
        timesteps = torch.full((2,), t)
        sample = made.add_noise(x0, timesteps, generator(2))
        terms = made.bound_terms(logits, x0, sample, timesteps)
        entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        early, late = made.cumulative.mask[t - 1], made.cumulative.mask[t]
        weight = ((late - early) / late).item()
        torch.testing.assert_close(
            terms, torch.where(sample == CODEBOOK_SIZE, weight * entropy, 0.0), rtol=1e-4, atol=1e-5
        )


class Toy:
    """An image of four tokens, and the cross-entropies of a model for each way to mask them, (16, 4)."""

    tokens = 4
    masked = torch.tensor(list(itertools.product([False, True], repeat=4)))
    logits = torch.randn(16, 4, CODEBOOK_SIZE, generator=generator(3), dtype=torch.float64)
    image = torch.tensor([0, 2, 1, 1])
    entropies = -logits.log_softmax(-1)[:, range(4), image]
    counts = masked.sum(-1)

    @classmethod
    def mean_of(cls, count: int) -> float:
        """The mean cross-entropy of masked tokens over all ways to mask `count` of them."""
        chosen = cls.counts == count
        return (cls.entropies[chosen] * cls.masked[chosen]).sum().item() / (count * chosen.sum().item())


@pytest.mark.parametrize("masking_schedule", ["linear", "cosine"])
def test_the_absorbing_bound_is_a_sum_over_the_number_of_masked_tokens(masking_schedule):
    """In the limit of many steps, each number of masked tokens counts once, for any schedule."""
    made = scheduler(times=3000, mask_share=1.0, masking_schedule=masking_schedule)
    sample = torch.where(Toy.masked, CODEBOOK_SIZE, Toy.image)
    total = 0.0
    for way in range(16):
        if Toy.counts[way] == 0:
            continue
        times = torch.arange(1, 3001)
        share = made.cumulative.mask[1:]
        chances = share ** Toy.counts[way] * (1 - share) ** (Toy.tokens - Toy.counts[way])
        expanded = (value[way].expand(3000, *value[way].shape) for value in (Toy.logits, sample))
        logits, states = expanded
        terms = made.bound_terms(logits, Toy.image.expand(3000, -1), states, times).sum(-1)
        total += (chances * terms).sum().item()
    assert total == pytest.approx(sum(Toy.mean_of(count) for count in range(1, 5)), rel=2e-3)


def test_the_maskgit_loss_weights_the_same_sum_by_its_schedule():
    """Its mean is `sum_n P(n) L(n)`: the bound `sum_n L(n)`, weighted with the probability that n tokens are masked."""
    image = Toy.image.expand(20_000, -1)
    _, masked = mask_tokens(image, CODEBOOK_SIZE, generator())
    way = (masked * torch.tensor([8, 4, 2, 1])).sum(-1)
    drawn = (Toy.entropies[way] * masked).sum(-1) / masked.sum(-1)
    # the values of u where 4 cos(pi u / 2) passes n + 1/2
    edges = [1.0] + [2 / math.pi * math.acos((n + 0.5) / 4) for n in range(1, 4)] + [0.0]
    chances = [early - late for early, late in itertools.pairwise(edges)]
    assert sum(chances) == pytest.approx(1)
    shares = masked.sum(-1).bincount(minlength=5)[1:] / len(masked)
    torch.testing.assert_close(shares, torch.tensor(chances), rtol=0, atol=0.015)
    wanted = sum(chance * Toy.mean_of(n) for n, chance in enumerate(chances, 1))
    assert drawn.mean().item() == pytest.approx(wanted, abs=4 * drawn.std().item() / len(drawn) ** 0.5)


# Times


def test_importance_sampling_leaves_the_mean_unchanged():
    made = scheduler(times=4)
    for _ in range(10):
        made.update_history(torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 1.0, 4.0, 2.0]))
    times, probabilities = made.sample_timesteps(20_000, generator(), importance=True)
    assert times.min() == 1 and times.max() == 4
    counts = times.bincount(minlength=5)[1:] / len(times)
    torch.testing.assert_close(counts, torch.tensor([4, 1, 4, 2]) / 11, rtol=0, atol=0.02)
    wanted = torch.tensor([5.0, 6.0, 7.0, 8.0])
    assert (wanted[times - 1] / probabilities).mean().item() == pytest.approx(26, rel=0.03)


def test_times_are_uniform_until_each_has_a_history():
    made = scheduler(times=3)
    for _ in range(10):
        made.update_history(torch.tensor([1, 2]), torch.tensor([9.0, 1.0]))
    assert (made.sample_timesteps(5, generator(), importance=True)[1] == torch.tensor(1 / 3)).all()
    for _ in range(10):
        made.update_history(torch.tensor([3]), torch.tensor([3.0]))
    found = dict(zip(*(x.tolist() for x in made.sample_timesteps(50, generator(), importance=True)), strict=True))
    assert found == pytest.approx({1: 3 / 7, 2: 1 / 7, 3: 3 / 7})
    times, uniform = made.sample_timesteps(50, generator())
    assert (uniform == torch.tensor(1 / 3)).all() and times.unique().tolist() == [1, 2, 3]


def test_the_history_is_an_exponential_moving_average():
    made = scheduler(times=2)
    for term in (2.0, 4.0, 0.0):
        made.update_history(torch.tensor([2]), torch.tensor([term], requires_grad=True))
    assert made.squared_losses.tolist() == pytest.approx([0, 0.9 * (0.9 * 4 + 0.1 * 16)])
    assert made.loss_counts.tolist() == [0, 3]


# Bad input


def test_one_time_for_several_terms_changes_nothing():
    made = scheduler(times=2)
    with pytest.raises(ValueError, match=r"`timesteps` must be of shape \(2,\), got \(1,\)"):
        made.update_history(torch.tensor([2]), torch.tensor([1.0, 2.0]))
    assert made.squared_losses.tolist() == [0, 0] and made.loss_counts.tolist() == [0, 0]


def test_wrong_input_is_refused():
    made = scheduler()
    x0, logits = torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, CODEBOOK_SIZE)
    with pytest.raises(ValueError, match=r"`timesteps` must be from 1 to 5, got \[0, 3\]"):
        made.training_loss(logits, x0, x0, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"`timesteps` must be of shape \(2,\), got \(3,\)"):
        made.training_loss(logits, x0, x0, torch.tensor([1, 2, 3]))
    with pytest.raises(
        ValueError, match=r"`original_samples` must have the shape of `sample`, \(2, 2\), got \(1, 2\)"
    ):
        made.training_loss(logits, x0[:1], x0, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="`model_output` must have 3 logits per token, .* got 4"):
        made.training_loss(torch.zeros(2, 2, 4), x0, x0, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"`model_output` must be \(batch, tokens, codebook\)"):
        made.training_loss(logits[0], x0, x0, torch.tensor([1, 2]))
