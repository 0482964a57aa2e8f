"""Choices that can be taken back: Mask-Predict (arXiv:1904.09324) and ReMDM (arXiv:2503.00307)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.validation import check_number, check_share
from .masked_sampling import MaskedSchedulerMixin, TokenDraw, falling_temperatures
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    Generators,
    check_choice,
    check_filter,
    gumbel_noise,
    sample_uniform,
)


class RemaskingScheduler(MaskedSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Fill in masked tokens, and mask again what was chosen earlier, so that the model gets another try.

    Two rules. Let s(r) be the masking schedule at the share r of the steps that are done, and F the number of tokens that
    were not given.

    - "mask_predict" (Mask-Predict, arXiv:1904.09324, section 3.1): a step draws every unknown token and notes its
      confidence, `log p + temperature * gumbel`. Then the `max(1, min(F - 1, floor(F * s)))` tokens with the lowest noted
      confidence are masked, whenever they were chosen. The paper takes the likeliest codes and no noise (`top_k=1`,
      `temperature=0`).
    - "remdm" (ReMDM, arXiv:2503.00307, equation 5): with a = 1 - s before the step and b = 1 - s after it, a chosen token
      is masked with probability sigma, and an unknown one is filled in with probability `(b - (1 - sigma) a) / (1 - a)`,
      so that the share of known tokens is what it would be without. sigma is at most `min(1, (1 - b) / a)`;
      `min(eta, that)` with "cap", `eta` times that with "rescale".

    What the user gave is never masked: the tokens that were known at the first step, and those that came from outside
    between two steps. For that the scheduler keeps, from the first step after `set_timesteps` to the last one, which tokens
    were given, the noted confidences, and its latest sample: call `set_timesteps` before another batch, and use one
    scheduler for one batch at a time. The last step fills in all.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size.
        rule (`str`, defaults to `"mask_predict"`): "mask_predict" or "remdm".
        masking_schedule (`str`, defaults to `"cosine"`): "cosine", "arccos", "linear", "sigmoid" or "pow<n>".
        temperature (`float`, defaults to 1.0): of "mask_predict", the scale of the noise on the confidences, when
            `set_timesteps` gets none. "remdm" has no confidences.
        temperature_rule (`str`, defaults to `"compound"`): how the scale falls; see [`MaskGITScheduler`].
        sigma_rule (`str`, defaults to `"cap"`): of "remdm", "cap" or "rescale".
        eta (`float`, defaults to 0.05): of "remdm", from 0 (never mask again) to 1. The more steps, the less is needed.
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
        check_number("temperature", temperature)
        check_choice("temperature_rule", temperature_rule, ("compound", "linear"))
        check_choice("sigma_rule", sigma_rule, ("cap", "rescale"))
        check_share("eta", eta)
        check_filter(top_k, top_p)
        self.temperatures: list[float] = []
        self.forget()

    def forget(self):
        """Drop what was kept of a batch: three tensors of shape (batch, tokens)."""
        self.given = None  # whether the user gave a token
        self.confidence = None  # noted when a token was chosen, float32
        self.latest = None  # codes after the step before

    def begin_run(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Prepare the noise on the confidences; `temperature` replaces the config's. Forget the batch before."""
        scale = self.config.temperature if temperature is None else temperature
        self.temperatures = falling_temperatures(scale, self.num_inference_steps, self.config.temperature_rule)
        self.forget()

    def choose_masked(
        self, step: int, unknown: torch.BoolTensor, draw: TokenDraw, generator: Generators
    ) -> torch.BoolTensor | None:
        """Of all tokens that were not given those that the rule says; none at the end."""
        free = ~self.given
        # Both rules draw one uniform number a token at each step, the last too: a generator's state tells nothing.
        if self.config.rule == "mask_predict":
            confidence = draw.chosen.clamp(1e-20).log() + self.temperatures[step] * gumbel_noise(draw.guess, generator)
            self.confidence = torch.where(unknown, confidence, self.confidence)
            masked = self.least_confident(step, free)
        else:
            masked = self.randomly_masked(step, unknown, sample_uniform(draw.guess, generator)) & free
        return None if self.is_settled(step) else masked

    def end_step(self, step: int, prev_sample: torch.LongTensor, finished: bool) -> bool:
        """Keep the sample; an image without masks is not finished while some of it may be masked again."""
        settled = self.is_settled(step)
        self.latest = prev_sample.clone()  # a callback may write into the other
        if self.is_last(step):
            self.forget()
        return settled

    def is_settled(self, step: int) -> bool:
        """Whether nothing is masked after a step: after the last one, and where there is nothing that could be."""
        lone = int(self.config.rule == "mask_predict")  # a single token is filled in at once and stays
        return self.is_last(step) or bool(((~self.given).sum(-1) <= lone).all())

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step, for steps that are left out behind an image that is done."""
        self.skip_tokens(sample, generator)
        sample_uniform(sample, generator)

    def begin_step(self, step: int, sample: torch.LongTensor, unknown: torch.BoolTensor, generator: Generators):
        """Note which tokens come from outside: those known at the first step, and those that are not as a step left them."""
        if step == 0 or self.latest is None:
            self.given = ~unknown
            self.confidence = torch.zeros(sample.shape, device=sample.device)
        elif self.latest.shape != sample.shape:
            raise ValueError(
                f"`sample` must be {tuple(self.latest.shape)}, as at the step before, got {tuple(sample.shape)}; "
                "call `set_timesteps` before another batch."
            )
        else:
            self.given = (self.given | (sample != self.latest)) & ~unknown

    def least_confident(self, step: int, free: torch.BoolTensor) -> torch.BoolTensor:
        """Where tokens are masked by "mask_predict", (batch, tokens)."""
        num_free = free.sum(-1, keepdim=True)
        num_masked = self.num_masked_after(step, num_free, num_free)
        turns = torch.where(free, self.confidence, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
        return free & (turns < num_masked)

    def randomly_masked(self, step: int, unknown: torch.BoolTensor, uniform: torch.Tensor) -> torch.BoolTensor:
        """Where tokens stay or become masked by "remdm", (batch, tokens), with a uniform number for each."""
        fill, sigma = self.remdm_probabilities(step)
        return torch.where(unknown, uniform >= fill, uniform < sigma)

    def remdm_probabilities(self, step: int) -> tuple[float, float]:
        """The probabilities of "remdm" with which a step fills in an unknown token, and masks a chosen one."""
        # A cosine ends a little below 0.
        before, after = (max(0.0, self.mask_ratio(i / self.num_inference_steps).item()) for i in (step, step + 1))
        known = 1 - before
        limit = min(1.0, after / known) if known > 0 else 1.0
        sigma = min(self.config.eta, limit) if self.config.sigma_rule == "cap" else self.config.eta * limit
        return (1 - after - (1 - sigma) * known) / before, sigma
