"""Inpainting: editing a part of an image."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from showo_hf.processing.images import flatten_images
from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import MAX_COUNT, check_count

from .call_state import SamplingParams, one_offloaded_call
from .denoising import denoise
from .editing_pipeline import ShowoEditingPipeline, is_token_image, repeat_to
from .masks import MASK_THRESHOLD, check_aspect, crop_mask, load_mask, mask_to_pil, masked_tokens, resize_mask
from .prompts import Prompt, check_prompt, crop_prompt_masks, load_prompt_masks, regional_prompts
from .showo_pipeline import ShowoImagePipelineOutput


class ShowoInpaintPipeline(ShowoEditingPipeline):
    r"""
    Inpaint what a mask marks (Show-o, arXiv:2408.12528, section 4.4). All other tokens stay as they are.

    A token is masked if the mask touches its patch: if any pixel of the mask in the patch is at least 0.5.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoInpaintPipeline
    >>> pipe = ShowoInpaintPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a red apple to the left of a yellow bell", image="scene.png", mask_image="mask.png").images[0]
    ```
    """

    def check_inputs(
        self,
        *,
        prompt: Prompt | list[Prompt] | None,
        image: Any,
        mask_image: Any,
        negative_prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        strength: float,
        remasking: str,
        padding_mask_crop: int | None,
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
        batch_size = num_prompts * num_images_per_prompt
        self.check_sampling_params(params, batch_size)
        self.check_remasking(strength, remasking)
        self.check_output_type(output_type)
        self.check_image(image, num_prompts, height, width)
        self.check_preserve_pixels(preserve_pixels, image, output_type)
        num_masks = len(flatten_images(mask_image))
        if num_masks not in (1, num_prompts):
            raise ValueError(
                f"`mask_image` must be one mask or one for each of the {num_prompts} prompts, got {num_masks}."
            )
        if padding_mask_crop is not None:
            check_count("padding_mask_crop", padding_mask_crop, least=0, most=MAX_COUNT)
            if is_token_image(image) or output_type != "pil" or batch_size > 1:
                got = f"{batch_size} and {output_type!r} (number of images and `output_type`)"
                raise ValueError(
                    "`padding_mask_crop` must be None unless one image of pixels is edited with `output_type='pil'`, "
                    f"got {padding_mask_crop} with {'tokens' if is_token_image(image) else got}."
                )

    def load_masks(self, mask_image: Any, images: list[Image.Image] | torch.LongTensor) -> list[torch.Tensor]:
        """Read the masks as floats (H, W). `ValueError` if one cannot be read, or its aspect ratio is not its image's."""
        masks = [load_mask(mask) for mask in flatten_images(mask_image)]
        sizes = (
            [tuple(images.shape[1:])]
            if isinstance(images, torch.Tensor)
            else [(one.height, one.width) for one in images]
        )
        for number in range(max(len(sizes), len(masks))):
            check_aspect(masks[number % len(masks)], sizes[number % len(sizes)])
        return masks

    def crop_region(
        self, mask: torch.Tensor, padding: int, height: int | None, width: int | None
    ) -> tuple[int, int, int, int]:
        """
        Compute the box around what a mask (H, W) marks, with `padding`, at the aspect ratio of the working size.

        Returns:
            left, top, right and bottom, in pixels; the whole image if nothing is marked.
        """
        marked = mask >= MASK_THRESHOLD
        if not bool(marked.any()):
            return (0, 0, *reversed(mask.shape))
        height, width = self.working_size(self.default_grid, height, width)
        return VaeImageProcessor.get_crop_region(mask_to_pil(marked.float()), width, height, pad=padding)

    def paste_crop(
        self, edited: Image.Image, image: Image.Image, mask: torch.Tensor, box: tuple[int, int, int, int]
    ) -> Image.Image:
        """Paste an edited crop into its image. Pixels outside of the crop do not change."""
        fitted = edited.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        overlay = Image.new("L", image.size)
        overlay.paste(mask_to_pil(mask), box[:2])
        return self.image_processor.apply_overlay(overlay, image, fitted, box)

    @one_offloaded_call
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
        Inpaint. [`ShowoT2IPipeline.__call__`] documents the arguments that are not listed here.

        Args:
            image: one image or one per prompt: anything that [`images.load_image`] reads, or a token grid, int64 (h, w) or
                (batch, h, w).
            mask_image: where to edit, white or 1; one mask or one per image, of any resolution and the image's aspect
                ratio; see [`masks.load_mask`]. If nothing is marked, the image is returned with a warning.
            height, width (`int`, *optional*): the size to work at. By default the image keeps its aspect ratio, and its
                shorter side gets the trained length. Longer sides are denoised in windows.
            strength (`float`, defaults to 1.0): share of the marked tokens that is generated again, in [0, 1].
            remasking (`str`, defaults to `"uncertain"`): which tokens, below strength 1. "uncertain": the least likely
                tokens, or "random".
            padding_mask_crop (`int`, *optional*): edit only what is marked and this many pixels around it, at full size,
                and paste it back into the image.
            preserve_pixels (`bool`, defaults to `False`): keep the original pixels where nothing was edited, with a seam
                one patch wide. By default all pixels are decoded from tokens.

        Raises:
            ValueError, TypeError: for arguments that are not allowed, and images and masks that cannot be read, before the
                model runs.
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
            mask_image=mask_image,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            strength=strength,
            remasking=remasking,
            padding_mask_crop=padding_mask_crop,
            preserve_pixels=preserve_pixels,
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            params=params,
        )

        # 2. Load the images and all masks, and crop them if only the surroundings of the mask are edited
        regional = load_prompt_masks(prompt)
        images = self.load_images(image, height, width)
        masks = self.load_masks(mask_image, images)
        if padding_mask_crop is not None:
            whole_image, whole_size = images[0], (images[0].height, images[0].width)
            mask = resize_mask(masks[0], whole_size)
            box = self.crop_region(mask, padding_mask_crop, height, width)
            images, masks = [whole_image.crop(box)], [crop_mask(mask, box)]
            regional = crop_prompt_masks(regional, box, whole_size)

        # 3. Encode the images to tokens
        batch_size = len(regional) * num_images_per_prompt
        source = self.prepare_source(images, batch_size, height, width)

        # 4. Choose the tokens to edit, and mask them
        marked = torch.stack([masked_tokens(mask, tuple(source.tokens.shape[1:])) for mask in masks])  # (masks, h, w)
        edited = self.choose_edited(
            source.tokens,
            candidates=repeat_to(marked.to(source.tokens.device), batch_size),
            prompts=regional,
            strength=strength,
            remasking=remasking,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
        )
        latents = self.prepare_latents(source.tokens, edited)
        params = replace(params, begin_index=self.begin_index(num_inference_steps, strength))

        # 5. Encode the prompts once, for all steps
        prompts = None
        if bool(edited.any()):
            prompts = self.encode_prompt(
                prompt=regional,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=params.do_classifier_free_guidance,
                grid_size=tuple(latents.shape[1:]),
            )

        # 6. Denoise: fill in the masked tokens, step by step
        for step in denoise(self, latents, prompts, params):
            latents = step.latents

        # 7. Decode the tokens to pixels
        images = self.decode_edited(latents, source, edited, preserve_pixels, output_type, params)
        if padding_mask_crop is not None:
            changed = bool(edited.any())
            images = [self.paste_crop(images[0], whole_image, masks[0], box) if changed else whole_image]

        # 8. Offload the model
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ShowoImagePipelineOutput(images=images)
