"""Confidence-based parallel decoding, as in MaskGIT (arXiv:2202.04200) and Show-o (arXiv:2408.12528)."""

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import MAX_SCALE, check_choice, check_number
from .masked_diffusion import MaskedSchedulerMixin, SampledTokens, annealed_temperatures, mask_lowest
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_filter,
    gumbel_noise,
    register_arguments,
    sample_uniform,
)


class MaskGITScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Unmask the tokens with the highest confidence in each step, with noise (MaskGIT, arXiv:2202.04200, section 3.2).

    A step samples a token for every masked position and computes its confidence, `log p + temperature * gumbel`. It
    then masks the tokens with the lowest confidence again, `max(1, min(masked - 1, floor(N * schedule((step + 1) /
    steps))))` of them, where N is the number of tokens in the image. The last step masks none.

    Args:
        mask_token_id (`int`, defaults to 8192): id of the mask token. Must be the codebook size.
        masking_schedule (`str`, defaults to `"cosine"`): "cosine", "arccos", "linear", "sigmoid" or "pow<n>".
        temperature (`float`, defaults to 1.0): scale of the confidence noise, unless `set_timesteps` gets one.
        temperature_rule (`str`, defaults to `"compound"`): how the scale decreases. "linear" (MaskGIT) is
            `temperature * (1 - (i + 1) / n)` at step i of n. "compound" (Show-o) multiplies the factors of all steps
            so far, `temperature * prod_{j <= i} (1 - (j + 1) / n)`.
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
        masking_schedule: str = "cosine",
        temperature: float = 1.0,
        temperature_rule: str = "compound",
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        get_masking_schedule(masking_schedule)
        check_number("temperature", temperature, most=MAX_SCALE)
        check_choice("temperature_rule", temperature_rule, ("compound", "linear"))
        check_filter(top_k, top_p)
        self.temperatures: list[float] = []

    def reset(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Compute the temperature of each step. `temperature` replaces the one in the config."""
        temperature = self.config.temperature if temperature is None else temperature
        self.temperatures = annealed_temperatures(temperature, self.num_inference_steps, self.config.temperature_rule)

    def next_mask(
        self, step: int, masked: torch.BoolTensor, sampled: SampledTokens, generator: Generators
    ) -> torch.BoolTensor | None:
        """Select the sampled tokens with the lowest confidence."""
        # Drawn in the last step too, so that the generator's state does not depend on which tokens are known.
        noise = gumbel_noise(sampled.sampled_tokens, generator)
        if self.is_last(step):
            return None
        confidence = sampled.sampled_probs.clamp(1e-20).log() + self.temperatures[step] * noise
        confidence = torch.where(masked, confidence, torch.inf)  # known tokens stay known
        num_masked = self.num_masked_after(step, masked.sum(-1, keepdim=True), masked.shape[1])
        return mask_lowest(confidence, num_masked) & masked

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """
        Whether a step would unmask no token, because one at most is left and it waits for the last step.

        This occurs when there are more steps than masked tokens, as each step unmasks at least one.
        """
        return self.waits_for_last_step(timestep, sample)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers `step` would draw, leaving `sample` unchanged."""
        self.advance_token_sampling(sample, generator)
        sample_uniform(sample, generator)
