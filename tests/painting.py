"""What the tests of the pipelines share that begin with an image."""

from functools import cache
from typing import Any

import tiny
import torch
from diffusers import DiffusionPipeline
from talking import PROCESSOR, generator, grid

from showo_hf import (
    MaskGITScheduler,
    ShowoExtrapolatePipeline,
    ShowoForCausalLM,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoT2IPipeline,
)


KINDS = (ShowoInpaintPipeline, ShowoExtrapolatePipeline, ShowoImg2ImgPipeline)
PROMPTS = ["owl", "a green pear", "two hearts"]  # of different length
LARGE = 8  # tokens along a side of an image that is made in windows
WINDOW = tiny.SIDE**2 + 2  # ids that the model sees at a step: soi, 16 tokens, eoi


def hole(rows: slice, columns: slice, size: int = tiny.SIDE) -> torch.Tensor:
    """A mask of `size` x `size` with ones in a block."""
    mask = torch.zeros(size, size)
    mask[rows, columns] = 1
    return mask


MIDDLE = hole(slice(1, 3), slice(1, 3))
#: What each pipeline needs beside a prompt and an image.
OWN: dict[type, dict[str, Any]] = {
    ShowoInpaintPipeline: {"mask_image": MIDDLE},
    ShowoExtrapolatePipeline: {"direction": "right", "extent": 2 * tiny.FACTOR},
    ShowoImg2ImgPipeline: {"strength": 0.6},
}


@cache
def model() -> ShowoForCausalLM:
    """One for all tests that do not change it."""
    return tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)


class WatchedScheduler(MaskGITScheduler):
    """Records the tokens (batch, tokens) and grid sizes that it starts with. Calls share it, instead of copying it."""

    def __deepcopy__(self, memo):
        return self

    def set_timesteps(self, num_inference_steps, device=None, grid_size=None, temperature=None):
        super().set_timesteps(num_inference_steps, device, grid_size, temperature)
        self.grid_sizes = [*getattr(self, "grid_sizes", []), grid_size]

    def initial_sample(self, sample, generator=None):
        self.samples = [*getattr(self, "samples", []), sample]
        return sample

    @property
    def unknown(self) -> torch.BoolTensor:
        """Where tokens were unknown at the only start, (batch, h, w)."""
        (sample,), (grid_size,) = self.samples, self.grid_sizes
        return (sample == tiny.CODES).unflatten(1, grid_size)


def make(kind: type, its_model=None, scheduler=None) -> DiffusionPipeline:
    if scheduler is None:  # a new one counts no steps, and so is false
        scheduler = MaskGITScheduler(mask_token_id=tiny.CODES)
    pipe = kind(its_model or model(), PROCESSOR, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def watched(kind: type) -> DiffusionPipeline:
    return make(kind, scheduler=WatchedScheduler(mask_token_id=tiny.CODES))


def edit(pipe: DiffusionPipeline, prompt="a red apple", seed=0, **kwargs):
    """Tokens after a few steps; `kwargs` go before what is usual."""
    options = {"num_inference_steps": 4, "generator": generator(seed), "output_type": "latent", "image": grid()}
    return pipe(prompt, **(options | OWN[type(pipe)] | kwargs)).images


def from_words(prompt="a red apple", seed=0, **kwargs) -> torch.LongTensor:
    """Tokens of text to image with the same model."""
    options = {"num_inference_steps": 4, "generator": generator(seed), "output_type": "latent"}
    return make(ShowoT2IPipeline)(prompt, **(options | kwargs)).images


def encoded(image, pipe: DiffusionPipeline) -> torch.LongTensor:
    """Tokens (1, h, w) of a PIL image as it is."""
    values = torch.tensor(list(image.tobytes())).view(1, *image.size[::-1], 3).movedim(-1, 1)
    return pipe.image_tokenizer.encode(values / 127.5 - 1).image_tokens
