"""What the configurations of the image tokenizers share."""

from collections.abc import Mapping, Sequence

from ..utils.saved_folders import CheckedConfig
from ..utils.validation import (
    MAX_SCALE,
    check_count,
    check_flag,
    check_list,
    check_number,
    check_parameters,
    check_sizes,
    shown,
)


#: No image tokenizer comes near these sizes.
MAX_STAGES = 16
MAX_IMAGE_PARAMETERS = 2**33
LARGEST_TOKENIZER = {
    "in_channels": 1024,
    "sample_size": 2**14,
    "norm_num_groups": 2**14,
    "encoder_block_out_channels": 2**14,
    "decoder_block_out_channels": 2**14,
    "encoder_layers_per_block": 32,
    "decoder_layers_per_block": 32,
    "codebook_size": 2**24,
    "codebook_dim": 2**14,
    "latent_channels": 2**14,
}


class ShowoImageTokenizerConfig(CheckedConfig):
    r"""
    The shared part of [`ShowoLFQTokenizerConfig`] and [`ShowoVQTokenizerConfig`]: the convolutional encoder and decoder.

    A subclass also has `codebook_size`, the number of codebook entries, and `codebook_channels`, the channels of the
    latents and of a codebook entry.

    Args:
        in_channels (`int`): channels of an image.
        encoder_block_out_channels (`list[int]`): channels of the encoder's stages, full size first. Each stage except
            the last halves height and width.
        decoder_block_out_channels (`list[int]`): channels of the decoder's stages, also full size first.
        encoder_layers_per_block (`list[int]`): residual blocks in each stage of the encoder, full size first.
        decoder_layers_per_block (`list[int]`): residual blocks in each stage of the decoder, full size first.
        norm_num_groups (`int`): groups of every group norm. All channel counts must be multiples.
        mid_block_attention (`bool`): whether the lowest resolution has self-attention.
        sample_size (`int`): height and width of the training images, in pixels.
        commitment_weight (`float`): weight of the mean squared distance between latents and their quantized values.
        encoder_context (`bool`): whether a token also depends on the pixels around its own. Without, equal cells of
            pixels have equal tokens, wherever they are and whatever is beside them. The decoder sees all tokens.

    Raises:
        TypeError: for a flag or a list of another type.
        ValueError: for numbers out of range, for lists of different lengths, for no stage at all, for channel counts
            that `norm_num_groups` does not divide, for a stage that changes the channels without a residual block, or
            for sizes far beyond those of an image tokenizer.
    """

    def __init__(
        self,
        in_channels: int,
        encoder_block_out_channels: Sequence[int],
        decoder_block_out_channels: Sequence[int],
        encoder_layers_per_block: Sequence[int],
        decoder_layers_per_block: Sequence[int],
        norm_num_groups: int,
        mid_block_attention: bool,
        sample_size: int,
        commitment_weight: float,
        initializer_range: float,
        encoder_context: bool,
        **kwargs,
    ):
        for name, size in (
            ("in_channels", in_channels),
            ("norm_num_groups", norm_num_groups),
            ("sample_size", sample_size),
        ):
            check_count(name, size, most=LARGEST_TOKENIZER[name])
        check_number("commitment_weight", commitment_weight, most=MAX_SCALE)
        check_number("initializer_range", initializer_range, most=MAX_SCALE)
        check_flag("mid_block_attention", mid_block_attention)
        check_flag("encoder_context", encoder_context)
        stages = {
            "encoder_block_out_channels": encoder_block_out_channels,
            "decoder_block_out_channels": decoder_block_out_channels,
            "encoder_layers_per_block": encoder_layers_per_block,
            "decoder_layers_per_block": decoder_layers_per_block,
        }
        self.set_stages(stages)
        if not encoder_block_out_channels:
            raise ValueError("`encoder_block_out_channels` must have at least one stage, got none.")
        for name, values in stages.items():
            for value in values:
                check_count(name, value, least=0 if "layers" in name else 1, most=LARGEST_TOKENIZER[name])
        check_changing_stages("encoder", encoder_block_out_channels, encoder_layers_per_block)
        check_changing_stages("decoder", decoder_block_out_channels[::-1], decoder_layers_per_block[::-1])
        channels = {*encoder_block_out_channels, *decoder_block_out_channels}
        undivided = sorted(c for c in channels if c % norm_num_groups)
        if undivided:
            raise ValueError(
                f"`norm_num_groups` ({norm_num_groups}) must divide all channel counts, but does not divide "
                f"{shown(undivided)}."
            )
        self.in_channels = in_channels
        self.norm_num_groups = norm_num_groups
        self.mid_block_attention = mid_block_attention
        self.sample_size = sample_size
        self.commitment_weight = commitment_weight
        self.initializer_range = initializer_range
        self.encoder_context = encoder_context
        check_sizes(self, LARGEST_TOKENIZER)
        check_parameters(type(self).__name__, self.least_parameters(), MAX_IMAGE_PARAMETERS)
        super().__init__(**kwargs)

    def set_stages(self, stages: Mapping[str, Sequence]):
        """Set lists with one value per stage. Raises an error unless they are lists, equally long, and not too long."""
        for name, values in stages.items():
            check_list(name, values)
            if len(values) > MAX_STAGES:
                raise ValueError(f"`{name}` must have at most {MAX_STAGES} stages, got {len(values):,}.")
        if len({len(values) for values in stages.values()}) > 1:
            lengths = ", ".join(f"`{name}` {len(values)}" for name, values in stages.items())
            raise ValueError(f"These lists need one value per stage, so they must be equally long, got {lengths}.")
        for name, values in stages.items():
            setattr(self, name, list(values))

    def least_parameters(self) -> int:
        """A number of parameters that the model does not fall below: two 3x3 kernels in each block, and the codebook."""
        blocks = [
            *zip(self.encoder_layers_per_block, self.encoder_block_out_channels, strict=True),
            *zip(self.decoder_layers_per_block, self.decoder_block_out_channels, strict=True),
        ]
        kernels = sum(9 * layers * channels**2 for layers, channels in blocks)
        return kernels + self.codebook_size * self.codebook_channels

    @property
    def downsampling(self) -> int:
        """Pixels per token along each axis."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)


def check_changing_stages(part: str, channels: Sequence[int], layers: Sequence[int]):
    """
    Raise `ValueError` unless each stage whose channels differ from the stage before has a residual block to change them.

    Args:
        part: "encoder" or "decoder".
        channels, layers: channels and residual blocks of each stage, in the order in which images pass the stages.
    """
    for before, after, count in zip(channels, channels[1:], layers[1:], strict=False):
        if before != after and not count:
            raise ValueError(
                f"`{part}_layers_per_block` must be at least 1 in a stage that changes the channels, got 0 from {before} "
                f"to {after} channels."
            )
