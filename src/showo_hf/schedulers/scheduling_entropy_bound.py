"""Entropy-bounded unmasking (EB-Sampler, arXiv:2505.24857)."""

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import MAX_SCALE, check_choice, check_number
from .masked_diffusion import MaskedSchedulerMixin, SampledTokens
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_filter,
    register_arguments,
)


class EntropyBoundScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Unmask as many tokens per step as an entropy bound allows (EB-Sampler, arXiv:2505.24857, section 4).

    A step sorts the masked tokens from certain to uncertain and unmasks the first k of them, for the largest k with

        H_1 + ... + H_k - max(H_1, ..., H_k) <= entropy_bound

    where H is the entropy in nats of the distribution that a token is sampled from. The left side bounds the mutual
    information of the k tokens, which is lost when they are sampled independently. At least one token is unmasked.
    Easy images take fewer steps; the output's `finished` reports when an image is complete.

    `num_inference_steps` is the maximum number of steps. To spread the work, no step leaves more tokens masked than
    the masking schedule, `max(1, floor(N * schedule((step + 1) / steps)))` of N tokens, even if the bound would. With
    a bound of 0 the number of tokens per step is about the same as in [`MaskGITScheduler`]. The last step unmasks all.

    diffusers has a scheduler of the same name for uniform noise. This one is for masked tokens.

    Args:
        mask_token_id (`int`, defaults to 8192): id of the mask token. Must be the codebook size.
        entropy_bound (`float`, defaults to 4.0): the paper's gamma in nats, at least 0. Higher is faster and less
            exact. A good value depends on the model; images with a large codebook allow more than text.
        sort_by (`str`, defaults to `"entropy"`): how tokens are sorted: by low "entropy", or by high "confidence", the
            probability of the most likely token.
        masking_schedule (`str`, defaults to `"cosine"`): the slowest pace: "cosine", "arccos", "linear", "sigmoid" or
            "pow<n>".
        token_temperature (`float`, defaults to 1.0): temperature of the softmax, unless `set_timesteps` gets one; 0
            takes the most likely token. Entropies use it too.
        top_k (`int`, *optional*): sample only from the `top_k` most likely tokens; at least 1.
        top_p (`float`, *optional*): sample only from the most likely tokens that reach this total probability, in (0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """

    @register_arguments
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
        check_number("entropy_bound", entropy_bound, most=MAX_SCALE)
        check_choice("sort_by", sort_by, ("entropy", "confidence"))
        get_masking_schedule(masking_schedule)
        check_number("token_temperature", token_temperature, most=MAX_SCALE)
        check_filter(top_k, top_p)
        self.softmax_temperature = token_temperature

    def reset(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Set the softmax temperature. `temperature` replaces the config's `token_temperature`."""
        self.softmax_temperature = self.config.token_temperature if temperature is None else temperature

    def next_mask(
        self, step: int, masked: torch.BoolTensor, sampled: SampledTokens, generator: Generators
    ) -> torch.BoolTensor | None:
        """Select the tokens that exceed the bound and that the masking schedule allows to stay masked."""
        if self.is_last(step):
            return None
        probs = sampled.probs / sampled.probs.sum(-1, keepdim=True)  # (masked tokens, codebook)
        # On the CPU, because not all devices have float64. It is one number per token.
        positions = masked.cpu()
        entropies = torch.special.entr(probs).sum(-1).cpu().double()
        uncertainty = entropies if self.config.sort_by == "entropy" else -probs.amax(-1).cpu().double()
        ranks, num_within_bound = self.rank_tokens(positions, entropies, uncertainty)
        num_masked = positions.sum(-1, keepdim=True)
        num_scheduled = num_masked - self.num_masked_after(step, num_masked, positions.shape[1])
        return (positions & (ranks >= torch.maximum(num_within_bound, num_scheduled))).to(masked.device)

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers `step` would draw, leaving `sample` unchanged."""
        self.advance_token_sampling(sample, generator)

    def rank_tokens(
        self, masked: torch.BoolTensor, entropies: torch.Tensor, uncertainty: torch.Tensor
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Rank the masked tokens from certain to uncertain, and count those within the bound.

        Args:
            masked (`torch.BoolTensor` of shape `(batch, tokens)`): where a token is masked.
            entropies, uncertainty (`torch.Tensor` of shape `(masked tokens,)`): ranks are by `uncertainty`.

        Returns:
            the rank of each token, (batch, tokens), and the number of tokens within the bound, (batch, 1).
        """
        zeros = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        keys = (zeros + torch.inf).masked_scatter(masked, uncertainty)  # known tokens come last
        order = keys.argsort(dim=-1, stable=True)
        ordered = zeros.masked_scatter(masked, entropies).gather(-1, order)
        # Non-decreasing: each entropy adds to the sum at least what it adds to the maximum.
        lost_information = ordered.cumsum(-1) - ordered.cummax(-1).values
        within_bound = (lost_information <= self.config.entropy_bound) & masked.gather(-1, order)
        return order.argsort(-1), within_bound.long().cumprod(-1).sum(-1, keepdim=True)
