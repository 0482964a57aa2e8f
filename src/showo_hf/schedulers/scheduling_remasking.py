"""Masking sampled tokens again: Mask-Predict (arXiv:1904.09324) and ReMDM (arXiv:2503.00307)."""

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import MAX_SCALE, check_choice, check_number, check_share
from .masked_diffusion import MaskedSchedulerMixin, SampledTokens, annealed_temperatures
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_filter,
    gumbel_noise,
    register_arguments,
    sample_uniform,
)


class RemaskingScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Mask tokens of earlier steps again, so that the model can correct them (Mask-Predict, ReMDM).

    There are two rules. Let s(r) be the masking schedule at the share r of the steps, and F the number of tokens that
    were not given.

    - "mask_predict" (Mask-Predict, arXiv:1904.09324, section 3.1): a step samples every masked token and stores its
      confidence, `log p + temperature * gumbel`. It then masks the `max(1, min(F - 1, floor(F * s)))` tokens with the
      lowest stored confidence, from whichever step. The paper takes the most likely tokens without noise (`top_k=1`,
      `temperature=0`).
    - "remdm" (ReMDM, arXiv:2503.00307, equation 5): with a = 1 - s before the step and b = 1 - s after it, a sampled
      token is masked with probability sigma, and a masked token is unmasked with probability
      `(b - (1 - sigma) a) / (1 - a)`. This keeps the expected share of known tokens on the schedule. sigma is at most
      `limit = min(1, (1 - b) / a)`. It is `min(eta, limit)` with "cap", and `eta * limit` with "rescale".

    Given tokens are never masked: those known at the first step, and those that the caller changes between two steps.
    The scheduler stores the given tokens, the confidences and the latest sample from the first step after
    `set_timesteps` to the last. Call `set_timesteps` before another batch, and do not use one scheduler for two
    batches at a time. The last step masks none.

    Args:
        mask_token_id (`int`, defaults to 8192): id of the mask token. Must be the codebook size.
        rule (`str`, defaults to `"mask_predict"`): "mask_predict" or "remdm".
        masking_schedule (`str`, defaults to `"cosine"`): "cosine", "arccos", "linear", "sigmoid" or "pow<n>".
        temperature (`float`, defaults to 1.0): scale of the confidence noise of "mask_predict", unless `set_timesteps`
            gets one. "remdm" has no confidences.
        temperature_rule (`str`, defaults to `"compound"`): how the scale decreases; see [`MaskGITScheduler`].
        sigma_rule (`str`, defaults to `"cap"`): "cap" or "rescale", for "remdm".
        eta (`float`, defaults to 0.05): for "remdm", from 0 (never mask again) to 1. More steps need a lower value.
        top_k (`int`, *optional*): sample only from the `top_k` most likely tokens; at least 1.
        top_p (`float`, *optional*): sample only from the most likely tokens that reach this total probability, in (0, 1].
            Confidences use the probabilities before `top_k` and `top_p`.

    Raises:
        ValueError: if an argument is out of range.
    """

    @register_arguments
    def __init__(
        self,
        mask_token_id: int = 8192,
        rule: str = "mask_predict",
        masking_schedule: str = "cosine",
        temperature: float = 1.0,
        temperature_rule: str = "compound",
        sigma_rule: str = "cap",
        eta: float = 0.05,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        check_choice("rule", rule, ("mask_predict", "remdm"))
        get_masking_schedule(masking_schedule)
        check_number("temperature", temperature, most=MAX_SCALE)
        check_choice("temperature_rule", temperature_rule, ("compound", "linear"))
        check_choice("sigma_rule", sigma_rule, ("cap", "rescale"))
        check_share("eta", eta)
        check_filter(top_k, top_p)
        self.temperatures: list[float] = []
        self.clear_state()

    def clear_state(self):
        """Discard the stored tensors of a batch, each (batch, tokens)."""
        self.given = None  # bool, whether a token was given
        self.confidence = None  # float32, stored when a token was sampled
        self.latest = None  # int64, the latest `prev_sample`

    def reset(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Compute the temperature of each step and clear the state. `temperature` replaces the one in the config."""
        temperature = self.config.temperature if temperature is None else temperature
        self.temperatures = annealed_temperatures(temperature, self.num_inference_steps, self.config.temperature_rule)
        self.clear_state()

    def prepare_step(self, step: int, sample: torch.LongTensor, masked: torch.BoolTensor, generator: Generators):
        """Update which tokens are given: those known at the first step, and those changed since the previous step."""
        if step == 0 or self.latest is None:
            self.given = ~masked
            self.confidence = torch.zeros(sample.shape, device=sample.device)
        elif self.latest.shape != sample.shape:
            raise ValueError(
                f"`sample` must be {tuple(self.latest.shape)}, as at the step before, got {tuple(sample.shape)}; "
                "call `set_timesteps` before another batch."
            )
        else:
            self.given = (self.given | (sample != self.latest)) & ~masked

    def next_mask(
        self, step: int, masked: torch.BoolTensor, sampled: SampledTokens, generator: Generators
    ) -> torch.BoolTensor | None:
        """Select tokens by the rule among all that were not given."""
        free = ~self.given
        # Both rules draw one uniform number per token in every step, so the generator's state is always the same.
        if self.config.rule == "mask_predict":
            noise = gumbel_noise(sampled.sampled_tokens, generator)
            confidence = sampled.sampled_probs.clamp(1e-20).log() + self.temperatures[step] * noise
            self.confidence = torch.where(masked, confidence, self.confidence)
            next_mask = self.least_confident(step, free)
        else:
            next_mask = self.remdm_mask(step, masked, sample_uniform(sampled.sampled_tokens, generator)) & free
        return None if self.is_complete(step) else next_mask

    def finish_step(self, step: int, prev_sample: torch.LongTensor, finished: bool) -> bool:
        """Store the sample. An image without masked tokens is not finished while some may be masked again."""
        complete = self.is_complete(step)
        self.latest = prev_sample.clone()  # a callback may write to `prev_sample`
        if self.is_last(step):
            self.clear_state()
        return complete

    def is_complete(self, step: int) -> bool:
        """Whether no token is masked after a step: it is the last one, or no token may be masked."""
        # "mask_predict" does not mask the only token that was not given, since `num_masked_after` is 0 for it.
        min_free = int(self.config.rule == "mask_predict")
        return self.is_last(step) or bool(((~self.given).sum(-1) <= min_free).all())

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers `step` would draw, leaving `sample` unchanged."""
        self.advance_token_sampling(sample, generator)
        sample_uniform(sample, generator)

    def least_confident(self, step: int, free: torch.BoolTensor) -> torch.BoolTensor:
        """Select the tokens that "mask_predict" masks, (batch, tokens)."""
        num_free = free.sum(-1, keepdim=True)
        num_masked = self.num_masked_after(step, num_free, num_free)
        ranks = torch.where(free, self.confidence, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
        return free & (ranks < num_masked)

    def remdm_mask(self, step: int, masked: torch.BoolTensor, uniform: torch.Tensor) -> torch.BoolTensor:
        """Select the tokens that "remdm" masks, (batch, tokens), from uniform noise (batch, tokens)."""
        unmask, sigma = self.remdm_probabilities(step)
        return torch.where(masked, uniform >= unmask, uniform < sigma)

    def remdm_probabilities(self, step: int) -> tuple[float, float]:
        """Probabilities with which "remdm" unmasks a masked token, and masks a sampled token."""
        # `max`, because the cosine schedule ends slightly below 0.
        before, after = (max(0.0, self.mask_ratio(i / self.num_inference_steps).item()) for i in (step, step + 1))
        known = 1 - before
        limit = min(1.0, after / known) if known > 0 else 1.0
        sigma = min(self.config.eta, limit) if self.config.sigma_rule == "cap" else self.config.eta * limit
        return (1 - after - (1 - sigma) * known) / before, sigma
