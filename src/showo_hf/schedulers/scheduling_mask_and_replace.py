"""Mask-and-replace diffusion, as in VQ-Diffusion (arXiv:2111.14822). docs/mathematics.md derives the formulas."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch.nn import functional as F

from ..utils.tensor_checks import check_tensor
from ..utils.validation import (
    MAX_COUNT,
    MAX_SCALE,
    check_count,
    check_flag,
    check_number,
    check_share,
    is_number,
    shown,
)
from .mask_and_replace_diffusion import (
    Transition,
    cumulative_transition,
    kl_divergence,
    log_posterior,
    prior_divergence,
    resample_truncated,
    sample_noised,
    sample_posterior,
)
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    DiscreteSchedulerMixin,
    Generators,
    TokenSchedulerOutput,
    advance_categorical,
    as_timestep,
    as_timesteps,
    check_generators,
    check_id_range,
    check_step_inputs,
    check_timestep_arguments,
    check_token_ids,
    gumbel_noise,
    register_arguments,
    sample_categorical,
    sample_uniform,
)


@dataclass
class MaskAndReplaceLoss:
    """
    Output of [`MaskAndReplaceScheduler.training_loss`]. Each tensor is (batch,), in nats, summed over the tokens.

    Args:
        loss: `bound + auxiliary`, the loss to train with.
        bound: the term of the variational bound at the sample's time, divided by the probability of that time. Its
            mean plus `prior` is the whole bound.
        auxiliary: the weighted cross-entropy of x_0.
        prior: the constant term of the bound at the last time. Not part of `loss`.
        term: the term of the bound before division, for `update_history`.
    """

    loss: torch.Tensor
    bound: torch.Tensor
    auxiliary: torch.Tensor
    prior: torch.Tensor
    term: torch.Tensor


class MaskAndReplaceScheduler(DiscreteSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Discrete diffusion that keeps a token, replaces it with a uniformly random one, or masks it (VQ-Diffusion).

    Of the tokens changed up to time t, the share `mask_share` is masked and the rest is replaced. `mask_share=1` is
    absorbing diffusion, which Show-o is trained for; 0 is uniform diffusion (D3PM, arXiv:2107.03006). The model
    predicts x_0. Steps of any stride use the closed-form posterior in `mask_and_replace_diffusion`.

    Args:
        mask_token_id (`int`, defaults to 8192): id of the mask token. Must be the codebook size K.
        num_train_timesteps (`int`, defaults to 100): number of times T of the forward process.
        masking_schedule (`str`, defaults to `"linear"`): the share of changed tokens at time t is this schedule at `1
            - t / T`: "linear", "cosine", "arccos", "sigmoid" or "pow<n>".
        mask_share (`float`, defaults to 0.9): share of the changed tokens that are masked, in [0, 1].
        truncation_rate (`float`, defaults to 1.0): sample x_0 from the smallest set of tokens that reaches this
            probability, in (0, 1] (VQ-Diffusion's truncated sampling).
        purity (`bool`, defaults to False): unmask the tokens that the model is most certain of; the number of tokens does
            not change (purity prior sampling, arXiv:2205.16007).
        purity_weight (`float`, defaults to 0.0): r in the probabilities `p^(1 + r max p)` that x_0 is sampled from, at
            least 0. Sharpens distributions that are already certain (arXiv:2205.16007, equation 11).
        auxiliary_weight (`float`, defaults to 5e-4): weight of the cross-entropy of x_0 in the training loss.
        adaptive_auxiliary (`bool`, defaults to True): multiply this weight by `2 - (t - 1) / T`.

    Attributes:
        squared_losses, loss_counts (`torch.Tensor` of shape `(num_train_timesteps,)`): the history that
            `update_history` writes. Save them with a training checkpoint if times are sampled by importance.

    Raises:
        ValueError: if an argument is out of range.
    """

    @register_arguments
    def __init__(
        self,
        mask_token_id: int = 8192,
        num_train_timesteps: int = 100,
        masking_schedule: str = "linear",
        mask_share: float = 0.9,
        truncation_rate: float = 1.0,
        purity: bool = False,
        purity_weight: float = 0.0,
        auxiliary_weight: float = 5e-4,
        adaptive_auxiliary: bool = True,
    ):
        check_count("num_train_timesteps", num_train_timesteps, most=MAX_COUNT)
        check_share("mask_share", mask_share)
        if not is_number(truncation_rate) or not 0 < truncation_rate <= 1:
            raise ValueError(f"`truncation_rate` must be above 0 and at most 1, got {shown(truncation_rate)}.")
        check_number("purity_weight", purity_weight, most=MAX_SCALE)
        check_number("auxiliary_weight", auxiliary_weight, most=MAX_SCALE)
        check_flag("purity", purity)
        check_flag("adaptive_auxiliary", adaptive_auxiliary)
        times = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        changed = get_masking_schedule(masking_schedule)(1 - times).clamp(0, 1)
        changed[0], changed[-1] = 0.0, 1.0  # exactly, so that x_T does not depend on x_0
        self.cumulative = cumulative_transition(1 - changed, mask_share * changed, mask_token_id)
        self.num_inference_steps: int | None = None
        self.timesteps: torch.LongTensor | None = None
        self.squared_losses = torch.zeros(num_train_timesteps, dtype=torch.float64)
        self.loss_counts = torch.zeros(num_train_timesteps, dtype=torch.long)

    @property
    def codebook_size(self) -> int:
        """Codebook size K."""
        return self.config.mask_token_id

    @property
    def needs_all_logits(self) -> bool:
        """Whether `step` reads the logits of known tokens, because it may replace them. Not in absorbing diffusion."""
        return self.config.mask_share < 1

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        grid_size: tuple[int, int] | None = None,
    ):
        """
        Set the number of steps. `timesteps` are evenly spaced and count down from T.

        Args:
            num_inference_steps (`int`): from 1 to `num_train_timesteps`.
            device: the device of `timesteps`.
            grid_size: ignored; part of the interface of all schedulers.

        Raises:
            ValueError: if `num_inference_steps` is out of range.
        """
        check_timestep_arguments(num_inference_steps, device, grid_size)
        total = self.config.num_train_timesteps
        if num_inference_steps > total:
            raise ValueError(
                f"`num_inference_steps` must be from 1 to `num_train_timesteps` ({total}), got {num_inference_steps}."
            )
        self.num_inference_steps = num_inference_steps
        times = [step * total // num_inference_steps for step in range(num_inference_steps, -1, -1)]
        self.timesteps = torch.tensor(times[:-1], device=device)
        self.previous_timesteps = dict(zip(times[:-1], times[1:], strict=True))  # the time after each step, at last 0

    def cumulative_at(self, timesteps: torch.LongTensor) -> Transition:
        """The transitions from time 0 to `timesteps` (batch,), as (batch, 1)."""
        values = (self.cumulative.keep, self.cumulative.replace, self.cumulative.mask)
        return Transition(*(value[timesteps.cpu()].unsqueeze(-1) for value in values))

    # Sampling

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TokenSchedulerOutput | tuple:
        """
        Sample x_0 from the model, then the tokens at the previous time from the posterior given x_0.

        This samples from the paper's mixture over x_0 without its (batch, tokens, K + 1) table.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits of x_0, after guidance. Only
                those of masked tokens matter if not `needs_all_logits`, but all must be finite or -inf.
            timestep (`int`): an entry of `timesteps`.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids; `mask_token_id` where masked.
            generator (`torch.Generator` or a list with one per sample, *optional*): source of all random draws.
            return_dict (`bool`): return a [`TokenSchedulerOutput`], else a tuple of its fields.

        Raises:
            TypeError: for an argument of another type.
            ValueError: if shapes do not fit, if `sample` holds ids below 0 or above `mask_token_id`, if logits are nan
                or inf, for another `timestep`, for a list of generators of another length, or if `set_timesteps` was
                not called.
        """
        check_flag("return_dict", return_dict)
        check_step_inputs(model_output, sample, self.num_inference_steps, self.codebook_size)
        check_generators(generator, len(sample))
        time = as_timestep("timestep", timestep)
        if time not in self.previous_timesteps:
            raise ValueError(
                f"`timestep` must be one of `timesteps`, {list(self.previous_timesteps)}, got {shown(time)}."
            )
        probabilities = model_output.float().softmax(-1)  # (batch, tokens, K)
        check_probabilities(probabilities)
        original = self.sample_original(probabilities, generator)
        if not self.needs_all_logits:
            original = torch.where(sample == self.codebook_size, original, sample)
        uniforms = sample_uniform(sample, generator), sample_uniform(sample, generator)
        random_tokens = self.random_tokens(sample, generator)
        if self.config.purity:
            masked = sample == self.codebook_size
            uniforms = reorder_by_purity(uniforms[0], probabilities, masked, generator), uniforms[1]
        previous_time = self.previous_timesteps[time]
        early, late = (self.cumulative_at(torch.tensor([t])) for t in (previous_time, time))
        prev_sample = sample_posterior(sample, original, early, late, uniforms, random_tokens, self.codebook_size)
        finished = previous_time == 0
        if not self.needs_all_logits and not finished:
            finished = not bool((prev_sample == self.codebook_size).any())
        if not return_dict:
            return prev_sample, original, finished
        return TokenSchedulerOutput(prev_sample=prev_sample, pred_original_sample=original, finished=finished)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers `step` would draw, leaving `sample` unchanged."""
        advance_categorical(sample, self.codebook_size, generator)
        uniforms = 3 + (self.config.truncation_rate < 1) + self.config.purity
        for _ in range(uniforms):
            sample_uniform(sample, generator)

    def initial_sample(self, sample: torch.LongTensor, generator: Generators = None) -> torch.LongTensor:
        """
        Replace masked tokens with samples of the prior at time T: the mask with probability C_T, else a random token.

        With `mask_share=1`, all of them stay masked.

        Args:
            sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids; `mask_token_id` where masked.
        """
        uniform = sample_uniform(sample, generator)
        random_tokens = self.random_tokens(sample, generator)
        replaced = (sample == self.codebook_size) & (uniform >= self.cumulative.mask[-1].item())
        return torch.where(replaced, random_tokens, sample)

    def sample_original(self, probabilities: torch.Tensor, generator: Generators = None) -> torch.LongTensor:
        """Sample x_0, (batch, tokens), from (batch, tokens, K) probabilities after `purity_weight` and truncation."""
        if self.config.purity_weight > 0:
            power = 1 + self.config.purity_weight * probabilities.amax(-1, keepdim=True)
            probabilities = (power * probabilities.log()).softmax(-1)
        sampled = sample_categorical(probabilities, generator)
        if self.config.truncation_rate < 1:
            uniform = sample_uniform(sampled, generator)
            sampled = resample_truncated(probabilities, sampled, uniform, self.config.truncation_rate)
        return sampled

    def random_tokens(self, like: torch.LongTensor, generator: Generators) -> torch.LongTensor:
        """Draw uniformly random codebook indices of the shape (batch, tokens) of `like`."""
        return (sample_uniform(like, generator) * self.codebook_size).long().clamp(max=self.codebook_size - 1)

    # Training

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.LongTensor:
        """
        Sample from `q(x_t | x_0)`.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch, tokens)`): token ids.
            timesteps (`int` or `torch.LongTensor` of shape `()` or `(batch,)`): from 0 (no noise) to
                `num_train_timesteps`.

        Raises:
            ValueError: if the times are out of range or of another shape.
        """
        check_token_ids("original_samples", original_samples)
        given = as_timesteps("timesteps", timesteps, len(original_samples))
        total = self.config.num_train_timesteps
        if min(given) < 0 or max(given) > total:
            raise ValueError(f"`timesteps` must be from 0 to {total}, got {shown(given)}.")
        times = torch.tensor(given)
        uniform = sample_uniform(original_samples, generator)
        random_tokens = self.random_tokens(original_samples, generator)
        return sample_noised(original_samples, self.cumulative_at(times), uniform, random_tokens, self.codebook_size)

    def sample_timesteps(
        self, batch_size: int, generator: torch.Generator | None = None, importance: bool = False
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Sample times to train at.

        Args:
            batch_size (`int`): how many times.
            generator (`torch.Generator`, *optional*): source of the random draws.
            importance (`bool`): sample t with weights `sqrt(E[L_t^2])` of the terms passed to `update_history`, once
                there are ten for each time (Improved DDPM, arXiv:2102.09672, section 3.3). Until then, sample uniformly.

        Returns:
            the times and their probabilities, both (batch,), on the generator's device.

        Raises:
            TypeError, ValueError: if an argument is not as above.
        """
        check_count("batch_size", batch_size, most=MAX_COUNT)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a `torch.Generator` or None, got {shown(generator)}.")
        check_flag("importance", importance)
        weights = torch.ones(self.config.num_train_timesteps, dtype=torch.float64)
        if importance and bool((self.loss_counts >= 10).all()):
            weights = self.squared_losses.sqrt() + 1e-10
            weights[0] = weights[1:].max() if len(weights) > 1 else 1.0  # the likelihood term has another scale
        probabilities = (weights / weights.sum()).float().to("cpu" if generator is None else generator.device)
        sampled = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
        return sampled + 1, probabilities[sampled]

    def update_history(self, timesteps: torch.LongTensor, terms: torch.Tensor):
        """
        Add the `term` of the training loss, (batch,), at `timesteps` (batch,) to the history.

        Raises:
            TypeError, ValueError: for times out of range, and for terms that are not as many finite floats.
        """
        check_tensor("terms", terms)
        if terms.ndim != 1 or not terms.is_floating_point() or not bool(terms.isfinite().all()):
            raise ValueError(f"`terms` must be finite floats of shape (batch,), got {shown(terms)}.")
        self.check_times(timesteps, len(terms))
        if len(timesteps) != len(terms):  # one time for several terms
            raise ValueError(f"`timesteps` must be of shape ({len(terms)},), got {tuple(timesteps.shape)}.")
        for time, term in zip(timesteps.tolist(), terms.detach().double().tolist(), strict=True):
            first = self.loss_counts[time - 1] == 0
            self.squared_losses[time - 1] = term**2 if first else 0.9 * self.squared_losses[time - 1] + 0.1 * term**2
            self.loss_counts[time - 1] += 1

    def bound_terms(
        self,
        model_output: torch.Tensor,
        original_samples: torch.LongTensor,
        sample: torch.LongTensor,
        timesteps: torch.LongTensor,
    ) -> torch.Tensor:
        """
        The term of the variational bound at each sample's time, (batch, tokens) in nats. Arguments and errors as in
        `training_loss`.

        It is `KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))`. At t = 1 this is the
        likelihood term `-log p(x_0 | x_1)`.
        """
        self.check_bound_inputs(model_output, original_samples, sample, timesteps)
        return self.divergences(model_output, original_samples, sample, timesteps)

    def divergences(
        self,
        model_output: torch.Tensor,
        original_samples: torch.LongTensor,
        sample: torch.LongTensor,
        timesteps: torch.LongTensor,
    ) -> torch.Tensor:
        """Same as `bound_terms`, for arguments that are checked."""
        late, early = self.cumulative_at(timesteps), self.cumulative_at(timesteps - 1)
        log_p0 = at_least_float32(model_output).log_softmax(-1)
        one_hot = torch.full_like(log_p0, -torch.inf).scatter(-1, original_samples.unsqueeze(-1), 0.0)
        log_q = log_posterior(one_hot, sample, early, late)
        return kl_divergence(log_q, log_posterior(log_p0, sample, early, late))

    def training_loss(
        self,
        model_output: torch.Tensor,
        original_samples: torch.LongTensor,
        sample: torch.LongTensor,
        timesteps: torch.LongTensor,
        probabilities: torch.Tensor | None = None,
    ) -> MaskAndReplaceLoss:
        """
        The variational bound and the auxiliary loss of VQ-Diffusion, in float32, or in float64 if the logits are.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits of x_0 given `sample`.
            original_samples, sample (`torch.LongTensor` of shape `(batch, tokens)`): x_0, and x_t from `add_noise`.
            timesteps (`torch.LongTensor` of shape `(batch,)`): t, from 1 to `num_train_timesteps`.
            probabilities (`torch.Tensor` of shape `(batch,)`, *optional*): the probabilities that t was sampled with;
                uniform by default.

        Raises:
            TypeError: for an argument of another type.
            ValueError: if shapes do not fit, or ids, times or probabilities are out of range.
        """
        self.check_bound_inputs(model_output, original_samples, sample, timesteps)
        if probabilities is not None:
            check_shares("probabilities", probabilities, len(sample))
        total = self.config.num_train_timesteps
        logits = at_least_float32(model_output)
        term = self.divergences(logits, original_samples, sample, timesteps).sum(-1)
        weight = total if probabilities is None else 1 / probabilities.to(logits)
        entropy = F.cross_entropy(logits.transpose(1, 2), original_samples, reduction="none").sum(-1)
        scale = 2 - (timesteps.to(logits) - 1) / total if self.config.adaptive_auxiliary else 1.0
        bound, auxiliary = weight * term, weight * self.config.auxiliary_weight * scale * entropy
        last = Transition(self.cumulative.keep[-1], self.cumulative.replace[-1], self.cumulative.mask[-1])
        prior = (prior_divergence(last, self.codebook_size) * sample.shape[1]).to(bound).expand_as(bound)
        return MaskAndReplaceLoss(bound + auxiliary, bound, auxiliary, prior, term)

    def check_bound_inputs(self, model_output, original_samples, sample, timesteps):
        """Raise `TypeError` or `ValueError` for arguments that `training_loss` does not take."""
        check_step_inputs(model_output, sample, num_inference_steps=1, mask_token_id=self.codebook_size)
        check_token_ids("original_samples", original_samples)
        if original_samples.shape != sample.shape:
            raise ValueError(
                f"`original_samples` must have the shape of `sample`, {tuple(sample.shape)}, "
                f"got {tuple(original_samples.shape)}."
            )
        check_id_range("original_samples", original_samples, self.codebook_size - 1)
        self.check_times(timesteps, len(sample))

    def check_times(self, timesteps: torch.LongTensor, batch_size: int):
        """Raise `TypeError` or `ValueError` unless `timesteps` are 1 or `batch_size` times from 1 to T."""
        total = self.config.num_train_timesteps
        check_tensor("timesteps", timesteps)
        if timesteps.is_floating_point() or timesteps.is_complex() or timesteps.dtype == torch.bool:
            raise ValueError(f"`timesteps` must be integers, got {timesteps.dtype}.")
        if timesteps.ndim != 1 or len(timesteps) not in (1, batch_size):
            raise ValueError(f"`timesteps` must be of shape ({batch_size},), got {tuple(timesteps.shape)}.")
        if timesteps.min() < 1 or timesteps.max() > total:
            raise ValueError(f"`timesteps` must be from 1 to {total}, got {shown(timesteps.tolist())}.")

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def check_shares(name: str, values: Any, batch_size: int):
    """Raise `TypeError` or `ValueError` unless `values` are `batch_size` probabilities above 0."""
    check_tensor(name, values)
    if values.shape != (batch_size,) or not values.is_floating_point():
        raise ValueError(f"`{name}` must be floats of shape ({batch_size},), got {shown(values)}.")
    if not bool(((values > 0) & (values <= 1)).all()):
        raise ValueError(f"`{name}` must be above 0 and at most 1, got {shown(values.tolist())}.")


def check_probabilities(probabilities: torch.Tensor):
    """Raise `ValueError` if a softmax (batch, tokens, K) came from logits that are nan or inf."""
    # The softmax of such a row is nan everywhere, so one column is enough.
    if not bool(probabilities[..., 0].isfinite().all()):
        raise ValueError("`model_output` must hold finite numbers or -inf, got nan or inf.")


def reorder_by_purity(
    uniform: torch.Tensor, probabilities: torch.Tensor, masked: torch.BoolTensor, generator: Generators
) -> torch.Tensor:
    """
    Permute `uniform` (batch, tokens) among the masked tokens, so that uncertain tokens get low values and stay masked.

    The order samples positions without replacement with weights `max p`, by adding Gumbel noise to the log-weights.
    """
    scores = probabilities.amax(-1).clamp(1e-20).log() + gumbel_noise(uniform, generator)
    ranks = torch.where(masked, scores, torch.inf).argsort(-1).argsort(-1)  # masked tokens come first
    permuted = torch.where(masked, uniform, torch.inf).sort(-1).values.gather(-1, ranks)
    return torch.where(masked, permuted, uniform)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Convert half-precision values to float32, and keep float64."""
    return values if values.dtype == torch.float64 else values.float()
