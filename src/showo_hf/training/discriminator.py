"""
A patch discriminator: it judges each part of an image by itself (PatchGAN, arXiv:1611.07004).

Images and features are low-pass filtered before they are halved, as in StyleGAN and Open-MAGVIT2 (arXiv:1904.11486,
arXiv:2409.04410). Without the filter, a discriminator sees the phase of its own grid, and teaches it to the generator.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from .discriminator_shape import NORM_GROUPS, DiscriminatorShape


class Judgement(NamedTuple):
    """
    What a discriminator says of images.

    Args:
        logits: (batch, 1, h, w); above zero for what looks real.
        features: the activations of each level, full size first, (batch, channels, height, width).
    """

    logits: torch.Tensor
    features: list[torch.Tensor]


class PatchDiscriminator(nn.Module):
    """
    Judges the patches of images `(batch, 3, H, W)` in [-1, 1] of any size from `2 ** halvings` pixels on. Returns a
    [`Judgement`].
    """

    def __init__(self, shape: DiscriminatorShape, in_channels: int = 3):
        super().__init__()
        widths = shape.widths
        kernel = 3 if shape.blur else 4
        self.first = wrapped(nn.Conv2d(in_channels, widths[0], 3, padding=1), shape.norm)
        self.levels = nn.ModuleList()
        for before, after in zip(widths, widths[1:], strict=False):
            halve = nn.Conv2d(before, after, kernel, stride=1 if shape.blur else 2, padding=1)
            self.levels.append(
                nn.Sequential(
                    BlurHalve(before) if shape.blur else nn.Identity(),
                    wrapped(halve, shape.norm),
                    nn.GroupNorm(NORM_GROUPS, after) if shape.norm == "group" else nn.Identity(),
                    nn.LeakyReLU(0.2),
                )
            )
        self.last = wrapped(nn.Conv2d(widths[-1], 1, 3, padding=1), shape.norm)

    def forward(self, pixel_values: torch.Tensor) -> Judgement:
        features = [F.leaky_relu(self.first(pixel_values), 0.2)]  # (batch, channels, H, W)
        for level in self.levels:
            features.append(level(features[-1]))  # half the size
        return Judgement(self.last(features[-1]), features)


def wrapped(convolution: nn.Conv2d, norm: str) -> nn.Module:
    """A convolution, with spectral norm if `norm` says so."""
    return spectral_norm(convolution) if norm == "spectral" else convolution


class BlurHalve(nn.Module):
    """
    Halves (batch, channels, H, W) with the binomial filter [1, 3, 3, 1] / 8 in each direction. The border is repeated.
    """

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        kernel = (row[:, None] * row).expand(channels, 1, 4, 4).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, self.kernel.to(features.dtype), stride=2, groups=features.shape[1])
