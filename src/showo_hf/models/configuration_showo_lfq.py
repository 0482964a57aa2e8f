"""Configuration of the image tokenizer with a lookup-free quantizer."""

from ..utils.validation import MAX_SCALE, check_choice, check_number, check_positive, is_integer, is_number, shown
from .configuration_image_tokenizer import ShowoImageTokenizerConfig


class ShowoLFQTokenizerConfig(ShowoImageTokenizerConfig):
    r"""
    Configuration of a [`ShowoLFQTokenizer`]: MAGVIT-v2's convolutional encoder and decoder around a lookup-free
    quantizer (LFQ), "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", arXiv:2310.05737.

    The defaults are the published Show-o tokenizer: 16x downsampling, 13 bits, 8192 codebook entries.

    Args:
        in_channels (`int`, defaults to 3): channels of an image.
        codebook_bits (`int`, defaults to 13): channels of the latent, 1 to 24. Each channel is quantized to one bit,
            so the codebook has `2 ** codebook_bits` entries.
        encoder_block_out_channels (`list[int]`): channels of the encoder's stages, full size first. Each stage except
            the last halves height and width.
        decoder_block_out_channels (`list[int]`): channels of the decoder's stages, also full size first.
        encoder_layers_per_block (`list[int]`): residual blocks in each stage of the encoder, full size first.
        decoder_layers_per_block (`list[int]`): residual blocks in each stage of the decoder, full size first.
        norm_num_groups (`int`, defaults to 32): groups of every group norm. All channel counts must be multiples.
        mid_block_attention (`bool`, defaults to `True`): whether the lowest resolution has self-attention.
        sample_size (`int`, defaults to 256): height and width of the training images, in pixels.
        commitment_weight (`float`, defaults to 0.125): weight of the mean squared distance between latents and
            their quantized values.
        entropy_weight (`float`, defaults to 0.1): weight of the entropy loss, which is a mean over the bits.
        entropy_over (`str`, defaults to `"bits"`): "bits" for the original's entropy loss, which treats the bits as
            independent; "codes" for the entropy loss over all `2 ** codebook_bits` codebook entries.
        entropy_temperature (`float`, defaults to 1.0): temperature of the soft assignment in the entropy loss.
        encoder_context (`bool`, defaults to `True`): whether a token also depends on the pixels around its own. Without,
            equal cells of pixels have equal tokens, wherever they are and whatever is beside them. The decoder sees
            all tokens.
        entropy_least_contrast (`float`, defaults to 0.0): the entropy loss spreads codes over the cells alone whose
            pixels differ by so much in a channel, from 0 to 2. 0 stands for all cells. With more, plain areas do not
            take many codes that mean the same.

    Raises:
        TypeError: for a flag or a list of another type.
        ValueError: for numbers out of range, for lists of different lengths, or for channel counts that
            `norm_num_groups` does not divide.
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
        entropy_least_contrast: float = 0.0,
        initializer_range: float = 0.02,
        encoder_context: bool = True,
        **kwargs,
    ):
        if not is_integer(codebook_bits) or not 1 <= codebook_bits <= 24:
            raise ValueError(f"`codebook_bits` must be from 1 to 24, got {shown(codebook_bits)}.")
        check_number("entropy_weight", entropy_weight, most=MAX_SCALE)
        check_positive("entropy_temperature", entropy_temperature, most=MAX_SCALE)
        check_choice("entropy_over", entropy_over, ("bits", "codes"))
        if not is_number(entropy_least_contrast) or not 0 <= entropy_least_contrast <= 2:
            raise ValueError(f"`entropy_least_contrast` must be from 0 to 2, got {shown(entropy_least_contrast)}.")
        self.codebook_bits = codebook_bits
        self.entropy_weight = entropy_weight
        self.entropy_over = entropy_over
        self.entropy_temperature = entropy_temperature
        self.entropy_least_contrast = entropy_least_contrast
        super().__init__(
            in_channels=in_channels,
            encoder_block_out_channels=encoder_block_out_channels,
            decoder_block_out_channels=decoder_block_out_channels,
            encoder_layers_per_block=encoder_layers_per_block,
            decoder_layers_per_block=decoder_layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_attention=mid_block_attention,
            sample_size=sample_size,
            commitment_weight=commitment_weight,
            initializer_range=initializer_range,
            encoder_context=encoder_context,
            **kwargs,
        )

    @property
    def codebook_size(self) -> int:
        """Number of codebook entries, `2 ** codebook_bits`."""
        return 2**self.codebook_bits

    @property
    def codebook_channels(self) -> int:
        """Channels of the latents and of a codebook entry: one for each bit."""
        return self.codebook_bits
