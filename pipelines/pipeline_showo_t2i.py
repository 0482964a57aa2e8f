"""Text to image."""

from collections.abc import Callable

import torch

from showo_hf.schedulers.scheduling_utils import Generators

from .image_pipeline import ShowoImagePipeline, ShowoImagePipelineOutput
from .pipeline_utils import FillingOptions
from .prompts import Prompt, PromptBatch


class ShowoT2IPipeline(ShowoImagePipeline):
    r"""
    Images from words, by discrete diffusion (Show-o, arXiv:2408.12528, section 3.4).

    The text's keys and values are computed once; a step runs the model on the image's positions alone.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in when.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline
    >>> pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a red apple, flat style").images[0]
    ```
    """

    def check_inputs(
        self,
        prompt,
        negative_prompt,
        height,
        width,
        num_images_per_prompt,
        latents,
        output_type,
        options: FillingOptions,
    ) -> PromptBatch:
        """Raise `ValueError` or `TypeError` for wrong arguments, before any work; the checked prompts are returned."""
        self.check_components()
        batch = self.check_prompts(prompt, negative_prompt, num_images_per_prompt)
        self.check_filling(options, batch.batch_size)
        self.check_output_type(output_type)
        self.check_size(height, width)
        if latents is not None:
            self.check_latents(latents, batch.batch_size, height, width)
        return batch

    def check_latents(self, latents: torch.Tensor, batch_size: int, height: int | None, width: int | None):
        """Raise `ValueError` unless `latents` is a (batch, h, w) grid of codes or the mask id, of the asked-for size."""
        self.check_token_grids("latents", latents, batch_size, self.unknown_code)
        if height is not None or width is not None:
            found = (latents.shape[1] * self.patch, latents.shape[2] * self.patch)
            wanted = (height or found[0], width or found[1])
            if wanted != found:
                raise ValueError(
                    f"`latents` of shape {tuple(latents.shape)} do not fit `height` and `width`, {wanted}."
                )

    def prepare_latents(
        self, batch_size: int, height: int | None, width: int | None, latents: torch.LongTensor | None
    ) -> torch.LongTensor:
        """The starting grid (batch, h, w): the given one, or all unknown at the given size in pixels."""
        if latents is None:
            grid = self.default_grid
            if height is not None or width is not None:
                grid = (height // self.patch if height else grid[0], width // self.patch if width else grid[1])
            latents = torch.full((batch_size, *grid), self.unknown_code)
        self.warn_of_size(tuple(latents.shape[1:]))
        return latents.to(self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | list[Prompt] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 18,
        guidance_scale: float = 2.75,
        guidance_schedule: str = "constant",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.LongTensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoImagePipelineOutput | tuple:
        r"""
        Make images.

        Args:
            prompt (`str` or `list[str]`): what to show. Texts longer than the model's `max_text_length` are cut with a
                warning. A list of [`RegionalPrompt`] in the place of a text weighs several prompts, also by region.
            negative_prompt (`str` or `list[str]`, *optional*): what to lead away from; the empty text by default.
            height, width (`int`, *optional*): size in pixels, multiples of the tokenizer's downsampling; the trained
                size by default. A larger image is made in overlapping windows of the trained size, so that it needs no
                more memory; [`ShowoLFQTokenizer.enable_tiling`] does the same for its pixels.
            num_inference_steps (`int`, defaults to 18): steps, at least 1.
            guidance_scale (`float`, defaults to 2.75): g in `u + g (c - u)` on the logits; 1 or less turns it off. The
                scale s of the original Show-o code is g = 1 + s.
            guidance_schedule (`str`, defaults to `"constant"`): how g - 1 goes over the steps: "constant", or rising from
                0 to its full value as "linear" or "cosine".
            guidance_interval (`tuple[float, float]`, defaults to `(0, 1)`): the share of the steps, from first to last,
                that are guided; the others cost half as much, but for prompts of parts.
            temperature (`float`, *optional*): noise on the choice of tokens; the scheduler's own by default.
            num_images_per_prompt (`int`, defaults to 1): images of each prompt.
            generator (`torch.Generator` or a list with one an image, *optional*): makes the result repeatable. With a
                list each image comes out as it would alone.
            latents (`torch.LongTensor` of shape `(batch, h, w)`, *optional*): a starting grid; its known codes stay, and
                those equal to `scheduler.config.mask_token_id` are filled in.
            output_type (`str`, defaults to `"pil"`): "pil", "np", "pt", or "latent" for the token grid.
            return_dict (`bool`, defaults to `True`): give a [`ShowoImagePipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipe, step, timestep, tensors)` after each step; a
                dict that it returns replaces the tensors.
            callback_on_step_end_tensor_inputs (`list[str]`): its tensors; "latents" is the grid (batch, h, w).

        Raises:
            ValueError, TypeError: for arguments that are wrong, before any work starts.
        """
        options = FillingOptions.pick(locals())
        batch = self.check_inputs(
            prompt, negative_prompt, height, width, num_images_per_prompt, latents, output_type, options
        )
        latents = self.prepare_latents(batch.batch_size, height, width, latents)
        latents = self.make_images(latents, batch, options)
        return self.finish(self.decode_latents(latents, output_type), return_dict)
