"""The base of the pipelines: components, checks, and what comes before and after the denoising loop."""

import contextlib
import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput, logging
from huggingface_hub import create_repo
from PIL import Image
from transformers import DynamicCache

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_diffusion_decoder import ShowoDiffusionDecoder
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.processing.known_words import without_known_words
from showo_hf.processing.processing_showo import ShowoProcessor, check_texts
from showo_hf.schedulers.scheduling_utils import Generators, check_filter, check_generators
from showo_hf.utils.adapters import adapter_names, without_adapters
from showo_hf.utils.saved_folders import hub_options
from showo_hf.utils.validation import (
    MAX_COUNT,
    MAX_SCALE,
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_number,
    is_integer,
    shown,
)

from .call_state import SamplingParams, latest_call, running_call
from .encoded_prompts import EncodedPrompts
from .guidance import check_guidance
from .hub import download_pipeline, with_installed_classes
from .lora import ShowoLoraMixin
from .prompts import Prompt, check_prompt, is_plain, load_prompt_masks, token_weights
from .scheduler_adapter import check_scheduler, check_scheduler_arguments
from .text_sampling import warpers


logger = logging.get_logger(__name__)

#: An image has at most this many times the trained number of tokens. Each window of the trained size is a whole call.
MAX_GRID = 256


