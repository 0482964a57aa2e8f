"""What an image tokenizer is trained for: images that come back as they were, from tokens that are used evenly."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..models.image_tokenizer import ShowoImageTokenizer, mean_squared_distance
from ..utils.metrics import psnr
from .adversarial import Adversary, adaptive_weight


#: The losses of the quantizers, by their names in the tokenizers' outputs without "_loss".
QUANTIZER_LOSSES = ("commitment", "entropy", "codebook")


def log_cosh_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of `log cosh(prediction - target)`: half the square of small differences, the size of large ones."""
    size = (prediction - target).abs()
    return (size + F.softplus(-2 * size) - math.log(2)).mean()


PIXEL_LOSSES: dict[str, Callable[..., torch.Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss, "log_cosh": log_cosh_loss}


def pixel_loss(
    prediction: torch.Tensor, target: torch.Tensor, weights: Mapping[str, float], scales: int = 1
) -> torch.Tensor:
    """
    The weighted sum of the pixel losses of images (batch, 3, H, W), averaged over resolutions.

    Args:
        weights: of "l1", "mse" and "log_cosh". Other entries are ignored.
        scales: number of resolutions, each half the last.
    """
    used = {name: weights[name] for name in PIXEL_LOSSES if weights.get(name)}
    total = prediction.new_zeros(())
    for scale in range(scales):
        if scale:
            prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        for name, weight in used.items():
            total = total + weight * PIXEL_LOSSES[name](prediction, target)
    return total / scales


def token_cycle_loss(
    model: ShowoImageTokenizer, sample: torch.Tensor, image_tokens: torch.LongTensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How far the latents of a decoded image are from the codes that it was decoded from.

    It is the mean squared distance of the latents of `encode(sample)` and the entries of `image_tokens`. Where it is
    small, encoding a decoded image gives back its tokens. Its gradient goes to the decoder and to the encoder.

    Args:
        model: the tokenizer, without a wrapper.
        sample: decoded images (batch, 3, H, W). They are clipped to [-1, 1], as files of images are.
        image_tokens: (batch, h, w).

    Returns:
        the loss, and the share of tokens that come back, both of shape `()`.
    """
    # Not `encode`, which also computes the quantizer's losses in training.
    compared = model.compared(model.encode_latents(sample.clamp(-1, 1).to(model.dtype)))
    with torch.no_grad():
        found, _ = model.quantize(compared)
    loss = mean_squared_distance(compared, model.codes_of(image_tokens).detach())
    return loss, (found == image_tokens).float().mean()


@dataclass
class Reconstruction:
    """
    What a tokenizer did with a batch.

    Args:
        output: the tokenizer's output.
        sample: the reconstruction in float32, not clipped.
        losses: weighted losses by name. Their sum is minimised.
        measures: other numbers by name.
    """

    output: Any
    sample: torch.Tensor
    losses: dict[str, torch.Tensor]
    measures: dict[str, torch.Tensor]


@dataclass
class TokenizerLosses:
    """
    The losses of an image tokenizer.

    Args:
        weights: as `loss_weights` of [`ImageTokenizerConfig`].
        pixel_scales: see [`pixel_loss`].
        perceptual: gives the perceptual loss of images and their targets, (batch, 3, H, W) in [-1, 1].
        adversary: the discriminator.
        adaptive: use [`adaptive_weight`].
    """

    weights: Mapping[str, float]
    pixel_scales: int = 1
    perceptual: nn.Module | None = None
    adversary: Adversary | None = None
    adaptive: bool = False

    def of(self, model: nn.Module, pixels: torch.Tensor) -> Reconstruction:
        """
        Reconstruct images and compute the losses that need no discriminator: "reconstruction", "perceptual", those of
        the quantizer; and "psnr" in dB.

        Args:
            model: a [`ShowoImageTokenizer`], or a wrapper of one.
            pixels: (batch, 3, H, W) in [-1, 1].
        """
        output = model(pixels, return_losses=True)
        sample = output.sample.float()
        losses = {"reconstruction": pixel_loss(sample, pixels, self.weights, self.pixel_scales)}
        if self.perceptual is not None and self.weights["perceptual"]:
            losses["perceptual"] = self.weights["perceptual"] * self.perceptual(sample, pixels)
        for name in QUANTIZER_LOSSES:
            loss = getattr(output, f"{name}_loss", None)
            if loss is not None:
                losses[name] = loss
        quality = psnr(sample.detach().clamp(-1, 1), pixels).clamp(max=100.0).mean()  # equal images have no finite one
        return Reconstruction(output, sample, losses, {"psnr": quality})

    def add_adversarial(
        self,
        made: Reconstruction,
        pixels: torch.Tensor,
        last: torch.Tensor,
        forward_context: Callable[[], AbstractContextManager] = nullcontext,
        scale: float = 1.0,
    ):
        """
        Add the losses that the discriminator gives a reconstruction: "generator" and "feature_matching".

        Args:
            last: the weights of the decoder's last layer, for the adaptive weight.
            forward_context: entered for each forward pass of the discriminator, such as autocast.
            scale: of the losses in float16, see [`adaptive_weight`].
        """
        match = self.weights["feature_matching"]
        found = self.adversary.generator_losses(made.sample, pixels if match else None, forward_context)
        weight = self.weights["generator"]
        if self.adaptive:
            seen = sum(made.losses[name] for name in ("reconstruction", "perceptual") if name in made.losses)
            factor = adaptive_weight(seen, found["generator"], last, scale)
            made.measures["generator_weight"] = weight * factor
            weight = weight * factor
        made.losses["generator"] = weight * found["generator"]
        if match:
            made.losses["feature_matching"] = match * found["feature_matching"]

    def add_token_cycle(
        self,
        model: ShowoImageTokenizer,
        made: Reconstruction,
        forward_context: Callable[[], AbstractContextManager] = nullcontext,
    ):
        """
        Add "token_cycle", and measure "tokens_back", the share of tokens that come back.

        Args:
            forward_context: entered for the second encoding, such as autocast. It must be the first one's.
        """
        with forward_context():
            loss, share = token_cycle_loss(model, made.sample, made.output.image_tokens)
        made.measures["tokens_back"] = share
        if self.weights["token_cycle"]:
            made.losses["token_cycle"] = self.weights["token_cycle"] * loss
