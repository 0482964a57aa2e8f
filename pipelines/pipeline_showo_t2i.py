"""Text to picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput, logging
from PIL import Image

from showo_hf.processing_showo import check_texts
from showo_hf.schedulers.scheduling_utils import Generators, check_generators

from .pipeline_utils import EncodedPrompts, ShowoPipelineBase, check_count, check_number


logger = logging.get_logger(__name__)


@dataclass
class ShowoT2IPipelineOutput(BaseOutput):
    """
    Output of [`ShowoT2IPipeline`].

    Args:
        images: a list of PIL pictures; or `np.ndarray` (batch, H, W, 3) or `torch.Tensor` (batch, 3, H, W) in [0, 1];
            or, for "latent", the token grid, `torch.LongTensor` (batch, h, w).
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor


class ShowoT2IPipeline(ShowoPipelineBase):
    r"""
    Pictures from words, by discrete diffusion (Show-o, arXiv:2408.12528, section 3.4).

    The text's keys and values are computed once; a step runs the model on the picture's positions alone.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its picture tokenizer.
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
        num_inference_steps,
        guidance_scale,
        temperature,
        num_images_per_prompt,
        generator,
        latents,
        output_type,
        callback_on_step_end_tensor_inputs,
    ):
        """Raise `ValueError` or `TypeError` for wrong arguments, before any work."""
        self.check_components()
        prompts = check_texts("prompt", prompt)
        if negative_prompt is not None:
            negative = check_texts("negative_prompt", negative_prompt)
            if len(negative) not in (1, len(prompts)):
                raise ValueError(
                    f"`negative_prompt` must be one text or one for each of the {len(prompts)} prompts, "
                    f"got {len(negative)}."
                )
        check_count("num_inference_steps", num_inference_steps)
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_number("guidance_scale", guidance_scale)
        if temperature is not None:
            check_number("temperature", temperature)
        self.check_output_type(output_type)
        batch_size = len(prompts) * num_images_per_prompt
        check_generators(generator, batch_size)
        self.check_callback_inputs(callback_on_step_end_tensor_inputs)
        if latents is not None:
            self.check_latents(latents, batch_size, height, width)
        else:
            self.check_size(height, width)

    def check_size(self, height: int | None, width: int | None):
        """Raise `ValueError` unless the picture tokenizer divides `height` and `width` (pixels)."""
        if height is None and width is None:
            return
        if self.image_tokenizer is None:
            raise ValueError(
                "`height` and `width` need a picture tokenizer; give `latents` of the wanted grid instead."
            )
        factor = self.image_tokenizer.config.downsampling
        for name, value in (("height", height), ("width", width)):
            if value is not None and (not isinstance(value, int) or value < factor or value % factor):
                raise ValueError(f"`{name}` must be a positive multiple of {factor} pixels, got {value}.")

    def check_latents(self, latents: torch.Tensor, batch_size: int, height: int | None, width: int | None):
        """Raise `ValueError` unless `latents` is a (batch, h, w) grid of codes or the mask id, of the asked-for size."""
        mask = self.scheduler.config.mask_token_id
        if not isinstance(latents, torch.Tensor) or latents.ndim != 3 or latents.dtype != torch.int64:
            got = (
                f"{latents.dtype} {tuple(latents.shape)}"
                if isinstance(latents, torch.Tensor)
                else type(latents).__name__
            )
            raise ValueError(f"`latents` must be an int64 tensor of shape (batch, height, width), got {got}.")
        if latents.shape[0] != batch_size or latents.numel() == 0:
            raise ValueError(f"`latents` must hold {batch_size} grids, got shape {tuple(latents.shape)}.")
        if latents.min() < 0 or latents.max() > mask:
            raise ValueError(
                f"`latents` must be codes from 0 to {mask - 1}, or {mask} where unknown, "
                f"got {latents.min().item()} to {latents.max().item()}."
            )
        self.check_size(height, width)
        if height is not None or width is not None:
            factor = self.image_tokenizer.config.downsampling
            wanted = (height or latents.shape[1] * factor, width or latents.shape[2] * factor)
            if wanted != (latents.shape[1] * factor, latents.shape[2] * factor):
                raise ValueError(
                    f"`latents` of shape {tuple(latents.shape)} do not fit `height` and `width`, {wanted}."
                )

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> EncodedPrompts:
        """
        Keys and values of the prompts and, for guidance, of the negative ones; each text goes through the model once.

        Without a negative prompt the unconditional one is the empty text.
        """
        prompts = check_texts("prompt", prompt)
        wanted = [text for text in prompts for _ in range(num_images_per_prompt)]
        if do_classifier_free_guidance:
            negative = check_texts("negative_prompt", negative_prompt or "")
            negative = negative * len(prompts) if len(negative) == 1 else negative
            wanted += [text for text in negative for _ in range(num_images_per_prompt)]
        texts = list(dict.fromkeys(wanted))
        return self.encode_rows(texts, [texts.index(text) for text in wanted])

    def prepare_latents(
        self, batch_size: int, height: int | None, width: int | None, latents: torch.LongTensor | None
    ) -> torch.LongTensor:
        """The starting grid (batch, h, w): the given one, or all unknown at the given size in pixels."""
        if latents is not None:
            grid = tuple(latents.shape[1:])
            latents = latents.to(self._execution_device)
        else:
            grid = self.default_grid
            if height is not None or width is not None:
                factor = self.image_tokenizer.config.downsampling
                grid = (height // factor if height else grid[0], width // factor if width else grid[1])
            mask = self.scheduler.config.mask_token_id
            latents = torch.full((batch_size, *grid), mask, device=self._execution_device)
        if grid != self.default_grid:
            logger.warning(
                f"The model was trained on grids of {self.default_grid[0]}x{self.default_grid[1]} tokens; "
                f"{grid[0]}x{grid[1]} may look worse."
            )
        return latents

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 18,
        guidance_scale: float = 2.75,
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.LongTensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoT2IPipelineOutput | tuple:
        r"""
        Make pictures.

        Args:
            prompt (`str` or `list[str]`): what to show. Texts longer than the model's `max_text_length` are cut with a
                warning.
            negative_prompt (`str` or `list[str]`, *optional*): what to lead away from; the empty text by default.
            height, width (`int`, *optional*): size in pixels, multiples of the tokenizer's downsampling; the trained
                size by default.
            num_inference_steps (`int`, defaults to 18): steps, at least 1.
            guidance_scale (`float`, defaults to 2.75): g in `u + g (c - u)` on the logits; 1 or less turns it off. The
                scale s of the original Show-o code is g = 1 + s.
            temperature (`float`, *optional*): noise on the choice of tokens; the scheduler's own by default.
            num_images_per_prompt (`int`, defaults to 1): pictures of each prompt.
            generator (`torch.Generator` or a list with one a picture, *optional*): makes the result repeatable. With a
                list each picture comes out as it would alone.
            latents (`torch.LongTensor` of shape `(batch, h, w)`, *optional*): a starting grid; its known codes stay, and
                those equal to `scheduler.config.mask_token_id` are filled in.
            output_type (`str`, defaults to `"pil"`): "pil", "np", "pt", or "latent" for the token grid.
            return_dict (`bool`, defaults to `True`): give a [`ShowoT2IPipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipe, step, timestep, tensors)` after each step; a
                dict that it returns replaces the tensors.
            callback_on_step_end_tensor_inputs (`list[str]`): its tensors; "latents" is the grid (batch, h, w).

        Raises:
            ValueError, TypeError: for arguments that are wrong, before any work starts.
        """
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            temperature,
            num_images_per_prompt,
            generator,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        batch_size = (1 if isinstance(prompt, str) else len(prompt)) * num_images_per_prompt
        latents = self.prepare_latents(batch_size, height, width, latents)
        self.set_timesteps(num_inference_steps, tuple(latents.shape[1:]), temperature)
        self._num_timesteps = len(self.scheduler.timesteps)

        mask = self.scheduler.config.mask_token_id
        given = latents.flatten(1)  # (batch, tokens)
        tokens = given
        if bool((tokens == mask).any()):
            prompts = self.encode_prompt(prompt, negative_prompt, num_images_per_prompt, guidance_scale > 1)
            rows = self.picture_input_ids(tokens).repeat(prompts.num_rows // batch_size, 1)
            attention_mask = self.picture_attention_mask(prompts, rows)
            with self.progress_bar(total=self._num_timesteps) as progress_bar:
                for i, timestep in enumerate(self.scheduler.timesteps):
                    logits = self.predict_codes(tokens, prompts, attention_mask, guidance_scale)
                    output = self.scheduler.step(logits, timestep, tokens, generator=generator)
                    tokens = torch.where(given == mask, output.prev_sample, given)
                    if callback_on_step_end is not None:
                        tensors = {name: tokens.view_as(latents) for name in callback_on_step_end_tensor_inputs or ()}
                        replaced = callback_on_step_end(self, i, timestep, tensors) or {}
                        tokens = replaced.get("latents", tokens).reshape(tokens.shape)
                    progress_bar.update()
                    if output.finished:
                        break
        images = self.decode_latents(tokens.view_as(latents), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ShowoT2IPipelineOutput(images=images)
