"""The parameters of a call and its state, which its callback can change."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from threading import Lock, RLock
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.private_interfaces import has_offload_hook
from showo_hf.utils.validation import check_flag

from .guidance import guidance_at


@dataclass(frozen=True)
class SamplingParams:
    """
    Sampling parameters of a call; see [`ShowoT2IPipeline.__call__`].

    `begin_index` is the first step that runs; the steps before it are skipped. `decoder_steps` are the steps of the
    diffusion decoder: None for its own number, 0 to leave it out.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float | None = None
    generator: Generators = None
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    begin_index: int = 0
    decoder_steps: int | None = None

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether negative prompts are needed: with guidance, and with a callback, which can turn guidance on."""
        return self.guidance_scale > 1 or self.callback_on_step_end is not None

    def scale_at(self, step: int, guidance_scale: float) -> float:
        """The guidance scale of a step, from 0, by schedule and interval."""
        schedule, interval = self.guidance_schedule, self.guidance_interval
        return guidance_at(guidance_scale, step, self.num_inference_steps, schedule, interval)

    def generators_of(self, images: Sequence[int]) -> Generators:
        """The generators of some images of the batch."""
        return [self.generator[image] for image in images] if isinstance(self.generator, list) else self.generator

    @property
    def callback_tensor_inputs(self) -> Sequence[str]:
        """Names of the callback's tensors. A [`PipelineCallback`] brings its own."""
        if isinstance(self.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            return self.callback_on_step_end.tensor_inputs
        names = self.callback_on_step_end_tensor_inputs
        return () if names is None else names


@dataclass
class RunningCall:
    """
    The state of a call that its callback reads and changes through the pipeline's attributes.

    Args:
        pipe (`weakref.ref`): the pipeline that was called.
        guidance_scale (`float`): `pipe._guidance_scale`, used from the next step on.
        num_timesteps (`int`): `pipe._num_timesteps`, the maximum number of steps.
        interrupt (`bool`): `pipe._interrupt`, whether the call stops after the current step.
    """

    pipe: weakref.ref
    guidance_scale: float
    num_timesteps: int
    interrupt: bool = False

    def on_step_end(
        self, step: int, timestep: torch.Tensor, latents: torch.LongTensor, params: SamplingParams
    ) -> torch.LongTensor:
        """
        Call `callback_on_step_end`, if there is one. Return the `latents` that it returns, or the given ones.

        Raises:
            TypeError: if the callback returns something other than a dict or None.
            ValueError: if it returns latents of another dtype or number of tokens.
            RuntimeError: if it sets tokens out of range.
        """
        if params.callback_on_step_end is None:
            return latents
        tensors = {name: latents for name in params.callback_tensor_inputs}
        token, pipe = RUNNING_CALL.set(self), self.pipe()
        try:
            returned = params.callback_on_step_end(pipe, step, timestep, tensors)
        finally:
            RUNNING_CALL.reset(token)
        if returned is not None and not isinstance(returned, dict):
            raise TypeError(f"`callback_on_step_end` must return a dict or None, got {type(returned).__name__}.")
        return checked_latents((returned or {}).get("latents", latents), latents, pipe.mask_token_id)


def checked_latents(replaced: Any, latents: torch.LongTensor, mask_token_id: int) -> torch.LongTensor:
    """
    The tokens that a callback returned, or changed in place, with the shape and the device of `latents`.

    Raises:
        ValueError: for another dtype or number of tokens.
        RuntimeError: for tokens that are neither masked nor in the codebook.
    """
    if not isinstance(replaced, torch.Tensor) or replaced.dtype != torch.int64 or replaced.numel() != latents.numel():
        got = f"{replaced.dtype} {tuple(replaced.shape)}" if isinstance(replaced, torch.Tensor) else type(replaced)
        raise ValueError(
            f"`callback_on_step_end` must return `latents` as int64 of shape {tuple(latents.shape)}, got {got}."
        )
    replaced = replaced.to(latents.device).reshape(latents.shape)
    if replaced.numel() and not 0 <= replaced.min() <= replaced.max() <= mask_token_id:
        raise RuntimeError(
            f"`callback_on_step_end` must set `latents` from 0 to {mask_token_id - 1}, or to {mask_token_id} where masked, "
            f"got {replaced.min().item()} to {replaced.max().item()}."
        )
    return replaced


#: The call whose callback runs in this thread.
RUNNING_CALL: ContextVar[RunningCall | None] = ContextVar("RUNNING_CALL", default=None)


def running_call(pipe: DiffusionPipeline) -> RunningCall:
    """The call of `pipe` whose callback runs now. Raises `AttributeError` outside of a callback."""
    call = RUNNING_CALL.get()
    if call is None or call.pipe() is not pipe:
        raise AttributeError(
            "The state of a call can be changed in its `callback_on_step_end` only, because each call has its own. To stop "
            "a call from outside, let its callback look at a `threading.Event`."
        )
    return call


def latest_call(pipe: DiffusionPipeline) -> RunningCall:
    """The call of `pipe` whose callback runs now; outside of a callback, the most recent call (read only)."""
    call = RUNNING_CALL.get()
    return call if call is not None and call.pipe() is pipe else pipe.latest_call


#: What is called after each pass that scores tokens, in this thread.
AFTER_PASS: ContextVar[Callable[[], object]] = ContextVar("AFTER_PASS", default=lambda: None)


@contextmanager
def after_each_pass(function: Callable[[], object]) -> Iterator[None]:
    """
    Call `function` after each pass that scores tokens of an image, in this thread.

    An edit scores tokens before its first step, and so before its callback can end it. An error of `function` ends it.
    """
    token = AFTER_PASS.set(function)
    try:
        yield
    finally:
        AFTER_PASS.reset(token)


#: Held by calls of offloaded pipelines, one for each model. A call moves the weights, and they are in one place at a time.
_OFFLOAD_LOCKS: weakref.WeakKeyDictionary[torch.nn.Module, RLock] = weakref.WeakKeyDictionary()
_NEW_LOCK = Lock()


def is_offloaded(pipe: DiffusionPipeline) -> bool:
    """Whether accelerate moves the weights of the model or of the image decoder for each call."""
    return any(part is not None and has_offload_hook(part) for part in (pipe.model, pipe.image_decoder))


@contextmanager
def one_at_a_time_if_offloaded(pipe: DiffusionPipeline) -> Iterator[None]:
    """Wait until no other call of an offloaded model runs, and keep others waiting. Calls of other models do not wait."""
    with _NEW_LOCK:
        lock = _OFFLOAD_LOCKS.setdefault(pipe.model, RLock())
    with lock:  # the end of another call takes the hooks off for a moment
        if is_offloaded(pipe):
            yield
            return
    yield


def one_offloaded_call(call: Callable) -> Callable:
    """
    Decorate a pipeline's call: calls of offloaded pipelines run one after the other, others at the same time.

    It also checks `return_dict`, which calls use when the work is done.
    """

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        check_flag("return_dict", kwargs.get("return_dict", True))
        with one_at_a_time_if_offloaded(self):
            return call(self, *args, **kwargs)

    return wrapper
