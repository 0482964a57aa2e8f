"""Extending an image beyond its edges."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import check_count, is_integer

from .editing_pipeline import ShowoEditingPipeline, Source
from .image_pipeline import ShowoImagePipelineOutput
from .pipeline_utils import FillingOptions
from .prompts import Prompt, PromptBatch
from .windows import Window, plan_windows


SIDES = ("left", "right", "up", "down")


class ShowoExtrapolatePipeline(ShowoEditingPipeline):
    r"""
    Extend an image (Show-o, arXiv:2408.12528, section 4.4): unknown tokens are put beside it, and filled in in windows of
    the trained size that see as much of it as has room in them. Its own tokens stay exactly as they are.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in when.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoExtrapolatePipeline
    >>> pipe = ShowoExtrapolatePipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a row of red apples", image="apple.png", direction="right", rounds=5).images[0]
    ```
    """

    def check_inputs(
        self,
        prompt,
        image,
        direction,
        extent,
        rounds,
        negative_prompt,
        height,
        width,
        preserve_pixels,
        num_images_per_prompt,
        output_type,
        options: FillingOptions,
    ) -> tuple[list[Any] | torch.Tensor, list[str], int, PromptBatch]:
        """
        Raise `ValueError` or `TypeError` for wrong arguments, before any work; images, directions of all rounds, tokens a
        round and the checked prompts are returned.
        """
        self.check_components()
        batch = self.check_prompts(prompt, negative_prompt, num_images_per_prompt)
        self.check_filling(options, batch.batch_size)
        self.check_output_type(output_type)
        directions = [direction] if isinstance(direction, str) else direction
        if not isinstance(directions, Sequence) or not directions or any(one not in SIDES for one in directions):
            raise ValueError(f"`direction` must be one of {list(SIDES)}, or a list of them, got {direction!r}.")
        check_count("rounds", rounds)
        tokens = self.tokens_of_extent(extent, directions)
        images = self.load_images(image, len(batch.prompts), height, width)
        self.check_preserving(preserve_pixels, images, output_type)
        return images, list(directions) * rounds, tokens, batch

    def tokens_of_extent(self, extent: int | None, directions: Sequence[str]) -> int:
        """How many tokens a round adds; half a trained side for an `extent` of None."""
        sides = [self.default_grid[1] if one in ("left", "right") else self.default_grid[0] for one in directions]
        if extent is None:
            return max(1, min(sides) // 2)
        most = (min(sides) - 1) * self.patch  # so that a window sees something of the image
        if not is_integer(extent) or extent % self.patch or not 0 < extent <= most:
            raise ValueError(
                f"`extent` must be a multiple of {self.patch} pixels from {self.patch} to {most}, got {extent!r}."
            )
        return extent // self.patch

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | list[Prompt] | None = None,
        image: Any = None,
        direction: str | Sequence[str] = "right",
        extent: int | None = None,
        rounds: int = 1,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        preserve_pixels: bool = False,
        num_inference_steps: int = 18,
        guidance_scale: float = 2.75,
        guidance_schedule: str = "constant",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoImagePipelineOutput | tuple:
        r"""
        Extend an image. Arguments that are not named here are those of [`ShowoT2IPipeline.__call__`].

        Args:
            prompt: masks of [`RegionalPrompt`] lie on the finished image, with all that was added.
            image: the image, or one for each prompt, as in [`ShowoInpaintPipeline.__call__`].
            direction (`str` or a list, defaults to `"right"`): "left", "right", "up" or "down"; several are taken in turn.
            extent (`int`, *optional*): pixels that a round adds: a multiple of a token's, and less than the trained side;
                half of it by default. Tokens for a model without image tokenizer.
            rounds (`int`, defaults to 1): how often the directions are gone through.
            height, width (`int`, *optional*): the size that the image is worked on at before it grows, as in
                [`ShowoInpaintPipeline.__call__`].
            preserve_pixels (`bool`, defaults to `False`): put the original pixels back, with a seam of one token's width;
                else all pixels are decoded from tokens.

        Raises:
            ValueError, TypeError: for arguments that are wrong, before any work starts.
        """
        options = FillingOptions.pick(locals())
        images, directions, extent_tokens, batch = self.check_inputs(
            prompt,
            image,
            direction,
            extent,
            rounds,
            negative_prompt,
            height,
            width,
            preserve_pixels,
            num_images_per_prompt,
            output_type,
            options,
        )
        given = self.encode_images(images, batch.batch_size, height, width)
        regions = grown_regions(tuple(given.tokens.shape[1:]), directions, extent_tokens)
        source, painted = self.extend(given, regions)
        latents = source.tokens.masked_fill(painted, self.unknown_code)
        everyone = list(range(batch.batch_size))
        windows = [(window, everyone) for window in self.plan_rounds(regions)]
        prompts = self.encode_batch(batch, guidance_scale > 1, tuple(latents.shape[1:]))
        latents = self.fill_all(latents, prompts, options, windows)
        extended = self.decode_edited(latents, source, painted, preserve_pixels, output_type)
        return self.finish(extended, return_dict)

    def extend(self, source: Source, regions: list[Window]) -> tuple[Source, torch.BoolTensor]:
        """Images in the middle of what they grow to, with grey pixels around them, and what is new, (batch, h, w)."""
        (rows, columns), (all_rows, all_columns) = regions[0], regions[-1]
        padding = (columns.start, all_columns.stop - columns.stop, rows.start, all_rows.stop - rows.stop)
        pixels = source.pixels
        if pixels is not None:
            pixels = F.pad(pixels, tuple(self.patch * count for count in padding))
        painted = F.pad(torch.zeros_like(source.tokens, dtype=torch.bool), padding, value=True)
        return Source(F.pad(source.tokens, padding), pixels), painted

    def plan_rounds(self, regions: list[Window]) -> Iterator[Window]:
        """The windows of all rounds, each of which sees nothing but the image as it is by then."""
        for known, grown in pairwise(regions):
            unknown = torch.zeros(regions[-1][0].stop, regions[-1][1].stop, dtype=torch.bool)
            unknown[grown] = True
            unknown[known] = False
            top, left = (axis.start for axis in grown)
            for rows, columns in plan_windows(unknown[grown], self.default_grid):
                yield slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)


def grown_regions(size: tuple[int, int], directions: Sequence[str], extent: int) -> list[Window]:
    """
    Where the image lies in the finished grid at first, and after each round; the last one is the whole grid.

    Args:
        size: rows and columns of the given image.
        extent: tokens that a round adds.
    """
    top, left = (sum(side == before for side in directions) * extent for before in ("up", "left"))
    bottom, right = top + size[0], left + size[1]
    regions = [(slice(top, bottom), slice(left, right))]
    for side in directions:
        top -= extent * (side == "up")
        bottom += extent * (side == "down")
        left -= extent * (side == "left")
        right += extent * (side == "right")
        regions.append((slice(top, bottom), slice(left, right)))
    return regions
