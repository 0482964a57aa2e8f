"""Shared by the schedulers of masked (absorbing) diffusion: timesteps, the number of masked tokens, and sampling."""

from typing import Any, NamedTuple

import torch

from ..utils.validation import MAX_SCALE, check_flag, check_number, shown
from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    DiscreteSchedulerMixin,
    Generators,
    TokenSchedulerOutput,
    advance_categorical,
    as_timestep,
    as_timesteps,
    check_generators,
    check_step_inputs,
    check_timestep_arguments,
    check_token_ids,
    sample_categorical_at,
    sample_uniform,
    top_k_top_p_filtering,
)


#: Lower temperatures are raised to this one, where the softmax is as good as the argmax.
MIN_TEMPERATURE = 1e-5


class SampledTokens(NamedTuple):
    """
    Tokens sampled for the masked positions.

    Args:
        sampled_tokens (`torch.LongTensor` of shape `(batch, tokens)`): token ids; known tokens are unchanged.
        sampled_probs (`torch.Tensor` of shape `(batch, tokens)`, float32): the probability of each sampled token
            before `top_k` and `top_p`; 1 for known tokens.
        probs (`torch.Tensor` of shape `(masked tokens, codebook)`, float32): the distributions after `top_k` and
            `top_p`, not normalized.
    """

    sampled_tokens: torch.LongTensor
    sampled_probs: torch.Tensor
    probs: torch.Tensor


