"""What the pipelines share: encoding a prompt once, predicting picture codes from its cache, decoding."""

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download
from torch.nn import functional as F
from transformers import DynamicCache

from showo_hf.configuration_showo import ShowoConfig
from showo_hf.modeling_showo import ShowoForCausalLM
from showo_hf.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.processing_showo import ShowoProcessor


@dataclass
class EncodedPrompts:
    """
    Keys and values of the prompts, computed once and used by every step.

    Rows are the conditional ones, one a picture, and behind them as many unconditional ones where there is guidance.

    Args:
        cache: `DynamicCache` of (rows, heads, length, head_dim).
        attention_mask (`torch.LongTensor` of shape `(rows, length)`): 0 at pads.
        first_position (`int` or `torch.LongTensor` of shape `(rows, 1)`): position of a picture's `soi` behind the prompts.
    """

    cache: DynamicCache
    attention_mask: torch.LongTensor
    first_position: int | torch.LongTensor

    @property
    def num_rows(self) -> int:
        """Conditional and unconditional rows together."""
        return self.attention_mask.shape[0]


def join_prompts(prompts: Sequence[EncodedPrompts]) -> EncodedPrompts:
    """The rows of several prompts as one batch, with a cache of its own; shorter ones are padded on the left."""
    longest = max(one.attention_mask.shape[1] for one in prompts)

    def joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        behind = (0, 0) * (-1 - dim)  # dimensions behind the one that is padded
        return torch.cat([F.pad(tensor, (*behind, longest - tensor.shape[dim], 0)) for tensor in tensors])

    layers = [
        (joined([layer.keys for layer in same], -2), joined([layer.values for layer in same], -2))
        for same in zip(*(one.cache.layers for one in prompts), strict=True)
    ]
    masks = [one.attention_mask for one in prompts]
    first = [torch.full((len(mask), 1), one.first_position) for one, mask in zip(prompts, masks, strict=True)]
    return EncodedPrompts(DynamicCache(layers), joined(masks, -1), torch.cat(first).to(masks[0].device))


