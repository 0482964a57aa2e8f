"""
Training of image tokenizers: reconstruction of images through a lookup-free quantizer.

The losses are the reconstruction at several resolutions, the commitment of the latents to their quantized values, and
the entropy loss, which makes tokens certain and uses the whole codebook (MAGVIT-v2, arXiv:2310.05737).

With several devices, gradients are averaged over them. The entropy loss is not a mean over images: each device computes it
of its own images.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, TrainingArguments

from ..models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from ..models.modeling_showo_lfq import ShowoLFQTokenizer
from ..processing.processing_showo import showo_image_processor
from ..utils.atomic_folder import atomic_folder
from ..utils.metrics import psnr
from .configs import ImageTokenizerConfig
from .data.examples import Example
from .data.loader import State, StepLoader, TaskData
from .data.sources import DataSource
from .losses import LossSums
from .masking import row_generator
from .recipe_files import nearest
from .results import publish_result, tidy_config
from .resumable_trainer import ResumableTrainer, Settings


TASK = "image"  # of the data


@dataclass
class Images:
    """
    A batch.

    Args:
        keys: names of the images.
        pixel_values: (batch, 3, H, W) in [-1, 1].
    """

    keys: list[str]
    pixel_values: torch.Tensor


@dataclass
class ImageBuilder:
    """
    Builds the batches. Each image is mirrored and shifted by its own `noise_seed`.

    Args:
        processor: resizes and crops the images.
        mirror: mirror half of the images.
        shift: move each image by up to so many pixels in both directions. The border is white.
    """

    processor: CLIPImageProcessorPil
    mirror: bool = False
    shift: int = 0

    def __call__(self, examples: Mapping[str, Sequence[Example]]) -> Images:
        rows = examples[TASK]
        size = self.processor.crop_size
        if not rows:  # all images of the batch were broken
            return Images([], torch.zeros(0, 3, size["height"], size["width"]))
        pixels = self.processor(images=[row.image for row in rows], return_tensors="pt")["pixel_values"]
        moved = [self.moved(image, row.noise_seed) for image, row in zip(pixels, rows, strict=True)]
        return Images([row.key for row in rows], torch.stack(moved))

    def moved(self, pixels: torch.Tensor, noise_seed: int) -> torch.Tensor:
        """An image (3, H, W), perhaps mirrored, and shifted."""
        generator = row_generator(noise_seed)
        if self.mirror and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        if self.shift:
            height, width = pixels.shape[1:]
            top, left = torch.randint(0, 2 * self.shift + 1, (2,), generator=generator).tolist()
            padded = F.pad(pixels, [self.shift] * 4, value=1.0)
            pixels = padded[:, top : top + height, left : left + width]
        return pixels


class ImageTokenizerTrainer(ResumableTrainer):
    """
    Trains a [`ShowoLFQTokenizer`].

    Args:
        model, args, settings, callbacks: see [`ResumableTrainer`].
        data: yields this process's next [`Images`], and the position in the data after them.
        validation: images that validation reconstructs.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: Settings,
        data: StepLoader,
        validation: list[Images] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.sums = LossSums()
        self.left = 0

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

    def training_step(self, model: nn.Module, inputs: Images, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of a batch. Returns its share of the step's loss."""
        model.train()
        with self.compute_loss_context_manager():
            losses = self.losses(model, inputs, self.sums)
        loss = sum(losses.values()) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        self.loss_is_finite = self.loss_is_finite and bool(torch.isfinite(loss))
        self.left -= 1
        if not self.left:
            self.guard(model)
        return loss.detach() if self.loss_is_finite else torch.zeros_like(loss)

    def losses(self, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The losses of a batch by name. They are added to `sums`, with the PSNR of the reconstructions."""
        pixels = images.pixel_values.to(self.args.device)
        if not len(pixels):  # every device must take part in the backward pass
            blank = pixels.new_zeros(1, *pixels.shape[1:])
            return {"none": model(blank, return_losses=True).sample.sum() * 0.0}
        losses, quality = reconstruction_losses(model, pixels)
        for name, value in {**losses, "psnr": quality}.items():
            sums.add(TASK, name, value, len(pixels))
        return losses

    def floating_point_ops(self, inputs: Images) -> int:
        """Not counted."""
        return 0

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The losses of the validation images, with the averaged weights if there are any."""
        sums = LossSums()
        self.model.eval()
        with torch.no_grad(), self.averaged_weights(), self.compute_loss_context_manager():
            for images in self.eval_dataset:
                self.losses(self.model_wrapped, images, sums)
        self.model.train()
        means = named(sums.means())
        total = sum(value for name, value in means.items() if name.startswith("loss_"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": total, **means}.items()}
        self.log(dict(metrics))
        self.keep_the_best(total)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def named_losses(self) -> dict[str, float]:
        """The mean losses since the last log by name, over all devices."""
        keys = [(TASK, name) for name in ("reconstruction", "commitment", "entropy", "psnr")]
        flat = self.sum_over_devices(self.sums.table(keys))
        self.sums.clear()
        return named({key: (flat[i, 0] / flat[i, 1]).item() for i, key in enumerate(keys) if flat[i, 1] > 0})

    def clear_losses(self):
        """Forget the losses since the last log."""
        self.sums.clear()


def named(means: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """The means by the names of the log."""
    return {name if name == "psnr" else f"loss_{name}": mean for (_, name), mean in means.items()}


def reconstruction_losses(
    model: nn.Module, pixel_values: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    The losses of images (batch, 3, H, W) in [-1, 1], and the mean PSNR of their reconstructions in dB.

    Args:
        model: a [`ShowoLFQTokenizer`], or a wrapper of one.

    Returns:
        the losses "reconstruction", "commitment" and "entropy", whose sum is minimised, and the PSNR.
    """
    output = model(pixel_values, return_losses=True)
    sample = output.sample.float()
    losses = {
        "reconstruction": multi_scale_loss(sample, pixel_values),
        "commitment": output.commitment_loss,
        "entropy": output.entropy_loss,
    }
    return losses, psnr(sample.detach().clamp(-1, 1), pixel_values).mean()


def multi_scale_loss(prediction: torch.Tensor, target: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """The absolute plus four times the squared pixel difference, averaged over `scales` resolutions, each half the last."""
    total = prediction.new_zeros(())
    for scale in range(scales):
        if scale:
            prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        total = total + F.l1_loss(prediction, target) + 4 * F.mse_loss(prediction, target)
    return total / scales


# What a run needs


def tokenizer_config(config: ImageTokenizerConfig) -> ShowoLFQTokenizerConfig:
    """
    The configuration of the trained tokenizer: `model`'s, or else the published one's, with the recipe's changes.

    Raises:
        ValueError: for an entry of `architecture` that does not exist, and for values that the configuration refuses.
    """
    known = list(inspect.signature(ShowoLFQTokenizerConfig).parameters)
    changes = {
        "sample_size": config.image_size,
        "codebook_bits": config.codebook_bits,
        "entropy_weight": config.entropy_weight,
        "entropy_over": config.entropy_over,
        "commitment_weight": config.commitment_weight,
    }
    for name in config.architecture:
        if name not in known or name in changes:
            hint = nearest(name, [one for one in known if one not in changes])
            raise ValueError(f"`architecture` must hold entries of the image tokenizer's config, got {name!r}{hint}")
    start = {} if config.model is None else ShowoLFQTokenizerConfig.from_pretrained(config.model).to_dict()
    changes = {name: value for name, value in changes.items() if value is not None}
    entries = {name: value for name, value in start.items() if name in known} | config.architecture | changes
    made = ShowoLFQTokenizerConfig(**entries)
    if made.sample_size % made.downsampling:
        raise ValueError(f"`image_size` must be a multiple of {made.downsampling}, got {made.sample_size}.")
    return made


def load_image_tokenizer(config: ImageTokenizerConfig) -> ShowoLFQTokenizer:
    """The image tokenizer that is trained, in float32. Its random weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ShowoLFQTokenizer(tokenizer_config(config))
    if config.model is not None:
        load_matching_weights(model, config.model)
    return model


def load_matching_weights(model: ShowoLFQTokenizer, source: str) -> list[str]:
    """
    Load the weights of a trained tokenizer that have the same shapes, and return the names of the others.

    With another number of bits, all weights except the four layers at the quantizer are loaded.
    """
    weights = ShowoLFQTokenizer.from_pretrained(source, dtype=torch.float32, use_safetensors=True).state_dict()
    own = model.state_dict()
    kept = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    return list(model.load_state_dict(kept, strict=False).missing_keys)


def data_of(sources: Mapping[str, list[dict[str, Any]]], rows: int) -> dict[str, TaskData]:
    """The data, with `rows` images of each process in a step."""
    return {task: TaskData(tuple(DataSource(**one) for one in listed), rows) for task, listed in sources.items()}


def image_tokenizer_trainer(
    config: ImageTokenizerConfig,
    args: TrainingArguments,
    model: ShowoLFQTokenizer,
    settings: Settings,
    position: State | None,
    callbacks: list[Any],
) -> ImageTokenizerTrainer:
    """The Trainer of a run that starts at a position in the data."""
    processor = showo_image_processor(model.config.sample_size)
    data = StepLoader(
        data_of(config.data, config.batch_size),
        ImageBuilder(processor, config.mirror, config.shift),
        seed=config.seed,
        rank=args.process_index,
        world_size=args.world_size,
        num_workers=args.dataloader_num_workers,
        state=position,
        max_broken=config.max_broken,
    )
    validation = None
    if config.validation_data is not None:
        validation = validation_images(config, processor)
    return ImageTokenizerTrainer(model, args, settings, data, validation, callbacks)


def first_images(config: ImageTokenizerConfig, model: ShowoLFQTokenizer) -> Images:
    """The first images of a run."""
    builder = ImageBuilder(showo_image_processor(model.config.sample_size), config.mirror, config.shift)
    data = StepLoader(data_of(config.data, config.batch_size), builder, seed=config.seed, max_broken=config.max_broken)
    return next(iter(data))[0]


def validation_images(config: ImageTokenizerConfig, processor: CLIPImageProcessorPil) -> list[Images]:
    """The first images of the validation data, each once and as it is."""
    task = data_of(config.validation_data, config.batch_size)
    loader = StepLoader(task, ImageBuilder(processor), seed=config.seed, max_broken=config.max_broken)
    tables, wanted = [source.table for source in loader.sources[TASK]], config.validation_rows
    if None not in tables:
        wanted = min(wanted, sum(map(len, tables)))
    batches: list[Images] = []
    steps = iter(loader)
    for first in range(0, wanted, config.batch_size):
        images, _ = next(steps)
        kept = slice(wanted - first)
        batches.append(Images(images.keys[kept], images.pixel_values[kept]))
    return batches


def save_image_tokenizer(config: ImageTokenizerConfig, trainer: ImageTokenizerTrainer):
    """Write the output folder, and push it."""
    if not trainer.is_world_process_zero():
        return
    output = Path(config.output)
    with atomic_folder(output, overwrite=True) as folder:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tidy_config(folder / "config.json")
    publish_result(config, trainer.state.global_step)
