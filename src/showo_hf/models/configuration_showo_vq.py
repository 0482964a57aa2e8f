"""Configuration of the image tokenizer with a vector quantizer."""

from diffusers.models.activations import ACT2CLS

from ..utils.validation import MAX_SCALE, check_choice, check_count, check_flag, check_number, is_number, shown
from .configuration_image_tokenizer import LARGEST_TOKENIZER, ShowoImageTokenizerConfig


DISTANCES = ("euclidean", "cosine")
CODEBOOK_LEARNING = ("gradient", "ema")
DECODER_NORMS = ("group", "spatial")
#: diffusers' `SpatialNorm` has this number of groups and no argument for it.
SPATIAL_NORM_GROUPS = 32


class ShowoVQTokenizerConfig(ShowoImageTokenizerConfig):
    r"""
    Configuration of a [`ShowoVQTokenizer`]: a convolutional encoder and decoder around a codebook of vectors, "Neural
    Discrete Representation Learning" (VQ-VAE, arXiv:1711.00937) and "Taming Transformers for High-Resolution Image
    Synthesis" (VQGAN, arXiv:2012.09841).

    The defaults are the architecture of the published VQGAN with 16x downsampling and 16,384 codebook entries.

    Args:
        in_channels (`int`, defaults to 3): channels of an image.
        codebook_size (`int`, defaults to 16384): number of codebook entries.
        codebook_dim (`int`, defaults to 256): channels of a codebook entry and of the latents that it replaces.
        latent_channels (`int`, defaults to 256): channels of the encoder's output and of the decoder's input. 1x1
            convolutions lead from them to `codebook_dim` and back.
        encoder_block_out_channels (`list[int]`): channels of the encoder's stages, full size first. Each stage except
            the last halves height and width.
        decoder_block_out_channels (`list[int]`): channels of the decoder's stages, also full size first.
        encoder_layers_per_block (`list[int]`): residual blocks in each stage of the encoder, full size first.
        decoder_layers_per_block (`list[int]`): residual blocks in each stage of the decoder, full size first.
        encoder_block_attention (`list[bool]`): whether each residual block of a stage of the encoder is followed by
            self-attention, full size first.
        decoder_block_attention (`list[bool]`): the same for the decoder, also full size first.
        norm_num_groups (`int`, defaults to 32): groups of every group norm. All channel counts must be multiples.
        norm_type (`str`, defaults to `"group"`): norms of the decoder. "group" for group norm; "spatial" for group norm
            whose scale and shift depend on the quantized latents (MoVQ, arXiv:2209.09002).
        act_fn (`str`, defaults to `"silu"`): activation of the residual blocks, a name that diffusers knows.
        mid_block_attention (`bool`, defaults to `True`): whether the lowest resolution has self-attention.
        sample_size (`int`, defaults to 256): height and width of the training images, in pixels.
        encoder_context (`bool`, defaults to `True`): whether a token also depends on the pixels around its own. Without,
            equal cells of pixels have equal tokens, wherever they are and whatever is beside them. The decoder sees
            all tokens.
        distance (`str`, defaults to `"euclidean"`): which codebook entry is nearest. "cosine" normalizes latents and
            codebook entries to length 1 first (ViT-VQGAN, arXiv:2110.04627), and the decoder sees normalized entries.
        commitment_weight (`float`, defaults to 0.25): weight of the mean squared distance between latents and their
            codebook entries, with a gradient for the latents alone. It is beta in the papers.
        codebook_learning (`str`, defaults to `"gradient"`): "gradient" trains the codebook by its own loss; "ema" moves
            each entry to the running mean of its latents, in [`ShowoVQTokenizer.update_codebook`].
        codebook_weight (`float`, defaults to 1.0): weight of the same distance with a gradient for the codebook alone.
            Not used with "ema".
        codebook_decay (`float`, defaults to 0.99): decay of the running means, at least 0 and below 1.
        dead_code_threshold (`float`, defaults to 0.03): an entry is dead if its running share of the latents is below
            this part of an equal share, `1 / codebook_size`. 0 turns restarts off.

    Raises:
        TypeError: for a flag or a list of another type.
        ValueError: for numbers out of range, for lists of different lengths, for channel counts that `norm_num_groups`
            does not divide, for an unknown `norm_type`, `act_fn`, `distance` or `codebook_learning`, or for a spatial
            norm that diffusers cannot build.
    """

    model_type = "showo_vq"

    def __init__(
        self,
        in_channels: int = 3,
        codebook_size: int = 16384,
        codebook_dim: int = 256,
        latent_channels: int = 256,
        encoder_block_out_channels: tuple[int, ...] | list[int] = (128, 128, 256, 256, 512),
        decoder_block_out_channels: tuple[int, ...] | list[int] = (128, 128, 256, 256, 512),
        encoder_layers_per_block: tuple[int, ...] | list[int] = (2, 2, 2, 2, 2),
        decoder_layers_per_block: tuple[int, ...] | list[int] = (3, 3, 3, 3, 3),
        encoder_block_attention: tuple[bool, ...] | list[bool] = (False, False, False, False, True),
        decoder_block_attention: tuple[bool, ...] | list[bool] = (False, False, False, False, True),
        norm_num_groups: int = 32,
        norm_type: str = "group",
        act_fn: str = "silu",
        mid_block_attention: bool = True,
        sample_size: int = 256,
        distance: str = "euclidean",
        commitment_weight: float = 0.25,
        codebook_learning: str = "gradient",
        codebook_weight: float = 1.0,
        codebook_decay: float = 0.99,
        dead_code_threshold: float = 0.03,
        initializer_range: float = 0.02,
        encoder_context: bool = True,
        **kwargs,
    ):
        sizes = {"codebook_size": codebook_size, "codebook_dim": codebook_dim, "latent_channels": latent_channels}
        for name, size in sizes.items():
            check_count(name, size, most=LARGEST_TOKENIZER[name])
        choices = {
            "norm_type": (norm_type, DECODER_NORMS),
            "act_fn": (act_fn, tuple(ACT2CLS)),
            "distance": (distance, DISTANCES),
            "codebook_learning": (codebook_learning, CODEBOOK_LEARNING),
        }
        for name, (value, allowed) in choices.items():
            check_choice(name, value, allowed)
        check_number("codebook_weight", codebook_weight, most=MAX_SCALE)
        for name, share in (("codebook_decay", codebook_decay), ("dead_code_threshold", dead_code_threshold)):
            if not is_number(share) or not 0 <= share < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {shown(share)}.")
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.latent_channels = latent_channels
        self.norm_type = norm_type
        self.act_fn = act_fn
        self.distance = distance
        self.codebook_learning = codebook_learning
        self.codebook_weight = codebook_weight
        self.codebook_decay = codebook_decay
        self.dead_code_threshold = dead_code_threshold
        self.set_stages(
            {
                "encoder_block_out_channels": encoder_block_out_channels,
                "encoder_block_attention": encoder_block_attention,
                "decoder_block_attention": decoder_block_attention,
            }
        )
        for name in ("encoder_block_attention", "decoder_block_attention"):
            for has_attention in getattr(self, name):
                check_flag(name, has_attention)
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
        if norm_type == "spatial":
            check_spatial_norm(codebook_dim, latent_channels, decoder_block_out_channels)

    @property
    def codebook_channels(self) -> int:
        """Channels of the latents and of a codebook entry."""
        return self.codebook_dim


def check_spatial_norm(codebook_dim: int, latent_channels: int, channels: tuple[int, ...] | list[int]):
    """Raise `ValueError` for sizes with which diffusers cannot build a decoder with spatial norms."""
    if codebook_dim != latent_channels:
        raise ValueError(
            "`norm_type` 'spatial' needs a `codebook_dim` equal to `latent_channels`, because diffusers' decoder has one "
            f"number for both, got {codebook_dim} and {latent_channels}."
        )
    undivided = sorted({c for c in channels if c % SPATIAL_NORM_GROUPS})
    if undivided:
        raise ValueError(
            f"`norm_type` 'spatial' needs multiples of {SPATIAL_NORM_GROUPS} in `decoder_block_out_channels`, got "
            f"{shown(undivided)}."
        )
