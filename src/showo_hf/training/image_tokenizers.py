"""
Training of image tokenizers: reconstruction of images through a quantizer, with or without a discriminator.

With several devices, gradients are averaged over them. The entropy loss is not a mean over images: each device computes it
of its own images. So is the adaptive weight of the generator's loss.
"""

import inspect
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ..models.configuration_image_tokenizer import ShowoImageTokenizerConfig
from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_showo_lfq import ShowoLFQTokenizer
from ..models.modeling_showo_vq import ShowoVQTokenizer
from ..processing.processing_showo import showo_image_processor
from .adversarial import Adversary
from .data.loader import State, StepLoader
from .data.order import stable_hash
from .image_batches import ImageBuilder, Images, image_loader, resized, validation_images
from .image_configs import LAST_LAYER, ImageTokenizerConfig, LFQTrainingConfig, VQTrainingConfig
from .image_results import save_image_result
from .image_trainer import TASK, ImageTrainer
from .losses import LossSums
from .masking import row_generator
from .perceptual import load_perceptual
from .recipe_entries import nearest
from .resumable_trainer import Settings
from .tokenizer_losses import QUANTIZER_LOSSES, Reconstruction, TokenizerLosses


#: What each kind of recipe trains.
TOKENIZERS: dict[type[ImageTokenizerConfig], type[ShowoImageTokenizer]] = {
    LFQTrainingConfig: ShowoLFQTokenizer,
    VQTrainingConfig: ShowoVQTokenizer,
}
CODEBOOK = "quantizer.codebook"


