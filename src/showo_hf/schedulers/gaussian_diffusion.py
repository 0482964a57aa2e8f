r"""Gaussian diffusion (DDPM, arXiv:2006.11239) and flow matching (arXiv:2210.02747). Pure functions on tensors.

Timesteps of DDPM count from 0, as in diffusers: `alphas_cumprod[t]` is the paper's `\bar\alpha_{t+1}`. The time of a flow is
the share t in [0, 1] of noise.
"""

import torch


def kept(alphas_cumprod: torch.Tensor, timestep: torch.LongTensor, like: torch.Tensor) -> torch.Tensor:
    """`alphas_cumprod` at timesteps (batch,), 1 before the first, in the shape that `like` broadcasts with."""
    padded = torch.cat((alphas_cumprod.new_ones(1), alphas_cumprod))
    return padded[timestep + 1].view(-1, *[1] * (like.ndim - 1))


def q_sample(
    sample: torch.Tensor, noise: torch.Tensor, timestep: torch.LongTensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    r"""A draw from q(x_t | x_0), `sqrt(\bar\alpha) x_0 + sqrt(1 - \bar\alpha) noise` (DDPM, equation 4)."""
    signal = kept(alphas_cumprod, timestep, sample)
    return signal.sqrt() * sample + (1 - signal).sqrt() * noise


def q_posterior(
    sample: torch.Tensor, noised: torch.Tensor, timestep: torch.LongTensor, alphas_cumprod: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Mean and variance of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7).

    Args:
        sample (`torch.Tensor` of shape `(batch, ...)`): x_0.
        noised (`torch.Tensor` of shape `(batch, ...)`): x_t.
        timestep (`torch.LongTensor` of shape `(batch,)`): t, from 0. At 0 the variance is 0 and the mean x_0.
        alphas_cumprod (`torch.Tensor` of shape `(timesteps,)`): products of `1 - beta`.
    """
    now, before = (kept(alphas_cumprod, t, sample) for t in (timestep, timestep - 1))
    alpha = now / before
    mean = before.sqrt() * (1 - alpha) / (1 - now) * sample + alpha.sqrt() * (1 - before) / (1 - now) * noised
    return mean, (1 - before) / (1 - now) * (1 - alpha)


def gaussian_kl(mean: torch.Tensor, variance: torch.Tensor, other_mean: torch.Tensor, other_variance: torch.Tensor):
    """KL divergence from a Gaussian to another, elementwise, in nats."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean).square() / other_variance)


def signal_to_noise(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    r"""`\bar\alpha / (1 - \bar\alpha)`."""
    return alphas_cumprod / (1 - alphas_cumprod)


def sample_bound_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    r"""
    The factor (timesteps,) of `|x_0 - \hat x_0|^2` in each term of DDPM's variational bound (equation 5).

    With the posterior's variance in both Gaussians, the KL divergence of step t > 0 is
    `(SNR(t-1) - SNR(t)) / 2 |x_0 - \hat x_0|^2` (arXiv:2107.00630, equation 13). The last term, -log p(x_0 | x_1), has the
    variance `beta_0` instead, as its posterior has none.
    """
    snr = signal_to_noise(alphas_cumprod)
    first = 1 / (2 * (1 - alphas_cumprod[:1]))
    return torch.cat((first, (snr[:-1] - snr[1:]) / 2))


def bound_weights(alphas_cumprod: torch.Tensor, prediction_type: str) -> torch.Tensor:
    r"""
    The factor (timesteps,) of the squared error of a prediction in each term of the bound.

    An error e of the noise is an error `sqrt((1 - \bar\alpha) / \bar\alpha) e` of x_0, an error e of v is an error
    `sqrt(1 - \bar\alpha) e` of x_0.

    Raises:
        ValueError: for another prediction type than "epsilon" and "v_prediction".
    """
    weights = sample_bound_weights(alphas_cumprod)
    if prediction_type == "epsilon":
        return weights / signal_to_noise(alphas_cumprod)
    if prediction_type == "v_prediction":
        return weights * (1 - alphas_cumprod)
    raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', got {prediction_type!r}.")


def flow_sample(sample: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The straight path `(1 - t) x_0 + t noise` at times (batch,) (arXiv:2210.02747, equation 22, time reversed)."""
    time = time.view(-1, *[1] * (sample.ndim - 1))
    return (1 - time) * sample + time * noise


def flow_bound_weights(time: torch.Tensor) -> torch.Tensor:
    r"""
    The density over t of the factor of a flow's squared error in the continuous bound, `(1 - t) / t`.

    The bound is the integral of `-SNR'(t) / 2 |x_0 - \hat x_0|^2` (arXiv:2107.00630, equation 17), with
    `SNR = ((1 - t) / t)^2` and `x_0 - \hat x_0 = t` times the error of the flow.
    """
    return (1 - time) / time


def target_of(sample: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, prediction_type: str) -> torch.Tensor:
    r"""
    What a network predicts: the noise, `sqrt(\bar\alpha) noise - sqrt(1 - \bar\alpha) x_0` (v, arXiv:2202.00512), or the
    flow `noise - x_0`. `signal` is \bar\alpha in the shape that `sample` broadcasts with; only v needs it.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return signal.sqrt() * noise - (1 - signal).sqrt() * sample
    return noise - sample
