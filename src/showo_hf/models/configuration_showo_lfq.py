"""Configuration of the image tokenizer."""

from typing import Any

from transformers import PreTrainedConfig

from ..utils.original_format import check_not_original


class ShowoLFQTokenizerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ShowoLFQTokenizer`]: MAGVIT-v2's convolutional encoder and decoder around a lookup-free
    quantizer (LFQ), "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", arXiv:2310.05737.

    The defaults are the published Show-o tokenizer: 16x downsampling, 13 bits, 8192 codes.

    Args:
        in_channels (`int`, defaults to 3): channels of an image.
        codebook_bits (`int`, defaults to 13): channels of the latent; each is quantized to one bit, so that there are
            `2 ** codebook_bits` codes. 1 to 24.
        encoder_block_out_channels (`list[int]`): channels of the encoder's stages, from full size down. Each stage but
            the last halves height and width.
        decoder_block_out_channels (`list[int]`): channels of the decoder's stages in the same order (full size first).
        encoder_layers_per_block (`list[int]`): residual blocks in each stage of the encoder, full size first.
        decoder_layers_per_block (`list[int]`): residual blocks in each stage of the decoder, full size first.
        norm_num_groups (`int`, defaults to 32): groups of every group norm; must divide all channel counts.
        mid_block_attention (`bool`, defaults to `True`): self-attention at the lowest resolution.
        sample_size (`int`, defaults to 256): height and width, in pixels, of the training images.
        commitment_weight (`float`, defaults to 0.125): factor on the mean squared distance from latent to code.
        entropy_weight (`float`, defaults to 0.1): factor on the entropy loss, which is a mean over the bits.
        entropy_over (`str`, defaults to `"bits"`): "bits" for the original's entropy loss, which takes the bits as
            independent; "codes" for the one over all `2 ** codebook_bits` codes.
        entropy_temperature (`float`, defaults to 1.0): temperature of the soft code assignment in the entropy loss.

    Raises:
        ValueError: for a bit count outside 1..24, stages that do not match, or channels that the groups do not divide.
    """

    model_type = "showo_lfq"

    def __init__(
        self,
        in_channels: int = 3,
        codebook_bits: int = 13,
        encoder_block_out_channels: tuple[int, ...] | list[int] = (128, 256, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] | list[int] = (128, 128, 256, 256, 512),
        encoder_layers_per_block: tuple[int, ...] | list[int] = (4, 3, 4, 3, 4),
        decoder_layers_per_block: tuple[int, ...] | list[int] = (4, 4, 3, 4, 3),
        norm_num_groups: int = 32,
        mid_block_attention: bool = True,
        sample_size: int = 256,
        commitment_weight: float = 0.125,
        entropy_weight: float = 0.1,
        entropy_over: str = "bits",
        entropy_temperature: float = 1.0,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if not 1 <= codebook_bits <= 24:
            raise ValueError(f"`codebook_bits` must be from 1 to 24, got {codebook_bits}.")
        stages = {
            "encoder_block_out_channels": list(encoder_block_out_channels),
            "decoder_block_out_channels": list(decoder_block_out_channels),
            "encoder_layers_per_block": list(encoder_layers_per_block),
            "decoder_layers_per_block": list(decoder_layers_per_block),
        }
        if len({len(values) for values in stages.values()}) > 1:
            raise ValueError(f"All of these must be equally long, one value a stage: {stages}.")
        if not encoder_block_out_channels:
            raise ValueError("`encoder_block_out_channels` must name at least one stage, got none.")
        if not entropy_temperature > 0:
            raise ValueError(f"`entropy_temperature` must be above 0, got {entropy_temperature}.")
        channels = {*encoder_block_out_channels, *decoder_block_out_channels}
        undivided = sorted(c for c in channels if c % norm_num_groups)
        if undivided:
            raise ValueError(
                f"`norm_num_groups` ({norm_num_groups}) must divide all channels, not so for {undivided}."
            )
        self.in_channels = in_channels
        self.codebook_bits = codebook_bits
        for name, values in stages.items():
            setattr(self, name, values)
        self.norm_num_groups = norm_num_groups
        self.mid_block_attention = mid_block_attention
        self.sample_size = sample_size
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        if entropy_over not in ("bits", "codes"):
            raise ValueError(f"`entropy_over` must be 'bits' or 'codes', got {entropy_over!r}.")
        self.entropy_over = entropy_over
        self.entropy_temperature = entropy_temperature
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; `ValueError` with the command to convert for a checkpoint of the original code."""
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_not_original(config_dict, pretrained_model_name_or_path)
        return config_dict, unused

    @property
    def codebook_size(self) -> int:
        """Number of codes, `2 ** codebook_bits`."""
        return 2**self.codebook_bits

    @property
    def downsampling(self) -> int:
        """Pixels per token, along each axis."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)
