"""Discrete diffusion by masking and replacing, as in VQ-Diffusion (arXiv:2111.14822). docs/mathematics.md derives it."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch.nn import functional as F

from .mask_and_replace import (
    Transition,
    ancestor,
    cumulative,
    kl_divergence,
    log_posterior,
    noised,
    prior_divergence,
    redraw_unlikely,
)
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    DiscreteSchedulerMixin,
    Generators,
    TokenSchedulerOutput,
    check_step_inputs,
    gumbel_noise,
    sample_categorical,
    sample_uniform,
    skip_categorical,
)


@dataclass
class MaskAndReplaceLoss:
    """
    Output of [`MaskAndReplaceScheduler.training_loss`], each of shape (batch,), in nats, summed over the tokens.

    Args:
        loss: `bound + auxiliary`, what to train on.
        bound: the term of the variational bound at each sample's time over the probability of that time: its mean,
            plus `prior`, is the whole bound.
        auxiliary: weighted cross-entropy of x_0.
        prior: the bound's constant term at the last time, not part of `loss`.
        term: the term itself, for `update_history`.
    """

    loss: torch.Tensor
    bound: torch.Tensor
    auxiliary: torch.Tensor
    prior: torch.Tensor
    term: torch.Tensor


class MaskAndReplaceScheduler(DiscreteSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    The discrete diffusion of VQ-Diffusion: a token stays, is replaced by a uniformly random one, or is masked.

    Of the tokens that are lost up to time t, the share `mask_share` is masked and the rest replaced. `mask_share` 1 is
    absorbing diffusion, which Show-o is trained for; 0 is the uniform kind (D3PM, arXiv:2107.03006). The model predicts
    x_0. Steps of any stride use the closed-form posterior, see `mask_and_replace`.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size K.
        num_train_timesteps (`int`, defaults to 100): times T of the forward process.
        masking_schedule (`str`, defaults to `"linear"`): the share of tokens that is lost at time t is this schedule at
            `1 - t / T`, as in the other schedulers at that share of the sampling: "linear", "cosine", "sigmoid" or
            "pow<n>".
        mask_share (`float`, defaults to 0.9): share, in [0, 1], of lost tokens that are masked.
        truncation_rate (`float`, defaults to 1.0): x_0 is drawn from the most likely codes whose probabilities reach
            this sum (VQ-Diffusion's truncated sampling), in (0, 1].
        purity (`bool`, defaults to False): masked tokens are filled in where the model is surest, as many as otherwise
            (purity prior sampling, arXiv:2205.16007).
        purity_weight (`float`, defaults to 0.0): r in the probabilities `p^(1 + r max p)` that x_0 is drawn from, not
            negative; sharper where the model is sure (the same paper, equation 11).
        auxiliary_weight (`float`, defaults to 5e-4): factor on the cross-entropy of x_0 in the training loss.
        adaptive_auxiliary (`bool`, defaults to True): multiply it by `2 - (t - 1) / T`.

    Attributes:
        squared_losses, loss_counts (`torch.Tensor` of shape `(num_train_timesteps,)`): what `update_history` was told.
            Save them beside a training's checkpoint if it samples times by importance.
    """

    @register_to_config
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
        if num_train_timesteps < 1:
            raise ValueError(f"`num_train_timesteps` must be at least 1, got {num_train_timesteps}.")
        if not 0 <= mask_share <= 1:
            raise ValueError(f"`mask_share` must be from 0 to 1, got {mask_share}.")
        if not 0 < truncation_rate <= 1:
            raise ValueError(f"`truncation_rate` must be above 0 and at most 1, got {truncation_rate}.")
        for name, weight in (("purity_weight", purity_weight), ("auxiliary_weight", auxiliary_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"`{name}` must be a finite number that is not negative, got {weight}.")
        times = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        lost = get_masking_schedule(masking_schedule)(1 - times).clamp(0, 1)
        lost[0], lost[-1] = 0.0, 1.0  # exactly, so that nothing of the image is left at T
        self.cumulative = cumulative(1 - lost, mask_share * lost, mask_token_id)
        self.num_inference_steps: int | None = None
        self.timesteps: torch.LongTensor | None = None
        self.squared_losses = torch.zeros(num_train_timesteps, dtype=torch.float64)
        self.loss_counts = torch.zeros(num_train_timesteps, dtype=torch.long)

    @property
    def num_codes(self) -> int:
        """Codes of the codebook, K."""
        return self.config.mask_token_id

    @property
    def needs_all_logits(self) -> bool:
        """Whether tokens that are not masked may change, so that their logits count; not in absorbing diffusion."""
        return self.config.mask_share < 1

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        grid_size: tuple[int, int] | None = None,
    ):
        """
        Prepare `num_inference_steps` steps, from 1 to `num_train_timesteps`, spread evenly; `timesteps` counts down from T.

        `grid_size` is taken for the sake of other schedulers.
        """
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(
                f"`num_inference_steps` must be from 1 to `num_train_timesteps` ({total}), got {num_inference_steps}."
            )
        self.num_inference_steps = num_inference_steps
        times = [step * total // num_inference_steps for step in range(num_inference_steps, -1, -1)]
        self.timesteps = torch.tensor(times[:-1], device=device)
        self.earlier = dict(
            zip(times[:-1], times[1:], strict=True)
        )  # the time that each step leads to; 0 is the image

    def at(self, timesteps: torch.LongTensor) -> Transition:
        """The transition from time 0 to each of `timesteps` (batch,), as (batch, 1)."""
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
        One step back in time: draws x_0 from the model, then the earlier tokens from the posterior, given x_0.

        That gives the mixture over x_0 of the paper without its (batch, tokens, K + 1) table.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits of x_0, guided ones if there is
                guidance; at all tokens, or at masked ones if not `needs_all_logits`.
            timestep (`int`): an entry of `timesteps`.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): codes; `mask_token_id` where masked.
            generator (`torch.Generator` or a list with one a sample, *optional*).

        Raises:
            ValueError: for shapes that do not fit, another `timestep`, a list of generators of another length, or a
                missing `set_timesteps`.
        """
        check_step_inputs(model_output, sample, self.num_inference_steps)
        self.check_codebook(model_output)
        time = int(timestep)
        if time not in self.earlier:
            raise ValueError(f"`timestep` must be one of `timesteps`, {list(self.earlier)}, got {time}.")
        probabilities = model_output.float().softmax(-1)  # (batch, tokens, K)
        guess = self.draw_original(probabilities, generator)
        if not self.needs_all_logits:
            guess = torch.where(sample == self.num_codes, guess, sample)
        stays, moves = sample_uniform(sample, generator), sample_uniform(sample, generator)
        codes = self.random_codes(sample, generator)
        if self.config.purity:
            stays = purest_first(stays, probabilities, sample == self.num_codes, generator)
        early, late = (self.at(torch.tensor([t])) for t in (self.earlier[time], time))
        prev_sample = ancestor(sample, guess, early, late, (stays, moves), codes, self.num_codes)
        finished = self.earlier[time] == 0
        if not self.needs_all_logits and not finished:
            finished = not bool((prev_sample == self.num_codes).any())
        if not return_dict:
            return prev_sample, guess, finished
        return TokenSchedulerOutput(prev_sample=prev_sample, pred_original_sample=guess, finished=finished)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step, for steps that are left out behind an image that is done."""
        skip_categorical(sample, self.num_codes, generator)
        uniforms = 3 + (self.config.truncation_rate < 1) + self.config.purity
        for _ in range(uniforms):
            sample_uniform(sample, generator)

    def initial_sample(self, sample: torch.LongTensor, generator: Generators = None) -> torch.LongTensor:
        """
        Where sampling starts: unknown tokens, given as masks, become draws from the prior of the last time.

        That is the mask with probability C_T, else any code. With `mask_share` 1 it is the mask always.
        """
        uniform = sample_uniform(sample, generator)
        codes = self.random_codes(sample, generator)
        replaced = (sample == self.num_codes) & (uniform >= self.cumulative.mask[-1].item())
        return torch.where(replaced, codes, sample)

    def draw_original(self, probabilities: torch.Tensor, generator: Generators = None) -> torch.LongTensor:
        """Draws of x_0, (batch, tokens), from (batch, tokens, K) probabilities, sharpened and truncated by the config."""
        if self.config.purity_weight > 0:
            power = 1 + self.config.purity_weight * probabilities.amax(-1, keepdim=True)
            probabilities = (power * probabilities.log()).softmax(-1)
        drawn = sample_categorical(probabilities, generator)
        if self.config.truncation_rate < 1:
            uniform = sample_uniform(drawn, generator)
            drawn = redraw_unlikely(probabilities, drawn, uniform, self.config.truncation_rate)
        return drawn

    def random_codes(self, like: torch.LongTensor, generator: Generators) -> torch.LongTensor:
        """Uniformly random codes of the shape (batch, tokens) of `like`."""
        return (sample_uniform(like, generator) * self.num_codes).long().clamp(max=self.num_codes - 1)

    # Training

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.LongTensor:
        """
        A draw from `q(x_t | x_0)`.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch, tokens)`): codes.
            timesteps (`int` or `torch.LongTensor` of shape `()` or `(batch,)`): 0 (no noise) to `num_train_timesteps`.

        Raises:
            ValueError: for other times, or another number of them.
        """
        times = torch.as_tensor(timesteps).reshape(-1)
        self.check_times(times, len(original_samples), first=0)
        uniform = sample_uniform(original_samples, generator)
        codes = self.random_codes(original_samples, generator)
        return noised(original_samples, self.at(times), uniform, codes, self.num_codes)

    def sample_timesteps(
        self, batch_size: int, generator: torch.Generator | None = None, importance: bool = False
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Times to train at, and the probability with which each was drawn, both (batch,), on the generator's device.

        Args:
            importance: draw t with weights `sqrt(E[L_t^2])` of the terms told to `update_history`, once each time has
                ten of them (Improved DDPM, arXiv:2102.09672, section 3.3); uniformly until then.
        """
        weights = torch.ones(self.config.num_train_timesteps, dtype=torch.float64)
        if importance and bool((self.loss_counts >= 10).all()):
            weights = self.squared_losses.sqrt() + 1e-10
            weights[0] = weights[1:].max() if len(weights) > 1 else 1.0  # the likelihood term is of another size
        probabilities = (weights / weights.sum()).float().to("cpu" if generator is None else generator.device)
        drawn = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
        return drawn + 1, probabilities[drawn]

    def update_history(self, timesteps: torch.LongTensor, terms: torch.Tensor):
        """Note the `term` of the training loss, (batch,), at `timesteps` (batch,)."""
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
        The variational bound's term at each sample's time, (batch, tokens) in nats; arguments as in `training_loss`.

        It is `KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))`; at t = 1 that is the likelihood term `-log p(x_0 | x_1)`.
        """
        late, early = self.at(timesteps), self.at(timesteps - 1)
        log_p0 = in_full(model_output).log_softmax(-1)
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
        The variational bound and the auxiliary loss of x_0 of VQ-Diffusion, in float32, or float64 if the logits are.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits of x_0 from `sample`.
            original_samples, sample (`torch.LongTensor` of shape `(batch, tokens)`): x_0, and x_t from `add_noise`.
            timesteps (`torch.LongTensor` of shape `(batch,)`): t, from 1 to `num_train_timesteps`.
            probabilities (`torch.Tensor` of shape `(batch,)`, *optional*): of having drawn t; uniform by default.

        Raises:
            ValueError: for shapes that do not fit, or other times.
        """
        check_step_inputs(model_output, sample, num_inference_steps=1)
        self.check_codebook(model_output)
        if original_samples.shape != sample.shape:
            raise ValueError(
                f"`original_samples` must have the shape of `sample`, {tuple(sample.shape)}, "
                f"got {tuple(original_samples.shape)}."
            )
        total = self.config.num_train_timesteps
        self.check_times(timesteps, len(sample), first=1)
        logits = in_full(model_output)
        term = self.bound_terms(logits, original_samples, sample, timesteps).sum(-1)
        weight = total if probabilities is None else 1 / probabilities.to(logits)
        entropy = F.cross_entropy(logits.transpose(1, 2), original_samples, reduction="none").sum(-1)
        scale = 2 - (timesteps.to(logits) - 1) / total if self.config.adaptive_auxiliary else 1.0
        bound, auxiliary = weight * term, weight * self.config.auxiliary_weight * scale * entropy
        last = Transition(self.cumulative.keep[-1], self.cumulative.replace[-1], self.cumulative.mask[-1])
        prior = (prior_divergence(last, self.num_codes) * sample.shape[1]).to(bound).expand_as(bound)
        return MaskAndReplaceLoss(bound + auxiliary, bound, auxiliary, prior, term)

    # Checks

    def check_codebook(self, model_output: torch.Tensor):
        """Raise `ValueError` unless there is a logit for each code."""
        if model_output.shape[-1] != self.num_codes:
            raise ValueError(
                f"`model_output` must have a logit for each of the {self.num_codes} codes below `mask_token_id`, "
                f"got {model_output.shape[-1]}."
            )

    def check_times(self, timesteps: torch.LongTensor, batch_size: int, first: int):
        """Raise `ValueError` unless `timesteps` are one or `batch_size` times from `first` to the last."""
        total = self.config.num_train_timesteps
        if timesteps.ndim != 1 or len(timesteps) not in (1, batch_size):
            raise ValueError(f"`timesteps` must be of shape ({batch_size},), got {tuple(timesteps.shape)}.")
        if timesteps.min() < first or timesteps.max() > total:
            raise ValueError(f"`timesteps` must be from {first} to {total}, got {timesteps.tolist()}.")

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def purest_first(
    uniform: torch.Tensor, probabilities: torch.Tensor, masked: torch.BoolTensor, generator: Generators
) -> torch.Tensor:
    """
    `uniform` (batch, tokens) handed out anew among the masked tokens: low values, which keep the mask, where the model is
    unsure. As many are low as before.

    The places are drawn without replacement with weights `max p`, by Gumbel noise on their logarithms.
    """
    scores = probabilities.amax(-1).clamp(1e-20).log() + gumbel_noise(uniform, generator)
    ranks = torch.where(masked, scores, torch.inf).argsort(-1).argsort(-1)  # the masked ones come first
    handed_out = torch.where(masked, uniform, torch.inf).sort(-1).values.gather(-1, ranks)
    return torch.where(masked, handed_out, uniform)


def in_full(values: torch.Tensor) -> torch.Tensor:
    """In float32 if they are of half precision."""
    return values if values.dtype == torch.float64 else values.float()