@dataclass
class ShowoImagePipelineOutput(BaseOutput):
    """
    Output of the image pipelines.

    Args:
        images: a list of PIL images; or `np.ndarray` (batch, H, W, 3) or `torch.Tensor` (batch, 3, H, W) in [0, 1]; or,
            for "latent", the token grid, `torch.LongTensor` (batch, h, w).
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor


class ShowoPipeline(DiffusionPipeline, ShowoLoraMixin):
    """
    Base of the Show-o pipelines. All state of a call lives in the call, so threads may share a pipeline.

    Calls of an offloaded pipeline wait for each other.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and sequence builder.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.
        image_decoder ([`ShowoDiffusionDecoder`], *optional*): makes sharper pixels of image tokens, by diffusion.
    """

    model_cpu_offload_seq = "model->image_decoder"
    _optional_components = ["image_decoder"]
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        model: ShowoForCausalLM,
        processor: ShowoProcessor,
        scheduler,
        image_decoder: ShowoDiffusionDecoder | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, processor=processor, scheduler=scheduler, image_decoder=image_decoder)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def device(self) -> torch.device:
        """The model's device. The weights of the image decoder may be elsewhere, for example on disk."""
        return self.model.device

    @property
    def image_tokenizer(self) -> ShowoLFQTokenizer | None:
        """The model's image tokenizer."""
        return self.model.image_tokenizer

    @property
    def default_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens at the trained size."""
        side = round(self.model.config.num_image_tokens**0.5)
        return side, self.model.config.num_image_tokens // side

    @property
    def mask_token_id(self) -> int:
        """The value of a masked image token in `latents`: the codebook size, as in the scheduler's config."""
        return self.model.config.codebook_size

    @property
    def patch(self) -> int:
        """Side of a token's patch in pixels; 1 without an image tokenizer."""
        return 1 if self.image_tokenizer is None else self.image_tokenizer.config.downsampling

    # The state of a call, for its callback

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the running call. Its callback changes `_guidance_scale`."""
        return latest_call(self).guidance_scale

    @property
    def num_timesteps(self) -> int:
        """The maximum number of steps of the running call."""
        return latest_call(self).num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops after this step. Its callback changes `_interrupt`."""
        return latest_call(self).interrupt

    @property
    def _guidance_scale(self) -> float:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, guidance_scale: float):
        check_number("guidance_scale", guidance_scale, most=MAX_SCALE)
        running_call(self).guidance_scale = guidance_scale

    @property
    def _num_timesteps(self) -> int:
        return self.num_timesteps

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool):
        running_call(self).interrupt = bool(interrupt)

    def with_defaults(self, num_inference_steps: int | None, guidance_scale: float | None) -> tuple[int, float]:
        """
        The number of steps and the guidance scale of a call: where it gives None, the model's own,
        `image_num_inference_steps` and `image_guidance_scale` in its config.
        """
        config = self.model.config
        return (
            config.image_num_inference_steps if num_inference_steps is None else num_inference_steps,
            config.image_guidance_scale if guidance_scale is None else guidance_scale,
        )

    # Checks

    def check_components(self):
        """Raise `ValueError` unless the processor, the scheduler and the image decoder fit the model."""
        self.check_processor()
        self.check_image_decoder()
        check_scheduler(self.scheduler, self.mask_token_id)

    def check_processor(self):
        """Raise `ValueError` unless the processor and the model agree on the vocabulary."""
        for name in ("image_token_offset", "mask_token_id", "codebook_size", "max_text_length"):
            ours, theirs = getattr(self.processor, name), getattr(self.model.config, name)
            if ours != theirs:
                raise ValueError(f"`processor` and `model` do not fit: `{name}` is {ours} and {theirs}.")

    def check_image_decoder(self):
        """Raise `ValueError` unless the image decoder, if there is one, takes the codes of the model's tokenizer."""
        if self.image_decoder is None or self.image_tokenizer is None:
            return
        for name in ("codebook_channels", "downsampling", "in_channels"):
            ours, theirs = getattr(self.image_decoder.config, name), getattr(self.image_tokenizer.config, name)
            if ours != theirs:
                raise ValueError(f"`image_decoder` and `model` do not fit: `{name}` is {ours} and {theirs}.")

    def check_sampling_params(self, params: SamplingParams, batch_size: int):
        """Raise `ValueError` or `TypeError` for sampling parameters that are not allowed."""
        check_count("num_inference_steps", params.num_inference_steps, most=MAX_COUNT)
        check_guidance(params.guidance_scale, params.guidance_schedule, params.guidance_interval)
        if params.temperature is not None:
            check_number("temperature", params.temperature, most=MAX_SCALE)
        self.check_decoder_steps(params.decoder_steps)
        check_generators(params.generator, batch_size)
        check_scheduler_arguments(self.scheduler, params.num_inference_steps, params.temperature, params.generator)
        if params.callback_on_step_end is not None:
            check_callable("callback_on_step_end", params.callback_on_step_end, "pipe", "step", "timestep", "tensors")
        names = params.callback_tensor_inputs
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"`callback_on_step_end_tensor_inputs` must be a list of names, got {shown(names)}.")
        unknown = set(names) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {list(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)}."
            )

    def check_decoder_steps(self, decoder_steps: int | None):
        """Raise `ValueError` for a number of decoder steps that is not allowed, or that needs a missing image decoder."""
        if self.image_decoder is not None:
            steps = self.image_decoder.config.num_inference_steps if decoder_steps is None else decoder_steps
            self.image_decoder.check_steps("decoder_steps", steps)
        elif decoder_steps is not None:
            check_count("decoder_steps", decoder_steps, least=0, most=MAX_COUNT)
            if decoder_steps:
                raise ValueError(
                    f"`decoder_steps` must be None or 0 for a pipeline without an image decoder, got {decoder_steps}."
                )

    def check_output_type(self, output_type: str):
        """Raise `ValueError` for an unknown `output_type`, or one that needs a missing image tokenizer."""
        check_choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        if self.image_tokenizer is None and output_type != "latent":
            raise ValueError(
                f"`output_type` must be 'latent' for a model without an image tokenizer, got {output_type!r}."
            )

    def check_size(self, height: int | None, width: int | None):
        """Raise `ValueError` unless `height` and `width` are multiples of the patch size, in pixels."""
        if height is None and width is None:
            return
        if self.image_tokenizer is None:
            raise ValueError(
                "`height` and `width` need an image tokenizer; give `latents` of the wanted grid instead."
            )
        for name, value in (("height", height), ("width", width)):
            if value is not None and (not is_integer(value) or value < self.patch or value % self.patch):
                raise ValueError(f"`{name}` must be a positive multiple of {self.patch} pixels, got {shown(value)}.")
        trained = [side * self.patch for side in self.default_grid]
        self.check_grid_size("height` and `width", (height or trained[0], width or trained[1]), self.patch)

    def check_grid_size(self, name: str, size: tuple[int, int], unit: int = 1):
        """Raise `ValueError` for a size, in `unit`s of a token, that takes far more tokens than the trained one."""
        most = MAX_GRID * self.model.config.num_image_tokens
        if size[0] * size[1] > most * unit**2:
            found = f"{shown(size[0] // unit)}x{shown(size[1] // unit)}"
            raise ValueError(f"`{name}` must take at most {most:,} image tokens, got {found}.")

    def check_rows_and_columns(self, name: str, grid: Any):
        """Raise `ValueError` unless `grid` holds rows and columns of image tokens, not far above the trained ones."""
        if not isinstance(grid, (tuple, list)) or len(grid) != 2:
            raise ValueError(f"`{name}` must be (rows, columns), got {shown(grid)}.")
        for side in grid:
            check_count(name, side, most=MAX_COUNT)
        self.check_grid_size(name, (grid[0], grid[1]))

    def check_token_grids(self, name: str, grids: Any, batch_size: int | None, largest: int):
        """Raise `ValueError` unless `grids` is int64 (batch_size, h, w) with image tokens from 0 to `largest`."""
        if not isinstance(grids, torch.Tensor) or grids.ndim != 3 or grids.dtype != torch.int64:
            got = f"{grids.dtype} {tuple(grids.shape)}" if isinstance(grids, torch.Tensor) else type(grids).__name__
            raise ValueError(f"`{name}` must be an int64 tensor of shape (batch, height, width), got {got}.")
        if grids.numel() == 0 or batch_size not in (None, len(grids)):
            raise ValueError(f"`{name}` must hold {batch_size or 'some'} grids, got shape {tuple(grids.shape)}.")
        if grids.min() < 0 or grids.max() > largest:
            masked = f", or {largest} where masked" if largest == self.mask_token_id else ""
            raise ValueError(
                f"`{name}` must be image tokens from 0 to {self.mask_token_id - 1}{masked}, "
                f"got {grids.min().item()} to {grids.max().item()}."
            )

    def check_text_sampling(
        self, name: str, do_sample: bool, temperature: float, top_k: int | None, top_p: float | None
    ):
        """Raise `ValueError` for text sampling parameters that are not allowed. Warn of those that have no effect."""
        check_flag("do_sample", do_sample)
        check_number(name, temperature, most=MAX_SCALE)
        if temperature == 0:
            raise ValueError(f"`{name}` must be above 0, got 0; use `do_sample=False` for the likeliest words.")
        check_filter(top_k, top_p)
        if not do_sample and warpers(temperature, top_k, top_p):
            logger.warning(f"`{name}`, `top_k` and `top_p` have no effect with `do_sample=False`.")

    def warn_if_small(self, grid_size: tuple[int, int]):
        """Warn if a grid is smaller than the trained one. Larger grids are denoised in windows of the trained size."""
        if grid_size[0] < self.default_grid[0] or grid_size[1] < self.default_grid[1]:
            logger.warning(
                f"The model was trained on grids of {self.default_grid[0]}x{self.default_grid[1]} tokens; "
                f"{grid_size[0]}x{grid_size[1]} may look worse."
            )

    def warn_of_unknown_words(self, texts: Sequence[str]):
        """Warn of texts without any word that the model knows, if its processor says which these are."""
        known = self.processor.known_words
        for text in without_known_words(texts, known) if known else ():
            some = [
                f"{group}: {', '.join(words[:8])}{f' and {len(words) - 8} more' if len(words) > 8 else ''}"
                for group, words in known.items()
            ]
            logger.warning(
                f"The prompt {shown(text)} has no word that this model knows, so the image will not show what it says. "
                f"It knows {'; '.join(some)}. `pipe.processor.known_words` lists them all."
            )

    # Before and after the denoising loop

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Prompt | Sequence[Prompt],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        grid_size: tuple[int, int] | None = None,
    ) -> EncodedPrompts:
        """
        Compute keys and values of `t2i sot text eot` for the prompts and, with guidance, for the negative prompts.

        Each distinct text goes through the model once. Regional prompts need the negative prompts in any case.

        Args:
            prompt, negative_prompt, num_images_per_prompt: see [`ShowoT2IPipeline.__call__`].
            do_classifier_free_guidance (`bool`): encode negative prompts too; the empty text by default.
            grid_size (`tuple[int, int]`, *optional*): rows and columns of the image that regional masks are stretched
                over; the trained grid by default.

        Raises:
            ValueError, TypeError: for prompts or masks that are not allowed.
        """
        check_prompt(prompt, negative_prompt)
        check_count("num_images_per_prompt", num_images_per_prompt, most=MAX_COUNT)
        check_flag("do_classifier_free_guidance", do_classifier_free_guidance)
        if grid_size is not None:
            self.check_rows_and_columns("grid_size", grid_size)
        prompts = [parts for parts in load_prompt_masks(prompt) for _ in range(num_images_per_prompt)]
        texts = [part.text for parts in prompts for part in parts]
        self.warn_of_unknown_words(texts)
        images = [image for image, parts in enumerate(prompts) for _ in parts]
        if do_classifier_free_guidance or not all(map(is_plain, prompts)):
            negative = check_texts("negative_prompt", negative_prompt or "")
            repeats = len(prompts) // len(negative)
            texts += [text for text in negative for _ in range(repeats)]
            images += range(len(prompts))
        distinct = list(dict.fromkeys(texts))
        device = self._execution_device
        inputs = self.processor.text_to_image_prefix(distinct).to(device)
        cache = DynamicCache(config=self.model.config.text_config)
        self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, codebook_only=True)
        rows = torch.tensor([distinct.index(text) for text in texts], device=device)
        if texts != distinct:
            cache.batch_select_indices(rows)
        return EncodedPrompts(
            cache=cache,
            attention_mask=inputs["attention_mask"][rows],
            first_position=self.processor.max_text_length + 1,
            image_indices=torch.tensor(images, device=device),
            weights=token_weights(prompts, grid_size or self.default_grid),
        )

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.LongTensor,
        output_type: str = "pil",
        generator: Generators = None,
        decoder_steps: int | None = None,
    ):
        """
        Decode image tokens to images of `output_type`. Masked tokens become mid-grey pixels.

        Args:
            latents (`torch.LongTensor` of shape `(batch, h, w)`): image tokens, the codebook size where masked.
            output_type (`str`): "pil", "np", "pt", or "latent" to return `latents`.
            generator (`torch.Generator` or a list with one per image, *optional*): draws the image decoder's noise.
            decoder_steps (`int`, *optional*): steps of the image decoder; by default its own number. 0 leaves it out.

        Raises:
            ValueError, TypeError: for arguments that are not allowed.
        """
        self.check_token_grids("latents", latents, None, self.mask_token_id)
        self.check_output_type(output_type)
        self.check_decoder_steps(decoder_steps)
        check_generators(generator, len(latents))
        if output_type == "latent":
            return latents
        pixels = self.decode_pixels(latents, generator, decoder_steps)
        return self.image_processor.postprocess(pixels, output_type=output_type)

    def decode_pixels(
        self, latents: torch.LongTensor, generator: Generators = None, decoder_steps: int | None = None
    ) -> torch.Tensor:
        """
        Decode image tokens (batch, h, w) to float32 pixels (batch, 3, H, W) in [-1, 1], 0 where masked.

        With an image decoder, its steps refine what the image tokenizer decodes; see [`decode_latents`].
        """
        latents = latents.to(self._execution_device)
        masked = latents == self.mask_token_id
        tokens = latents.masked_fill(masked, 0)
        pixels = self.model.decode_images(tokens).float()
        if self.image_decoder is not None and decoder_steps != 0:
            codes = self.model.image_codes(tokens)
            pixels = self.image_decoder.decode(codes, pixels, decoder_steps, generator).sample
        if not bool(masked.any()):
            return pixels
        hidden = masked[:, None].repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return pixels.masked_fill(hidden.to(pixels.device), 0.0)

    # Folders

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a pipeline from a folder or from the Hub, as in diffusers. Given components are not downloaded.

        Raises:
            ValueError: for a checkpoint of the original code, with the command that converts it, and for `proxies`, which
                `huggingface_hub` sets by environment variables.
        """
        if kwargs.get("proxies"):
            raise ValueError(
                "`proxies` must be None, as huggingface_hub takes none: set the environment variable HTTPS_PROXY, or "
                f"`huggingface_hub.set_client_factory`; got {kwargs['proxies']!r}."
            )
        folder = pretrained_model_name_or_path
        try:
            if not os.path.isdir(folder):
                components = {"model", "processor", "scheduler", "image_decoder"} - kwargs.keys()
                folder = download_pipeline(folder, cls.config_name, components, kwargs)
            pipe = super().from_pretrained(folder, **kwargs)
        except (OSError, ValueError):
            if not os.path.isfile(os.path.join(folder, cls.config_name)):
                with contextlib.suppress(OSError):
                    # For an original checkpoint, this error says how to convert it.
                    ShowoConfig.get_config_dict(pretrained_model_name_or_path, **hub_options(kwargs))
            raise
        pipe.register_to_config(_name_or_path=pretrained_model_name_or_path)
        return pipe

    @classmethod
    def load_config(cls, *args, **kwargs):
        """Load `model_index.json`, as in diffusers. Classes of the installed package replace code in the folder."""
        loaded = super().load_config(*args, **kwargs)
        if __name__ != "showo_hf.pipelines.showo_pipeline":
            return loaded  # this is the code in a folder
        if isinstance(loaded, tuple):
            return with_installed_classes(loaded[0], "showo_hf"), *loaded[1:]
        return with_installed_classes(loaded, "showo_hf")

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Save the pipeline, as in diffusers. `model/` also gets the processor's files, so that transformers loads it.

        Adapters are not part of it, except those that are fused: `save_lora_weights` saves them. With `push_to_hub`, the
        repository is made first, so nothing is written if the Hub cannot be reached.
        """
        if adapter_names(self.model):
            # transformers would save the adapters in place of the model.
            plain = copy.copy(self)
            plain.model = without_adapters(self.model)
            plain.save_pretrained(save_directory, *args, **kwargs)
            return
        if kwargs.get("push_to_hub"):
            options = {name: kwargs.get(name) for name in ("private", "token")}
            create_repo(kwargs.get("repo_id", Path(save_directory).name), exist_ok=True, **options)
        # The processor comes first, because diffusers may upload the folder at the end of saving.
        self.processor.save_pretrained(f"{save_directory}/model")
        super().save_pretrained(save_directory, *args, **kwargs)
