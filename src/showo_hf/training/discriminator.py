"""
A patch discriminator: it judges each part of an image by itself (PatchGAN, arXiv:1611.07004).

Images and features are low-pass filtered before they are halved, as in StyleGAN and Open-MAGVIT2 (arXiv:1904.11486,
arXiv:2409.04410). Without the filter, a discriminator sees the phase of its own grid, and teaches it to the generator.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ..utils.validation import check_count


NORMS = ("group", "spectral", "none")
NORM_GROUPS = 8  # of group norm


@dataclass
class DiscriminatorShape:
    """
    The size of a [`PatchDiscriminator`].

    Args:
        channels (`int`, defaults to 64): channels at full size. They double with each halving, up to `max_channels`.
        max_channels (`int`, defaults to 512): most channels of a layer.
        halvings (`int`, defaults to 3): how often height and width are halved. A logit stands for `2 ** halvings` pixels
            along each side, and sees several times as many.
        norm (`str`, defaults to `"group"`): "group" for group norm behind each convolution but the first and the last;
            "spectral" for convolutions with spectral norm (arXiv:1802.05957); "none".
        blur (`bool`, defaults to `True`): filter before halving. Without it, convolutions of stride 2 halve.

    Raises:
        ValueError: for an unknown `norm`, for numbers below 1, or for channels that group norm cannot divide.
    """

    channels: int = 64
    max_channels: int = 512
    halvings: int = 3
    norm: str = "group"
    blur: bool = True

    def __post_init__(self):
        for name in ("channels", "max_channels", "halvings"):
            check_count(f"discriminator.{name}", getattr(self, name))
        if self.norm not in NORMS:
            raise ValueError(f"`discriminator.norm` must be one of {', '.join(NORMS)}, got {self.norm!r}.")
        if not isinstance(self.blur, bool):
            raise ValueError(f"`discriminator.blur` must be true or false, got {self.blur!r}.")
        if self.norm == "group" and any(width % NORM_GROUPS for width in self.widths):
            raise ValueError(
                f"`discriminator.channels` and `max_channels` must be multiples of {NORM_GROUPS} for group norm, got "
                f"{self.channels} and {self.max_channels}."
            )

    @property
    def widths(self) -> list[int]:
        """The channels at full size and after each halving."""
        return [min(self.channels * 2**number, self.max_channels) for number in range(self.halvings + 1)]


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
