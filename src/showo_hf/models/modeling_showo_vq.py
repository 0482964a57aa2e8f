"""The image tokenizer with a codebook of vectors, as in VQ-VAE, VQGAN and MoVQ.

The papers are "Neural Discrete Representation Learning" (arXiv:1711.00937), "Taming Transformers for High-Resolution
Image Synthesis" (arXiv:2012.09841) and "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation"
(arXiv:2209.09002). This file adds the quantizer to [`ShowoImageTokenizer`].
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from ..utils.tensor_checks import check_tensor
from ..utils.validation import shown
from .configuration_showo_vq import ShowoVQTokenizerConfig
from .image_tokenizer import ShowoImageTokenizer, build_decoder, build_encoder, mean_squared_distance
from .vector_quantizer import VectorQuantizer


class ShowoVQTokenizer(ShowoImageTokenizer):
    r"""
    Encodes images to discrete tokens and decodes them (VQ-VAE and VQGAN, arXiv:1711.00937 and arXiv:2012.09841).

    Height and width of an image must be multiples of `config.downsampling`. A token is the index of the codebook entry
    that is nearest to a latent. With the cosine distance, `quantized` is of length 1 in every position, and its
    gradient passes through the normalization of the latents.

    A training loop calls [`update_codebook`] after each step. It restarts dead entries, and moves the entries of a
    codebook that learns by EMA.

    Example:

    ```python
    >>> tokenizer = ShowoVQTokenizer.from_pretrained(folder)
    >>> image_tokens = tokenizer.encode(pixel_values).image_tokens  # (batch, h, w) int64
    >>> pixels = tokenizer.decode(image_tokens).sample              # (batch, 3, H, W) in [-1, 1]

    >>> output = tokenizer.train()(pixel_values)
    >>> loss = (output.sample - pixel_values).abs().mean() + output.commitment_loss + output.codebook_loss
    >>> loss.backward()
    >>> optimizer.step()
    >>> tokenizer.update_codebook(output.latents, output.image_tokens, generator)
    ```
    """

    config_class = ShowoVQTokenizerConfig
    config: ShowoVQTokenizerConfig

    def __init__(self, config: ShowoVQTokenizerConfig):
        super().__init__(config)
        channels, dim = config.latent_channels, config.codebook_dim
        self.encoder = build_encoder(config, channels, config.encoder_block_attention, config.act_fn)
        self.quant_conv = nn.Conv2d(channels, dim, 1)
        self.quantizer = VectorQuantizer(
            config.codebook_size,
            dim,
            cosine=config.distance == "cosine",
            learning=config.codebook_learning,
            decay=config.codebook_decay,
            dead_code_threshold=config.dead_code_threshold,
        )
        self.post_quant_conv = nn.Conv2d(dim, channels, 1)
        self.decoder = build_decoder(config, channels, config.decoder_block_attention, config.act_fn, config.norm_type)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Same as in the base class. Codebook entries are uniform in +-1 / codebook_size, as in VQGAN."""
        super()._init_weights(module)
        if isinstance(module, VectorQuantizer):
            bound = 1 / self.config.codebook_size
            init.uniform_(module.codebook, -bound, bound)
            init.ones_(module.code_usage)

    def compared(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents (batch, channels, h, w), of length 1 with the cosine distance."""
        if self.config.distance == "euclidean":
            return latents
        return F.normalize(latents.float(), dim=1).to(latents.dtype)

    def quantize(self, latents: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
        """Latents (batch, channels, h, w) to the nearest entries' indices (batch, h, w) and the entries, as `latents`."""
        rows = latents.movedim(1, -1)  # (batch, h, w, channels)
        image_tokens = self.quantizer.nearest(rows.detach().flatten(0, 2)).view(rows.shape[:-1])
        return image_tokens, self.quantizer.entries(image_tokens).movedim(-1, 1).to(latents.dtype)

    def codes_of(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        """Tokens (batch, h, w) to codebook entries (batch, channels, h, w) in the model's dtype."""
        return self.quantizer.entries(image_tokens).movedim(-1, 1).to(self.dtype)

    def quantizer_losses(
        self, latents: torch.Tensor, codes: torch.Tensor, pixel_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The commitment loss of latents and their entries (batch, channels, h, w), and the loss of the codebook."""
        losses = {"commitment_loss": self.config.commitment_weight * mean_squared_distance(latents, codes.detach())}
        if self.config.codebook_learning == "gradient":
            losses["codebook_loss"] = self.config.codebook_weight * mean_squared_distance(codes, latents.detach())
        return losses

    def decode_quantized(self, quantized: torch.Tensor) -> torch.Tensor:
        """Quantized latents `(batch, codebook_dim, h, w)` to pixels `(batch, 3, H, W)`, not clipped."""
        condition = quantized if self.config.norm_type == "spatial" else None
        return self.decoder(self.post_quant_conv(quantized), condition)

    def update_codebook(
        self, latents: torch.Tensor, image_tokens: torch.LongTensor, generator: torch.Generator | None = None
    ) -> int:
        """
        Move the entries if they learn by EMA, and restart dead entries at latents of the batch.

        Call it after the backward pass. In a process group, every process must call it, and the
        latents of all of them count. An optimizer's moments of a restarted entry stay as they are.

        Args:
            latents (`torch.Tensor` of shape `(batch, channels, h, w)`): as from [`encode`].
            image_tokens (`torch.LongTensor` of shape `(batch, h, w)`): their tokens.
            generator (`torch.Generator`, *optional*): a CPU generator that draws the latents of restarted entries.

        Returns:
            number of restarted entries.

        Raises:
            TypeError, ValueError: if an argument is not as above, or if `generator` is None although
                `dead_code_threshold` is above 0.
        """
        check_tensor("latents", latents)
        self.check_tokens(image_tokens)
        batch, *grid = image_tokens.shape
        wanted = (batch, self.config.codebook_channels, *grid)
        if tuple(latents.shape) != wanted or not latents.is_floating_point():
            raise ValueError(
                f"`latents` must be floats of shape {wanted}, for `image_tokens`, got {latents.dtype} "
                f"{tuple(latents.shape)}."
            )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a `torch.Generator` or None, got {shown(generator)}.")
        rows = self.compared(latents.detach()).movedim(1, -1).flatten(0, 2)  # (positions, channels)
        return self.quantizer.update(rows, image_tokens.flatten(), generator)
