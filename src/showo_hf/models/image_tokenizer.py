"""What the image tokenizers share: encoder and decoder, sizes, tiles, outputs and errors.

Encoder and decoder come from diffusers. A subclass adds its quantizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..utils.saved_folders import CheckedWeights
from ..utils.tensor_checks import check_tensor
from ..utils.validation import check_flag, is_integer, shown
from .configuration_image_tokenizer import ShowoImageTokenizerConfig
from .tiling import decode_tiled, encode_tiled


@dataclass
class ShowoImageEncoderOutput(ModelOutput):
    """
    Output of [`ShowoImageTokenizer.encode`], for images of h x w tokens.

    Args:
        image_tokens (`torch.LongTensor` of shape `(batch, h, w)`): codebook indices in 0..codebook_size-1.
        latents (`torch.Tensor` of shape `(batch, codebook_channels, h, w)`): encoder output before quantization.
        quantized (`torch.Tensor` of shape `(batch, codebook_channels, h, w)`): codebook entries. Gradients pass
            straight through to `latents`.
        commitment_loss (`torch.Tensor` of shape `()`, *optional*): weighted mean squared distance between
            `latents` and their quantized values. Its gradient goes to the latents.
        entropy_loss (`torch.Tensor` of shape `()`, *optional*): weighted entropy loss, of [`ShowoLFQTokenizer`] alone.
        codebook_loss (`torch.Tensor` of shape `()`, *optional*): the same distance with a gradient for the codebook,
            of a [`ShowoVQTokenizer`] whose codebook is trained by gradient.
    """

    image_tokens: torch.LongTensor | None = None
    latents: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None


@dataclass
class ShowoImageDecoderOutput(ModelOutput):
    """
    Output of [`ShowoImageTokenizer.decode`].

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1].
    """

    sample: torch.Tensor | None = None


@dataclass
class ShowoImageTokenizerOutput(ShowoImageEncoderOutput):
    """
    Output of [`ShowoImageTokenizer.forward`]: the fields of [`ShowoImageEncoderOutput`] and the reconstruction.

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, H, W)`): reconstructed pixels. They are not clipped, so a
            loss on them has a gradient everywhere.
    """

    sample: torch.Tensor | None = None


def build_encoder(
    config: ShowoImageTokenizerConfig, out_channels: int, attention: Sequence[bool], act_fn: str = "silu"
) -> Encoder:
    """
    diffusers' encoder with the stages of a config.

    Args:
        config: gives the channels and the residual blocks of each stage.
        out_channels: channels of the output.
        attention: for each stage, full size first, whether its residual blocks are followed by self-attention.
        act_fn: activation of the residual blocks.
    """
    encoder = Encoder(
        in_channels=config.in_channels,
        out_channels=out_channels,
        down_block_types=tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention),
        block_out_channels=tuple(config.encoder_block_out_channels),
        layers_per_block=max(config.encoder_layers_per_block),
        norm_num_groups=config.norm_num_groups,
        act_fn=act_fn,
        double_z=False,
        mid_block_add_attention=config.mid_block_attention,
    )
    # diffusers builds stages of equal depth. The stages of the published MAGVIT-v2 differ in depth.
    drop_surplus_layers(encoder.down_blocks, config.encoder_layers_per_block)
    return encoder


def build_decoder(
    config: ShowoImageTokenizerConfig,
    in_channels: int,
    attention: Sequence[bool],
    act_fn: str = "silu",
    norm_type: str = "group",
) -> Decoder:
    """
    diffusers' decoder with the stages of a config.

    Args:
        config: gives the channels and the residual blocks of each stage.
        in_channels: channels of the input.
        attention: for each stage, full size first, whether its residual blocks are followed by self-attention.
        act_fn: activation of the residual blocks.
        norm_type: "group", or "spatial" for norms that also see the quantized latents.
    """
    decoder = Decoder(
        in_channels=in_channels,
        out_channels=config.in_channels,
        # diffusers orders the decoder from the smallest stage up.
        up_block_types=tuple("AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(attention)),
        block_out_channels=tuple(config.decoder_block_out_channels),
        layers_per_block=max(config.decoder_layers_per_block) - 1,  # diffusers adds one to each stage of a decoder
        norm_num_groups=config.norm_num_groups,
        act_fn=act_fn,
        norm_type=norm_type,
        mid_block_add_attention=config.mid_block_attention,
    )
    drop_surplus_layers(decoder.up_blocks, list(reversed(config.decoder_layers_per_block)))
    return decoder


def drop_surplus_layers(blocks: nn.ModuleList, layers: Sequence[int]):
    """Keep only the first layers of each stage in `blocks`, as many as `layers` says for it."""
    for block, count in zip(blocks, layers, strict=True):
        block.resnets = block.resnets[:count]
        if hasattr(block, "attentions"):
            block.attentions = block.attentions[:count]


class ShowoImageTokenizer(CheckedWeights, PreTrainedModel):
    r"""
    Encodes images to discrete tokens and decodes them. The base of [`ShowoLFQTokenizer`] and [`ShowoVQTokenizer`].

    Height and width of an image must be multiples of `config.downsampling`. A subclass sets `encoder`, `quant_conv`,
    `post_quant_conv` and `decoder`, and defines `quantize`, `codes_of` and `quantizer_losses`.
    """

    config: ShowoImageTokenizerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Its attention comes from diffusers. The attention implementation of the whole model does not change it.
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["ResnetBlock2D", "ResnetBlockCondNorm2D", "UNetMidBlock2D"]

    def __init__(self, config: ShowoImageTokenizerConfig):
        super().__init__(config)
        self.tile_size: int | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize kernels as torch does, which suits a convolutional autoencoder, and biases with zero."""
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    # What a subclass defines

    def quantize(self, latents: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
        """Latents (batch, channels, h, w) to codebook indices (batch, h, w) and their entries, as `latents`."""
        raise NotImplementedError

    def codes_of(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        """Codebook indices (batch, h, w) to codebook entries (batch, channels, h, w) in the model's dtype."""
        raise NotImplementedError

    def quantizer_losses(
        self, latents: torch.Tensor, codes: torch.Tensor, pixel_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        The losses of [`ShowoImageEncoderOutput`] by name, of latents and their entries (batch, channels, h, w).

        `pixel_values` (batch, 3, H, W) are the encoded images.
        """
        raise NotImplementedError

    def compared(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents (batch, channels, h, w) as they are compared with codebook entries."""
        return latents

    def update_codebook(
        self, latents: torch.Tensor, image_tokens: torch.LongTensor, generator: torch.Generator | None = None
    ) -> int:
        """
        Change the codebook after a training step, and return the number of entries that were restarted.

        A tokenizer whose codebook only changes by gradients, or not at all, does nothing. So a training loop calls this
        for every tokenizer, see [`ShowoVQTokenizer.update_codebook`].
        """
        return 0

    # Tiles

    def enable_tiling(self, tile_size: int | None = None):
        """
        Encode and decode images larger than a tile in overlapping tiles, to limit memory.

        The results differ slightly from those without tiles, because each tile is normalized on its own.

        Args:
            tile_size (`int`, *optional*): side of a tile in pixels, a multiple of the downsampling. Defaults to the
                trained size.

        Raises:
            ValueError: if `tile_size` is not a positive multiple of the downsampling.
        """
        tile_size = self.config.sample_size if tile_size is None else tile_size
        factor = self.config.downsampling
        if not is_integer(tile_size) or tile_size < factor or tile_size % factor:
            raise ValueError(f"`tile_size` must be a positive multiple of {factor} pixels, got {shown(tile_size)}.")
        self.tile_size = int(tile_size)

    def disable_tiling(self):
        """Encode and decode every image in one piece."""
        self.tile_size = None

    def is_tiled(self, height: int, width: int) -> bool:
        """Whether an image of this size, in pixels, is processed in tiles."""
        return self.tile_size is not None and max(height, width) > self.tile_size

    # Encode

    def check_size(self, height: int, width: int):
        """Raise `ValueError` unless `height` and `width`, in pixels, are multiples of the downsampling."""
        factor = self.config.downsampling
        if height % factor or width % factor or height < factor or width < factor:
            raise ValueError(
                f"`pixel_values` must have a height and a width that are multiples of {factor}, got {height}x{width}."
            )

    def encode(self, pixel_values: torch.Tensor, return_losses: bool = False) -> ShowoImageEncoderOutput:
        """
        Encode images to tokens.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1]. They are cast to the model's
                dtype.
            return_losses (`bool`): whether to compute the quantizer's losses. Training mode always does.

        Raises:
            ValueError: if `pixel_values` is not 4-dimensional or its size is not a multiple of the downsampling.
        """
        check_tensor("pixel_values", pixel_values)
        check_flag("return_losses", return_losses)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {self.config.in_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        self.check_size(*pixel_values.shape[-2:])
        pixel_values = pixel_values.to(self.dtype)
        factor = self.config.downsampling
        if self.is_tiled(*pixel_values.shape[-2:]):
            latents = encode_tiled(self.encode_latents, pixel_values, self.tile_size // factor, factor)
        else:
            latents = self.encode_latents(pixel_values)  # (batch, channels, h, w)
        compared = self.compared(latents)
        image_tokens, codes = self.quantize(compared)  # (batch, h, w), (batch, channels, h, w)
        losses = self.quantizer_losses(compared, codes, pixel_values) if return_losses or self.training else {}
        return ShowoImageEncoderOutput(
            image_tokens=image_tokens,
            latents=latents,
            quantized=compared + (codes - compared).detach(),  # straight-through estimator
            **losses,
        )

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels `(batch, 3, H, W)` to latents `(batch, codebook_channels, h, w)`."""
        if self.config.encoder_context:
            return self.quant_conv(self.encoder(pixel_values))
        side = self.config.downsampling
        cells = pixel_values.unfold(2, side, side).unfold(3, side, side).movedim(1, 3)  # (batch, h, w, 3, side, side)
        rows, shape = cells.flatten(0, 2).flatten(1), cells.shape[3:]
        # Plain areas have many equal cells, so each different one is encoded once, unless each needs a gradient of its own.
        different, places = (rows, slice(None)) if rows.requires_grad else rows.unique(dim=0, return_inverse=True)
        latents = self.quant_conv(self.encoder(different.unflatten(1, shape))).flatten(1)[places]  # (cells, channels)
        return latents.unflatten(0, cells.shape[:3]).movedim(-1, 1)

    # Decode

    def decode_quantized(self, quantized: torch.Tensor) -> torch.Tensor:
        """Quantized latents `(batch, codebook_channels, h, w)` to pixels `(batch, 3, H, W)`, not clipped."""
        return self.decoder(self.post_quant_conv(quantized))

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Same as `decode_quantized`, in tiles where [`enable_tiling`] says so."""
        factor = self.config.downsampling
        if self.is_tiled(codes.shape[-2] * factor, codes.shape[-1] * factor):
            return decode_tiled(self.decode_quantized, codes, self.tile_size // factor, factor)
        return self.decode_quantized(codes)

    def decode(self, image_tokens: torch.LongTensor) -> ShowoImageDecoderOutput:
        """
        Decode tokens to images.

        Args:
            image_tokens (`torch.LongTensor` of shape `(batch, h, w)`): codebook indices in 0..codebook_size-1.

        Raises:
            ValueError: if `image_tokens` is not a 3-dimensional integer tensor of codebook indices.
        """
        self.check_tokens(image_tokens)
        pixels = self.decode_codes(self.codes_of(image_tokens))
        return ShowoImageDecoderOutput(sample=pixels.clamp(-1, 1))

    def check_tokens(self, image_tokens: torch.LongTensor):
        """Raise `TypeError` or `ValueError` unless `image_tokens` is a (batch, h, w) integer tensor of codebook indices."""
        check_tensor("image_tokens", image_tokens)
        if image_tokens.ndim != 3 or image_tokens.is_floating_point() or image_tokens.dtype == torch.bool:
            raise ValueError(
                "`image_tokens` must be integers of shape (batch, height, width), "
                f"got {image_tokens.dtype} of shape {tuple(image_tokens.shape)}."
            )
        if image_tokens.numel() and not 0 <= image_tokens.min() <= image_tokens.max() < self.config.codebook_size:
            raise ValueError(
                f"`image_tokens` must be from 0 to {self.config.codebook_size - 1}, "
                f"got {image_tokens.min().item()} to {image_tokens.max().item()}."
            )

    # Both

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, return_losses: bool = False) -> ShowoImageTokenizerOutput:
        """
        Encode and reconstruct images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1].
            return_losses (`bool`): whether to compute the quantizer's losses. Training mode always does.
            return_dict (`bool`, *optional*): whether to return an output object instead of a tuple.

        Returns:
            [`ShowoImageTokenizerOutput`]: the fields of [`ShowoImageTokenizer.encode`], and the reconstruction in
            `.sample`, which is not clipped.
        """
        encoded = self.encode(pixel_values, return_losses=return_losses)
        return ShowoImageTokenizerOutput(**encoded, sample=self.decode_codes(encoded.quantized))


def mean_squared_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of two tensors of one shape, in float32."""
    return F.mse_loss(one.float(), other.float())
