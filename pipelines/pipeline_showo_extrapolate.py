"""Extrapolation: extending an image beyond its edges."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import MAX_COUNT, check_count, is_integer, shown

from .call_state import SamplingParams, one_offloaded_call
from .denoising import denoise
from .editing_pipeline import ShowoEditingPipeline, SourceImages
from .prompts import Prompt, check_prompt, load_prompt_masks, regional_prompts
from .showo_pipeline import ShowoImagePipelineOutput
from .windows import Window, plan_windows


SIDES = ("left", "right", "up", "down")


class ShowoExtrapolatePipeline(ShowoEditingPipeline):
    r"""
    Extend an image (Show-o, arXiv:2408.12528, section 4.4). Adds masked tokens beside the image and denoises them in
    windows of the trained size that also see the image. The tokens of the given image do not change.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoExtrapolatePipeline
    >>> pipe = ShowoExtrapolatePipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("two palm trees on the grass", image="trees.png", direction="right", extent=56, rounds=5).images[0]
    ```
    """

    def check_inputs(
        self,
        *,
        prompt: Prompt | list[Prompt] | None,
        image: Any,
        direction: str | Sequence[str],
        extent: int | None,
        rounds: int,
        negative_prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        preserve_pixels: bool,
        num_images_per_prompt: int,
        output_type: str,
        params: SamplingParams,
    ):
        """Raise `ValueError` or `TypeError` for arguments that are not allowed. Nothing is read or changed."""
        self.check_components()
        check_prompt(prompt, negative_prompt)
        check_count("num_images_per_prompt", num_images_per_prompt, most=MAX_COUNT)
        num_prompts = len(regional_prompts(prompt))
        self.check_sampling_params(params, num_prompts * num_images_per_prompt)
        self.check_output_type(output_type)
        directions = as_directions(direction)
        check_count("rounds", rounds, most=MAX_COUNT)
        most = (self.shortest_side(directions) - 1) * self.patch  # a window must see a part of the image
        if extent is not None and (not is_integer(extent) or extent % self.patch or not 0 < extent <= most):
            raise ValueError(
                f"`extent` must be a multiple of {self.patch} pixels from {self.patch} to {most}, got {shown(extent)}."
            )
        self.check_image(image, num_prompts, height, width)
        self.check_preserve_pixels(preserve_pixels, image, output_type)

    def shortest_side(self, directions: Sequence[str]) -> int:
        """The shortest side of the trained grid along `directions`, in tokens."""
        rows, columns = self.default_grid
        return min(columns if one in ("left", "right") else rows for one in directions)

    def extend(self, source: SourceImages, regions: list[Window]) -> tuple[SourceImages, torch.BoolTensor]:
        """Pad the images to the finished size, with grey pixels. Return them, and where tokens are new, (batch, h, w)."""
        (rows, columns), (all_rows, all_columns) = regions[0], regions[-1]
        padding = (columns.start, all_columns.stop - columns.stop, rows.start, all_rows.stop - rows.stop)
        pixels = source.pixels
        if pixels is not None:
            pixels = F.pad(pixels, tuple(self.patch * count for count in padding))
        new = F.pad(torch.zeros_like(source.tokens, dtype=torch.bool), padding, value=True)
        return SourceImages(F.pad(source.tokens, padding), pixels), new

    def plan_rounds(self, regions: list[Window]) -> Iterator[Window]:
        """Plan the windows of all rounds. The windows of a round stay within the image as it is after that round."""
        for known, grown in pairwise(regions):
            masked = torch.zeros(regions[-1][0].stop, regions[-1][1].stop, dtype=torch.bool)
            masked[grown] = True
            masked[known] = False
            top, left = (axis.start for axis in grown)
            for rows, columns in plan_windows(masked[grown], self.default_grid):
                yield slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)

    @one_offloaded_call
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
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: str = "constant",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        decoder_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoImagePipelineOutput | tuple:
        r"""
        Extend an image. [`ShowoT2IPipeline.__call__`] documents the arguments that are not listed here.

        Args:
            prompt: masks of [`RegionalPrompt`] are stretched over the finished image.
            image: one image or one per prompt, as in [`ShowoInpaintPipeline.__call__`].
            direction (`str` or a list, defaults to `"right"`): "left", "right", "up" or "down". Each round
                extends every listed side in order.
            extent (`int`, *optional*): pixels added per direction: a multiple of the patch size, and less than the trained
                side; half of it by default. Without an image tokenizer, in tokens.
            rounds (`int`, defaults to 1): number of rounds.
            height, width (`int`, *optional*): the size at which the image is edited before it grows, as in
                [`ShowoInpaintPipeline.__call__`].
            preserve_pixels (`bool`, defaults to `False`): keep the original pixels, with a seam one patch wide. By default
                all pixels are decoded from tokens.

        Raises:
            ValueError, TypeError: for arguments that are not allowed and images that cannot be read, before the model runs.
            RuntimeError: if the scheduler or the callback leaves tokens masked.
        """
        # 1. Check inputs. Raise an error before any work starts
        num_inference_steps, guidance_scale = self.with_defaults(num_inference_steps, guidance_scale)
        params = SamplingParams(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            decoder_steps=decoder_steps,
        )
        self.check_inputs(
            prompt=prompt,
            image=image,
            direction=direction,
            extent=extent,
            rounds=rounds,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            preserve_pixels=preserve_pixels,
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            params=params,
        )

        # 2. Load the images and the masks of regional prompts
        regional = load_prompt_masks(prompt)
        images = self.load_images(image, height, width)
        directions = as_directions(direction)
        extent_tokens = extent // self.patch if extent else max(1, self.shortest_side(directions) // 2)
        regions = grown_regions(self.grid_of(images, height, width), directions * rounds, extent_tokens)
        self.check_grid_size("rounds", (regions[-1][0].stop, regions[-1][1].stop))

        # 3. Encode the images to tokens
        batch_size = len(regional) * num_images_per_prompt
        source = self.prepare_source(images, batch_size, height, width)

        # 4. Pad them with masked tokens, and plan the windows of all rounds
        source, new = self.extend(source, regions)
        latents = self.prepare_latents(source.tokens, new)
        windows = [(window, list(range(batch_size))) for window in self.plan_rounds(regions)]

        # 5. Encode the prompts once, for all steps
        prompts = self.encode_prompt(
            prompt=regional,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            do_classifier_free_guidance=params.do_classifier_free_guidance,
            grid_size=tuple(latents.shape[1:]),
        )

        # 6. Denoise: fill in the masked tokens, step by step
        for step in denoise(self, latents, prompts, params, windows):
            latents = step.latents

        # 7. Decode the tokens to pixels
        images = self.decode_edited(latents, source, new, preserve_pixels, output_type, params)

        # 8. Offload the model
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ShowoImagePipelineOutput(images=images)


def as_directions(direction: str | Sequence[str]) -> list[str]:
    """The `direction` of a call as a list. `ValueError` unless it holds sides of an image."""
    directions = [direction] if isinstance(direction, str) else direction
    if (
        not isinstance(directions, Sequence)
        or not directions
        or not all(isinstance(one, str) and one in SIDES for one in directions)
    ):
        raise ValueError(f"`direction` must be one of {list(SIDES)}, or a list of them, got {shown(direction)}.")
    return list(directions)


def grown_regions(size: tuple[int, int], directions: Sequence[str], extent: int) -> list[Window]:
    """
    Compute the image's region in the finished grid, initially and after each extension. The last region is the grid.

    Args:
        size (`tuple[int, int]`): rows and columns of the given image.
        directions: sides that are extended, in order.
        extent (`int`): tokens added per direction.
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
