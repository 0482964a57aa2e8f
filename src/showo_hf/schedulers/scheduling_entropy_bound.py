"""As many tokens a step as hardly depend on each other: entropy-bounded unmasking (arXiv:2505.24857)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import check_number
from .masked_sampling import MaskedSchedulerMixin, TokenDraw
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_choice,
    check_filter,
)


class EntropyBoundScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Fill in as many tokens a step as stay under an entropy bound (EB-Sampler, arXiv:2505.24857, section 4).

    Unknown tokens are sorted, the surest first. The largest number k of them is filled in for which

        H_1 + ... + H_k - max(H_1, ..., H_k) <= entropy_bound

    with the entropies H of the distributions that they are drawn from, in nats. The left side bounds what the k tokens tell
    about each other, which drawing them apart loses. At least one is filled in. An easy image is done in fewer steps:
    `step` says so by `finished`.

    `num_inference_steps` is the most steps. So that the last one does not have to fill in what a tight bound left over, no
    step leaves more than the masking schedule says, `max(1, floor(N * schedule((step + 1) / steps)))` of N tokens: where
    the bound would, it gives way. A bound of 0 is so as fast as [`MaskGITScheduler`]. The last step fills in all.

    It is the masked kind of what diffusers' scheduler of this name does for uniform noise.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size.
        entropy_bound (`float`, defaults to 4.0): the paper's gamma in nats, from 0 on. More is faster and less exact. How
            much is good depends on the model; images of many codes bear more than text.
        sort_by (`str`, defaults to `"entropy"`): what makes a token sure: a low "entropy", or a high "confidence", the
            probability of its likeliest code.
        masking_schedule (`str`, defaults to `"cosine"`): the slowest pace: "cosine", "arccos", "linear", "sigmoid" or
            "pow<n>".
        token_temperature (`float`, defaults to 1.0): of the softmax that tokens are drawn from, when `set_timesteps` gets
            none; 0 draws the likeliest. Entropies are taken at it too.
        top_k (`int`, *optional*): tokens are drawn from the `top_k` likeliest codes only; from 1 on.
        top_p (`float`, *optional*): tokens are drawn from the likeliest codes whose probabilities reach this sum; above 0,
            at most 1.

    Raises:
        ValueError: for settings out of range.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = 8192,
        entropy_bound: float = 4.0,
        sort_by: str = "entropy",
        masking_schedule: str = "cosine",
        token_temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        check_number("entropy_bound", entropy_bound)
        check_choice("sort_by", sort_by, ("entropy", "confidence"))
        get_masking_schedule(masking_schedule)
        check_number("token_temperature", token_temperature)
        check_filter(top_k, top_p)
        self.softmax_temperature = token_temperature

    def begin_run(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """`temperature` replaces the config's `token_temperature`."""
        self.softmax_temperature = self.config.token_temperature if temperature is None else temperature

    def choose_masked(
        self, step: int, unknown: torch.BoolTensor, draw: TokenDraw, generator: Generators
    ) -> torch.BoolTensor | None:
        """What does not stay under the bound, nor is due."""
        if self.is_last(step):
            return None
        probabilities = draw.probabilities / draw.probabilities.sum(-1, keepdim=True)  # (unknown tokens, codes)
        # One number a token, which is little: in float64 on the CPU, as not all devices have it.
        places = unknown.cpu()
        entropies = torch.special.entr(probabilities).sum(-1).cpu().double()
        doubt = entropies if self.config.sort_by == "entropy" else -probabilities.amax(-1).cpu().double()
        turns, under_bound = self.sort_under_bound(places, entropies, doubt)
        num_unknown = places.sum(-1, keepdim=True)
        due = num_unknown - self.num_masked_after(step, num_unknown, places.shape[1])
        return (places & (turns >= torch.maximum(under_bound, due))).to(unknown.device)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step, for steps that are left out behind an image that is done."""
        self.skip_tokens(sample, generator)

    def sort_under_bound(
        self, unknown: torch.BoolTensor, entropies: torch.Tensor, doubt: torch.Tensor
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        The turn of each token, (batch, tokens), and how many first ones stay under the bound, (batch, 1).

        `entropies` and `doubt`, by which unknown tokens are sorted, have one number for each of these.
        """
        nothing = torch.zeros(unknown.shape, dtype=torch.float64, device=unknown.device)
        order = (
            (nothing + torch.inf).masked_scatter(unknown, doubt).argsort(dim=-1, stable=True)
        )  # the known ones last
        ordered = nothing.masked_scatter(unknown, entropies).gather(-1, order)
        lost = (
            ordered.cumsum(-1) - ordered.cummax(-1).values
        )  # never falls: each entropy adds to the sum what the max gains
        under = (lost <= self.config.entropy_bound) & unknown.gather(-1, order)
        return order.argsort(-1), under.long().cumprod(-1).sum(-1, keepdim=True)
