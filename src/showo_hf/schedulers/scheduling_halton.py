"""Unmasking in the order of a low-discrepancy sequence: Halton-MaskGIT (arXiv:2503.17076)."""

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import MAX_SCALE, check_flag, check_number
from .masked_diffusion import MaskedSchedulerMixin, SampledTokens
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_filter,
    register_arguments,
    sample_uniform,
)


class HaltonScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Unmask tokens in the order of a Halton sequence (Halton-MaskGIT, arXiv:2503.17076, section 4).

    The order spreads positions evenly over the image, so the tokens of one step are far apart and depend little on
    each other. It does not depend on confidences and needs no noise.

    A step unmasks the first masked positions of the order and leaves
    `max(1, min(masked - 1, floor(N * schedule((step + 1) / steps))))` tokens masked, where N is the number of tokens
    in the image. Positions that are already known are skipped and do not count. The last step unmasks all.

    Args:
        mask_token_id (`int`, defaults to 8192): id of the mask token. Must be the codebook size.
        masking_schedule (`str`, defaults to `"arccos"`): "arccos" (the paper's), "cosine", "linear", "sigmoid" or
            "pow<n>".
        token_temperature (`float`, defaults to 1.0): temperature of the softmax, unless `set_timesteps` gets one; 0
            takes the most likely token. This is not the `temperature` of [`MaskGITScheduler`], which scales noise on
            the order.
        top_k (`int`, *optional*): sample only from the `top_k` most likely tokens; at least 1.
        top_p (`float`, *optional*): sample only from the most likely tokens that reach this total probability, in (0, 1].
        roll (`bool`, defaults to `False`): start each sample at a random position of the order, drawn from the
            generator at the first step, and wrap around at the end. An option of the paper's code.

    Raises:
        ValueError: if an argument is out of range.
    """

    @register_arguments
    def __init__(
        self,
        mask_token_id: int = 8192,
        masking_schedule: str = "arccos",
        token_temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        roll: bool = False,
    ):
        get_masking_schedule(masking_schedule)
        check_number("token_temperature", token_temperature, most=MAX_SCALE)
        check_filter(top_k, top_p)
        check_flag("roll", roll)
        self.softmax_temperature = token_temperature
        self.grid_size: tuple[int, int] | None = None
        self.ranks: torch.LongTensor | None = None  # (tokens,), the rank of each position in the order
        self.shifts: torch.LongTensor | None = None  # (batch, 1), kept from the first step to the last

    def reset(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Discard the order. `temperature` replaces the config's `token_temperature`."""
        self.softmax_temperature = self.config.token_temperature if temperature is None else temperature
        self.grid_size, self.ranks, self.shifts = grid_size, None, None

    def prepare_step(self, step: int, sample: torch.LongTensor, masked: torch.BoolTensor, generator: Generators):
        """Compute the order at the first step, and draw the start of each sample if `roll` is set."""
        num_tokens = sample.shape[1]
        if self.ranks is None:
            side = round(num_tokens**0.5)
            grid_size = self.grid_size or (side, side)
            if grid_size[0] * grid_size[1] != num_tokens:
                raise ValueError(
                    f"`grid_size` of `set_timesteps` must hold the {num_tokens} tokens of `sample`, got {self.grid_size}."
                )
            self.ranks = halton_order(*grid_size).argsort().to(sample.device)
        if len(self.ranks) != num_tokens:
            raise ValueError(
                f"`sample` must hold {len(self.ranks)} tokens, as `set_timesteps` said, got {num_tokens}."
            )
        if not self.config.roll:
            return
        if step == 0 or self.shifts is None:
            self.shifts = (sample_uniform(sample[:, :1], generator) * num_tokens).long()
        if len(self.shifts) != len(sample):
            raise ValueError(
                f"`sample` must hold {len(self.shifts)} images, as at the first step, got {len(sample)}; "
                "call `set_timesteps` before another batch."
            )

    def next_mask(
        self, step: int, masked: torch.BoolTensor, sampled: SampledTokens, generator: Generators
    ) -> torch.BoolTensor | None:
        """Select all masked positions but the first of the order."""
        if self.is_last(step):
            return None
        num_tokens, num_masked = masked.shape[1], masked.sum(-1, keepdim=True)
        num_unmasked = num_masked - self.num_masked_after(step, num_masked, num_tokens)
        ranks = torch.where(masked, self.shifted_ranks(), num_tokens).argsort(-1).argsort(-1)
        return masked & (ranks >= num_unmasked)

    def shifted_ranks(self) -> torch.LongTensor:
        """Rank of each position in the order of each sample, (1 or batch, tokens)."""
        return self.ranks.unsqueeze(0) if self.shifts is None else (self.ranks + self.shifts) % len(self.ranks)

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether a step would unmask no token, because one at most is left and it waits for the last step."""
        return self.waits_for_last_step(timestep, sample)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers `step` would draw, leaving `sample` unchanged."""
        self.prepare_step(self.step_index(timestep), sample, sample == self.config.mask_token_id, generator)
        self.advance_token_sampling(sample, generator)


def halton_order(height: int, width: int) -> torch.LongTensor:
    """
    All positions of a grid, numbered row by row from 0 to `height * width - 1`, in the order of a Halton sequence.

    Point i = 1, 2, ... of the sequence has the radical inverses of i in base 2 (down) and base 3 (across) as
    coordinates. Positions are sorted by the first point that lies in them.
    """
    # Any 2^m 3^n consecutive points hit each of 2^m by 3^n boxes once. A position at least twice as large as a box in
    # both directions contains a whole box.
    num_points = smallest_power(2, 2 * height) * smallest_power(3, 2 * width)
    points = torch.arange(1, num_points + 1)
    positions = scaled_radical_inverse(points, 2, height) * width + scaled_radical_inverse(points, 3, width)
    first_point = torch.full((height * width,), num_points + 1).scatter_reduce(0, positions, points, "amin")
    return first_point.argsort()


def smallest_power(base: int, minimum: int) -> int:
    """The smallest power of `base` that is at least `minimum`."""
    power = 1
    while power < minimum:
        power *= base
    return power


def scaled_radical_inverse(points: torch.LongTensor, base: int, length: int) -> torch.LongTensor:
    """
    `floor(length * phi(i))` for each point i. phi(i), in [0, 1), has the digits of i in reverse order after the point.

    Computed in integers, because 1/3 is not a floating-point number and rounding must not change a position.
    """
    scale = smallest_power(base, int(points.max()) + 1)
    reversed_digits, rest, unit = torch.zeros_like(points), points, scale
    while unit > 1:
        unit //= base
        reversed_digits = reversed_digits + rest % base * unit
        rest = rest // base
    return reversed_digits * length // scale
