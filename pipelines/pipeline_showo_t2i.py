"""Text to image."""

from collections.abc import Callable

import torch

from showo_hf.schedulers.scheduling_utils import Generators
from showo_hf.utils.validation import MAX_COUNT, check_count

from .call_state import SamplingParams, one_offloaded_call
from .denoising import denoise
from .prompts import Prompt, check_prompt, regional_prompts
from .showo_pipeline import ShowoImagePipelineOutput, ShowoPipeline


class ShowoT2IPipeline(ShowoPipeline):
    r"""
    Text to image by discrete diffusion (Show-o, arXiv:2408.12528, section 3.4).

    The keys and values of the text are computed once. A step runs the model on the image tokens only.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline
    >>> pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a red apple to the left of a blue car").images[0]
    ```
    """

    def check_inputs(
        self,
        *,
        prompt: Prompt | list[Prompt] | None,
        negative_prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        num_images_per_prompt: int,
        latents: torch.LongTensor | None,
        output_type: str,
        params: SamplingParams,
    ):
        """Raise `ValueError` or `TypeError` for arguments that are not allowed. Nothing is read or changed."""
        self.check_components()
        check_prompt(prompt, negative_prompt)
        check_count("num_images_per_prompt", num_images_per_prompt, most=MAX_COUNT)
        batch_size = len(regional_prompts(prompt)) * num_images_per_prompt
        self.check_sampling_params(params, batch_size)
        self.check_output_type(output_type)
        self.check_size(height, width)
        if latents is not None:
            self.check_token_grids("latents", latents, batch_size, self.mask_token_id)
            self.check_grid_size("latents", tuple(latents.shape[1:]))
            found = (latents.shape[1] * self.patch, latents.shape[2] * self.patch)
            wanted = (height or found[0], width or found[1])
            if wanted != found:
                raise ValueError(
                    f"`latents` of shape {tuple(latents.shape)} do not fit `height` and `width`, {wanted}."
                )

    def grid_size(self, height: int | None, width: int | None, latents: torch.LongTensor | None) -> tuple[int, int]:
        """Rows and columns of image tokens: those of `latents`, or of a size in pixels."""
        if latents is not None:
            return latents.shape[1], latents.shape[2]
        rows, columns = self.default_grid
        return height // self.patch if height else rows, width // self.patch if width else columns

    def prepare_latents(
        self, batch_size: int, height: int | None, width: int | None, latents: torch.LongTensor | None
    ) -> torch.LongTensor:
        """Return the given `latents` (batch, h, w), or fully masked ones for a size in pixels."""
        grid_size = self.grid_size(height, width, latents)
        self.warn_if_small(grid_size)
        if latents is None:
            latents = torch.full((batch_size, *grid_size), self.mask_token_id)
        return latents.to(self._execution_device)

    @one_offloaded_call
    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | list[Prompt] | None = None,
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
        latents: torch.LongTensor | None = None,
        decoder_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            prompt (`str` or `list[str]`): what to show. Texts longer than the model's `max_text_length` are truncated with
                a warning. A list of [`RegionalPrompt`] in place of a text combines several prompts with weights and masks.
            negative_prompt (`str` or `list[str]`, *optional*): what the image should not show; the empty text by default.
            height, width (`int`, *optional*): size in pixels, multiples of the tokenizer's downsampling; the trained
                size by default. Larger images are denoised in overlapping windows of the trained size, so memory does not
                grow. [`ShowoLFQTokenizer.enable_tiling`] does the same for decoding.
            num_inference_steps (`int`, *optional*): number of steps, at least 1. By default the model's own,
                `model.config.image_num_inference_steps`.
            guidance_scale (`float`, *optional*): g in `u + g (c - u)` on the logits. Values up to 1 turn guidance off. The
                scale s of the original Show-o code is g = 1 + s. By default the model's own,
                `model.config.image_guidance_scale`.
            guidance_schedule (`str`, defaults to `"constant"`): how g - 1 changes over the steps: "constant", or rising
                from 0 to its full value as "linear" or "cosine".
            guidance_interval (`tuple[float, float]`, defaults to `(0, 1)`): the share of the steps, from first to last,
                that use guidance. Other steps cost half as much, except with regional prompts.
            temperature (`float`, *optional*): noise on the choice of tokens; the scheduler's own by default.
            num_images_per_prompt (`int`, defaults to 1): number of images per prompt.
            generator (`torch.Generator` or a list with one per image, *optional*): makes the result repeatable. With a
                list, each image is the one that its generator gives alone.
            latents (`torch.LongTensor` of shape `(batch, h, w)`, *optional*): a starting grid. Its known tokens stay, and
                tokens equal to `scheduler.config.mask_token_id` are filled in.
            decoder_steps (`int`, *optional*): steps of the image decoder, if the pipeline has one. By default the number in
                the decoder's config; 0 leaves it out.
            output_type (`str`, defaults to `"pil"`): "pil", "np", "pt", or "latent" for the token grid.
            return_dict (`bool`, defaults to `True`): return a [`ShowoImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipe, step, timestep, tensors)` after each step. A
                returned dict replaces the tensors. `pipe._interrupt = True` stops the call, and leaves tokens masked;
                `pipe._guidance_scale` is used from the next step on.
            callback_on_step_end_tensor_inputs (`list[str]`): names of its tensors; "latents" is the grid (batch, h, w).

        Raises:
            ValueError, TypeError: for arguments that are not allowed, before the model runs.
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
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            latents=latents,
            output_type=output_type,
            params=params,
        )

        # 2. Encode the prompts once, for all steps. There is nothing to denoise if all tokens are given
        prompts = None
        if latents is None or bool((latents == self.mask_token_id).any()):
            prompts = self.encode_prompt(
                prompt=prompt,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=params.do_classifier_free_guidance,
                grid_size=self.grid_size(height, width, latents),
            )

        # 3. Prepare latents: the given grid, or all tokens masked
        batch_size = len(regional_prompts(prompt)) * num_images_per_prompt
        latents = self.prepare_latents(batch_size, height, width, latents)

        # 4. Denoise: fill in the masked tokens, step by step
        for step in denoise(self, latents, prompts, params):
            latents = step.latents

        # 5. Decode the tokens to pixels
        images = self.decode_latents(latents, output_type, generator, decoder_steps)

        # 6. Offload the model
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ShowoImagePipelineOutput(images=images)
