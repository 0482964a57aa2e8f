"""The image tokens of the emoji images, and of shifted and scaled views of them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from showo_hf.models.image_tokenizer import ShowoImageTokenizer


def to_pixel_values(images: np.ndarray) -> torch.Tensor:
    """Convert images (batch, H, W, 3) in 0..255 to pixel values (batch, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def encode_images(
    tokenizer: ShowoImageTokenizer,
    images: np.ndarray,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda pixel_values: pixel_values,
    batch_size: int = 64,
) -> torch.Tensor:
    """Encode images (N, H, W, 3) in 0..255 to tokens (N, h, w) int64. `change` augments pixels in [-1, 1]."""
    chunks = [
        tokenizer.encode(change(to_pixel_values(images[first : first + batch_size]))).image_tokens
        for first in range(0, len(images), batch_size)
    ]
    return torch.cat(chunks)


def encode_views(tokenizer: ShowoImageTokenizer, images: np.ndarray, views: int, seed: int = 0) -> torch.Tensor:
    """Encode images (N, H, W, 3), and `views` moved versions of each, to tokens (1 + views, N, h, w) int64."""
    generator = torch.Generator().manual_seed(seed)
    moved = [encode_images(tokenizer, images, partial(move, generator=generator)) for _ in range(views)]
    return torch.stack([encode_images(tokenizer, images), *moved])


def move(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Shift each image by up to a sixteenth of its size and scale it by 0.85 to 1.1. The border becomes white.

    Args:
        pixel_values: (batch, 3, H, W) in [-1, 1].
    """
    draws = torch.rand(3, len(pixel_values), generator=generator)
    theta = torch.zeros(len(pixel_values), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.85 + 0.25 * draws[0])
    theta[:, :, 2] = (draws[1:].T - 0.5) / 4  # in units of half the image size
    grid = F.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values - 1, grid, align_corners=False) + 1  # zero padding is white after the shift
