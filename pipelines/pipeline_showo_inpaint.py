"""Repainting a part of an image."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from showo_hf.processing.images import flatten_images
from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import check_count

from .editing_pipeline import ShowoEditingPipeline, repeat_to
from .image_pipeline import ShowoImagePipelineOutput
from .masks import MASK_THRESHOLD, check_aspect, cut, fit_mask, load_mask, mask_to_pil, touched_tokens
from .pipeline_utils import FillingOptions
from .prompts import Prompt, PromptBatch


class ShowoInpaintPipeline(ShowoEditingPipeline):
    r"""
    Repaint what a mask marks (Show-o, arXiv:2408.12528, section 4.4): its tokens are unknown, all others stay as they are.

    A token is unknown when its patch is touched: when any pixel of the mask in it is at least 0.5.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in when.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoInpaintPipeline
    >>> pipe = ShowoInpaintPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a red apple, flat style", image="image.png", mask_image="mask.png").images[0]
    ```
    """

    def check_inputs(
        self,
        prompt,
        image,
        mask_image,
        negative_prompt,
        height,
        width,
        strength,
        remasking,
        padding_mask_crop,
        preserve_pixels,
        num_images_per_prompt,
        output_type,
        options: FillingOptions,
    ) -> tuple[list[Any] | torch.Tensor, list[torch.Tensor], PromptBatch]:
        """
        Raise `ValueError` or `TypeError` for wrong arguments, before any work; images, masks and the checked
        prompts are returned.
        """
        self.check_components()
        batch = self.check_prompts(prompt, negative_prompt, num_images_per_prompt)
        self.check_filling(options, batch.batch_size)
        self.check_repainting(strength, remasking)
        self.check_output_type(output_type)
        num_prompts = len(batch.prompts)
        images = self.load_images(image, num_prompts, height, width)
        self.check_preserving(preserve_pixels, images, output_type)
        masks = [load_mask(mask) for mask in flatten_images(mask_image)]
        if len(masks) not in (1, num_prompts):
            raise ValueError(
                f"`mask_image` must be one mask or one for each of the {num_prompts} prompts, got {len(masks)}."
            )
        sizes = (
            [tuple(images.shape[1:])] if isinstance(images, torch.Tensor) else [(p.height, p.width) for p in images]
        )
        for number in range(max(len(sizes), len(masks))):
            check_aspect(masks[number % len(masks)], sizes[number % len(sizes)])
        if padding_mask_crop is not None:
            check_count("padding_mask_crop", padding_mask_crop, least=0)
            if isinstance(images, torch.Tensor) or output_type != "pil" or batch.batch_size > 1:
                got = "tokens" if isinstance(images, torch.Tensor) else f"{batch.batch_size} and {output_type!r}"
                raise ValueError(
                    "`padding_mask_crop` must be None unless one image of pixels is changed and 'pil' is asked for, "
                    f"got {padding_mask_crop} with {got}."
                )
        return images, masks, batch

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | list[Prompt] | None = None,
        image: Any = None,
        mask_image: Any = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        remasking: str = "uncertain",
        padding_mask_crop: int | None = None,
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
        Repaint. Arguments that are not named here are those of [`ShowoT2IPipeline.__call__`].

        Args:
            image: the image, or one for each prompt: whatever [`images.load_image`] takes, or a token grid, int64
                (h, w) or (batch, h, w).
            mask_image: where to paint, white or 1; one, or one for each image, of any resolution and of the image's
                aspect; see [`masks.load_mask`]. With nothing to paint the image comes back, with a warning.
            height, width (`int`, *optional*): the size to work at. By default the image keeps its aspect, and its shorter
                side gets the trained length; a longer one is worked on in windows.
            strength (`float`, defaults to 1.0): share of the marked tokens that is painted anew, in [0, 1].
            remasking (`str`, defaults to `"uncertain"`): which ones, below strength 1: those that the model finds the least
                likely, or "random" ones.
            padding_mask_crop (`int`, *optional*): work on what is marked and this many pixels around it alone, at full
                size, and put it back into the image.
            preserve_pixels (`bool`, defaults to `False`): put the original pixels back where nothing was painted, with a
                seam of one token's width; else all pixels are decoded from tokens.

        Raises:
            ValueError, TypeError: for arguments that are wrong, before any work starts.
        """
        options = FillingOptions.pick(locals())
        images, masks, batch = self.check_inputs(
            prompt,
            image,
            mask_image,
            negative_prompt,
            height,
            width,
            strength,
            remasking,
            padding_mask_crop,
            preserve_pixels,
            num_images_per_prompt,
            output_type,
            options,
        )
        if padding_mask_crop is not None:
            pil_image, size = images[0], (images[0].height, images[0].width)
            mask = fit_mask(masks[0], size)
            crop = self.crop_region(mask, padding_mask_crop, height, width)
            images, masks, batch = [pil_image.crop(crop)], [cut(mask, crop)], batch.crop(crop, size)
        source = self.encode_images(images, batch.batch_size, height, width)
        marked = torch.stack([touched_tokens(mask, tuple(source.tokens.shape[1:])) for mask in masks])
        painted = self.repaint(
            source,
            repeat_to(marked.to(source.tokens.device), batch.batch_size),
            strength,
            remasking,
            preserve_pixels,
            batch,
            output_type,
            options,
        )
        if padding_mask_crop is not None:
            if strength > 0 and bool(marked.any()):
                fitted = painted[0].resize((crop[2] - crop[0], crop[3] - crop[1]), Image.Resampling.LANCZOS)
                overlay = Image.new("L", pil_image.size)  # nothing of what lies outside of the crop changes
                overlay.paste(mask_to_pil(masks[0]), crop[:2])
                pil_image = self.image_processor.apply_overlay(overlay, pil_image, fitted, crop)
            painted = [pil_image]
        return self.finish(painted, return_dict)

    def crop_region(
        self, mask: torch.Tensor, padding: int, height: int | None, width: int | None
    ) -> tuple[int, int, int, int]:
        """
        Left, top, right and bottom of what a mask (H, W) marks, with `padding`, at the aspect to work at; or of it all.
        """
        marked = mask >= MASK_THRESHOLD
        if not bool(marked.any()):
            return (0, 0, *reversed(mask.shape))
        height, width = self.image_size(self.default_grid, height, width)
        return VaeImageProcessor.get_crop_region(mask_to_pil(marked.float()), width, height, pad=padding)
