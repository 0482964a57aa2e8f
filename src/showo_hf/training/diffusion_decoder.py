"""
Training of diffusion decoders: pixels from the tokens of a frozen image tokenizer.

Each image gets a random noise level, uniform or shifted (`time_shift`). The loss is the squared error of the predicted
noise, v or flow, weighted alike at all levels (DDPM's simple loss, arXiv:2006.11239, equation 14) or as in the variational
bound.
"""

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, TrainingArguments
from transformers.utils import cached_file

from showo_hf import EMBEDDED_MODEL

from ..models.configuration_diffusion_decoder import NOISE_LEVELS, ShowoDiffusionDecoderConfig, check_denoised
from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_diffusion_decoder import ShowoDiffusionDecoder, most_steps
from ..models.modeling_showo import ShowoForCausalLM
from ..processing.processing_showo import showo_image_processor
from ..schedulers.gaussian_diffusion import bound_weights, flow_bound_weights, flow_sample, q_sample, target_of
from ..utils.metrics import psnr
from ..utils.validation import check_count, check_positive
from .checkpoints import loading, read_json
from .data.loader import State, StepLoader
from .data.order import stable_hash
from .decoder_config import DiffusionDecoderConfig
from .distillation import distilled, on_grid
from .image_batches import ImageBuilder, Images, image_loader, resized, validation_images
from .image_results import save_image_result
from .image_trainer import TASK, ImageTrainer
from .losses import LossSums
from .masking import row_generator
from .recipe_entries import nearest
from .resumable_trainer import Settings


