"""The size of a patch discriminator. Imports no torch, as the configs of recipes."""

from dataclasses import dataclass

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
