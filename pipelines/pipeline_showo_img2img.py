"""Variations of an image."""

from collections.abc import Callable
from typing import Any

import torch

from showo_hf.schedulers.scheduling_utils import Generators

from .editing_pipeline import ShowoEditingPipeline
from .image_pipeline import ShowoImagePipelineOutput
from .pipeline_utils import FillingOptions
from .prompts import Prompt, PromptBatch


class ShowoImg2ImgPipeline(ShowoEditingPipeline):
    r"""
    Vary an image: a share of its tokens is masked and filled in anew; the others stay exactly as they are.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in when.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoImg2ImgPipeline
    >>> pipe = ShowoImg2ImgPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> image = pipe("a green apple, flat style", image="apple.png", strength=0.7).images[0]
    ```
    """

    def check_inputs(
        self,
        prompt,
        image,
        negative_prompt,
        height,
        width,
        strength,
        remasking,
        num_images_per_prompt,
        output_type,
        options: FillingOptions,
    ) -> tuple[list[Any] | torch.Tensor, PromptBatch]:
        """
        Raise `ValueError` or `TypeError` for wrong arguments, before any work; images and the checked prompts are
        returned.
        """
        self.check_components()
        batch = self.check_prompts(prompt, negative_prompt, num_images_per_prompt)
        self.check_filling(options, batch.batch_size)
        self.check_repainting(strength, remasking)
        self.check_output_type(output_type)
        return self.load_images(image, len(batch.prompts), height, width), batch

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
        Vary an image. Arguments that are not named here are those of [`ShowoT2IPipeline.__call__`].

        Args:
            image: the image, or one for each prompt, as in [`ShowoInpaintPipeline.__call__`].
            strength (`float`, defaults to 0.7): share of the tokens that is made anew, in [0, 1]: 0 gives the image back,
                1 is text to image. Steps that would leave more than this share unknown are left out.
            remasking (`str`, defaults to `"uncertain"`): which ones: those that the model finds the least likely for the
                prompt, or "random" ones.
            height, width (`int`, *optional*): the size to work at, as in [`ShowoInpaintPipeline.__call__`].

        Raises:
            ValueError, TypeError: for arguments that are wrong, before any work starts.
        """
        options = FillingOptions.pick(locals())
        images, batch = self.check_inputs(
            prompt,
            image,
            negative_prompt,
            height,
            width,
            strength,
            remasking,
            num_images_per_prompt,
            output_type,
            options,
        )
        source = self.encode_images(images, batch.batch_size, height, width)
        everything = torch.ones_like(source.tokens, dtype=torch.bool)
        varied = self.repaint(
            source,
            everything,
            strength,
            remasking,
            False,
            batch,
            output_type,
            options,
        )
        return self.finish(varied, return_dict)
