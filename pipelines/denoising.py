"""The denoising loop that all image pipelines and mixed answers share."""

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch.nn import functional as F

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.schedulers.scheduling_utils import Generators

from .call_scheduler import CallScheduler
from .encoded_prompts import EncodedPrompts
from .guidance import guidance_at
from .windows import Window, plan_windows, share_windows


@dataclass(frozen=True)
class SamplingParams:
    """
    Sampling parameters of a call; see [`ShowoT2IPipeline.__call__`].

    `begin_index` is the first step that runs; the steps before it are skipped.
    """

    num_inference_steps: int = 18
    guidance_scale: float = 2.75
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float | None = None
    generator: Generators = None
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    begin_index: int = 0

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether unconditional prompts are needed. A callback may turn guidance on later."""
        return self.guidance_scale > 1 or self.callback_on_step_end is not None

    def guidance_at(self, step: int, guidance_scale: float) -> float:
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
        return self.callback_on_step_end_tensor_inputs or ()


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """
    One finished step.

    Args:
        index (`int`): number of the step, from 0, counted over all windows.
        num_timesteps (`int`): maximum number of steps of the call.
        latents (`torch.LongTensor` of shape `(batch, h, w)`): image tokens, the codebook size where masked.
        interrupted (`bool`): whether a callback stopped the call after this step.
    """

    index: int
    num_timesteps: int
    latents: torch.LongTensor
    interrupted: bool


@dataclass
class RunningCall:
    """
    The state of a call that its callback reads and changes through the pipeline's attributes.

    Args:
        pipe ([`DiffusionPipeline`]): the pipeline that was called.
        guidance_scale (`float`): `pipe._guidance_scale`, used from the next step on.
        num_timesteps (`int`): `pipe._num_timesteps`, the maximum number of steps.
        interrupt (`bool`): `pipe._interrupt`, whether the call stops after the current step.
    """

    pipe: DiffusionPipeline
    guidance_scale: float
    num_timesteps: int
    interrupt: bool = False

    def on_step_end(
        self, step: int, timestep: torch.Tensor, latents: torch.LongTensor, params: SamplingParams
    ) -> torch.LongTensor:
        """Call `callback_on_step_end`, if there is one. Return the `latents` that it returns, or the given ones."""
        if params.callback_on_step_end is None:
            return latents
        tensors = {name: latents for name in params.callback_tensor_inputs}
        token = RUNNING_CALL.set(self)
        try:
            replaced = params.callback_on_step_end(self.pipe, step, timestep, tensors) or {}
        finally:
            RUNNING_CALL.reset(token)
        return replaced.get("latents", latents).reshape(latents.shape)


#: The call whose callback runs in this thread.
RUNNING_CALL: ContextVar[RunningCall | None] = ContextVar("RUNNING_CALL", default=None)


def running_call(pipe: DiffusionPipeline) -> RunningCall:
    """The call of `pipe` whose callback runs now. Raises `AttributeError` outside of a callback."""
    call = RUNNING_CALL.get()
    if call is None or call.pipe is not pipe:
        raise AttributeError(
            "The state of a call can be changed in its `callback_on_step_end` only, because each call has its own. To stop "
            "a call from outside, let its callback look at a `threading.Event`."
        )
    return call


def latest_call(pipe: DiffusionPipeline) -> RunningCall:
    """The call of `pipe` whose callback runs now; outside of a callback, the call that started last, for information."""
    call = RUNNING_CALL.get()
    return call if call is not None and call.pipe is pipe else pipe.latest_call


def denoise(
    pipe: DiffusionPipeline,
    latents: torch.LongTensor,
    prompts: EncodedPrompts | None,
    params: SamplingParams,
    windows: Sequence[tuple[Window, list[int]]] | None = None,
) -> Iterator[DenoisingStep]:
    """
    Fill in the masked tokens, window by window and step by step. Known tokens stay as they are.

    Args:
        latents (`torch.LongTensor` of shape `(batch, h, w)`): image tokens, the codebook size where masked.
        prompts ([`EncodedPrompts`]): the prompts of all images; not needed if no token is masked.
        windows: windows in order, each with the images it applies to. By default they cover all masked tokens.

    Raises:
        RuntimeError: if the scheduler or the callback leaves tokens masked or out of range.
    """
    mask = pipe.model.config.codebook_size
    if windows is None:
        windows = share_windows([plan_windows(masked, pipe.default_grid) for masked in latents == mask])
    num_timesteps, index = len(windows) * (params.num_inference_steps - params.begin_index), 0
    call = pipe.latest_call = RunningCall(pipe, params.guidance_scale, num_timesteps)
    scheduler = CallScheduler(pipe.scheduler, mask)
    with pipe.progress_bar(total=num_timesteps) as progress_bar:
        for window, images in windows:
            place = (images, *window)
            grid_size, sample = tuple(latents[place].shape[1:]), latents[place].flatten(1)  # (images, tokens)
            generator = params.generators_of(images)
            contexts = PromptContexts(pipe.model, prompts.select(images).crop(*window), sample.shape[1])
            timesteps = scheduler.set_timesteps(
                params.num_inference_steps, grid_size, device=latents.device, temperature=params.temperature
            )
            editable = sample == mask
            sample = scheduler.initial_sample(sample, generator)
            for step, timestep in enumerate(timesteps[params.begin_index :], start=params.begin_index):
                editable = editable | (sample == mask)  # a callback may mask known tokens again
                if scheduler.is_noop(timestep, sample):
                    scheduler.advance_generator(timestep, sample, generator)
                    stepped, finished = sample, False
                else:
                    scale = params.guidance_at(step, call.guidance_scale)
                    wanted = editable if scheduler.needs_all_logits else sample == mask
                    logits = predict_logits(pipe.model, sample, contexts[scale != 1], scale, wanted)
                    stepped, finished = scheduler.step(logits, timestep, sample, generator)
                latents = latents.clone()
                latents[place] = torch.where(editable, stepped, sample).unflatten(1, grid_size)
                latents = call.on_step_end(index, timestep, latents, params)
                sample = latents[place].flatten(1)
                progress_bar.update()
                yield DenoisingStep(index, num_timesteps, latents, call.interrupt)
                index += 1
                if call.interrupt:
                    return
                if finished:  # later draws must not depend on how early a window is finished
                    for skipped in timesteps[step + 1 :]:
                        scheduler.advance_generator(skipped, sample, generator)
                    break
    check_finished(latents, mask)


@torch.no_grad()
def predict_logits(
    model: ShowoForCausalLM,
    sample: torch.LongTensor,
    context: "PromptContext",
    guidance_scale: float,
    wanted: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """
    Predict the guided logits of image tokens: `g c - (g - 1) u`, or c without guidance.

    The model runs on the image's positions only, and its head on the wanted ones only.

    Args:
        sample (`torch.LongTensor` of shape `(images, tokens)`): image tokens, the codebook size where masked.
        wanted (`torch.BoolTensor` of shape `(images, tokens)`, *optional*): the tokens to predict, by default the masked
            ones.

    Returns:
        `torch.Tensor` of shape `(images, tokens, codebook)`, zero where tokens are not wanted.
    """
    num_images, num_tokens = sample.shape
    wanted = sample == model.config.codebook_size if wanted is None else wanted
    prompts = context.prompts
    input_ids = image_input_ids(sample, model.config)[prompts.image_indices]  # (rows, tokens + 2)
    positions = torch.arange(num_tokens + 2, device=sample.device) + prompts.first_position
    logits = model(
        input_ids=input_ids,
        attention_mask=context.attention_mask,
        position_ids=positions.expand_as(input_ids),
        past_key_values=prompts.cache,
        use_cache=True,
        logits_to_keep=F.pad(wanted, (1, 1), value=False)[prompts.image_indices],  # soi and eoi are known
        codebook_only=True,
    ).logits  # (wanted tokens of all rows, codebook)
    prompts.cache.crop(-(num_tokens + 2))
    guided = prompts.combine(logits, wanted, guidance_scale)  # (wanted tokens, codebook)
    full = guided.new_zeros(num_images, num_tokens, guided.shape[-1])
    full[wanted] = guided
    return full


@dataclass(frozen=True)
class PromptContext:
    """Prompts, and the attention mask of the image tokens behind them. Both are the same at every step."""

    prompts: EncodedPrompts
    attention_mask: Any

    @classmethod
    def of(cls, model: ShowoForCausalLM, prompts: EncodedPrompts, num_tokens: int) -> "PromptContext":
        """Build the mask for images of `num_tokens` tokens."""
        sample = torch.zeros(prompts.num_rows, num_tokens, dtype=torch.int64, device=prompts.image_indices.device)
        input_ids = image_input_ids(sample, model.config)  # (rows, tokens + 2): the mask depends on soi and eoi only
        seen = F.pad(prompts.attention_mask, (0, input_ids.shape[1]), value=1)
        like = torch.empty((*input_ids.shape, 0), dtype=model.dtype, device=input_ids.device)
        return cls(prompts, model.omni_attention_mask(like, input_ids, seen, prompts.cache))


class PromptContexts(dict):
    """The contexts of a window: `contexts[True]` with guidance, `contexts[False]` without. Each is built on first use."""

    def __init__(self, model: ShowoForCausalLM, prompts: EncodedPrompts, num_tokens: int):
        super().__init__()
        self.model, self.prompts, self.num_tokens = model, prompts, num_tokens

    def __missing__(self, guided: bool) -> PromptContext:
        prompts = self.prompts if guided else self.prompts.without_guidance()
        self[guided] = PromptContext.of(self.model, prompts, self.num_tokens)
        return self[guided]


def image_input_ids(sample: torch.LongTensor, config: ShowoConfig) -> torch.LongTensor:
    """Turn image tokens (images, tokens), masked ones included, into token ids `soi image eoi` (images, tokens + 2)."""
    ids = torch.where(sample == config.codebook_size, config.mask_token_id, sample + config.image_token_offset)
    return F.pad(F.pad(ids, (1, 0), value=config.soi_token_id), (0, 1), value=config.eoi_token_id)


def check_finished(latents: torch.LongTensor, mask_token_id: int):
    """Raise `RuntimeError` if tokens are masked or out of range after the last step."""
    if latents.numel() and not 0 <= latents.min() <= latents.max() < mask_token_id:
        raise RuntimeError(
            f"An image has tokens from {latents.min().item()} to {latents.max().item()} after its last step. Known tokens "
            f"are below {mask_token_id}."
        )
