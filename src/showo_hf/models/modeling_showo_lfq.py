"""The image tokenizer: MAGVIT-v2's encoder and decoder around a lookup-free quantizer.

The paper is "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (arXiv:2310.05737).
Encoder and decoder come from diffusers. This file adds the quantizer and the public methods.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_showo_lfq import ShowoLFQTokenizerConfig
from .tiling import decode_tiled, encode_tiled


@dataclass
class ShowoLFQEncoderOutput(ModelOutput):
    """
    Output of [`ShowoLFQTokenizer.encode`], for images of h x w tokens.

    Args:
        image_tokens (`torch.LongTensor` of shape `(batch, h, w)`): codebook indices in 0..codebook_size-1. Channel 0 of
            the latent is the most significant bit. A bit is 1 if its latent is above zero.
        latents (`torch.Tensor` of shape `(batch, bits, h, w)`): encoder output before quantization.
        quantized (`torch.Tensor` of shape `(batch, bits, h, w)`): -1 or 1. Gradients pass straight through to `latents`.
        commitment_loss (`torch.Tensor` of shape `()`, *optional*): weighted mean squared distance between
            `latents` and their quantized values.
        entropy_loss (`torch.Tensor` of shape `()`, *optional*): weighted entropy loss.
    """

    image_tokens: torch.LongTensor | None = None
    latents: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None


@dataclass
class ShowoLFQDecoderOutput(ModelOutput):
    """
    Output of [`ShowoLFQTokenizer.decode`].

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1].
    """

    sample: torch.Tensor | None = None


@dataclass
class ShowoLFQTokenizerOutput(ShowoLFQEncoderOutput):
    """
    Output of [`ShowoLFQTokenizer.forward`]: the fields of [`ShowoLFQEncoderOutput`] and the reconstruction.

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, H, W)`): reconstructed pixels. They are not clipped, so a
            loss on them has a gradient everywhere.
    """

    sample: torch.Tensor | None = None


def bits_to_indices(bits: torch.Tensor) -> torch.LongTensor:
    """Binary digits (..., bits), most significant first, to integers (...)."""
    powers = 2 ** torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)
    return (bits.long() * powers).sum(-1)


def indices_to_codes(indices: torch.LongTensor, num_bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Codebook indices (...) to codebook entries (..., num_bits) of -1 and 1, most significant bit first."""
    shifts = torch.arange(num_bits - 1, -1, -1, device=indices.device)
    bits = (indices.unsqueeze(-1) >> shifts) & 1
    return (2 * bits - 1).to(dtype)


def bit_entropy_loss(latents: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    r"""
    Entropy loss of lookup-free quantization per bit: the mean over the bits of `E[H(q(b|z))] - H(E[q(b|z)])`.

    `latents` is (positions, bits). The assignment `q(c|z) \propto exp(-|z - c|^2 / temperature)` to the codebook
    entries c in {-1, 1}^bits (arXiv:2310.05737, section 3) is a product over the bits, so its entropy is a sum of
    binary entropies. So is the entropy of the mean, if the bits are independent. The original uses this loss. Its cost
    does not depend on the size of the codebook.
    """
    log_odds = 4 * latents.float() / temperature  # |z + 1|^2 - |z - 1|^2 = 4 z
    sample_entropy = binary_entropy_from_logits(log_odds).mean()
    mean = torch.sigmoid(log_odds).mean(0).clamp(1e-6, 1 - 1e-6)  # (bits,)
    return sample_entropy - binary_entropy_from_logits(torch.logit(mean)).mean()


def code_entropy_loss(latents: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    r"""
    Entropy loss of lookup-free quantization over codebook entries, `(E[H(q(c|z))] - H(E[q(c|z)])) / bits`.

    `latents` is (positions, bits), q as in [`bit_entropy_loss`]. Unlike that loss, this one penalizes correlated bits,
    so the model uses more of the codebook. It needs memory for positions x codebook entries numbers.
    """
    num_bits = latents.shape[-1]
    codes = indices_to_codes(torch.arange(2**num_bits, device=latents.device), num_bits)  # (codes, bits)
    log_q = (2 * latents.float() / temperature @ codes.T).log_softmax(-1)  # (positions, codes)
    sample_entropy = binary_entropy_from_logits(4 * latents.float() / temperature).sum(-1).mean()
    mean = log_q.exp().mean(0)  # (codes,)
    return (sample_entropy + torch.xlogy(mean, mean).sum()) / num_bits


def binary_entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Entropy, in nats, of Bernoulli(sigmoid(logits)), elementwise."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def drop_surplus_layers(blocks: nn.ModuleList, layers: Iterable[int]):
    """Keep only the first residual blocks of each stage in `blocks`, as many as `layers` says for it."""
    for block, count in zip(blocks, layers, strict=True):
        block.resnets = block.resnets[:count]


class ShowoLFQTokenizer(PreTrainedModel):
    r"""
    Encodes images to discrete tokens and decodes them (MAGVIT-v2 with a lookup-free quantizer, arXiv:2310.05737).

    Height and width of an image must be multiples of `config.downsampling`.

    Example:

    ```python
    >>> tokenizer = ShowoLFQTokenizer.from_pretrained(folder)
    >>> image_tokens = tokenizer.encode(pixel_values).image_tokens  # (batch, h, w) int64
    >>> pixels = tokenizer.decode(image_tokens).sample              # (batch, 3, H, W) in [-1, 1]
    ```
    """

    config_class = ShowoLFQTokenizerConfig
    config: ShowoLFQTokenizerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Its attention comes from diffusers. The attention implementation of the whole model does not change it.
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["ResnetBlock2D", "UNetMidBlock2D"]

    def __init__(self, config: ShowoLFQTokenizerConfig):
        super().__init__(config)
        stages = len(config.encoder_block_out_channels)
        bits = config.codebook_bits
        self.encoder = Encoder(
            in_channels=config.in_channels,
            out_channels=bits,
            down_block_types=("DownEncoderBlock2D",) * stages,
            block_out_channels=tuple(config.encoder_block_out_channels),
            layers_per_block=max(config.encoder_layers_per_block),
            norm_num_groups=config.norm_num_groups,
            double_z=False,
            mid_block_add_attention=config.mid_block_attention,
        )
        self.quant_conv = nn.Conv2d(bits, bits, 1)
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)
        self.decoder = Decoder(
            in_channels=bits,
            out_channels=config.in_channels,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=tuple(config.decoder_block_out_channels),
            layers_per_block=max(config.decoder_layers_per_block) - 1,  # diffusers adds one to each stage of a decoder
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_attention,
        )
        # diffusers builds stages of equal depth. The stages of the published tokenizer differ in depth.
        drop_surplus_layers(self.encoder.down_blocks, config.encoder_layers_per_block)
        drop_surplus_layers(self.decoder.up_blocks, reversed(config.decoder_layers_per_block))
        self.tile_size: int | None = None
        self.post_init()

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
        if not isinstance(tile_size, int) or tile_size < factor or tile_size % factor:
            raise ValueError(f"`tile_size` must be a positive multiple of {factor} pixels, got {tile_size!r}.")
        self.tile_size = tile_size

    def disable_tiling(self):
        """Encode and decode every image in one piece."""
        self.tile_size = None

    def is_tiled(self, height: int, width: int) -> bool:
        """Whether an image of this size, in pixels, is processed in tiles."""
        return self.tile_size is not None and max(height, width) > self.tile_size

    def check_size(self, height: int, width: int):
        """Raise `ValueError` unless `height` and `width`, in pixels, are multiples of the downsampling."""
        factor = self.config.downsampling
        if height % factor or width % factor or height < factor or width < factor:
            raise ValueError(
                f"`pixel_values` must have a height and a width that are multiples of {factor}, got {height}x{width}."
            )

    def encode(self, pixel_values: torch.Tensor, return_losses: bool = False) -> ShowoLFQEncoderOutput:
        """
        Encode images to tokens.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1]. They are cast to the model's
                dtype.
            return_losses (`bool`): whether to compute the commitment and entropy losses. Training mode always does.

        Raises:
            ValueError: if `pixel_values` is not 4-dimensional or its size is not a multiple of the downsampling.
        """
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
            latents = self.encode_latents(pixel_values)  # (batch, bits, h, w)
        bits = latents > 0
        codes = 2.0 * bits.to(latents.dtype) - 1
        output = ShowoLFQEncoderOutput(
            image_tokens=bits_to_indices(bits.movedim(1, -1)),  # (batch, h, w)
            latents=latents,
            quantized=latents + (codes - latents).detach(),  # straight-through estimator
        )
        if return_losses or self.training:
            flat = latents.movedim(1, -1).flatten(0, 2)  # (batch * h * w, bits)
            output.commitment_loss = self.config.commitment_weight * F.mse_loss(latents.float(), codes.float())
            entropy_loss = {"bits": bit_entropy_loss, "codes": code_entropy_loss}[self.config.entropy_over]
            with torch.autocast(flat.device.type, enabled=False):  # small differences of logarithms need float32
                loss = entropy_loss(flat, self.config.entropy_temperature)
            output.entropy_loss = self.config.entropy_weight * loss
        return output

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels `(batch, 3, H, W)` to latents `(batch, bits, h, w)`."""
        return self.quant_conv(self.encoder(pixel_values))

    def decode_quantized(self, quantized: torch.Tensor) -> torch.Tensor:
        """Quantized latents `(batch, bits, h, w)` to pixels `(batch, 3, H, W)`, not clipped."""
        return self.decoder(self.post_quant_conv(quantized))

    def decode(self, image_tokens: torch.LongTensor) -> ShowoLFQDecoderOutput:
        """
        Decode tokens to images.

        Args:
            image_tokens (`torch.LongTensor` of shape `(batch, h, w)`): codebook indices in 0..codebook_size-1.

        Raises:
            ValueError: if `image_tokens` is not a 3-dimensional integer tensor of codebook indices.
        """
        self.check_tokens(image_tokens)
        codes = indices_to_codes(image_tokens, self.config.codebook_bits, self.dtype).movedim(-1, 1)
        factor = self.config.downsampling
        if self.is_tiled(codes.shape[-2] * factor, codes.shape[-1] * factor):
            pixels = decode_tiled(self.decode_quantized, codes, self.tile_size // factor, factor)
        else:
            pixels = self.decode_quantized(codes)
        return ShowoLFQDecoderOutput(sample=pixels.clamp(-1, 1))

    def check_tokens(self, image_tokens: torch.LongTensor):
        """Raise `ValueError` unless `image_tokens` is a (batch, h, w) integer tensor of codebook indices."""
        if image_tokens.ndim != 3 or image_tokens.is_floating_point():
            raise ValueError(
                "`image_tokens` must be integers of shape (batch, height, width), "
                f"got {image_tokens.dtype} of shape {tuple(image_tokens.shape)}."
            )
        if image_tokens.numel() and not 0 <= image_tokens.min() <= image_tokens.max() < self.config.codebook_size:
            raise ValueError(
                f"`image_tokens` must be from 0 to {self.config.codebook_size - 1}, "
                f"got {image_tokens.min().item()} to {image_tokens.max().item()}."
            )

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, return_losses: bool = False) -> ShowoLFQTokenizerOutput:
        """
        Encode and reconstruct images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1].
            return_losses (`bool`): whether to compute the commitment and entropy losses. Training mode always does.
            return_dict (`bool`, *optional*): whether to return an output object instead of a tuple.

        Returns:
            [`ShowoLFQTokenizerOutput`]: the fields of [`ShowoLFQTokenizer.encode`], and the reconstruction in
            `.sample`, which is not clipped.
        """
        encoded = self.encode(pixel_values, return_losses=return_losses)
        return ShowoLFQTokenizerOutput(**encoded, sample=self.decode_quantized(encoded.quantized))
