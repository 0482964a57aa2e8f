"""Tokens in the order of a low-discrepancy sequence: the Halton scheduler (arXiv:2503.17076)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import check_number
from .masked_sampling import MaskedSchedulerMixin, TokenDraw
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_filter,
    sample_uniform,
)


class HaltonScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Fill in masked tokens in the order of a Halton sequence (Halton-MaskGIT, arXiv:2503.17076, section 4).

    Places that are filled in together, and those filled in before, lie spread over the whole image, so that tokens of
    one step depend little on each other. Confidences play no part, and no noise is needed on them.

    A step fills in the first unknown places of the order and leaves
    `max(1, min(unknown - 1, floor(N * schedule((step + 1) / steps))))` tokens unknown, N being all tokens of the image.
    Places that are known already are passed over and do not count. The last step fills in all.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size.
        masking_schedule (`str`, defaults to `"arccos"`): "arccos" (the paper's), "cosine", "linear", "sigmoid" or "pow<n>".
        token_temperature (`float`, defaults to 1.0): of the softmax that tokens are drawn from, when `set_timesteps` gets
            none; 0 draws the likeliest. It is not the `temperature` of [`MaskGITScheduler`], which is noise on the order.
        top_k (`int`, *optional*): tokens are drawn from the `top_k` likeliest codes only; from 1 on.
        top_p (`float`, *optional*): tokens are drawn from the likeliest codes whose probabilities reach this sum; above 0,
            at most 1.
        roll (`bool`, defaults to `False`): each sample starts at a place of the order of its own, drawn from the generator
            at the first step, and comes round to the order's beginning. The paper's code has it as an option.

    Raises:
        ValueError: for settings out of range.
    """

    @register_to_config
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
        check_number("token_temperature", token_temperature)
        check_filter(top_k, top_p)
        self.softmax_temperature = token_temperature
        self.grid_size: tuple[int, int] | None = None
        self.ranks: torch.LongTensor | None = None  # (tokens,): when a place's turn comes
        self.shifts: torch.LongTensor | None = None  # (batch, 1), from the first step to the last

    def begin_run(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Begin a new order; `temperature` replaces the config's `token_temperature`. `ValueError` for a wrong grid."""
        if grid_size is not None and (len(grid_size) != 2 or min(grid_size) < 1):
            raise ValueError(f"`grid_size` must be rows and columns, at least 1 each, got {grid_size!r}.")
        self.softmax_temperature = self.config.token_temperature if temperature is None else temperature
        self.grid_size, self.ranks, self.shifts = grid_size, None, None

    def begin_step(self, step: int, sample: torch.LongTensor, unknown: torch.BoolTensor, generator: Generators):
        """Make the order, and at the first step draw where in it each sample begins, if `roll` wants that."""
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

    def choose_masked(
        self, step: int, unknown: torch.BoolTensor, draw: TokenDraw, generator: Generators
    ) -> torch.BoolTensor | None:
        """All but the first unknown places of the order."""
        if self.is_last(step):
            return None
        num_tokens, num_unknown = unknown.shape[1], unknown.sum(-1, keepdim=True)
        num_filled = num_unknown - self.num_masked_after(step, num_unknown, num_tokens)
        turns = torch.where(unknown, self.shifted_ranks(), num_tokens).argsort(-1).argsort(-1)
        return unknown & (turns >= num_filled)

    def shifted_ranks(self) -> torch.LongTensor:
        """When each place's turn comes, (1 or batch, tokens)."""
        return self.ranks.unsqueeze(0) if self.shifts is None else (self.ranks + self.shifts) % len(self.ranks)

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether a step would fill in nothing: one unknown token at most is left, for the last step."""
        return self.leaves_one_token(timestep, sample)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step that [`is_noop`], so that the next one draws as if it had been made."""
        self.begin_step(self.step_index(timestep), sample, sample == self.config.mask_token_id, generator)
        self.skip_tokens(sample, generator)


def halton_order(height: int, width: int) -> torch.LongTensor:
    """
    All places of a grid, row by row from 0 to `height * width - 1`, in the order in which a Halton sequence visits them.

    Point i = 1, 2, ... of the sequence has the radical inverses of i to the bases 2 and 3 as its coordinates, down and
    across. A place's turn comes when the first point falls into it.
    """
    # Each of 2^m by 3^n boxes has one of any 2^m 3^n points in a row, and a place twice as large each way holds a box.
    num_points = power_from(2, 2 * height) * power_from(3, 2 * width)
    points = torch.arange(1, num_points + 1)
    places = scaled_radical_inverse(points, 2, height) * width + scaled_radical_inverse(points, 3, width)
    first_visit = torch.full((height * width,), num_points + 1).scatter_reduce(0, places, points, "amin")
    return first_visit.argsort()


def power_from(base: int, least: int) -> int:
    """The smallest power of `base` that is at least `least`."""
    power = 1
    while power < least:
        power *= base
    return power


def scaled_radical_inverse(points: torch.LongTensor, base: int, length: int) -> torch.LongTensor:
    """
    `floor(length * phi(i))`, with the digits of i to the base mirrored at the point in phi(i), in [0, 1).

    In integers, as a third is no floating point number and a place must not depend on rounding.
    """
    scale = power_from(base, int(points.max()) + 1)
    mirrored, rest, unit = torch.zeros_like(points), points, scale
    while unit > 1:
        unit //= base
        mirrored = mirrored + rest % base * unit
        rest = rest // base
    return mirrored * length // scale
