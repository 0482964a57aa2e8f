"""Confidence-based parallel decoding, as in MaskGIT (arXiv:2202.04200) and Show-o (arXiv:2408.12528)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import check_number
from .masked_sampling import MaskedSchedulerMixin, TokenDraw, falling_temperatures, mask_lowest
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_choice,
    check_filter,
    gumbel_noise,
    sample_uniform,
)


class MaskGITScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Fill in masked tokens over a few steps, the most confident ones first (MaskGIT, arXiv:2202.04200, section 3.2).

    A step samples every unknown token from the model's distribution, scores it by `log p + temperature * gumbel`, and
    masks the worst again: `max(1, min(unknown - 1, floor(N * schedule((step + 1) / steps))))` of them, N being all
    tokens of the image. The last step keeps all.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size.
        masking_schedule (`str`, defaults to `"cosine"`): "cosine", "arccos", "linear", "sigmoid" or "pow<n>".
        temperature (`float`, defaults to 1.0): scale of the noise on the confidences, when `set_timesteps` gets none.
        temperature_rule (`str`, defaults to `"compound"`): how the scale falls. "linear" is MaskGIT's: at step i of n it
            is `temperature * (1 - (i + 1) / n)`. "compound" is Show-o's, where each step multiplies what the step
            before left over: `temperature * prod_{j <= i} (1 - (j + 1) / n)`.
        top_k (`int`, *optional*): tokens are drawn from the `top_k` likeliest codes only; from 1 on.
        top_p (`float`, *optional*): tokens are drawn from the likeliest codes whose probabilities reach this sum; above 0,
            at most 1. Confidences are the whole distribution's in any case.

    Raises:
        ValueError: for settings out of range.
    """

    @register_to_config
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
        check_number("temperature", temperature)
        check_choice("temperature_rule", temperature_rule, ("compound", "linear"))
        check_filter(top_k, top_p)
        self.temperatures: list[float] = []

    def begin_run(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Prepare the noise on the confidences; `temperature` replaces the config's."""
        scale = self.config.temperature if temperature is None else temperature
        self.temperatures = falling_temperatures(scale, self.num_inference_steps, self.config.temperature_rule)

    def choose_masked(
        self, step: int, unknown: torch.BoolTensor, draw: TokenDraw, generator: Generators
    ) -> torch.BoolTensor | None:
        """The least confident of the tokens that were just drawn."""
        # Drawn in the last step too, so that a generator is left in the same state by any number of known tokens.
        noise = gumbel_noise(draw.guess, generator)
        if self.is_last(step):
            return None
        confidence = draw.chosen.clamp(1e-20).log() + self.temperatures[step] * noise
        confidence = torch.where(unknown, confidence, torch.inf)  # what is known is never masked
        num_masked = self.num_masked_after(step, unknown.sum(-1, keepdim=True), unknown.shape[1])
        return mask_lowest(confidence, num_masked) & unknown

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """
        Whether a step would fill in nothing, whatever the model says: one unknown token at most is left, for the last.

        So it is in a long run with few unknown tokens, where each step before fills in one.
        """
        return self.leaves_one_token(timestep, sample)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step that [`is_noop`], so that the next one draws as if it had been made."""
        self.skip_tokens(sample, generator)
        sample_uniform(sample, generator)
