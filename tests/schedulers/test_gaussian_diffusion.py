"""The formulas of continuous diffusion, as identities and against diffusers' schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from showo_hf.schedulers.gaussian_diffusion import (
    bound_weights,
    flow_bound_weights,
    flow_sample,
    gaussian_kl,
    kept,
    q_posterior,
    q_sample,
    sample_bound_weights,
    signal_to_noise,
    target_of,
)


STEPS = 50
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def draws(seed: int = 0, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_0, noise, and another guess of x_0, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 5, 5)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


def scheduler(schedule: str, prediction_type: str = "sample", kind=DDPMScheduler):
    made = kind(num_train_timesteps=STEPS, beta_schedule=schedule, prediction_type=prediction_type, clip_sample=False)
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.set_timesteps(STEPS)
    return made


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noising_is_the_schedulers(schedule):
    clean, noise, _ = draws()
    made = scheduler(schedule)
    timestep = torch.tensor([0, 7, 30, STEPS - 1])
    torch.testing.assert_close(
        q_sample(clean, noise, timestep, made.alphas_cumprod), made.add_noise(clean, noise, timestep)
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noising_step_by_step_is_noising_at_once(schedule):
    """q(x_t | x_0) has the mean and variance that the chain of q(x_t | x_{t-1}) = N(sqrt(1 - beta) x, beta) gives."""
    made = scheduler(schedule)
    mean, variance = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    alphas = made.alphas_cumprod / torch.cat((torch.ones(1, dtype=torch.float64), made.alphas_cumprod[:-1]))
    for alpha, product in zip(alphas, made.alphas_cumprod, strict=True):
        mean, variance = alpha.sqrt() * mean, alpha * variance + 1 - alpha
        torch.testing.assert_close(mean, product.sqrt())
        torch.testing.assert_close(variance, 1 - product)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time", [1, 20, STEPS - 1])
def test_posterior_is_bayes_rule(schedule, time):
    """q(x_{t-1} | x_t, x_0) q(x_t | x_0) = q(x_t | x_{t-1}) q(x_{t-1} | x_0), at random points."""
    clean, noised, before = draws()
    alphas = scheduler(schedule).alphas_cumprod
    timestep = torch.full((len(clean),), time)

    def log_density(point, mean, variance):
        return torch.distributions.Normal(mean, torch.as_tensor(variance).sqrt()).log_prob(point)

    def marginal(point, when):
        signal = kept(alphas, when, clean)
        return log_density(point, signal.sqrt() * clean, 1 - signal)

    mean, variance = q_posterior(clean, noised, timestep, alphas)
    alpha = alphas[time] / alphas[time - 1]
    left = log_density(before, mean, variance) + marginal(noised, timestep)
    right = log_density(noised, alpha.sqrt() * before, 1 - alpha) + marginal(before, timestep - 1)
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time", [1, 20, STEPS - 1])
def test_posterior_is_a_step_of_the_ddpm_scheduler(schedule, time):
    """With a model that knows x_0, a step draws from q(x_{t-1} | x_t, x_0): the same mean, and the same noise's factor."""
    clean, noised, _ = draws()
    made = scheduler(schedule)
    mean, variance = q_posterior(clean, noised, torch.full((len(clean),), time), made.alphas_cumprod)
    stepped = made.step(clean, time, noised, generator=torch.Generator().manual_seed(3)).prev_sample
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(stepped, mean + variance.sqrt() * noise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_step_of_the_chain_is_certain(schedule):
    clean, noised, _ = draws()
    alphas = scheduler(schedule).alphas_cumprod
    mean, variance = q_posterior(clean, noised, torch.zeros(len(clean), dtype=torch.long), alphas)
    torch.testing.assert_close(mean, clean)
    assert bool((variance == 0).all())


def test_the_end_of_the_chain_is_nearly_pure_noise():
    """The bound's prior term, the divergence of q(x_T | x_0) from N(0, 1), for pixels from -1 to 1."""
    alphas = DDPMScheduler().alphas_cumprod.double()
    assert len(alphas) == 1000 and alphas[-1] < 1e-4
    pixels = torch.linspace(-1, 1, 101, dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    prior = gaussian_kl(alphas[-1].sqrt() * pixels, 1 - alphas[-1], zero, one)
    assert 0 < prior.max() < 1e-4
    torch.testing.assert_close(prior, alphas[-1] * pixels.square() / 2, rtol=0, atol=1e-8)
    assert gaussian_kl(alphas[500].sqrt() * pixels, 1 - alphas[500], zero, one).max() > 1e-3


def test_the_end_of_a_flow_is_pure_noise():
    clean, noise, _ = draws()
    assert torch.equal(flow_sample(clean, noise, torch.ones(len(clean), dtype=torch.float64)), noise)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_large_variances_are_known_first(schedule):
    """The share of a Gaussian x_0's variance that the regression on x_t leaves, for small and large variances."""
    alphas = scheduler(schedule).alphas_cumprod
    one, every = torch.ones(STEPS, 1, dtype=torch.float64), torch.arange(STEPS)
    signal, noise = q_sample(one, 0 * one, every, alphas)[:, 0], q_sample(0 * one, one, every, alphas)[:, 0]
    left = {}
    for variance in (0.1, 1.0, 4.0):
        explained = (signal * variance).square() / (signal.square() * variance + noise.square())
        left[variance] = (variance - explained) / variance
        torch.testing.assert_close(left[variance], 1 / (1 + signal_to_noise(alphas) * variance))
        assert bool((left[variance].diff() > 0).all())  # less at each step back
    assert bool((left[4.0] < left[1.0]).all()) and bool((left[1.0] < left[0.1]).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_terms_of_the_bound_are_the_divergences_of_the_posteriors(schedule):
    clean, noised, guess = draws(count=1)
    alphas = scheduler(schedule).alphas_cumprod
    weights = sample_bound_weights(alphas)
    for time in (1, 2, 20, STEPS - 1):
        timestep = torch.tensor([time])
        right, variance = q_posterior(clean, noised, timestep, alphas)
        wrong, _ = q_posterior(guess, noised, timestep, alphas)
        found = gaussian_kl(right, variance, wrong, variance).sum()
        torch.testing.assert_close(found, weights[time] * (clean - guess).square().sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_first_term_of_the_bound_is_a_gaussian_likelihood(schedule):
    """-log N(x_0; x^, beta_0) without its constant."""
    clean, _, guess = draws(count=1)
    alphas = scheduler(schedule).alphas_cumprod
    beta = 1 - alphas[0]
    density = torch.distributions.Normal(guess, beta.sqrt()).log_prob(clean).sum()
    best = torch.distributions.Normal(clean, beta.sqrt()).log_prob(clean).sum()
    torch.testing.assert_close(best - density, sample_bound_weights(alphas)[0] * (clean - guess).square().sum())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_of_the_bound_sum_to_the_signal(schedule):
    """The differences of the signal-to-noise ratio telescope: finer steps change the bound only by where x_0 is guessed."""
    alphas = scheduler(schedule).alphas_cumprod
    snr = signal_to_noise(alphas)
    torch.testing.assert_close(sample_bound_weights(alphas)[1:].sum(), (snr[0] - snr[-1]) / 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_of_the_noise_are_those_of_ddpm(schedule):
    """Equation 12 of DDPM: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)), with sigma^2 the posterior's variance."""
    made = scheduler(schedule)
    alphas = made.alphas_cumprod
    alpha = alphas[1:] / alphas[:-1]
    variance = (1 - alphas[:-1]) / (1 - alphas[1:]) * (1 - alpha)
    expected = (1 - alpha).square() / (2 * variance * alpha * (1 - alphas[1:]))
    torch.testing.assert_close(bound_weights(alphas, "epsilon")[1:], expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wrong_prediction_costs_the_same_in_every_unit(schedule, kind):
    """The bound of a wrong noise or v is that of the x_0 that the scheduler makes of it."""
    clean, noise, error = draws()
    made = scheduler(schedule, kind, DDIMScheduler)
    alphas = made.alphas_cumprod
    for row, time in enumerate((1, 7, 30, STEPS - 1)):
        timestep = torch.tensor([time])
        noised = q_sample(clean[row : row + 1], noise[row : row + 1], timestep, alphas)
        target = target_of(clean[row], noise[row], alphas[time], kind)
        guess = made.step(target[None] + error[row : row + 1], time, noised).pred_original_sample
        cost = sample_bound_weights(alphas)[time] * (guess - clean[row]).square().sum()
        torch.testing.assert_close(bound_weights(alphas, kind)[time] * error[row].square().sum(), cost)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_a_wrong_flow_costs_what_its_image_costs(time):
    """The bound of a wrong flow is that of the x_0 to which the scheduler steps, -SNR' / 2 times its squared error."""
    clean, noise, error = (part.float() for part in draws())
    made = FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(sigmas=[time])
    times = torch.tensor([time], requires_grad=True)
    noised = flow_sample(clean, noise, times.detach())
    target = target_of(clean, noise, torch.ones(()), "flow_prediction")
    guess = made.step(target + error, made.timesteps[0], noised).prev_sample
    (slope,) = torch.autograd.grad(((1 - times) / times).square(), times)
    cost = -slope / 2 * (guess - clean).square().sum()
    torch.testing.assert_close(flow_bound_weights(times.detach()) * error.square().sum(), cost, rtol=1e-4, atol=0)


def test_v_is_the_schedulers():
    clean, noise, _ = draws()
    made = scheduler("linear", "v_prediction")
    timestep = torch.tensor([0, 7, 30, STEPS - 1])
    signal = kept(made.alphas_cumprod, timestep, clean)
    torch.testing.assert_close(
        target_of(clean, noise, signal, "v_prediction"), made.get_velocity(clean, noise, timestep)
    )


def test_flow_is_the_schedulers_path():
    clean, noise, _ = (part.float() for part in draws())
    made = FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(8)
    times = made.timesteps[:4] / 1000
    torch.testing.assert_close(flow_sample(clean, noise, times), made.scale_noise(clean, made.timesteps[:4], noise))


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_exact_flow_reaches_the_image_in_any_number_of_steps(steps):
    """The path of one pair of image and noise is straight."""
    clean, noise, _ = (part.float() for part in draws())
    made = FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(steps)
    sample = noise
    for timestep in made.timesteps:
        flow = target_of(clean, noise, torch.ones(()), "flow_prediction")
        sample = made.step(flow, timestep, sample).prev_sample
    torch.testing.assert_close(sample, clean, rtol=1e-5, atol=1e-5)


def test_the_flows_bound_is_the_limit_of_ddpms():
    """Steps of a chain with the flow's signal-to-noise ratio: their weights, in units of the flow, over the step."""
    times = torch.linspace(0.05, 0.95, 20_001, dtype=torch.float64)
    alphas = (1 - times).square() / ((1 - times).square() + times.square())
    discrete = sample_bound_weights(alphas)[1:] * times[1:].square()  # x_0 - x^ is t times the error of the flow
    torch.testing.assert_close(discrete / (times[1] - times[0]), flow_bound_weights(times)[1:], rtol=5e-3, atol=1e-6)


def test_divergence_of_gaussians_is_torchs():
    mean, other, spread = draws()
    variance, other_variance = spread.exp(), (spread / 2 + 0.3).exp()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(other, other_variance.sqrt())
    )
    torch.testing.assert_close(gaussian_kl(mean, variance, other, other_variance), expected)


def test_other_prediction_types_have_no_weights():
    with pytest.raises(ValueError, match="`prediction_type` must be 'epsilon' or 'v_prediction', got 'sample'"):
        bound_weights(torch.tensor([0.9, 0.5]), "sample")
