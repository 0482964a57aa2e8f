"""Adapts a scheduler to one call: a copy with one interface, for our schedulers and diffusers'."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AmusedScheduler

from showo_hf.schedulers.scheduling_utils import DiscreteSchedulerMixin, Generators
from showo_hf.utils.validation import check_sampling

from .call_state import SamplingParams


class SchedulerAdapter:
    """
    A copy of a scheduler. Its state belongs to one call, so calls in several threads, and pipelines that share a scheduler,
    do not disturb each other.

    Schedulers of diffusers that fill in masked tokens ([`AmusedScheduler`], `BlockRefinementScheduler`) work too. They
    lack `initial_sample`, `is_noop` and `advance_generator`, and are told the mask id at each step.

    Args:
        scheduler: the pipeline's scheduler. It is not changed.
        mask_token_id (`int`): the codebook size, which stands for a masked token.
    """

    def __init__(self, scheduler: Any, mask_token_id: int):
        self.scheduler = copy.deepcopy(scheduler)
        self.mask_token_id = mask_token_id
        self.is_discrete = is_discrete(scheduler)
        self.step_kwargs = {"mask_token_id": mask_token_id} if has_argument(scheduler.step, "mask_token_id") else {}

    @property
    def needs_all_logits(self) -> bool:
        """Whether `step` reads the logits of known tokens."""
        return self.is_discrete and self.scheduler.needs_all_logits

    def set_timesteps(self, params: SamplingParams, grid_size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Call `set_timesteps` with the arguments that the scheduler has, and return its timesteps."""
        wanted = {
            "grid_size": grid_size,
            "block_length": grid_size[0] * grid_size[1],
            "temperature": params.temperature,
            "device": device,
        }
        kwargs = {
            name: value
            for name, value in wanted.items()
            if value is not None and has_argument(self.scheduler.set_timesteps, name)
        }
        self.scheduler.set_timesteps(params.num_inference_steps, **kwargs)
        return self.scheduler.timesteps

    def initial_sample(self, sample: torch.LongTensor, generator: Generators) -> torch.LongTensor:
        """Return the sample (batch, tokens) that the first step starts from."""
        if not self.is_discrete:
            return sample
        masked = sample == self.mask_token_id
        return torch.where(masked, self.scheduler.initial_sample(sample, generator), sample)

    def is_noop(self, timestep: torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether `step` would return `sample` (batch, tokens) unchanged, whatever the logits are."""
        return self.is_discrete and self.scheduler.is_noop(timestep, sample)

    def advance_generator(self, timestep: torch.Tensor, sample: torch.LongTensor, generator: Generators):
        """Consume the random numbers that `step` would draw, leaving `sample` unchanged."""
        if self.is_discrete:
            self.scheduler.advance_generator(timestep, sample, generator)

    def step(
        self, logits: torch.Tensor, timestep: torch.Tensor, sample: torch.LongTensor, generator: Generators
    ) -> tuple[torch.LongTensor, bool]:
        """
        Take one step. Return the next sample (batch, tokens), and whether no further step would change it.

        Args:
            logits (`torch.Tensor` of shape `(batch, tokens, codebook)`): guided logits.
            sample (`torch.LongTensor` of shape `(batch, tokens)`): image tokens, `mask_token_id` where masked.
        """
        output = self.scheduler.step(logits, timestep, sample, generator=generator, **self.step_kwargs)
        finished = getattr(output, "finished", None)
        if finished is None:  # diffusers' schedulers do not report it
            finished = not bool((output.prev_sample == self.mask_token_id).any())
        return output.prev_sample, finished


def check_scheduler(scheduler: Any, mask_token_id: int):
    """Raise `ValueError` unless the scheduler fills in masked tokens, and its mask id is `mask_token_id`."""
    kind = type(scheduler)
    knows_mask = has_argument(kind.__init__, "mask_token_id") or has_argument(kind.step, "mask_token_id")
    if not knows_mask and not is_discrete(scheduler):
        raise ValueError(f"`scheduler` must be a scheduler of masked tokens, got {kind.__name__}.")
    if issubclass(kind, AmusedScheduler) and scheduler.config.masking_schedule not in ("cosine", "linear"):
        raise ValueError(
            f"`scheduler.config.masking_schedule` must be 'cosine' or 'linear' for {kind.__name__}, "
            f"got {scheduler.config.masking_schedule!r}."
        )
    configured = config_entry(scheduler, "mask_token_id", mask_token_id)
    if configured != mask_token_id:
        raise ValueError(
            f"`scheduler.config.mask_token_id` must be the model's codebook size, {mask_token_id}, got {configured}; "
            f"use `type(scheduler).from_config(scheduler.config, mask_token_id={mask_token_id})`."
        )


def check_scheduler_arguments(
    scheduler: Any, num_inference_steps: int, temperature: float | None, generator: Generators
):
    """Raise `ValueError` for more steps than the scheduler has, and for arguments that it does not take."""
    kind = type(scheduler).__name__
    most = config_entry(scheduler, "num_train_timesteps", math.inf)
    takes_temperature = has_argument(scheduler.set_timesteps, "temperature")
    check_sampling(kind, most, takes_temperature, num_inference_steps, temperature)
    if isinstance(generator, list) and not is_discrete(scheduler):
        raise ValueError(f"`generator` must be a single one for a {kind}, got a list of {len(generator)}.")


def is_discrete(scheduler: Any) -> bool:
    """Whether a scheduler has the interface of [`DiscreteSchedulerMixin`], as ours do."""
    return isinstance(scheduler, DiscreteSchedulerMixin)


def config_entry(scheduler: Any, name: str, default: Any) -> Any:
    """Read a config entry that the scheduler's class has. `from_config` also keeps entries of other classes."""
    return scheduler.config[name] if has_argument(type(scheduler).__init__, name) else default


def has_argument(function: Callable, name: str) -> bool:
    """Whether a function has an argument of this name."""
    return name in inspect.signature(function).parameters