class ImageTokenizerTrainer(ImageTrainer):
    """
    Trains a [`ShowoImageTokenizer`].

    Args:
        model, args, settings, data, validation, callbacks: see [`ImageTrainer`].
        config: the recipe.
        objective: the losses, on the run's device.
    """

    LOSSES = ("reconstruction", "perceptual", "generator", "feature_matching", "token_cycle", *QUANTIZER_LOSSES)
    MEASURES = (
        *("psnr", "tokens_back", "generator_weight", "restarted_codes"),
        *("discriminator", "lecam", "logits_real", "logits_fake"),
    )

    def __init__(
        self,
        model: ShowoImageTokenizer,
        args: TrainingArguments,
        settings: Settings,
        data: StepLoader,
        config: ImageTokenizerConfig,
        objective: TokenizerLosses,
        validation: list[Images] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.config, self.objective = config, objective
        self.judged: tuple[torch.Tensor, torch.Tensor] | None = None
        #: Latents (channels, positions) and tokens (positions,) of the step, for a codebook that learns.
        self.encoded: list[tuple[torch.Tensor, torch.Tensor]] = []
        trains_codes = re.search(config.trained or "", CODEBOOK) is not None
        self.learns_codes = trains_codes and isinstance(model, ShowoVQTokenizer)
        self.add_callback(UpdateCodebook(self))

    @property
    def adversary(self) -> Adversary | None:
        """The discriminator, from the step on at which it takes part."""
        options = self.config.discriminator_options
        return None if options is None or self.state.global_step < options.start else self.objective.adversary

    # Losses

    def losses(self, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The losses of a batch by name. They are added to `sums`, with other measures."""
        pixels = images.pixel_values.to(self.args.device)
        self.judged = None
        if not len(pixels):  # every device must take part in the backward pass
            output = model(pixels.new_zeros(1, *pixels.shape[1:]), return_losses=True)
            self.remember(output.latents[:0], output.image_tokens[:0])
            rest = sum(loss for name in QUANTIZER_LOSSES if (loss := getattr(output, f"{name}_loss")) is not None)
            return {"none": (output.sample.sum() + rest) * 0.0}
        pixels = resized(pixels, self.config.size_at(self.state.global_step))
        made = self.objective.of(model, pixels)
        if self.adversary is not None:
            last = self.model.get_parameter(LAST_LAYER)
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None else scaler.get_scale()
            self.objective.add_adversarial(made, pixels, last, self.accelerator.autocast, scale)
            self.judged = pixels, made.sample.detach()
        if self.config.loss_weights["token_cycle"]:
            self.objective.add_token_cycle(self.model, made, self.accelerator.autocast)
        self.remember(made.output.latents, made.output.image_tokens)
        add_to(sums, made, len(pixels))
        return made.losses

    def validation_losses(self, model: nn.Module, images: Images, sums: LossSums):
        """The losses that need no discriminator, and the share of tokens that come back."""
        if len(images.pixel_values):
            made = self.objective.of(model, images.pixel_values.to(self.args.device))
            self.objective.add_token_cycle(self.model, made, self.accelerator.autocast)
            add_to(sums, made, len(images.pixel_values))

    # The discriminator and the codebook

    def after_backward(self):
        """The discriminator learns from the images of the batch."""
        if self.judged is None:
            return
        # A gradient scaler is the generator's own, and float16 without one loses small gradients.
        context = nullcontext if self.accelerator.scaler is not None else self.accelerator.autocast
        share = 1 / self.current_gradient_accumulation_steps
        for name, value in self.adversary.learn(*self.judged, share, context).items():
            self.sums.add(TASK, name, value, len(self.judged[0]))

    def guard(self, model: nn.Module):
        """Same as in the base class. The discriminator changes in steps with finite losses alone."""
        adversary = self.adversary
        if adversary is not None:
            norm = adversary.gather()
            self.not_finite = "loss" if not self.loss_is_finite else "gradient of the discriminator"
            self.loss_is_finite = self.loss_is_finite and bool(torch.isfinite(norm))
        super().guard(model)
        bad = self.sum_over_devices(torch.tensor([float(not self.loss_is_finite)])).item() > 0
        if bad:
            self.encoded.clear()
        if adversary is not None and bad:
            adversary.forget()
        elif adversary is not None:
            schedule = self.lr_scheduler.get_last_lr()[0] / self.args.learning_rate
            adversary.step(schedule, self.args.max_grad_norm)

    def remember(self, latents: torch.Tensor, image_tokens: torch.Tensor):
        """Keep the latents (batch, channels, h, w) and tokens (batch, h, w) of a batch for the codebook."""
        if self.learns_codes:
            self.encoded.append((latents.detach().transpose(0, 1).flatten(1), image_tokens.flatten()))

    def update_codebook(self):
        """Update the codebook with what a step encoded, unless the step was bad. All processes call it."""
        encoded, self.encoded = self.encoded, []
        if not encoded:
            return
        latents = torch.cat([one for one, _ in encoded], dim=1)  # (channels, positions)
        tokens = torch.cat([one for _, one in encoded])
        seed = stable_hash(self.config.seed, f"codebook {self.state.global_step}")
        codebook = self.model.quantizer.codebook.detach()
        before = codebook.clone()
        restarted = self.model.update_codebook(latents[None, :, :, None], tokens[None, :, None], row_generator(seed))
        self.sums.add(TASK, "restarted_codes", torch.tensor(float(restarted)), 1)
        if restarted and self.ema is not None and self.model.quantizer.codebook.requires_grad:
            moved = (codebook != before).any(1)  # an average of an entry's two places would be no code of any image
            self.averaged()[CODEBOOK][moved] = codebook[moved]

    def changing_tensors(self) -> dict[str, torch.Tensor]:
        """Same as in the base class, and the codebook with its statistics."""
        own = super().changing_tensors()
        if self.learns_codes:
            quantizer = self.model.quantizer
            own |= {CODEBOOK: quantizer.codebook, "quantizer.code_usage": quantizer.code_usage}
        return own

    # Checkpoints

    def more_state(self):
        """The discriminator's."""
        return ({}, {}) if self.objective.adversary is None else self.objective.adversary.saved()

    def load_more_state(self, folder: Path):
        """Load the discriminator."""
        if self.objective.adversary is not None:
            self.objective.adversary.load(folder)


class UpdateCodebook(TrainerCallback):
    """Updates the codebook after each step of the optimizer."""

    def __init__(self, trainer: ImageTokenizerTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.update_codebook()


def add_to(sums: LossSums, made: Reconstruction, count: int):
    """Add the losses and measures of `count` images."""
    for name, value in {**made.losses, **made.measures}.items():
        sums.add(TASK, name, value, count)


# What a run needs


def tokenizer_config(config: ImageTokenizerConfig) -> ShowoImageTokenizerConfig:
    """
    The configuration of the trained tokenizer: `model`'s, or else the published one's, with the recipe's changes.

    Raises:
        ValueError: for an entry of `architecture` that does not exist, and for values that the configuration refuses.
    """
    config_class = TOKENIZERS[type(config)].config_class
    known = list(inspect.signature(config_class).parameters)
    changes = config.model_entries()
    for name in config.architecture:
        if name not in known or name in changes:
            hint = nearest(name, [one for one in known if one not in changes])
            raise ValueError(f"`architecture` must hold entries of the image tokenizer's config, got {name!r}{hint}")
    start = {} if config.model is None else config_class.from_pretrained(config.model).to_dict()
    changes = {name: value for name, value in changes.items() if value is not None}
    entries = {name: value for name, value in start.items() if name in known} | config.architecture | changes
    made = config_class(**entries)
    config.check_multiples(made.downsampling, made.sample_size)
    config.check_size(made.sample_size)
    return made


def load_image_tokenizer(config: ImageTokenizerConfig) -> ShowoImageTokenizer:
    """
    The image tokenizer that is trained, in float32. Its random weights depend on `seed` alone.

    All entries of a random codebook are dead at first, so the first steps put them where latents are.

    Raises:
        ValueError: as [`tokenizer_config`], and if `trained` names no parameter that gradients change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TOKENIZERS[type(config)](tokenizer_config(config))
    missing = [CODEBOOK] if config.model is None else load_matching_weights(model, config.model)
    if isinstance(model, ShowoVQTokenizer) and CODEBOOK in missing:
        model.quantizer.code_usage.zero_()
    if config.trained is not None:
        named = [name for name, _ in model.named_parameters() if re.search(config.trained, name)]
        if not named:
            raise ValueError(f"`trained` must match the name of a parameter, got {config.trained!r}.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in named)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"`trained` must match the name of a parameter that gradients change, got {config.trained!r}, which "
                f"matches {', '.join(named)} alone."
            )
    return model


def load_matching_weights(model: ShowoImageTokenizer, source: str) -> list[str]:
    """
    Load the weights of a trained tokenizer that have the same shapes, and return the names of the others.

    With another codebook, all weights except those at the quantizer are loaded.
    """
    weights = type(model).from_pretrained(source, dtype=torch.float32, use_safetensors=True).state_dict()
    own = model.state_dict()
    kept = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    return list(model.load_state_dict(kept, strict=False).missing_keys)


def tokenizer_losses(config: ImageTokenizerConfig, device: torch.device, learning_rate: float) -> TokenizerLosses:
    """
    The losses of a run, on its device.

    Raises:
        ValueError: if `perceptual` cannot be loaded.
    """
    options, adversary = config.discriminator_options, None
    if options is not None:
        adversary = Adversary(
            options,
            seed=stable_hash(config.seed, "discriminator") % 2**63,
            learning_rate=learning_rate if options.learning_rate is None else options.learning_rate,
            betas=(options.beta1, options.beta2),
            lecam_weight=config.loss_weights["lecam"],
            lecam_decay=options.lecam_decay,
        ).to(device)
    perceptual = None
    if config.perceptual is not None:
        perceptual = load_perceptual(config.perceptual, config.smallest_size).to(device)
    adaptive = options is not None and options.adaptive
    return TokenizerLosses(config.loss_weights, config.pixel_scales, perceptual, adversary, adaptive)


def image_tokenizer_trainer(
    config: ImageTokenizerConfig,
    args: TrainingArguments,
    model: ShowoImageTokenizer,
    settings: Settings,
    position: State | None,
    callbacks: list[Any],
) -> ImageTokenizerTrainer:
    """The Trainer of a run that starts at a position in the data."""
    size = config.largest_size or model.config.sample_size
    data = image_loader(
        config,
        ImageBuilder(showo_image_processor(size), config.mirror, config.shift),
        rank=args.process_index,
        world_size=args.world_size,
        num_workers=args.dataloader_num_workers,
        state=position,
    )
    validation = validation_images(config, ImageBuilder(showo_image_processor(model.config.sample_size)))
    objective = tokenizer_losses(config, args.device, args.learning_rate)
    return ImageTokenizerTrainer(model, args, settings, data, config, objective, validation, callbacks)


def save_image_tokenizer(config: ImageTokenizerConfig, trainer: ImageTokenizerTrainer):
    """Write the output folder with the card, and push it."""
    size = trainer.accelerator.unwrap_model(trainer.model).config.sample_size
    save_image_result(config, trainer, "image-tokenizer", config.model, size)
