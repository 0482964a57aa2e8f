"""Confidence-based parallel decoding, as in MaskGIT (arXiv:2202.04200) and Show-o (arXiv:2408.12528)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .masking_schedules import get_masking_schedule
from .scheduling_utils import (
    DiscreteSchedulerMixin,
    DiscreteSchedulerOutput,
    Generators,
    check_step_inputs,
    gumbel_noise,
    sample_categorical,
    sample_uniform,
)


class MaskGITScheduler(DiscreteSchedulerMixin, SchedulerMixin, ConfigMixin):
    r"""
    Fill in masked tokens over a few steps, the most confident ones first (MaskGIT, arXiv:2202.04200, section 3.2).

    A step samples every unknown token from the model's distribution, scores it by `log p + temperature * gumbel`, and
    masks the worst again: `max(1, min(unknown - 1, floor(N * schedule((step + 1) / steps))))` of them, N being all
    tokens of the picture. The last step keeps all.

    Args:
        mask_token_id (`int`, defaults to 8192): the code of an unknown token, equal to the codebook size.
        masking_schedule (`str`, defaults to `"cosine"`): "cosine", "linear", "sigmoid" or "pow<n>".
        temperature (`float`, defaults to 1.0): scale of the noise on the confidences, when `set_timesteps` gets none.
        temperature_rule (`str`, defaults to `"compound"`): how the scale falls. "linear" is MaskGIT's: at step i of n it
            is `temperature * (1 - (i + 1) / n)`. "compound" is Show-o's, where each step multiplies what the step
            before left over: `temperature * prod_{j <= i} (1 - (j + 1) / n)`.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = 8192,
        masking_schedule: str = "cosine",
        temperature: float = 1.0,
        temperature_rule: str = "compound",
    ):
        get_masking_schedule(masking_schedule)
        if temperature_rule not in ("compound", "linear"):
            raise ValueError(f"`temperature_rule` must be 'compound' or 'linear', got {temperature_rule!r}.")
        self.num_inference_steps: int | None = None
        self.timesteps: torch.LongTensor | None = None
        self.temperatures: list[float] = []

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        grid_size: tuple[int, int] | None = None,
        temperature: float | None = None,
    ):
        """
        Prepare `num_inference_steps` steps (at least 1); `timesteps` counts down to 0.

        `grid_size` is taken for the sake of other schedulers; confidence does not ask where a token lies.
        """
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
        scale = self.config.temperature if temperature is None else temperature
        if scale < 0:
            raise ValueError(f"`temperature` must not be negative, got {scale}.")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps, device=device).flip(0)
        self.temperatures = []
        left = scale
        for step in range(num_inference_steps):
            remaining = 1.0 - (step + 1) / num_inference_steps
            left *= remaining
            self.temperatures.append(left if self.config.temperature_rule == "compound" else scale * remaining)

    def mask_ratio(self, ratio: float) -> torch.Tensor:
        """Share of masked tokens, a float32 scalar, when the share `ratio` of the steps is done."""
        return get_masking_schedule(self.config.masking_schedule)(torch.tensor(ratio, dtype=torch.float32))

    def num_masked_after(self, step: int, unknown: torch.LongTensor, num_tokens: int) -> torch.LongTensor:
        """
        How many tokens are masked again after a step.

        Args:
            step: index of the step, from 0.
            unknown (`torch.LongTensor` of shape `(batch, 1)`): unknown tokens before it.
            num_tokens: all tokens of the picture, the given ones too.
        """
        wanted = (num_tokens * self.mask_ratio((step + 1) / self.num_inference_steps)).floor().long()
        return torch.minimum(unknown - 1, wanted.to(unknown.device)).clamp(min=1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DiscreteSchedulerOutput | tuple:
        """
        One step of filling in.

        Args:
            model_output (`torch.Tensor` of shape `(batch, tokens, codebook)`): logits. Those of known tokens are not
                looked at, though numbers are drawn for them too, so that the draws do not depend on what is known.
            timestep (`int`): an entry of `timesteps`.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): codes; `mask_token_id` where unknown.
            generator (`torch.Generator` or a list with one a sample, *optional*).

        Raises:
            ValueError: for shapes that do not fit, a list of generators of another length, or a missing `set_timesteps`.
        """
        check_step_inputs(model_output, sample, self.num_inference_steps)
        step = self.num_inference_steps - 1 - int(timestep)
        unknown = sample == self.config.mask_token_id  # (batch, tokens)
        probabilities = model_output.float().softmax(-1)
        drawn = sample_categorical(probabilities, generator)
        guess = torch.where(unknown, drawn, sample)
        # Drawn in the last step too, so that a generator is left in the same state by any number of known tokens.
        noise = gumbel_noise(guess, generator)
        if step == self.num_inference_steps - 1:
            prev_sample = guess
        else:
            chosen = probabilities.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
            confidence = chosen.clamp(1e-20).log() + self.temperatures[step] * noise
            confidence = torch.where(unknown, confidence, torch.inf)  # what is known is never masked
            num_masked = self.num_masked_after(step, unknown.sum(-1, keepdim=True), sample.shape[1])
            cut_off = confidence.sort(-1).values.gather(-1, num_masked.clamp(max=sample.shape[1] - 1))
            masked = (confidence < cut_off) & unknown
            prev_sample = torch.where(masked, self.config.mask_token_id, guess)
        finished = not bool((prev_sample == self.config.mask_token_id).any())
        if not return_dict:
            return prev_sample, guess, finished
        return DiscreteSchedulerOutput(prev_sample=prev_sample, pred_original_sample=guess, finished=finished)

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.LongTensor:
        """
        Mask tokens at random, as many as are unknown before the step `timesteps`.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch, tokens)`): codes.
            timesteps (`int` or `torch.Tensor` of shape `()` or `(batch,)`): entries of `timesteps`.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `add_noise`.")
        num_tokens = original_samples.shape[1]
        steps = self.num_inference_steps - 1 - torch.as_tensor(timesteps).reshape(-1)
        ratios = [self.mask_ratio(step.item() / self.num_inference_steps) for step in steps]
        counts = (num_tokens * torch.stack(ratios)).floor().long().clamp(min=1).to(original_samples.device)
        order = sample_uniform(original_samples, generator).argsort(-1).argsort(-1)  # a random rank for each token
        return torch.where(order < counts.unsqueeze(-1), self.config.mask_token_id, original_samples)

    def __len__(self) -> int:
        return self.num_inference_steps or 0