class MaskedSchedulerMixin(DiscreteSchedulerMixin):
    """
    Mixin for schedulers of masked (absorbing) diffusion, where a token is either masked or known.

    `timesteps` counts down to 0. A scheduler has the config entries `mask_token_id`, `masking_schedule`, `top_k` and
    `top_p`. It implements `next_mask`, and may override `reset`, `prepare_step` and `finish_step`.
    """

    config: Any  # from ConfigMixin
    num_inference_steps: int | None = None
    timesteps: torch.LongTensor | None = None
    softmax_temperature = 1.0  # temperature of the token distributions

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        grid_size: tuple[int, int] | None = None,
        temperature: float | None = None,
    ):
        """
        Set the number of steps and discard the state of earlier steps.

        Args:
            num_inference_steps (`int`): at least 1.
            device: the device of `timesteps`.
            grid_size (`tuple[int, int]`, *optional*): rows and columns of tokens. Only [`HaltonScheduler`] uses it.
            temperature (`float`, *optional*): replaces the temperature in the config; at least 0.

        Raises:
            ValueError: if an argument is out of range.
        """
        check_timestep_arguments(num_inference_steps, device, grid_size)
        if temperature is not None:
            check_number("temperature", temperature, most=MAX_SCALE)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps, device=device).flip(0)
        self.reset(grid_size, temperature)

    def reset(self, grid_size: tuple[int, int] | None, temperature: float | None):
        """Prepare the state for a new sequence of steps. Called by `set_timesteps` with its arguments."""

    def step_index(self, timestep: int | torch.Tensor) -> int:
        """
        Index of `timestep` in `timesteps`.

        Raises:
            ValueError: if it is not an entry of `timesteps`, or `set_timesteps` was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before any step.")
        last, index = self.num_inference_steps - 1, as_timestep("timestep", timestep)
        if not 0 <= index <= last:
            raise ValueError(f"`timestep` must be from 0 to {last}, an entry of `timesteps`, got {shown(index)}.")
        return last - index

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TokenSchedulerOutput | tuple:
        """
        Sample a token for every masked position, then mask some of them again.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits. Those of known tokens are
                ignored, but random numbers are drawn for them, so that the generator's state does not depend on which
                tokens are known.
            timestep (`int`): an entry of `timesteps`.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids, row by row; `mask_token_id` where
                masked.
            generator (`torch.Generator` or a list with one per sample, *optional*).
            return_dict (`bool`): return a [`TokenSchedulerOutput`], else a tuple of its fields.

        Raises:
            TypeError: for an argument of another type.
            ValueError: if shapes do not fit each other, the grid or the previous step, if `sample` holds ids below 0
                or above `mask_token_id`, if logits are nan or inf, if the list of generators has another length, or if
                `set_timesteps` was not called.
        """
        mask_token_id = self.config.mask_token_id
        check_flag("return_dict", return_dict)
        check_step_inputs(model_output, sample, self.num_inference_steps, mask_token_id)
        check_generators(generator, len(sample))
        step = self.step_index(timestep)
        masked = sample == mask_token_id  # (batch, tokens)
        self.prepare_step(step, sample, masked, generator)
        sampled = self.sample_tokens(model_output, masked, sample, generator)
        predicted = sampled.sampled_tokens
        next_mask = self.next_mask(step, masked, sampled, generator)
        prev_sample = predicted if next_mask is None else torch.where(next_mask, mask_token_id, predicted)
        finished = next_mask is None or not bool((prev_sample == mask_token_id).any())
        finished = self.finish_step(step, prev_sample, finished)
        if not return_dict:
            return prev_sample, predicted, finished
        return TokenSchedulerOutput(prev_sample=prev_sample, pred_original_sample=predicted, finished=finished)

    def prepare_step(self, step: int, sample: torch.LongTensor, masked: torch.BoolTensor, generator: Generators):
        """Update the state before tokens are sampled."""

    def next_mask(
        self, step: int, masked: torch.BoolTensor, sampled: SampledTokens, generator: Generators
    ) -> torch.BoolTensor | None:
        """
        Select the tokens that are masked after the step, (batch, tokens). None means no token.

        Must draw the same amount of random numbers in every step, whichever tokens are known.
        """
        raise NotImplementedError

    def finish_step(self, step: int, prev_sample: torch.LongTensor, finished: bool) -> bool:
        """Update the state after a step. Return whether no further step would change a token."""
        return finished

    def is_last(self, step: int) -> bool:
        """Whether `step` is the index of the last step."""
        return step == self.num_inference_steps - 1

    def mask_ratio(self, ratio: float) -> torch.Tensor:
        """Share of masked tokens, a float32 scalar, after the share `ratio` of the steps."""
        return get_masking_schedule(self.config.masking_schedule)(torch.tensor(ratio, dtype=torch.float32))

    def num_masked_after(
        self, step: int, num_masked: torch.LongTensor, num_tokens: int | torch.LongTensor
    ) -> torch.LongTensor:
        """
        Number of masked tokens after a step, (batch, 1): fewer than before, but at least one until the last step.

        An image of a single token is unmasked in the first step.

        Args:
            step: index of the step, from 0.
            num_masked (`torch.LongTensor` of shape `(batch, 1)`): masked tokens before the step.
            num_tokens (`int` or `torch.LongTensor` of shape `(batch, 1)`): the number of tokens that the masking
                schedule applies to.
        """
        share = self.mask_ratio((step + 1) / self.num_inference_steps).to(num_masked.device)
        scheduled = (num_tokens * share).floor().long()
        num_tokens = torch.as_tensor(num_tokens, device=num_masked.device)
        return torch.minimum(torch.minimum(num_masked - 1, scheduled).clamp(min=1), num_tokens - 1)

    def sample_tokens(
        self,
        model_output: torch.Tensor,
        masked: torch.BoolTensor,
        sample: torch.LongTensor,
        generator: Generators = None,
    ) -> SampledTokens:
        """
        Sample a token for each masked position from the softmax of its logits, restricted by `top_k` and `top_p`.

        Raises:
            ValueError: if logits of a masked token are nan or inf.
        """
        logits = model_output.flatten(0, 1)
        if not bool(masked.all()):
            logits = logits[masked.flatten()]
        logits = logits.float()  # (masked tokens, codebook)
        if self.softmax_temperature != 1.0:
            logits = logits / max(self.softmax_temperature, MIN_TEMPERATURE)
        probs = logits.softmax(-1)
        filtered = top_k_top_p_filtering(probs, self.config.top_k, self.config.top_p)
        indices = sample_categorical_at(filtered, masked, generator)
        sampled_probs = probs.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
        if not bool(sampled_probs.isfinite().all()):
            raise ValueError("`model_output` must hold finite numbers or -inf at masked tokens, got nan or inf.")
        sampled_tokens = sample.masked_scatter(masked, indices.to(sample.dtype))
        all_probs = torch.ones(sample.shape, device=sample.device).masked_scatter(masked, sampled_probs)
        return SampledTokens(sampled_tokens, all_probs, filtered)

    def advance_token_sampling(self, sample: torch.LongTensor, generator: Generators = None):
        """Consume the random numbers that `sample_tokens` draws."""
        advance_categorical(sample, self.config.mask_token_id, generator)

    def waits_for_last_step(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether each sample has at most one masked token, which stays masked until the last step."""
        most = int((sample == self.config.mask_token_id).sum(-1).max())
        return most == 0 or (most == 1 and sample.shape[1] > 1 and not self.is_last(self.step_index(timestep)))

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.LongTensor:
        """
        Mask random tokens, as many as are masked before the step at `timesteps`.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch, tokens)`): token ids.
            timesteps (`int` or `torch.Tensor` of shape `()` or `(batch,)`): entries of `timesteps`.

        Raises:
            ValueError: if a timestep is not an entry of `timesteps`, or `set_timesteps` was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `add_noise`.")
        check_token_ids("original_samples", original_samples)
        steps = [self.step_index(one) for one in as_timesteps("timesteps", timesteps, len(original_samples))]
        ratios = torch.stack([self.mask_ratio(step / self.num_inference_steps) for step in steps])
        counts = (original_samples.shape[1] * ratios).floor().long().clamp(min=1).to(original_samples.device)
        ranks = sample_uniform(original_samples, generator).argsort(-1).argsort(-1)
        return torch.where(ranks < counts.unsqueeze(-1), self.config.mask_token_id, original_samples)

    def __len__(self) -> int:
        return self.num_inference_steps or 0


def annealed_temperatures(temperature: float, num_steps: int, rule: str) -> list[float]:
    """
    Temperature of the confidence noise at each step, decreasing to 0 at the last.

    Args:
        rule: "linear" (MaskGIT) gives `temperature * (1 - (i + 1) / n)` at step i of n. "compound" (Show-o) multiplies
            the factors of all steps so far, `temperature * prod_{j <= i} (1 - (j + 1) / n)`.
    """
    temperatures, product = [], temperature
    for step in range(num_steps):
        remaining = 1.0 - (step + 1) / num_steps
        product *= remaining
        temperatures.append(product if rule == "compound" else temperature * remaining)
    return temperatures


def mask_lowest(scores: torch.Tensor, num_masked: torch.LongTensor) -> torch.BoolTensor:
    """Select the `num_masked` lowest of the scores (batch, tokens). `num_masked` is (batch, 1), less than tokens."""
    return scores < scores.sort(-1).values.gather(-1, num_masked)
