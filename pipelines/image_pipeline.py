"""What the pipelines share that make one image a prompt: prompts, sizes, the call's frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput, logging
from PIL import Image

from showo_hf.processing.processing_showo import check_texts
from showo_hf.utils.validation import check_count, is_integer

from .encoded_prompts import EncodedPrompts
from .pipeline_utils import FillingOptions, ShowoPipelineBase
from .prompts import PromptBatch, check_parts, compose, is_plain, load_masks, prompt_parts
from .windows import Window


logger = logging.get_logger(__name__)


@dataclass
class ShowoImagePipelineOutput(BaseOutput):
    """
    Output of the pipelines that make images.

    Args:
        images: a list of PIL images; or `np.ndarray` (batch, H, W, 3) or `torch.Tensor` (batch, 3, H, W) in [0, 1];
            or, for "latent", the token grid, `torch.LongTensor` (batch, h, w).
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor


class ShowoImagePipeline(ShowoPipelineBase):
    """Base of the pipelines that make an image of each prompt; components `model`, `processor`, `scheduler`."""

    def check_prompts(self, prompt: Any, negative_prompt: Any, num_images_per_prompt: int) -> PromptBatch:
        """Raise `ValueError` or `TypeError` for prompts that are wrong; they are returned, with loaded masks."""
        prompts = prompt_parts(prompt)
        check_parts(prompts)
        if negative_prompt is not None:
            negative = check_texts("negative_prompt", negative_prompt)
            if len(negative) not in (1, len(prompts)):
                raise ValueError(
                    f"`negative_prompt` must be one text or one for each of the {len(prompts)} prompts, "
                    f"got {len(negative)}."
                )
        check_count("num_images_per_prompt", num_images_per_prompt)
        return PromptBatch([load_masks(parts) for parts in prompts], negative_prompt, num_images_per_prompt)

    @property
    def patch(self) -> int:
        """Pixels along a side of a token; 1 without an image tokenizer, where sizes are told in tokens."""
        return 1 if self.image_tokenizer is None else self.image_tokenizer.config.downsampling

    def check_size(self, height: int | None, width: int | None):
        """Raise `ValueError` unless the image tokenizer divides `height` and `width` (pixels)."""
        if height is None and width is None:
            return
        if self.image_tokenizer is None:
            raise ValueError(
                "`height` and `width` need an image tokenizer; give `latents` of the wanted grid instead."
            )
        for name, value in (("height", height), ("width", width)):
            if value is not None and (not is_integer(value) or value < self.patch or value % self.patch):
                raise ValueError(f"`{name}` must be a positive multiple of {self.patch} pixels, got {value}.")

    def check_token_grids(self, name: str, grids: Any, batch_size: int, largest: int):
        """Raise `ValueError` unless `grids` is int64 (batch_size, h, w) with codes from 0 to `largest`."""
        if not isinstance(grids, torch.Tensor) or grids.ndim != 3 or grids.dtype != torch.int64:
            got = f"{grids.dtype} {tuple(grids.shape)}" if isinstance(grids, torch.Tensor) else type(grids).__name__
            raise ValueError(f"`{name}` must be an int64 tensor of shape (batch, height, width), got {got}.")
        if grids.shape[0] != batch_size or grids.numel() == 0:
            raise ValueError(f"`{name}` must hold {batch_size} grids, got shape {tuple(grids.shape)}.")
        if grids.min() < 0 or grids.max() > largest:
            unknown = f", or {largest} where unknown" if largest == self.unknown_code else ""
            raise ValueError(
                f"`{name}` must be codes from 0 to {self.unknown_code - 1}{unknown}, "
                f"got {grids.min().item()} to {grids.max().item()}."
            )

    def encode_prompt(
        self,
        prompt: Any,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        grid_size: tuple[int, int] | None = None,
    ) -> EncodedPrompts:
        """
        Keys and values of the prompts and, for guidance, of the negative ones; each text goes through the model once.

        Without a negative prompt the unconditional one is the empty text. Prompts that are made of parts need it with any
        guidance; `grid_size` is what their masks are laid on, the trained grid by default.
        """
        batch = self.check_prompts(prompt, negative_prompt, num_images_per_prompt)
        return self.encode_batch(batch, do_classifier_free_guidance, grid_size or self.default_grid)

    def encode_batch(self, batch: PromptBatch, guided: bool, grid_size: tuple[int, int]) -> EncodedPrompts:
        """[`encode_prompt`] for prompts that were checked."""
        wanted = [part.text for parts in batch.images for part in parts]
        if guided or not all(map(is_plain, batch.prompts)):
            negative = check_texts("negative_prompt", batch.negative_prompt or "")
            negative = negative * len(batch.prompts) if len(negative) == 1 else negative
            wanted += [text for text in negative for _ in range(batch.num_images_per_prompt)]
        texts = list(dict.fromkeys(wanted))
        return self.encode_rows(texts, [texts.index(text) for text in wanted], compose(batch.images, grid_size))

    def warn_of_size(self, grid: tuple[int, int]):
        """Warn of a grid with a side that is shorter than the trained one; longer ones are made in windows."""
        if grid[0] < self.default_grid[0] or grid[1] < self.default_grid[1]:
            logger.warning(
                f"The model was trained on grids of {self.default_grid[0]}x{self.default_grid[1]} tokens; "
                f"{grid[0]}x{grid[1]} may look worse."
            )

    def make_images(self, latents: torch.LongTensor, batch: PromptBatch, options: FillingOptions) -> torch.LongTensor:
        """The grids (batch, h, w) with everything filled in; nothing is encoded where nothing is unknown."""
        if not bool((latents == self.unknown_code).any()):
            return latents
        prompts = self.encode_batch(batch, options.guidance_scale > 1, tuple(latents.shape[1:]))
        return self.fill_all(latents, prompts, options)

    def fill_all(
        self,
        latents: torch.LongTensor,
        prompts: EncodedPrompts,
        options: FillingOptions,
        windows: Sequence[tuple[Window, list[int]]] | None = None,
    ) -> torch.LongTensor:
        """What [`fill_in`] comes to, (batch, h, w)."""
        for _, _, filled in self.fill_in(latents, prompts, options, windows):
            latents = filled
        return latents

    def finish(self, images: Any, return_dict: bool) -> ShowoImagePipelineOutput | tuple:
        """The output of a call, when the models are no longer needed."""
        self.maybe_free_model_hooks()
        return ShowoImagePipelineOutput(images=images) if return_dict else (images,)