class ShowoPipelineBase(DiffusionPipeline):
    """Base of the pipelines that make pictures with a Show-o model; components `model`, `processor`, `scheduler`."""

    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, model: ShowoForCausalLM, processor: ShowoProcessor, scheduler):
        super().__init__()
        self.register_modules(model=model, processor=processor, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def image_tokenizer(self) -> ShowoLFQTokenizer | None:
        """The model's picture tokenizer."""
        return self.model.image_tokenizer

    @property
    def default_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at the trained size."""
        side = round(self.model.config.num_image_tokens**0.5)
        return side, self.model.config.num_image_tokens // side

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call."""
        return self._num_timesteps

    def check_components(self):
        """Raise `ValueError` unless scheduler and processor fit the model: mask id, and places in the vocabulary."""
        for name in ("image_token_offset", "mask_token_id", "codebook_size", "max_text_length"):
            ours, theirs = getattr(self.processor, name), getattr(self.model.config, name)
            if ours != theirs:
                raise ValueError(f"`processor` and `model` do not fit: `{name}` is {ours} and {theirs}.")
        mask, size = self.scheduler.config.mask_token_id, self.model.config.codebook_size
        if mask != size:
            raise ValueError(
                f"`scheduler.config.mask_token_id` must be the model's codebook size, {size}, got {mask}; "
                f"use `type(scheduler).from_config(scheduler.config, mask_token_id={size})`."
            )

    def check_output_type(self, output_type: str):
        """Raise `ValueError` for an `output_type` that does not exist, or needs a picture tokenizer that is not there."""
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if self.image_tokenizer is None and output_type != "latent":
            raise ValueError(
                f"`output_type` must be 'latent' for a model without picture tokenizer, got {output_type!r}."
            )

    def check_callback_inputs(self, names: Sequence[str] | None):
        """Raise `ValueError` for tensors that `callback_on_step_end` cannot have."""
        unknown = set(names or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {list(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)}."
            )

    def set_timesteps(self, num_inference_steps: int, grid_size: tuple[int, int], temperature: float | None):
        """Call the scheduler's `set_timesteps` with those of our arguments that it takes."""
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        wanted = {"grid_size": grid_size, "temperature": temperature, "device": self._execution_device}
        if temperature is not None and "temperature" not in accepted:
            raise ValueError(f"`temperature` is not an option of {type(self.scheduler).__name__}, got {temperature}.")
        options = {name: value for name, value in wanted.items() if name in accepted and value is not None}
        self.scheduler.set_timesteps(num_inference_steps, **options)

    @torch.no_grad()
    def encode_rows(self, prompts: list[str], rows: list[int]) -> EncodedPrompts:
        """
        Keys and values of `t2i sot text eot` for each of `prompts`, repeated to `rows` (indices into `prompts`).
        """
        inputs = self.processor.text_to_image_prefix(prompts).to(self._execution_device)
        cache = DynamicCache(config=self.model.config.text_config)
        self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, codebook_only=True)
        index = torch.tensor(rows, device=self._execution_device)
        if rows != list(range(len(prompts))):
            cache.batch_select_indices(index)
        return EncodedPrompts(cache, inputs["attention_mask"][index], self.processor.max_text_length + 1)

    def picture_attention_mask(self, prompts: EncodedPrompts, input_ids: torch.LongTensor):
        """
        The mask of a picture behind its prompt, for every step alike; `input_ids` is (rows, `soi` picture `eoi`).
        """
        seen = F.pad(prompts.attention_mask, (0, input_ids.shape[1]), value=1)
        like = torch.empty((*input_ids.shape, 0), dtype=self.model.dtype, device=input_ids.device)
        return self.model.omni_attention_mask(like, input_ids, seen, prompts.cache)

    def picture_input_ids(self, tokens: torch.LongTensor) -> torch.LongTensor:
        """Codes (batch, tokens), the codebook size where unknown, to ids `soi picture eoi` (batch, tokens + 2)."""
        config = self.model.config
        unknown = tokens == config.codebook_size
        ids = torch.where(unknown, config.mask_token_id, tokens + config.image_token_offset)
        return F.pad(F.pad(ids, (1, 0), value=config.soi_token_id), (0, 1), value=config.eoi_token_id)

    @torch.no_grad()
    def predict_codes(
        self, tokens: torch.LongTensor, prompts: EncodedPrompts, attention_mask, guidance_scale: float
    ) -> torch.Tensor:
        """
        Guided logits of the unknown tokens; zeros at the known ones, where no scheduler looks.

        Only the picture's positions go through the model, and only unknown ones through the head.

        Args:
            tokens (`torch.LongTensor` of shape `(batch, tokens)`): codes, the codebook size where unknown.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, codebook_size)`: `g c - (g - 1) u`, c alone without guidance.
        """
        batch_size, num_tokens = tokens.shape
        guided = prompts.num_rows > batch_size
        unknown = tokens == self.model.config.codebook_size  # (batch, tokens)
        rows = self.picture_input_ids(tokens)
        places = F.pad(unknown, (1, 1), value=False)  # soi and eoi are known
        if guided:
            rows, places = torch.cat([rows, rows]), torch.cat([places, places])
        positions = torch.arange(num_tokens + 2, device=rows.device) + prompts.first_position
        logits = self.model(
            input_ids=rows,
            attention_mask=attention_mask,
            position_ids=positions.expand_as(rows),
            past_key_values=prompts.cache,
            use_cache=True,
            logits_to_keep=places,
            codebook_only=True,
        ).logits  # (unknown of all rows, codebook)
        prompts.cache.crop(-(num_tokens + 2))
        logits = guide(guidance_scale, *logits.chunk(2 if guided else 1))
        full = logits.new_zeros(batch_size, num_tokens, logits.shape[-1])
        full[unknown] = logits
        return full

    @torch.no_grad()
    def decode_latents(self, latents: torch.LongTensor, output_type: str):
        """A token grid (batch, h, w) to pictures as `output_type` says; "latent" gives the grid."""
        if output_type == "latent":
            return latents
        pixels = self.image_tokenizer.decode(latents.to(self._execution_device)).sample
        return self.image_processor.postprocess(pixels.float(), output_type=output_type)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers; `ValueError` with the command to convert for a checkpoint of the original code."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError):
            if not is_pipeline(pretrained_model_name_or_path):
                with contextlib.suppress(OSError):
                    ShowoConfig.get_config_dict(pretrained_model_name_or_path)
            raise

    @classmethod
    def download(cls, pretrained_model_name, **kwargs):
        """
        Fetch a pipeline from the Hub, without the components that are given in `kwargs`; returns its folder.

        diffusers' own wants every component to be of diffusers, of transformers, or code in the repository.
        """
        components, _ = cls._get_signature_keys(cls)
        wanted = [f"{name}/*" for name in sorted(components - kwargs.keys())]
        names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return snapshot_download(pretrained_model_name, allow_patterns=[cls.config_name, *wanted], **options)

    @classmethod
    def _dict_from_json_file(cls, json_file):
        """As in diffusers; where a folder names the code in it (`convert --with-code`), ours takes its place."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        parts = {name: value for name, value in config.items() if isinstance(value, list) and len(value) == 2}
        return config | {name: [full_module_name(module), kind] for name, (module, kind) in parts.items()}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Save the pipeline; `model/` gets the processor's files too, so that transformers can load it by itself.
        """
        # First, as diffusers may upload the folder at the end of its own saving.
        self.processor.save_pretrained(f"{save_directory}/model")
        super().save_pretrained(save_directory, *args, **kwargs)


def is_pipeline(folder) -> bool:
    """Whether a local folder is a saved pipeline."""
    return os.path.isfile(os.path.join(folder, DiffusionPipeline.config_name))


def full_module_name(name: str | None) -> str | None:
    """`showo_hf.modeling_showo` for `modeling_showo`, if such a module of this package is loaded; else `name`."""
    package = __name__.split(".")[0]
    full_names = (full for full in sys.modules if full.startswith(f"{package}.") and full.endswith(f".{name}"))
    return next(full_names, name)


def guide(guidance_scale: float, conditional: torch.Tensor, unconditional: torch.Tensor | None = None) -> torch.Tensor:
    """Guided logits `g c - (g - 1) u`; c where there is no u."""
    if unconditional is None:
        return conditional
    return guidance_scale * conditional - (guidance_scale - 1) * unconditional


def check_number(name: str, value):
    """Raise `ValueError` unless `value` is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number that is not negative, got {value!r}.")


def check_count(name: str, value, least: int = 1):
    """Raise `ValueError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
