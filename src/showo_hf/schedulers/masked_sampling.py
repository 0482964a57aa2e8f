"""What the schedulers that fill in masked tokens share: their steps, their counts, and the draw of tokens."""

from typing import Any, NamedTuple

import torch

from ..utils.validation import check_count, check_number
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    DiscreteSchedulerMixin,
    Generators,
    TokenSchedulerOutput,
    check_step_inputs,
    keep_likely,
    sample_uniform,
    sample_wanted,
    skip_categorical,
)


#: A softmax at a temperature below this one is taken at it, which is as good as the argmax.
LEAST_TEMPERATURE = 1e-5


class TokenDraw(NamedTuple):
    """
    Tokens that were drawn for what is unknown.

    Args:
        guess (`torch.LongTensor` of shape `(batch, tokens)`): codes; the known ones as they were.
        chosen (`torch.Tensor` of shape `(batch, tokens)`, float32): probabilities of the drawn codes before `top_k` and
            `top_p`; 1 where known.
        probabilities (`torch.Tensor` of shape `(number of unknown tokens, codes)`, float32): what was drawn from, up to a
            factor.
    """

    guess: torch.LongTensor
    chosen: torch.Tensor
    probabilities: torch.Tensor


class MaskedSchedulerMixin(DiscreteSchedulerMixin):
    """
    Mixin of the schedulers of absorbing diffusion: a token is unknown (the mask) or chosen.

    `timesteps` counts down to 0. A scheduler has the config entries `mask_token_id`, `masking_schedule`, `top_k` and
    `top_p`, and says by `choose_masked` which tokens are unknown after a step.
    """

    config: Any  # ConfigMixin's
    num_inference_steps: int | None = None
    timesteps: torch.LongTensor | None = None
    softmax_temperature = 1.0  # of the distributions that tokens are drawn from

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        grid_size: tuple[int, int] | None = None,
        temperature: float | None = None,
    ):
        """
        Prepare an image of `num_inference_steps` steps.

        Args:
            num_inference_steps (`int`): at least 1.
            device: of `timesteps`.
            grid_size (`tuple[int, int]`, *optional*): rows and columns of tokens; only [`HaltonScheduler`] asks where a
                token lies.
            temperature (`float`, *optional*): replaces the config's, from 0 on.

        Raises:
            ValueError: for numbers out of range.
        """
        check_count("num_inference_steps", num_inference_steps)
        if temperature is not None:
            check_number("temperature", temperature)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps, device=device).flip(0)
        self.begin_run(grid_size, temperature)

    def begin_run(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Whatever a scheduler prepares for the steps that were set, and forgets of those before."""

    def step_index(self, timestep: int | torch.Tensor) -> int:
        """Steps before the one at `timestep`. `ValueError` for what is no entry of `timesteps`, or before they are set."""
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before any step.")
        last = self.num_inference_steps - 1
        if not 0 <= int(timestep) <= last:
            raise ValueError(f"`timestep` must be from 0 to {last}, an entry of `timesteps`, got {int(timestep)}.")
        return last - int(timestep)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TokenSchedulerOutput | tuple:
        """
        One step: draws every unknown token, and lets some of them be unknown again.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits. Those of known tokens are not
                looked at, though numbers are drawn for them too, so that the draws do not depend on what is known.
            timestep (`int`): an entry of `timesteps`.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): codes, row by row; `mask_token_id` where unknown.
            generator (`torch.Generator` or a list with one a sample, *optional*).

        Raises:
            ValueError: for shapes that do not fit each other, the grid or the steps before; a list of generators of another
                length; or a missing `set_timesteps`.
        """
        check_step_inputs(model_output, sample, self.num_inference_steps, self.config.mask_token_id)
        step = self.step_index(timestep)
        unknown = sample == self.config.mask_token_id  # (batch, tokens)
        self.begin_step(step, sample, unknown, generator)
        draw = self.draw_tokens(model_output, unknown, sample, generator)
        masked = self.choose_masked(step, unknown, draw, generator)
        prev_sample = draw.guess if masked is None else torch.where(masked, self.config.mask_token_id, draw.guess)
        finished = masked is None or not bool((prev_sample == self.config.mask_token_id).any())
        finished = self.end_step(step, prev_sample, finished)
        if not return_dict:
            return prev_sample, draw.guess, finished
        return TokenSchedulerOutput(prev_sample=prev_sample, pred_original_sample=draw.guess, finished=finished)

    def begin_step(self, step: int, sample: torch.LongTensor, unknown: torch.BoolTensor, generator: Generators):
        """Whatever a scheduler does before tokens are drawn."""

    def choose_masked(
        self, step: int, unknown: torch.BoolTensor, draw: TokenDraw, generator: Generators
    ) -> torch.BoolTensor | None:
        """
        Where tokens are unknown after a step, (batch, tokens); None where everything is known.

        Its random draws are the same in every step, whatever is known.
        """
        raise NotImplementedError

    def end_step(self, step: int, prev_sample: torch.LongTensor, finished: bool) -> bool:
        """Whatever a scheduler keeps of a step; whether no further one would change anything."""
        return finished

    def is_last(self, step: int) -> bool:
        """Whether no step comes behind that of index `step`."""
        return step == self.num_inference_steps - 1

    def mask_ratio(self, ratio: float) -> torch.Tensor:
        """Share of masked tokens, a float32 scalar, when the share `ratio` of the steps is done."""
        return get_masking_schedule(self.config.masking_schedule)(torch.tensor(ratio, dtype=torch.float32))

    def num_masked_after(
        self, step: int, unknown: torch.LongTensor, num_tokens: int | torch.LongTensor
    ) -> torch.LongTensor:
        """
        How many tokens are unknown after a step: fewer than before, and at least one until the last step.

        An image of one token is filled in at once.

        Args:
            step: index of the step, from 0.
            unknown (`torch.LongTensor` of shape `(batch, 1)`): unknown tokens before it.
            num_tokens (`int` or `torch.LongTensor` of shape `(batch, 1)`): tokens that the masking schedule is about.
        """
        share = self.mask_ratio((step + 1) / self.num_inference_steps).to(unknown.device)
        wanted = (num_tokens * share).floor().long()
        num_tokens = torch.as_tensor(num_tokens, device=unknown.device)
        return torch.minimum(torch.minimum(unknown - 1, wanted).clamp(min=1), num_tokens - 1)

    def draw_tokens(
        self,
        model_output: torch.Tensor,
        unknown: torch.BoolTensor,
        sample: torch.LongTensor,
        generator: Generators = None,
    ) -> TokenDraw:
        """
        A code for each unknown token, from the softmax of its logits, as `top_k` and `top_p` allow.

        Numbers are drawn for the known tokens too, so that a generator's state does not depend on what is known.

        Raises:
            ValueError: for logits at an unknown token that are infinite or no numbers.
        """
        logits = model_output.flatten(0, 1)
        if not bool(unknown.all()):
            logits = logits[unknown.flatten()]
        logits = logits.float()  # (unknown tokens, codes)
        if self.softmax_temperature != 1.0:
            logits = logits / max(self.softmax_temperature, LEAST_TEMPERATURE)
        probabilities = logits.softmax(-1)
        likely = keep_likely(probabilities, self.config.top_k, self.config.top_p)
        codes = sample_wanted(likely, unknown, generator)
        chosen = probabilities.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        if not bool(chosen.isfinite().all()):
            raise ValueError("`model_output` must hold finite numbers or -inf at unknown tokens, got nan or inf.")
        guess = sample.masked_scatter(unknown, codes.to(sample.dtype))
        everywhere = torch.ones(sample.shape, device=sample.device).masked_scatter(unknown, chosen)
        return TokenDraw(guess, everywhere, likely)

    def skip_tokens(self, sample: torch.LongTensor, generator: Generators = None):
        """The random draws of [`draw_tokens`], and nothing else."""
        skip_categorical(sample, self.config.mask_token_id, generator)

    def leaves_one_token(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether no sample has more unknown tokens than the one that [`num_masked_after`] leaves to the last step."""
        left = int((sample == self.config.mask_token_id).sum(-1).max())
        return left == 0 or (left == 1 and sample.shape[1] > 1 and not self.is_last(self.step_index(timestep)))

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.LongTensor:
        """
        Mask tokens at random, as many as are unknown before the step `timesteps`.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch, tokens)`): codes.
            timesteps (`int` or `torch.Tensor` of shape `()` or `(batch,)`): entries of `timesteps`.

        Raises:
            ValueError: for times that are no entries of `timesteps`, or before they are set.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `add_noise`.")
        steps = [self.step_index(timestep) for timestep in torch.as_tensor(timesteps).reshape(-1)]
        ratios = torch.stack([self.mask_ratio(step / self.num_inference_steps) for step in steps])
        counts = (original_samples.shape[1] * ratios).floor().long().clamp(min=1).to(original_samples.device)
        order = sample_uniform(original_samples, generator).argsort(-1).argsort(-1)  # a random rank for each token
        return torch.where(order < counts.unsqueeze(-1), self.config.mask_token_id, original_samples)

    def __len__(self) -> int:
        return self.num_inference_steps or 0


def falling_temperatures(scale: float, num_steps: int, rule: str) -> list[float]:
    """
    The scale of the noise on the confidences at each step, falling to 0 at the last.

    By the rule "linear" (MaskGIT's) it is `scale * (1 - (i + 1) / n)` at step i of n. By "compound" (Show-o's) each step
    multiplies what the step before left over: `scale * prod_{j <= i} (1 - (j + 1) / n)`.
    """
    temperatures, left = [], scale
    for step in range(num_steps):
        remaining = 1.0 - (step + 1) / num_steps
        left *= remaining
        temperatures.append(left if rule == "compound" else scale * remaining)
    return temperatures


def mask_lowest(scores: torch.Tensor, num_masked: torch.LongTensor) -> torch.BoolTensor:
    """Where scores (batch, tokens) lie below those that `num_masked`, (batch, 1) and less than tokens, of them lie below."""
    return scores < scores.sort(-1).values.gather(-1, num_masked)
