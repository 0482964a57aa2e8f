"""Helpers for tests of the image pipelines: small pipelines, masks, and calls that return tokens."""

from functools import cache
from typing import Any

import tiny
import torch
from conversations import PROCESSOR, generator, grid
from diffusers import DiffusionPipeline

from showo_hf import (
    MaskGITScheduler,
    ShowoExtrapolatePipeline,
    ShowoForCausalLM,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoT2IPipeline,
)


EDITING_PIPELINES = (ShowoInpaintPipeline, ShowoExtrapolatePipeline, ShowoImg2ImgPipeline)
PROMPTS = ["owl", "a green pear", "two hearts"]  # of different lengths
LARGE_SIDE = 8  # tokens along each side of an image that needs several windows
WINDOW_LENGTH = tiny.SIDE**2 + 2  # ids per row and step: soi, 16 image tokens, eoi


def block_mask(rows: slice, columns: slice, size: int = tiny.SIDE) -> torch.Tensor:
    """A mask of shape `(size, size)`: 1 in a block, 0 elsewhere."""
    mask = torch.zeros(size, size)
    mask[rows, columns] = 1
    return mask


MIDDLE_MASK = block_mask(slice(1, 3), slice(1, 3))
#: The arguments that `edit` adds to a prompt and an image, by pipeline.
EDIT_ARGUMENTS: dict[type, dict[str, Any]] = {
    ShowoInpaintPipeline: {"mask_image": MIDDLE_MASK},
    ShowoExtrapolatePipeline: {"direction": "right", "extent": 2 * tiny.FACTOR},
    ShowoImg2ImgPipeline: {"strength": 0.6},
}


@cache
def shared_model() -> ShowoForCausalLM:
    """One model for all tests that do not change it."""
    return tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)


@cache
def shared_vq_model() -> ShowoForCausalLM:
    """The same with a codebook of vectors."""
    return tiny.showo_with("vq", text_ids=PROCESSOR.pad_token_id)


class RecordingScheduler(MaskGITScheduler):
    """Records the initial samples, of shape (batch, tokens), and the grid sizes. Calls share it instead of copying it."""

    def __deepcopy__(self, memo):
        return self

    def set_timesteps(self, num_inference_steps, device=None, grid_size=None, temperature=None):
        super().set_timesteps(num_inference_steps, device, grid_size, temperature)
        self.grid_sizes = [*getattr(self, "grid_sizes", []), grid_size]

    def initial_sample(self, sample, generator=None):
        self.samples = [*getattr(self, "samples", []), sample]
        return sample

    @property
    def masked(self) -> torch.BoolTensor:
        """The masked tokens of the only initial sample, of shape (batch, h, w)."""
        (sample,), (grid_size,) = self.samples, self.grid_sizes
        return (sample == tiny.CODES).unflatten(1, grid_size)


def make_pipeline(kind: type, its_model=None, scheduler=None) -> DiffusionPipeline:
    if scheduler is None:  # not `scheduler or ...`: a new scheduler has length 0, so it is false
        scheduler = MaskGITScheduler(mask_token_id=tiny.CODES)
    pipe = kind(its_model or shared_model(), PROCESSOR, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_recording_pipeline(kind: type) -> DiffusionPipeline:
    return make_pipeline(kind, scheduler=RecordingScheduler(mask_token_id=tiny.CODES))


def edit(pipe: DiffusionPipeline, prompt="a red apple", seed=0, **kwargs):
    """Edit an image in a few steps and return its tokens. `kwargs` override the defaults."""
    options = {"num_inference_steps": 4, "generator": generator(seed), "output_type": "latent", "image": grid()}
    return pipe(prompt, **(options | EDIT_ARGUMENTS[type(pipe)] | kwargs)).images


def text_to_image(prompt="a red apple", seed=0, **kwargs) -> torch.LongTensor:
    """The tokens that `ShowoT2IPipeline` samples with the same model."""
    options = {"num_inference_steps": 4, "generator": generator(seed), "output_type": "latent"}
    return make_pipeline(ShowoT2IPipeline)(prompt, **(options | kwargs)).images


def encode_image(image, pipe: DiffusionPipeline) -> torch.LongTensor:
    """The tokens of a PIL image that is not resized, of shape (1, h, w)."""
    values = torch.tensor(list(image.tobytes())).view(1, *image.size[::-1], 3).movedim(-1, 1)
    return pipe.image_tokenizer.encode(values / 127.5 - 1).image_tokens
