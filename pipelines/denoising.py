"""The denoising loop that all image pipelines and mixed answers share."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.nn import functional as F

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM

from .call_state import RunningCall, SamplingParams
from .encoded_prompts import EncodedPrompts
from .scheduler_adapter import SchedulerAdapter
from .windows import Window, plan_windows, share_windows


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


def denoise(
    pipe: DiffusionPipeline,
    latents: torch.LongTensor,
    prompts: EncodedPrompts | None,
    params: SamplingParams,
    windows: Sequence[tuple[Window, list[int]]] | None = None,
) -> Iterator[DenoisingStep]:
    """
    Fill in the masked tokens, window by window. Yields each step, so that answers can stream. Known tokens stay.

    Args:
        pipe ([`ShowoPipeline`]): its model, scheduler, trained grid and progress bar are used.
        latents (`torch.LongTensor` of shape `(batch, h, w)`): image tokens, the codebook size where masked.
        prompts ([`EncodedPrompts`]): the prompts of all images; not needed if no token is masked.
        windows: windows in order, each with the images it applies to. By default they cover all masked tokens.

    Raises:
        RuntimeError: if the scheduler or the callback leaves tokens masked or out of range.
    """
    mask = pipe.model.config.codebook_size
    if windows is None:
        windows = share_windows([plan_windows(masked, pipe.default_grid) for masked in latents == mask])
    num_timesteps = len(windows) * (params.num_inference_steps - params.begin_index)
    call = pipe.latest_call = RunningCall(weakref.ref(pipe), params.guidance_scale, num_timesteps)
    scheduler, index = SchedulerAdapter(pipe.scheduler, mask), 0
    with pipe.progress_bar(total=num_timesteps) as progress_bar:
        for window, images in windows:
            place = (images, *window)
            grid_size, sample = tuple(latents[place].shape[1:]), latents[place].flatten(1)  # (images, tokens)
            generator = params.generators_of(images)
            window_prompts = WindowPrompts(pipe.model, prompts.select(images).crop(*window), sample.shape[1])
            timesteps = scheduler.set_timesteps(params, grid_size, device=latents.device)
            editable = sample == mask  # a scheduler may also change tokens that it has filled in
            sample = scheduler.initial_sample(sample, generator)
            for step, timestep in enumerate(timesteps[params.begin_index :], start=params.begin_index):
                if scheduler.is_noop(timestep, sample):
                    scheduler.advance_generator(timestep, sample, generator)
                    stepped, finished = sample, False
                else:
                    scale = params.scale_at(step, call.guidance_scale)
                    wanted = editable if scheduler.needs_all_logits else sample == mask
                    context = window_prompts.context(guided=scale != 1)
                    logits = predict_logits(pipe.model, sample, context, scale, wanted)
                    stepped, finished = scheduler.step(logits, timestep, sample, generator)
                stepped = torch.where(editable, stepped, sample)
                latents = latents.clone()
                latents[place] = stepped.unflatten(1, grid_size)
                latents = call.on_step_end(index, timestep, latents, params)
                sample = latents[place].flatten(1)
                editable = (editable & (sample == stepped)) | (sample == mask)  # what a callback changed stays
                progress_bar.update()
                yield DenoisingStep(index, num_timesteps, latents, call.interrupt)
                index += 1
                if call.interrupt:
                    return
                if finished and not bool((sample == mask).any()):  # a callback may have masked tokens again
                    for skipped in timesteps[step + 1 :]:  # later draws must not depend on how early a window ends
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


class WindowPrompts:
    """The prompts of a window, with the attention mask of its image tokens, for steps with and without guidance."""

    def __init__(self, model: ShowoForCausalLM, prompts: EncodedPrompts, num_tokens: int):
        self.model, self.prompts, self.num_tokens = model, prompts, num_tokens
        self.contexts: dict[bool, PromptContext] = {}

    def context(self, guided: bool) -> PromptContext:
        """The context of a step, built when it is first needed."""
        if guided not in self.contexts:
            prompts = self.prompts if guided else self.prompts.without_guidance()
            self.contexts[guided] = PromptContext.of(self.model, prompts, self.num_tokens)
        return self.contexts[guided]


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
