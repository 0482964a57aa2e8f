"""The image tokenizer: MAGVIT-v2's encoder and decoder around a lookup-free quantizer.

The paper is "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (arXiv:2310.05737).
This file adds the quantizer to [`ShowoImageTokenizer`].
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_showo_lfq import ShowoLFQTokenizerConfig
from .image_tokenizer import ShowoImageTokenizer, build_decoder, build_encoder, mean_squared_distance


def bits_to_indices(bits: torch.Tensor) -> torch.LongTensor:
    """Binary digits (..., bits), most significant first, to integers (...)."""
    powers = 2 ** torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)
    return (bits.long() * powers).sum(-1)


def indices_to_codes(indices: torch.LongTensor, num_bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Codebook indices (...) to codebook entries (..., num_bits) of -1 and 1, most significant bit first."""
    shifts = torch.arange(num_bits - 1, -1, -1, device=indices.device)
    bits = (indices.unsqueeze(-1) >> shifts) & 1
    return (2 * bits - 1).to(dtype)


def bit_entropy_loss(
    latents: torch.Tensor, temperature: float = 1.0, spread: torch.BoolTensor | None = None
) -> torch.Tensor:
    r"""
    Entropy loss of lookup-free quantization per bit: the mean over the bits of `E[H(q(b|z))] - H(E[q(b|z)])`.

    `latents` is (positions, bits). The assignment `q(c|z) \propto exp(-|z - c|^2 / temperature)` to the codebook
    entries c in {-1, 1}^bits (arXiv:2310.05737, section 3) is a product over the bits, so its entropy is a sum of
    binary entropies. So is the entropy of the mean, if the bits are independent. The original uses this loss. Its cost
    does not depend on the size of the codebook.

    `spread` (positions,) says over which positions the second term takes its mean; by default, over all.
    """
    log_odds = 4 * latents.float() / temperature  # |z + 1|^2 - |z - 1|^2 = 4 z
    sample_entropy = binary_entropy_from_logits(log_odds).mean()
    mean = mean_over(torch.sigmoid(log_odds), spread).clamp(1e-6, 1 - 1e-6)  # (bits,)
    return sample_entropy - binary_entropy_from_logits(torch.logit(mean)).mean()


def code_entropy_loss(
    latents: torch.Tensor, temperature: float = 1.0, spread: torch.BoolTensor | None = None
) -> torch.Tensor:
    r"""
    Entropy loss of lookup-free quantization over codebook entries, `(E[H(q(c|z))] - H(E[q(c|z)])) / bits`.

    `latents` is (positions, bits), q and `spread` as in [`bit_entropy_loss`]. Unlike that loss, this one penalizes
    correlated bits, so the model uses more of the codebook. It needs memory for positions x codebook entries numbers.
    """
    num_bits = latents.shape[-1]
    codes = indices_to_codes(torch.arange(2**num_bits, device=latents.device), num_bits)  # (codes, bits)
    log_q = (2 * latents.float() / temperature @ codes.T).log_softmax(-1)  # (positions, codes)
    sample_entropy = binary_entropy_from_logits(4 * latents.float() / temperature).sum(-1).mean()
    mean = mean_over(log_q.exp(), spread)  # (codes,)
    # A code that no latent reaches has the probability 0 in float32, where `torch.xlogy` has no gradient.
    log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return (sample_entropy + (mean * log_mean).sum()) / num_bits


def mean_over(values: torch.Tensor, chosen: torch.BoolTensor | None) -> torch.Tensor:
    """The mean of the rows of `values` (positions, n) that are `chosen` (positions,); of all, if it is None or all False."""
    if chosen is None:
        return values.mean(0)
    weights = torch.where(chosen.any(), chosen, torch.ones_like(chosen)).to(values.dtype)
    return (weights / weights.sum()) @ values


def cell_contrast(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """
    How much the pixels of each cell of `size` x `size` pixels differ: (batch, H / size, W / size).

    It is the largest value minus the smallest one, of the channel where they differ most.
    """
    highest, lowest = F.max_pool2d(pixel_values, size), -F.max_pool2d(-pixel_values, size)
    return (highest - lowest).amax(1)


def binary_entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Entropy, in nats, of Bernoulli(sigmoid(logits)), elementwise."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


class ShowoLFQTokenizer(ShowoImageTokenizer):
    r"""
    Encodes images to discrete tokens and decodes them (MAGVIT-v2 with a lookup-free quantizer, arXiv:2310.05737).

    Height and width of an image must be multiples of `config.downsampling`. Quantized latents are -1 or 1, one channel
    for each bit. Channel 0 is the most significant bit of a token. A bit is 1 if its latent is above zero.

    Example:

    ```python
    >>> tokenizer = ShowoLFQTokenizer.from_pretrained(folder)
    >>> image_tokens = tokenizer.encode(pixel_values).image_tokens  # (batch, h, w) int64
    >>> pixels = tokenizer.decode(image_tokens).sample              # (batch, 3, H, W) in [-1, 1]
    ```
    """

    config_class = ShowoLFQTokenizerConfig
    config: ShowoLFQTokenizerConfig

    def __init__(self, config: ShowoLFQTokenizerConfig):
        super().__init__(config)
        without_attention = [False] * len(config.encoder_block_out_channels)
        bits = config.codebook_bits
        self.encoder = build_encoder(config, bits, without_attention)
        self.quant_conv = nn.Conv2d(bits, bits, 1)
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)
        self.decoder = build_decoder(config, bits, without_attention)
        self.post_init()

    def quantize(self, latents: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
        """Latents (batch, bits, h, w) to tokens (batch, h, w), and the signs of the latents, as `latents`."""
        bits = latents > 0
        return bits_to_indices(bits.movedim(1, -1)), 2.0 * bits.to(latents.dtype) - 1

    def codes_of(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        """Tokens (batch, h, w) to their bits (batch, bits, h, w) as -1 and 1, in the model's dtype."""
        return indices_to_codes(image_tokens, self.config.codebook_bits, self.dtype).movedim(-1, 1)

    def quantizer_losses(
        self, latents: torch.Tensor, codes: torch.Tensor, pixel_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The commitment loss and the entropy loss of latents and their signs (batch, bits, h, w)."""
        flat = latents.movedim(1, -1).flatten(0, 2)  # (batch * h * w, bits)
        spread, least = None, self.config.entropy_least_contrast
        if least > 0:
            spread = (cell_contrast(pixel_values, self.config.downsampling) >= least).flatten()
        entropy_loss = {"bits": bit_entropy_loss, "codes": code_entropy_loss}[self.config.entropy_over]
        with torch.autocast(flat.device.type, enabled=False):  # small differences of logarithms need float32
            entropy = entropy_loss(flat, self.config.entropy_temperature, spread)
        return {
            "commitment_loss": self.config.commitment_weight * mean_squared_distance(latents, codes),
            "entropy_loss": self.config.entropy_weight * entropy,
        }
