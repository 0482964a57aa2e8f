"""Images of benchmarks as pixels: made by a pipeline, compared with others, and saved."""

from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F


COMPARED_SIZE = 32  # image size for the distance of pictures, in pixels


def generate(pipe: Any, texts: list[str], seed: int, batch_size: int, **options: Any) -> torch.Tensor:
    """
    A pipeline's images for prompts, (prompts, 3, H, W) in [-1, 1].

    Args:
        pipe: the pipeline.
        texts: the prompts.
        seed: the image of prompt i has its own generator with the seed `seed + i`.
        batch_size: images that are made together.
        options: further arguments of the pipeline. They are the same for every batch.
    """
    images = []
    for first in range(0, len(texts), batch_size):
        some = texts[first : first + batch_size]
        made = pipe(some, generator=generators(seed + first, len(some)), output_type="pt", **options).images
        images.append(made.float() * 2 - 1)
    return torch.cat(images)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """A generator for each of `count` images, with the seeds from `seed` on."""
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def shrink(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Average images (N, 3, H, W) to `size` x `size` pixels, as rows (N, 3 * size * size)."""
    return F.adaptive_avg_pool2d(pixels, size).flatten(1)


def nearest(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The index of the nearest candidate for each query, (N,)."""
    return torch.cdist(queries, candidates).argmin(-1)


def to_image(pixels: torch.Tensor, scale: int = 1) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as an image, each pixel `scale` x `scale` pixels large."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(0, -1)
    image = Image.fromarray(levels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
