"""Images as pixel values and as image tokens."""

import numpy as np
import torch

from showo_hf.models.image_tokenizer import ShowoImageTokenizer


def to_pixel_values(images: np.ndarray) -> torch.Tensor:
    """Convert images (batch, H, W, 3) in 0..255 to pixel values (batch, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).movedim(-1, 1).float() / 127.5 - 1


def as_in_a_file(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] after rounding to 8 bits."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def encode_images(tokenizer: ShowoImageTokenizer, images: np.ndarray, batch_size: int = 64) -> torch.Tensor:
    """Encode images (N, H, W, 3) in 0..255 to tokens (N, h, w) int64."""
    chunks = [
        tokenizer.encode(to_pixel_values(images[first : first + batch_size])).image_tokens
        for first in range(0, len(images), batch_size)
    ]
    return torch.cat(chunks)
