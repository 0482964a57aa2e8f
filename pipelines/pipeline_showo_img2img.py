"""Variations of an image."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import MAX_COUNT, check_count

from .call_state import SamplingParams, one_offloaded_call
from .denoising import denoise
from .editing_pipeline import ShowoEditingPipeline
from .prompts import Prompt, check_prompt, load_prompt_masks, regional_prompts
from .showo_pipeline import ShowoImagePipelineOutput


class ShowoImg2ImgPipeline(ShowoEditingPipeline):
    r"""
    Vary an image: a share of its tokens is masked and filled in again. The other tokens stay as they are.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoImg2ImgPipeline
    >>> pipe = ShowoImg2ImgPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a red apple to the left of a yellow bell", image="scene.png", strength=0.7).images[0]
    ```
    """

    def check_inputs(
        self,
        *,
        prompt: Prompt | list[Prompt] | None,
        image: Any,
        strength: float,
        remasking: str,
        negative_prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
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
        self.check_remasking(strength, remasking)
        self.check_output_type(output_type)
        self.check_image(image, num_prompts, height, width)

    @one_offloaded_call
    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | list[Prompt] | None = None,
        image: Any = None,
        strength: float = 0.7,
        remasking: str = "uncertain",
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
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
        Vary an image. [`ShowoT2IPipeline.__call__`] documents the arguments that are not listed here.

        Args:
            image: one image or one per prompt, as in [`ShowoInpaintPipeline.__call__`].
            strength (`float`, defaults to 0.7): share of the tokens that is generated again, in [0, 1]. 0 returns the
                image; 1 is text to image. Steps that would leave a larger share masked are skipped.
            remasking (`str`, defaults to `"uncertain"`): which tokens. "uncertain": the least likely tokens for the
                prompt, or "random".
            height, width (`int`, *optional*): the size to work at, as in [`ShowoInpaintPipeline.__call__`].

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
            strength=strength,
            remasking=remasking,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            params=params,
        )

        # 2. Load the images and the masks of regional prompts
        regional = load_prompt_masks(prompt)
        images = self.load_images(image, height, width)

        # 3. Encode the images to tokens
        source = self.prepare_source(images, len(regional) * num_images_per_prompt, height, width)

        # 4. Choose the tokens to generate again, and mask them
        edited = self.choose_edited(
            source.tokens,
            candidates=torch.ones_like(source.tokens, dtype=torch.bool),
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
        images = self.decode_edited(latents, source, edited, False, output_type, params)

        # 8. Offload the model
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ShowoImagePipelineOutput(images=images)
