"""
Training of diffusion decoders: pixels from the tokens of a frozen image tokenizer.

Each image gets a random noise level. The loss is the squared error of the predicted noise, v or flow, weighted alike at
all levels (DDPM's simple loss, arXiv:2006.11239, equation 14) or as in the variational bound.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, TrainingArguments

from showo_hf import EMBEDDED_MODEL

from ..models.configuration_diffusion_decoder import ShowoDiffusionDecoderConfig
from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_diffusion_decoder import NOISE_LEVELS, ShowoDiffusionDecoder
from ..models.modeling_showo import ShowoForCausalLM
from ..processing.processing_showo import showo_image_processor
from ..schedulers.gaussian_diffusion import bound_weights, flow_bound_weights, flow_sample, q_sample, target_of
from ..utils.atomic_folder import atomic_folder
from ..utils.metrics import psnr
from .data.examples import Example
from .data.loader import State, StepLoader
from .decoder_config import DiffusionDecoderConfig
from .image_tokenizers import TASK, ImageBuilder, Images, data_of
from .losses import LossSums
from .masking import row_generator
from .recipe_files import nearest
from .results import publish_result, tidy_config
from .resumable_trainer import ResumableTrainer, Settings


LOSSES = ("loss_diffusion", "loss_image", "psnr")


@dataclass
class SeededImages(Images):
    """
    A batch.

    Args:
        keys, pixel_values: as in [`Images`].
        noise_seeds: the seed of each image's random draws.
    """

    noise_seeds: list[int] = field(default_factory=list)


class SeededImageBuilder(ImageBuilder):
    """Builds the batches, as [`ImageBuilder`], with the seed of each image."""

    def __call__(self, examples: Mapping[str, Sequence[Example]]) -> SeededImages:
        images = super().__call__(examples)
        return SeededImages(images.keys, images.pixel_values, [row.noise_seed for row in examples[TASK]])


class FrozenTokenizer:
    """
    The tokens of images and what the tokenizer's own decoder makes of them, some of them from memory.

    Images are encoded one by one, and their decoded pixels are rounded to 8 bits. So neither the batch nor the memory
    changes the result, and a resumed run sees the same numbers.

    Args:
        tokenizer: the image tokenizer.
        capacity: how many images are kept in memory.
        bf16: decode with bfloat16 where autocast does. Images are always encoded in the tokenizer's own dtype.
    """

    def __init__(self, tokenizer: ShowoImageTokenizer, capacity: int = 0, bf16: bool = False):
        self.tokenizer, self.capacity, self.bf16 = tokenizer.eval().requires_grad_(False), capacity, bf16
        self.known: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (batch, channels, h, w) and decoded pixels (batch, 3, H, W) of images (batch, 3, H, W) in [-1, 1]."""
        pairs = [self.read(pixels) for pixels in pixel_values.cpu()]
        tokens, levels = (torch.stack(part).to(self.tokenizer.device) for part in zip(*pairs, strict=True))
        return self.tokenizer.codes_of(tokens.long()).float(), levels.float() / 127.5 - 1

    def read(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (h, w) int32 and decoded levels (3, H, W) uint8 of an image (3, H, W)."""
        key = hashlib.blake2b(pixels.contiguous().numpy(), digest_size=16).digest()
        if key in self.known:
            return self.known[key]
        tokens = self.tokenizer.encode(pixels[None].to(self.tokenizer.device)).image_tokens
        with torch.autocast(self.tokenizer.device.type, torch.bfloat16, enabled=self.bf16):
            decoded = self.tokenizer.decode(tokens).sample
        levels = ((decoded[0].float() + 1) * 127.5).round().to(torch.uint8)
        pair = tokens[0].int().cpu(), levels.cpu()
        if len(self.known) < self.capacity:
            self.known[key] = pair
        return pair


class DiffusionDecoderTrainer(ResumableTrainer):
    """
    Trains a [`ShowoDiffusionDecoder`].

    Args:
        model, args, settings, callbacks: see [`ResumableTrainer`].
        config: the recipe.
        tokenizer: gives codes and decoded images.
        data: yields this process's next [`SeededImages`], and the position in the data after them.
        validation: images whose losses validation computes.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: Settings,
        config: DiffusionDecoderConfig,
        tokenizer: FrozenTokenizer,
        data: StepLoader,
        validation: list[SeededImages] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.config, self.tokenizer, self.sums, self.left = config, tokenizer, LossSums(), 0
        tokenizer.tokenizer.to(args.device)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The accumulated batches of a step."""
        batches = []
        for _ in range(num_batches):
            batch, self.position = next(epoch_iterator)
            batches.append(batch)
        self.left = num_batches
        self.keys = [key for batch in batches for key in batch.keys]
        self.loss_is_finite = True
        return batches, None

    def training_step(self, model: nn.Module, inputs: SeededImages, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of a batch. Returns its share of the step's loss."""
        model.train()
        loss = self.loss(model, inputs) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        self.loss_is_finite = self.loss_is_finite and bool(torch.isfinite(loss))
        self.left -= 1
        if not self.left:
            self.guard(model)
        return loss.detach() if self.loss_is_finite else torch.zeros_like(loss)

    def loss(self, model: nn.Module, images: SeededImages) -> torch.Tensor:
        """The loss of a batch. Its parts are added to the sums of the log."""
        decoder = self.accelerator.unwrap_model(self.model)
        pixels, share = images.pixel_values.to(self.args.device), 1.0
        if not len(pixels):  # every device must take part in the backward pass
            pixels, share = pixels.new_zeros(1, *pixels.shape[1:]), 0.0
        with self.compute_loss_context_manager():
            losses = batch_losses(self.config, model, decoder, self.tokenizer, pixels, images.noise_seeds or [0])
        if share:
            for name, value in losses.items():
                self.sums.add(TASK, name, value, len(pixels))
        return share * (losses["loss_diffusion"] + self.config.image_weight * losses["loss_image"])

    def floating_point_ops(self, inputs: Images) -> int:
        """Not counted."""
        return 0

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The losses of the validation images, with the averaged weights if there are any."""
        training, self.sums = self.sums, LossSums()
        self.model.eval()
        with torch.no_grad(), self.averaged_weights():
            for images in self.eval_dataset:
                self.loss(self.model_wrapped, images)
        self.model.train()
        means, self.sums = {name: mean for (_, name), mean in self.sums.means().items()}, training
        total = means["loss_diffusion"] + self.config.image_weight * means["loss_image"]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": total, **means}.items()}
        self.log(dict(metrics))
        self.keep_the_best(total)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def named_losses(self) -> dict[str, float]:
        """The mean losses since the last log by name, over all devices."""
        flat = self.sum_over_devices(self.sums.table([(TASK, name) for name in LOSSES]))
        self.sums.clear()
        return {name: (flat[i, 0] / flat[i, 1]).item() for i, name in enumerate(LOSSES) if flat[i, 1] > 0}

    def clear_losses(self):
        """Forget the losses since the last log."""
        self.sums.clear()


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


def draw_noise(decoder: ShowoDiffusionDecoder, denoised: torch.Tensor, seeds: Sequence[int]) -> NoisedImages:
    """Draw a noise level, uniformly, and noise for each image (batch, 3, H, W), each from a seed of its own."""
    generators = [row_generator(seed) for seed in seeds]
    times = torch.stack([torch.rand((), generator=generator) for generator in generators]).to(denoised.device)
    noise = torch.stack([torch.randn(denoised.shape[1:], generator=generator) for generator in generators])
    noise = noise.to(denoised.device)
    if decoder.config.prediction_type == "flow_prediction":
        times = 1 - times  # (0, 1]: pure noise is where sampling starts
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
) -> dict[str, torch.Tensor]:
    """
    The losses of images (batch, 3, H, W), see [`decoder_losses`], and "psnr", that of the expected images in dB.

    Args:
        model: `decoder`, or a wrapper of it.
        seeds: the seed of each image's random draws.
    """
    codes, decoded = tokenizer(pixels)
    draws = draw_noise(decoder, decoder.to_denoised(pixels, decoded), seeds)
    prediction = model(draws.noised, draws.timestep, codes, decoded).float()
    estimate = decoder.to_pixels(draws.expectation(decoder, prediction.detach()), decoded).clamp(-1, 1)
    quality = psnr(estimate, pixels).clamp(max=100.0).mean()
    return {**decoder_losses(config, decoder, draws, prediction), "psnr": quality}


def decoder_losses(
    config: DiffusionDecoderConfig, decoder: ShowoDiffusionDecoder, draws: NoisedImages, prediction: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    The losses of a prediction (batch, 3, H, W): "loss_diffusion", and "loss_image" before its weight.

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
        # The weight is not integrable at 0. The first thousandth of the path counts as its end.
        weights = flow_bound_weights((draws.timestep / NOISE_LEVELS).clamp(min=1 / NOISE_LEVELS))
    target = target_of(draws.denoised, draws.noise, signal, kind)
    errors = (prediction - target).square().flatten(1).mean(1)
    return {
        "loss_diffusion": (weights * errors).mean(),
        "loss_image": image_loss(draws.expectation(decoder, prediction), draws.denoised),
    }


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
    source = EMBEDDED_MODEL if source == "embedded" else source
    options: dict[str, Any] = {"subfolder": "model"} if (Path(source) / "model_index.json").is_file() else {}
    loaded = AutoConfig.from_pretrained(source, **options)
    if loaded.model_type == "showo":
        model = ShowoForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
        return model.require_image_tokenizer("model")
    tokenizer = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    if not isinstance(tokenizer, ShowoImageTokenizer):
        raise ValueError(f"`model` must have an image tokenizer, but '{source}' is a {type(tokenizer).__name__}.")
    return tokenizer


def load_decoder(config: DiffusionDecoderConfig, tokenizer: FrozenTokenizer) -> ShowoDiffusionDecoder:
    """
    The decoder that is trained, in float32. Its random weights depend on `seed` alone.

    Raises:
        ValueError: for an entry of `architecture` that does not exist, and for values that the decoder refuses.
    """
    if config.decoder is not None:
        decoder = ShowoDiffusionDecoder.from_pretrained(config.decoder, dtype=torch.float32)
        check_fits(decoder, tokenizer.tokenizer)
        decoder.config.update({"num_inference_steps": config.decoder_steps, "low_band_sigma": config.low_band_sigma})
        return decoder
    entries = architecture(config, tokenizer.tokenizer)
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
        "sample_size": config.image_size or tokenizer.config.sample_size,
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


def check_fits(decoder: ShowoDiffusionDecoder, tokenizer: ShowoImageTokenizer):
    """Raise `ValueError` unless a decoder takes the codes of a tokenizer."""
    for name in ("codebook_channels", "downsampling", "in_channels"):
        ours, theirs = getattr(decoder.config, name), getattr(tokenizer.config, name)
        if ours != theirs:
            raise ValueError(f"`decoder` and `model` do not fit: `{name}` is {ours} and {theirs}.")


def first_scale(config: DiffusionDecoderConfig, tokenizer: FrozenTokenizer, size: int, images: int = 64) -> float:
    """The standard deviation, in the first images of a run, of what is denoised; rounded to three digits."""
    pixels: list[torch.Tensor] = []
    for batch, _ in new_loader(config, size):
        pixels.extend(batch.pixel_values)
        if len(pixels) >= images:
            break
    stacked = torch.stack(pixels[:images])
    base = tokenizer(stacked)[1].cpu() if config.start == "image" else torch.zeros(())
    return max(1e-3, round((stacked - base).square().mean().sqrt().item(), 3))


def new_loader(config: DiffusionDecoderConfig, size: int, **options: Any) -> StepLoader:
    """The data of a run, of images of `size` pixels."""
    builder = SeededImageBuilder(showo_image_processor(size), config.mirror, config.shift)
    tasks = data_of(config.data, config.batch_size)
    return StepLoader(tasks, builder, seed=config.seed, max_broken=config.max_broken, **options)


def diffusion_decoder_trainer(
    config: DiffusionDecoderConfig,
    args: TrainingArguments,
    decoder: ShowoDiffusionDecoder,
    tokenizer: FrozenTokenizer,
    settings: Settings,
    position: State | None,
    callbacks: list[Any],
) -> DiffusionDecoderTrainer:
    """The Trainer of a run that starts at a position in the data."""
    size = decoder.config.sample_size
    data = new_loader(
        config,
        size,
        rank=args.process_index,
        world_size=args.world_size,
        num_workers=args.dataloader_num_workers,
        state=position,
    )
    validation = None if config.validation_data is None else validation_images(config, size)
    return DiffusionDecoderTrainer(decoder, args, settings, config, tokenizer, data, validation, callbacks)


def validation_images(config: DiffusionDecoderConfig, size: int) -> list[SeededImages]:
    """The first images of the validation data, each once and as it is."""
    builder = SeededImageBuilder(showo_image_processor(size))
    task = data_of(config.validation_data, config.batch_size)
    loader = StepLoader(task, builder, seed=config.seed, max_broken=config.max_broken)
    tables, wanted = [source.table for source in loader.sources[TASK]], config.validation_rows
    if None not in tables:
        wanted = min(wanted, sum(map(len, tables)))
    batches: list[SeededImages] = []
    steps = iter(loader)
    for first in range(0, wanted, config.batch_size):
        images, _ = next(steps)
        kept = slice(wanted - first)
        batches.append(SeededImages(images.keys[kept], images.pixel_values[kept], images.noise_seeds[kept]))
    return batches


def save_decoder(config: DiffusionDecoderConfig, trainer: DiffusionDecoderTrainer):
    """Write the output folder, and push it."""
    if not trainer.is_world_process_zero():
        return
    decoder = trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, config.save_dtype))
    with atomic_folder(Path(config.output), overwrite=True) as folder:
        decoder.save_pretrained(folder)
        tidy_config(folder / "config.json")
    publish_result(config, trainer.state.global_step)