class FrozenTokenizer:
    """
    The tokens of images and what the tokenizer's own decoder makes of them, perhaps from memory.

    A resumed run sees the same numbers as one that was never stopped. Without a memory, all images of a call are encoded
    and decoded together, and a resumed run has the same batches. With one, which images are missing depends on when the
    run was resumed, so each is encoded and decoded by itself. Decoded pixels are rounded to 8 bits.

    Args:
        tokenizer: the image tokenizer.
        capacity: how many images are kept in memory.
        bf16: decode with bfloat16 where autocast does. Images are always encoded in the tokenizer's own dtype.
    """

    def __init__(self, tokenizer: ShowoImageTokenizer, capacity: int = 0, bf16: bool = False):
        self.tokenizer, self.capacity, self.bf16 = tokenizer.eval().requires_grad_(False), capacity, bf16
        self.known: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        self.trained_size: int | None = None

    def expect(self, size: int):
        """Forget images of another width and height than the training's from now on: they would fill the memory."""
        if size != self.trained_size:
            self.known = {key: pair for key, pair in self.known.items() if pair[1].shape[-1] == size}
        self.trained_size = size

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (batch, channels, h, w) and decoded pixels (batch, 3, H, W) of images (batch, 3, H, W) in [-1, 1]."""
        if self.capacity:
            pairs = [self.remembered(pixels) for pixels in pixel_values.cpu()]
            tokens, levels = (torch.stack(part).to(self.tokenizer.device) for part in zip(*pairs, strict=True))
        else:
            tokens, levels = self.read(pixel_values)
        return self.tokenizer.codes_of(tokens.long()).float(), levels.float() / 127.5 - 1

    def remembered(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (h, w) int32 and decoded levels (3, H, W) uint8 of an image (3, H, W) on the CPU, kept if there is room."""
        key = hashlib.blake2b(pixels.contiguous().numpy(), digest_size=16).digest()
        if key in self.known:
            return self.known[key]
        tokens, levels = self.read(pixels[None])
        pair = tokens[0].int().cpu(), levels[0].cpu()
        if len(self.known) < self.capacity:
            self.known[key] = pair
        return pair

    def read(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch, h, w) int64 and decoded levels (batch, 3, H, W) uint8 of images (batch, 3, H, W)."""
        tokens = self.tokenizer.encode(pixel_values.to(self.tokenizer.device)).image_tokens
        with torch.autocast(self.tokenizer.device.type, torch.bfloat16, enabled=self.bf16):
            decoded = self.tokenizer.decode(tokens).sample
        return tokens, ((decoded.float() + 1) * 127.5).round().to(torch.uint8)


class DiffusionDecoderTrainer(ImageTrainer):
    """
    Trains a [`ShowoDiffusionDecoder`].

    Args:
        model, args, settings, data, validation, callbacks: see [`ImageTrainer`].
        config: the recipe.
        tokenizer: gives codes and decoded images.
        teacher: the decoder that is distilled, if one is.
    """

    LOSSES = ("diffusion", "image")
    MEASURES = ("psnr",)

    def __init__(
        self,
        model: ShowoDiffusionDecoder,
        args: TrainingArguments,
        settings: Settings,
        data: StepLoader,
        config: DiffusionDecoderConfig,
        tokenizer: FrozenTokenizer,
        teacher: ShowoDiffusionDecoder | None = None,
        validation: list[Images] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.config, self.tokenizer, self.teacher = config, tokenizer, teacher
        tokenizer.tokenizer.to(args.device)
        if teacher is not None:
            teacher.to(args.device)

    def losses(self, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The losses of a batch by name. They are added to `sums`, with other measures."""
        size = self.config.size_at(self.state.global_step)
        self.tokenizer.expect(size or images.pixel_values.shape[-1])
        return self.losses_at(size, model, images, sums)

    def validation_losses(self, model: nn.Module, images: Images, sums: LossSums):
        """The same of a validation batch. Its images have the size of the result."""
        self.losses_at(None, model, images, sums)

    def losses_at(self, size: int | None, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The losses of a batch whose images are resized to `size` x `size` pixels, or not at all."""
        decoder = self.accelerator.unwrap_model(self.model)
        pixels, seeds = images.pixel_values.to(self.args.device), images.noise_seeds
        is_empty = not len(pixels)
        if is_empty:  # every device must take part in the backward pass
            pixels, seeds = pixels.new_zeros(1, *pixels.shape[1:]), [0]
        pixels = resized(pixels, size)
        losses, quality = batch_losses(self.config, model, decoder, self.tokenizer, pixels, seeds, self.teacher)
        if is_empty:
            return {name: 0.0 * loss for name, loss in losses.items()}
        for name, value in {**losses, "psnr": quality}.items():
            sums.add(TASK, name, value.detach(), len(pixels))
        return losses

    # Checkpoints

    def more_state(self):
        """The unit of what is denoised: it may have been computed from images that changed since."""
        return {}, {"decoder": {"residual_scale": self.accelerator.unwrap_model(self.model).config.residual_scale}}

    def load_weights(self, folder: str):
        """Same as in the base class, with the unit of what is denoised."""
        super().load_weights(folder)
        file = Path(folder) / "decoder.json"
        if file.exists():  # the first checkpoints had none
            config = self.accelerator.unwrap_model(self.model).config
            with loading(file):
                scale = read_json(file)["residual_scale"]
                check_denoised(config.start, scale, config.prediction_type)
                config.residual_scale = scale


# The objective


@dataclass
class NoisedImages:
    """
    Images with noise.

    Args:
        denoised, noise, noised (`torch.Tensor` of shape `(batch, 3, H, W)`): z, the noise, and z_t.
        timestep (`torch.Tensor` of shape `(batch,)`): in [0, 1000]; whole numbers unless the model predicts a flow.
    """

    denoised: torch.Tensor
    noise: torch.Tensor
    noised: torch.Tensor
    timestep: torch.Tensor

    def expectation(self, decoder: ShowoDiffusionDecoder, prediction: torch.Tensor) -> torch.Tensor:
        """What a prediction says about z, (batch, 3, H, W)."""
        return decoder.expectation(prediction, self.noised, self.timestep.view(-1, 1, 1, 1))


def draw_noise(
    decoder: ShowoDiffusionDecoder,
    denoised: torch.Tensor,
    seeds: Sequence[int],
    steps: int | None = None,
    time_shift: float = 1.0,
) -> NoisedImages:
    """
    Draw a noise level and noise for each image (batch, 3, H, W), each from a seed of its own.

    Levels are uniform; those of flows are shifted by `time_shift`, see [`DiffusionDecoderConfig`]. With `steps`, they are
    those at which a sampler with so many steps predicts.
    """
    # Seeds of their own: `ImageBuilder` mirrors an image by the first number of `seed`, so levels would depend on it.
    generators = [row_generator(stable_hash(seed, "noise")) for seed in seeds]
    times = torch.stack([torch.rand((), generator=generator) for generator in generators]).to(denoised.device)
    noise = torch.stack([torch.randn(denoised.shape[1:], generator=generator) for generator in generators])
    noise = noise.to(denoised.device)
    if decoder.config.prediction_type == "flow_prediction":
        times = 1 - times  # (0, 1]: pure noise is where sampling starts
        times = time_shift * times / (1 + (time_shift - 1) * times)
        times = times if steps is None else on_grid(times, steps)
        return NoisedImages(denoised, noise, flow_sample(denoised, noise, times), times * NOISE_LEVELS)
    alphas = decoder.scheduler.alphas_cumprod.to(denoised.device)
    timestep = (times * len(alphas)).long()
    return NoisedImages(denoised, noise, q_sample(denoised, noise, timestep, alphas), timestep)


def batch_losses(
    config: DiffusionDecoderConfig,
    model: nn.Module,
    decoder: ShowoDiffusionDecoder,
    tokenizer: FrozenTokenizer,
    pixels: torch.Tensor,
    seeds: Sequence[int],
    teacher: ShowoDiffusionDecoder | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    The losses of images (batch, 3, H, W), see [`decoder_losses`], and the PSNR of the expected images in dB.

    Args:
        model: `decoder`, or a wrapper of it.
        seeds: the seed of each image's random draws.
        teacher: the decoder that is distilled into `decoder_steps` steps, if one is.
    """
    codes, decoded = tokenizer(pixels)
    steps = config.decoder_steps if teacher is not None else None
    draws = draw_noise(decoder, decoder.to_denoised(pixels, decoded), seeds, steps, config.time_shift)
    if teacher is not None:
        draws = distilled(teacher, draws, codes, decoded, config.decoder_steps)
    prediction = model(draws.noised, draws.timestep, codes, decoded).float()
    estimate = decoder.to_pixels(draws.expectation(decoder, prediction.detach()), decoded).clamp(-1, 1)
    quality = psnr(estimate, pixels).clamp(max=100.0).mean()
    return decoder_losses(config, decoder, draws, prediction), quality


def decoder_losses(
    config: DiffusionDecoderConfig, decoder: ShowoDiffusionDecoder, draws: NoisedImages, prediction: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    The losses of a prediction (batch, 3, H, W): "diffusion", and "image" with its weight, if it has one.

    The image loss is the mean absolute error of the expected z and of its horizontal and vertical differences.
    """
    kind = decoder.config.prediction_type
    signal = draws.noise.new_ones(())
    weights = torch.ones_like(draws.timestep, dtype=torch.float32)
    if kind != "flow_prediction":
        alphas = decoder.scheduler.alphas_cumprod.to(prediction.device)
        signal = alphas[draws.timestep.long()].view(-1, 1, 1, 1)
        if config.weighting == "bound":
            every = bound_weights(alphas, kind)
            weights = every[draws.timestep.long()] / every.mean()
    elif config.weighting == "bound":
        # The weight is not integrable at 0. The first thousandth of the path counts as its end, so the mean is log(1000).
        times = (draws.timestep / NOISE_LEVELS).clamp(min=1 / NOISE_LEVELS)
        weights = flow_bound_weights(times) / math.log(NOISE_LEVELS)
    target = target_of(draws.denoised, draws.noise, signal, kind)
    errors = (prediction - target).square().flatten(1).mean(1)
    losses = {"diffusion": (weights * errors).mean()}
    if config.image_weight:
        estimate = draws.expectation(decoder, prediction)
        losses["image"] = config.image_weight * image_loss(estimate, draws.denoised)
    return losses


def image_loss(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean absolute error of images (batch, 3, H, W) plus those of their differences between neighbouring pixels."""
    total = F.l1_loss(estimate, target)
    for dim in (-2, -1):
        total = total + F.l1_loss(estimate.diff(dim=dim), target.diff(dim=dim))
    return total


# What a run needs


def load_tokenizer(source: str) -> ShowoImageTokenizer:
    """
    The image tokenizer of a folder or a name on the Hub, in float32: a tokenizer, or a model or pipeline that has one.

    Raises:
        ValueError: if it has none.
    """
    source, options = part_of_pipeline(source, "model")
    loaded = AutoConfig.from_pretrained(source, **options)
    if loaded.model_type == "showo":
        model = ShowoForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
        return model.require_image_tokenizer("model")
    tokenizer = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    if not isinstance(tokenizer, ShowoImageTokenizer):
        raise ValueError(f"`model` must have an image tokenizer, but '{source}' is a {type(tokenizer).__name__}.")
    return tokenizer


def load_saved_decoder(source: str) -> ShowoDiffusionDecoder:
    """The diffusion decoder of a folder or a name on the Hub, in float32: a decoder, or a pipeline that has one."""
    source, options = part_of_pipeline(source, "image_decoder")
    return ShowoDiffusionDecoder.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)


def part_of_pipeline(source: str, part: str) -> tuple[str, dict[str, Any]]:
    """Where a model is, and the arguments of `from_pretrained` for the folder `part` if it is in a pipeline."""
    source = EMBEDDED_MODEL if source == "embedded" else source
    try:
        cached_file(source, "model_index.json")
    except OSError:  # only a pipeline has an index
        return source, {}
    return source, {"subfolder": part}


Models = tuple[ShowoDiffusionDecoder, FrozenTokenizer, ShowoDiffusionDecoder | None]


def load_models(config: DiffusionDecoderConfig) -> Models:
    """The decoder that is trained, see [`load_decoder`], the frozen tokenizer, and the teacher, see [`load_teacher`]."""
    bf16 = bool(config.training.get("bf16"))
    tokenizer = FrozenTokenizer(load_tokenizer(config.model), config.cached_images, bf16)
    decoder = load_decoder(config, tokenizer)
    return decoder, tokenizer, load_teacher(config, decoder, tokenizer)


def load_teacher(
    config: DiffusionDecoderConfig, student: ShowoDiffusionDecoder, tokenizer: FrozenTokenizer
) -> ShowoDiffusionDecoder | None:
    """
    The frozen decoder that is distilled into `student`, in float32; None without one.

    Raises:
        ValueError: if it does not fit the tokenizer, does not predict flows, or denoises another variable.
    """
    if config.teacher is None:
        return None
    teacher = load_saved_decoder(config.teacher)
    check_fits(teacher, tokenizer.tokenizer, "teacher")
    if teacher.config.prediction_type != "flow_prediction":
        raise ValueError(f"`teacher` must predict 'flow_prediction', got {teacher.config.prediction_type!r}.")
    for name in ("prediction_type", "start", "residual_scale"):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise ValueError(f"`decoder` and `teacher` must have the same `{name}`, got {ours!r} and {theirs!r}.")
    return teacher.eval().requires_grad_(False)


def load_decoder(config: DiffusionDecoderConfig, tokenizer: FrozenTokenizer) -> ShowoDiffusionDecoder:
    """
    The decoder that is trained, in float32. Its random weights depend on `seed` alone.

    One that is distilled gets the default scheduler: its steps are Euler steps of equal length.

    Raises:
        ValueError: for an entry of `architecture` that does not exist, for values that the decoder refuses, and for those
            that a loaded decoder does not have.
    """
    entries = architecture(config, tokenizer.tokenizer)
    config.check_multiples(entries["downsampling"], entries["sample_size"])
    if config.decoder is not None:
        decoder = load_saved_decoder(config.decoder)
        check_fits(decoder, tokenizer.tokenizer)
        check_given(config, decoder)
        if config.low_band_sigma is not None:  # `update` checks nothing, and the saved decoder would not load
            check_positive("low_band_sigma", config.low_band_sigma, most=decoder.config.sample_size)
        if config.time_shift != 1 and decoder.config.prediction_type != "flow_prediction":
            raise ValueError(
                f"`time_shift` must be 1 for a decoder of '{decoder.config.prediction_type}', got {config.time_shift}."
            )
        changes = {"num_inference_steps": config.decoder_steps, "low_band_sigma": config.low_band_sigma}
        if config.teacher is not None and decoder.config.prediction_type == "flow_prediction":
            decoder.set_scheduler(FlowMatchEulerDiscreteScheduler())
        if config.decoder_steps is not None:
            decoder.check_steps("decoder_steps", config.decoder_steps)
        decoder.config.update({name: value for name, value in changes.items() if value is not None})
        return decoder
    scheduler = ShowoDiffusionDecoderConfig(**entries | {"residual_scale": 1.0}).build_scheduler()
    check_count("decoder_steps", config.decoder_steps, most=most_steps(scheduler))
    if entries["residual_scale"] is None:
        entries["residual_scale"] = first_scale(config, tokenizer, entries["sample_size"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = ShowoDiffusionDecoder(ShowoDiffusionDecoderConfig(**entries))
    nn.init.zeros_(decoder.unet.conv_out.weight)  # the first prediction is the best that does not look at the image
    return decoder


def architecture(config: DiffusionDecoderConfig, tokenizer: ShowoImageTokenizer) -> dict[str, Any]:
    """The arguments of the trained decoder; `residual_scale` may be None."""
    fixed = {
        "codebook_channels": tokenizer.config.codebook_channels,
        "downsampling": tokenizer.config.downsampling,
        "in_channels": tokenizer.config.in_channels,
        "sample_size": config.last_size or tokenizer.config.sample_size,
        "start": config.start,
        "residual_scale": config.residual_scale,
        "prediction_type": config.prediction_type,
        "num_inference_steps": config.decoder_steps,
        "low_band_sigma": config.low_band_sigma,
    }
    allowed = [
        name for name in inspect.signature(ShowoDiffusionDecoderConfig).parameters if name not in (*fixed, "kwargs")
    ]
    for name in config.architecture:
        if name not in allowed:
            hint = nearest(name, allowed)
            raise ValueError(f"`architecture` must hold entries of the decoder's config, got {name!r}{hint}")
    return {**config.architecture, **fixed}


def check_fits(decoder: ShowoDiffusionDecoder, tokenizer: ShowoImageTokenizer, argument: str = "decoder"):
    """Raise `ValueError` unless the decoder of an argument takes the codes of a tokenizer."""
    for name in ("codebook_channels", "downsampling", "in_channels"):
        ours, theirs = getattr(decoder.config, name), getattr(tokenizer.config, name)
        if ours != theirs:
            raise ValueError(f"`{argument}` and `model` do not fit: `{name}` is {ours} and {theirs}.")


def check_given(config: DiffusionDecoderConfig, decoder: ShowoDiffusionDecoder):
    """Raise `ValueError` for a key of a recipe that says something else than the decoder that it starts from."""
    given: dict[str, tuple[Any, str]] = {
        name: (getattr(config, name), name) for name in ("prediction_type", "start", "residual_scale")
    }
    given["image_size"] = config.last_size, "sample_size"
    given |= {f"architecture.{name}": (value, name) for name, value in config.architecture.items()}
    for key, (value, name) in given.items():
        theirs = getattr(decoder.config, name)
        if value is not None and value != theirs:
            raise ValueError(f"`{key}` must be that of the decoder, {theirs!r}, or left out, got {value!r}.")


def first_scale(config: DiffusionDecoderConfig, tokenizer: FrozenTokenizer, size: int, images: int = 64) -> float:
    """The standard deviation, in the first images of a run, of what is denoised; rounded to three digits."""
    pixels: list[torch.Tensor] = []
    builder = ImageBuilder(showo_image_processor(size), config.mirror, config.shift)
    for batch, _ in image_loader(config, builder):
        pixels.extend(batch.pixel_values)
        if len(pixels) >= images:
            break
    stacked = torch.stack(pixels[:images])
    base = torch.zeros(())
    if config.start == "image":
        base = torch.cat([tokenizer(part)[1].cpu() for part in stacked.split(config.batch_size)])
    return max(1e-3, round((stacked - base).square().mean().sqrt().item(), 3))


def diffusion_decoder_trainer(
    config: DiffusionDecoderConfig,
    args: TrainingArguments,
    models: Models,
    settings: Settings,
    position: State | None,
    callbacks: list[Any],
) -> DiffusionDecoderTrainer:
    """The Trainer of a run that starts at a position in the data, with what [`load_models`] gave."""
    decoder, tokenizer, teacher = models
    size = config.largest_size or decoder.config.sample_size
    data = image_loader(
        config,
        ImageBuilder(showo_image_processor(size), config.mirror, config.shift),
        args.process_index,
        args.world_size,
        args.dataloader_num_workers,
        position,
    )
    validation = validation_images(config, ImageBuilder(showo_image_processor(decoder.config.sample_size)))
    return DiffusionDecoderTrainer(decoder, args, settings, data, config, tokenizer, teacher, validation, callbacks)


def save_decoder(config: DiffusionDecoderConfig, trainer: DiffusionDecoderTrainer):
    """Write the output folder with the card, and push it."""
    size = trainer.accelerator.unwrap_model(trainer.model).config.sample_size
    save_image_result(config, trainer, "diffusion-decoder", config.model, size, getattr(torch, config.save_dtype))
