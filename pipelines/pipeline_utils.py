"""What the pipelines share: encoding a prompt once, filling in image codes from its cache, decoding."""

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers import AmusedScheduler, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download
from torch.nn import functional as F
from transformers import DynamicCache

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.processing.processing_showo import ShowoProcessor
from showo_hf.schedulers.scheduling_utils import DiscreteSchedulerMixin, Generators, check_generators
from showo_hf.utils.validation import check_count, check_number

from .encoded_prompts import Composition, EncodedPrompts
from .guidance import check_guidance, guidance_at, guide
from .windows import Window, plan_windows, share_windows


@dataclass(frozen=True)
class FillingOptions:
    """How unknown tokens are filled in; see [`ShowoT2IPipeline.__call__`]. `first_step` leaves out the steps before it."""

    num_inference_steps: int = 18
    guidance_scale: float = 2.75
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float | None = None
    generator: Generators = None
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    begin_index: int = 0

    @classmethod
    def pick(cls, values: Mapping[str, Any]) -> "FillingOptions":
        """Those among the arguments of a call."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def scale_at(self, step: int) -> float:
        """The guidance scale of a step, from 0."""
        over_steps = self.guidance_schedule, self.guidance_interval
        return guidance_at(self.guidance_scale, step, self.num_inference_steps, *over_steps)


class ShowoPipelineBase(DiffusionPipeline):
    """Base of the pipelines that make images with a Show-o model; components `model`, `processor`, `scheduler`."""

    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, model: ShowoForCausalLM, processor: ShowoProcessor, scheduler):
        super().__init__()
        self.register_modules(model=model, processor=processor, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def image_tokenizer(self) -> ShowoLFQTokenizer | None:
        """The model's image tokenizer."""
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
        """Raise `ValueError` unless processor and scheduler fit the model."""
        self.check_processor()
        self.check_scheduler()

    def check_processor(self):
        """Raise `ValueError` unless the processor has the model's places in the vocabulary."""
        for name in ("image_token_offset", "mask_token_id", "codebook_size", "max_text_length"):
            ours, theirs = getattr(self.processor, name), getattr(self.model.config, name)
            if ours != theirs:
                raise ValueError(f"`processor` and `model` do not fit: `{name}` is {ours} and {theirs}.")

    def check_scheduler(self):
        """Raise `ValueError` unless the scheduler fills in masked tokens, and has the model's mask id."""
        size, kind = self.model.config.codebook_size, type(self.scheduler)
        told = takes(kind.__init__, "mask_token_id") or takes(kind.step, "mask_token_id")
        if not told and not isinstance(self.scheduler, DiscreteSchedulerMixin):
            raise ValueError(f"`scheduler` must be one of masked tokens, got {kind.__name__}.")
        if issubclass(kind, AmusedScheduler) and self.scheduler.config.masking_schedule not in ("cosine", "linear"):
            raise ValueError(
                f"`scheduler.config.masking_schedule` must be 'cosine' or 'linear' for {kind.__name__}, "
                f"got {self.scheduler.config.masking_schedule!r}."
            )
        mask = own_entry(self.scheduler, "mask_token_id", size)  # some of diffusers' own are told at each step
        if mask != size:
            raise ValueError(
                f"`scheduler.config.mask_token_id` must be the model's codebook size, {size}, got {mask}; "
                f"use `type(scheduler).from_config(scheduler.config, mask_token_id={size})`."
            )

    def check_filling(self, options: FillingOptions, batch_size: int):
        """Raise `ValueError` or `TypeError` for wrong options of the steps."""
        check_count("num_inference_steps", options.num_inference_steps)
        most = own_entry(self.scheduler, "num_train_timesteps", math.inf)
        if options.num_inference_steps > most:
            raise ValueError(
                f"`num_inference_steps` must be at most the `num_train_timesteps` of this {type(self.scheduler).__name__}, "
                f"{most}, got {options.num_inference_steps}."
            )
        check_guidance(options.guidance_scale, options.guidance_schedule, options.guidance_interval)
        if options.temperature is not None:
            check_number("temperature", options.temperature)
            if not takes(self.scheduler.set_timesteps, "temperature"):
                kind = type(self.scheduler).__name__
                raise ValueError(f"`temperature` is not an option of {kind}, got {options.temperature}.")
        check_generators(options.generator, batch_size)
        if isinstance(options.generator, list) and not isinstance(self.scheduler, DiscreteSchedulerMixin):
            raise ValueError(
                f"`generator` must be a single one for a {type(self.scheduler).__name__}, got a list of "
                f"{len(options.generator)}."
            )
        self.check_callback_inputs(options.callback_on_step_end_tensor_inputs)

    def check_output_type(self, output_type: str):
        """Raise `ValueError` for an `output_type` that does not exist, or needs an image tokenizer that is not there."""
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if self.image_tokenizer is None and output_type != "latent":
            raise ValueError(
                f"`output_type` must be 'latent' for a model without image tokenizer, got {output_type!r}."
            )

    def check_callback_inputs(self, names: Sequence[str] | None):
        """Raise `ValueError` for tensors that `callback_on_step_end` cannot have."""
        unknown = set(names or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {list(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)}."
            )

    @property
    def unknown_code(self) -> int:
        """The code of an unknown token: the codebook size, which is the scheduler's `mask_token_id`."""
        return self.model.config.codebook_size

    def set_timesteps(self, num_inference_steps: int, grid_size: tuple[int, int], temperature: float | None):
        """Call the scheduler's `set_timesteps` with those of our arguments that it takes."""
        wanted = {
            "grid_size": grid_size,
            "block_length": grid_size[0] * grid_size[1],
            "temperature": temperature,
            "device": self._execution_device,
        }
        options = {
            name: value
            for name, value in wanted.items()
            if value is not None and takes(self.scheduler.set_timesteps, name)
        }
        self.scheduler.set_timesteps(num_inference_steps, **options)

    @torch.no_grad()
    def encode_rows(
        self, prompts: list[str], rows: list[int], composition: Composition | None = None
    ) -> EncodedPrompts:
        """
        Keys and values of `t2i sot text eot` for each of `prompts`, repeated to `rows` (indices into `prompts`).
        """
        inputs = self.processor.text_to_image_prefix(prompts).to(self._execution_device)
        cache = DynamicCache(config=self.model.config.text_config)
        self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, codebook_only=True)
        index = torch.tensor(rows, device=self._execution_device)
        if rows != list(range(len(prompts))):
            cache.batch_select_indices(index)
        first_position = self.processor.max_text_length + 1
        return EncodedPrompts(cache, inputs["attention_mask"][index], first_position, composition)

    def image_attention_mask(self, prompts: EncodedPrompts, input_ids: torch.LongTensor):
        """
        The mask of an image behind its prompt, for every step alike; `input_ids` is (rows, `soi` image `eoi`).
        """
        seen = F.pad(prompts.attention_mask, (0, input_ids.shape[1]), value=1)
        like = torch.empty((*input_ids.shape, 0), dtype=self.model.dtype, device=input_ids.device)
        return self.model.omni_attention_mask(like, input_ids, seen, prompts.cache)

    def image_input_ids(self, tokens: torch.LongTensor) -> torch.LongTensor:
        """Codes (batch, tokens), the codebook size where unknown, to ids `soi image eoi` (batch, tokens + 2)."""
        config = self.model.config
        unknown = tokens == config.codebook_size
        ids = torch.where(unknown, config.mask_token_id, tokens + config.image_token_offset)
        return F.pad(F.pad(ids, (1, 0), value=config.soi_token_id), (0, 1), value=config.eoi_token_id)

    @torch.no_grad()
    def predict_codes(
        self,
        tokens: torch.LongTensor,
        prompts: EncodedPrompts,
        attention_mask,
        guidance_scale: float,
        wanted: torch.BoolTensor | None = None,
    ) -> torch.Tensor:
        """
        Guided logits of the wanted tokens; zeros at the others, where no scheduler looks.

        Only the image's positions go through the model, and only wanted ones through the head.

        Args:
            tokens (`torch.LongTensor` of shape `(batch, tokens)`): codes, the codebook size where unknown.
            wanted (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): the unknown ones by default.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, codebook_size)`: `g c - (g - 1) u`, c alone without guidance.
        """
        batch_size, num_tokens = tokens.shape
        wanted = tokens == self.unknown_code if wanted is None else wanted
        sample_of_rows = prompts.sample_of_rows(batch_size)  # (rows,)
        ids = self.image_input_ids(tokens)[sample_of_rows]
        positions = torch.arange(num_tokens + 2, device=ids.device) + prompts.first_position
        logits = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions.expand_as(ids),
            past_key_values=prompts.cache,
            use_cache=True,
            logits_to_keep=F.pad(wanted, (1, 1), value=False)[sample_of_rows],  # soi and eoi are known
            codebook_only=True,
        ).logits  # (wanted of all rows, codebook)
        prompts.cache.crop(-(num_tokens + 2))
        if prompts.composition is not None:
            rows = logits.split(wanted.sum(1)[sample_of_rows].tolist())
            conditional = prompts.composition.compose(rows[:-batch_size], rows[-batch_size:], wanted)
            halves = (conditional, torch.cat(rows[-batch_size:]))
        else:
            halves = logits.chunk(prompts.num_rows // batch_size)
        logits = guide(guidance_scale, *halves)
        full = logits.new_zeros(batch_size, num_tokens, logits.shape[-1])
        full[wanted] = logits
        return full

    def fill_in(
        self,
        latents: torch.LongTensor,
        prompts: EncodedPrompts,
        options: FillingOptions,
        windows: Sequence[tuple[Window, list[int]]] | None = None,
    ) -> Iterator[tuple[int, int, torch.LongTensor]]:
        """
        Fill in the unknown tokens, step by step; known ones stay.

        A grid that is larger than the trained one is filled in window by window, each with what is known by then.

        Args:
            latents (`torch.LongTensor` of shape `(batch, h, w)`): codes, the codebook size where unknown.
            windows: in this order, each with the images of the batch that it is filled in of; planned for what is unknown
                by default.

        Yields:
            after each step its number, the number of steps at most, and the grid so far; at last the finished one.

        Raises:
            RuntimeError: if scheduler or callback leave it unfinished.
        """
        self._guidance_scale = options.guidance_scale
        if windows is None:
            windows = share_windows([plan_windows(one, self.default_grid) for one in latents == self.unknown_code])
        self._num_timesteps = len(windows) * (options.num_inference_steps - options.begin_index)
        step = 0
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for window, images in windows:
                its_prompts = prompts.select(images, len(latents)).crop(*window)
                for filled in self.fill_window(latents, window, images, its_prompts, options, step):
                    latents = filled
                    progress_bar.update()
                    yield step, self._num_timesteps, latents
                    step += 1
        if latents.numel() and not 0 <= latents.min() <= latents.max() < self.unknown_code:
            raise RuntimeError(
                f"An image has codes from {latents.min().item()} to {latents.max().item()} after its last step, and only "
                f"those below {self.unknown_code} are known ones."
            )

    def fill_window(
        self,
        latents: torch.LongTensor,
        window: Window,
        images: list[int],
        prompts: EncodedPrompts,
        options: FillingOptions,
        step: int,
    ) -> Iterator[torch.LongTensor]:
        """
        The steps on a window of some of the images.

        Args:
            latents (`torch.LongTensor` of shape `(batch, h, w)`): all images.
            images: which of the batch.
            prompts: those of these images, for this window.
            step: the number of the first step.

        Yields:
            all images after each step.
        """
        place = (images, *window)
        given = latents[place].flatten(1)  # (images, tokens)
        unknown = given == self.unknown_code
        grid_size = tuple(latents[place].shape[1:])
        generator = options.generator
        if isinstance(generator, list):
            generator = [generator[image] for image in images]
        self.set_timesteps(options.num_inference_steps, grid_size, options.temperature)
        tokens, ours = given, isinstance(self.scheduler, DiscreteSchedulerMixin)
        if ours:
            tokens = torch.where(unknown, self.scheduler.initial_sample(tokens, generator), given)
        contexts = {}  # prompts and mask of the steps with guidance, and of those without
        timesteps = self.scheduler.timesteps[options.begin_index :]
        for i, timestep in enumerate(timesteps):
            unknown = unknown | (tokens == self.unknown_code)  # a callback may take given tokens back
            scale = options.scale_at(options.begin_index + i)
            guided = scale != 1
            if guided not in contexts:
                its_prompts = prompts if guided else prompts.without_guidance(len(given))
                ids = self.image_input_ids(given)[its_prompts.sample_of_rows(len(given))]
                contexts[guided] = its_prompts, self.image_attention_mask(its_prompts, ids)
            stepped, finished = self.take_step(tokens, unknown, timestep, *contexts[guided], scale, generator)
            latents = latents.clone()
            latents[place] = torch.where(unknown, stepped, tokens).unflatten(1, grid_size)
            latents = self.call_back(step + i, timestep, latents, options)
            tokens = latents[place].flatten(1)
            yield latents
            if finished:
                # What is drawn behind it shall not depend on how soon it, or another image beside it, was done.
                for left in timesteps[i + 1 :] if ours else ():
                    self.scheduler.advance_generator(left, tokens, generator)
                return

    def take_step(
        self,
        tokens: torch.LongTensor,
        unknown: torch.BoolTensor,
        timestep: torch.Tensor,
        prompts: EncodedPrompts,
        attention_mask,
        guidance_scale: float,
        generator: Generators,
    ) -> tuple[torch.LongTensor, bool]:
        """
        One step of the scheduler on `tokens` (batch, tokens): the tokens after it, and whether it was the last.

        `unknown` are those that the pipeline may fill in. Where the step would fill in nothing the model does not run.
        """
        scheduler, wanted = self.scheduler, None
        if isinstance(scheduler, DiscreteSchedulerMixin):
            if scheduler.is_noop(timestep, tokens):
                scheduler.advance_generator(timestep, tokens, generator)
                return tokens, False
            wanted = unknown if scheduler.needs_all_logits else None
        logits = self.predict_codes(tokens, prompts, attention_mask, guidance_scale, wanted)
        options = {"mask_token_id": self.unknown_code} if takes(scheduler.step, "mask_token_id") else {}
        output = scheduler.step(logits, timestep, tokens, generator=generator, **options)
        finished = getattr(output, "finished", None)
        if finished is None:  # diffusers' own do not say so
            finished = not bool((output.prev_sample == self.unknown_code).any())
        return output.prev_sample, finished

    def call_back(
        self, step: int, timestep: torch.Tensor, latents: torch.LongTensor, options: FillingOptions
    ) -> torch.LongTensor:
        """Call `callback_on_step_end`, if there is one; the tokens that it gives back, or `latents`."""
        if options.callback_on_step_end is None:
            return latents
        tensors = {name: latents for name in options.callback_on_step_end_tensor_inputs or ()}
        replaced = options.callback_on_step_end(self, step, timestep, tensors) or {}
        return replaced.get("latents", latents).reshape(latents.shape)

    def load_offloaded(self):
        """Bring an offloaded model to its device, where a part of it runs before its own `forward` does."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)

    @torch.no_grad()
    def decode_latents(self, latents: torch.LongTensor, output_type: str):
        """A token grid (batch, h, w) to images as `output_type` says; "latent" gives the grid."""
        if output_type == "latent":
            return latents
        self.load_offloaded()
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
    """`showo_hf.models.modeling_showo` for `modeling_showo`, if such a module of this package is loaded; else `name`."""
    package = __name__.split(".")[0]
    full_names = (full for full in sys.modules if full.startswith(f"{package}.") and full.endswith(f".{name}"))
    return next(full_names, name)


def own_entry(scheduler: Any, name: str, default: Any) -> Any:
    """An entry of a scheduler's config that its class has: `from_config` keeps those of other classes beside them."""
    return scheduler.config[name] if takes(type(scheduler).__init__, name) else default


def takes(function: Callable, name: str) -> bool:
    """Whether a function has an argument of this name."""
    return name in inspect.signature(function).parameters
