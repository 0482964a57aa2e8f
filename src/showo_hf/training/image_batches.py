"""Batches of images for the recipes that train on images alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from .data.examples import Example
from .data.loader import State, StepLoader, TaskData
from .data.sources import DataSource, OpenedSource
from .image_configs import ImageRunConfig
from .masking import row_generator


@dataclass
class Images:
    """
    A batch.

    Args:
        keys: names of the images.
        pixel_values: (batch, 3, H, W) in [-1, 1].
        labels: (batch,) int64 classes, or empty where images have none.
        noise_seeds: the seed of each image's random draws.
    """

    keys: list[str]
    pixel_values: torch.Tensor
    labels: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    noise_seeds: list[int] = field(default_factory=list)

    def first(self, count: int) -> "Images":
        """At most the first `count` images."""
        return Images(self.keys[:count], self.pixel_values[:count], self.labels[:count], self.noise_seeds[:count])


@dataclass
class ImageBuilder:
    """
    Builds the batches. Each image is mirrored and shifted by its own `noise_seed`.

    Args:
        processor: resizes and crops the images.
        mirror: mirror half of the images.
        shift: move each image by up to so many pixels in both directions. The border is white.
        classes: the class of each text. Without it, texts are ignored.
    """

    processor: CLIPImageProcessorPil
    mirror: bool = False
    shift: int = 0
    classes: Mapping[str, int] | None = None

    def __call__(self, examples: Mapping[str, Sequence[Example]]) -> Images:
        (rows,) = examples.values()
        if self.classes is not None:  # held-out images may have a class that training has not
            rows = [row for row in rows if class_name(row) in self.classes]
        size = self.processor.crop_size
        if not rows:  # all images of the batch were broken
            return Images([], torch.zeros(0, 3, size["height"], size["width"]))
        pixels = self.processor(images=[row.image for row in rows], return_tensors="pt")["pixel_values"]
        moved = [self.moved(image, row.noise_seed) for image, row in zip(pixels, rows, strict=True)]
        images = Images([row.key for row in rows], torch.stack(moved), noise_seeds=[row.noise_seed for row in rows])
        if self.classes is not None:
            images.labels = torch.tensor([self.classes[class_name(row)] for row in rows])
        return images

    def moved(self, pixels: torch.Tensor, noise_seed: int) -> torch.Tensor:
        """An image (3, H, W), perhaps mirrored, and shifted."""
        generator = row_generator(noise_seed)
        if self.mirror and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        if self.shift:
            height, width = pixels.shape[1:]
            top, left = torch.randint(0, 2 * self.shift + 1, (2,), generator=generator).tolist()
            padded = F.pad(pixels, [self.shift] * 4, value=1.0)
            pixels = padded[:, top : top + height, left : left + width]
        return pixels


def resized(pixels: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images (batch, 3, H, W) in [-1, 1] at another size, (batch, 3, size, size), without aliasing."""
    if size is None or pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def class_name(row: Example) -> str:
    """The class of an image: its text, or the first of its texts."""
    return row.text[0] if isinstance(row.text, list) else str(row.text)


def data_of(sources: Mapping[str, list[dict[str, Any]]], rows: int) -> dict[str, TaskData]:
    """The data, with `rows` images of each process in a step."""
    return {task: TaskData(tuple(DataSource(**one) for one in listed), rows) for task, listed in sources.items()}


def image_loader(
    config: ImageRunConfig,
    builder: ImageBuilder,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    state: State | None = None,
) -> StepLoader:
    """Loads the images of a run. Arguments as of [`StepLoader`]."""
    return StepLoader(
        data_of(config.data, config.batch_size),
        builder,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        num_workers=num_workers,
        state=state,
        max_broken=config.max_broken,
    )


def first_images(config: ImageRunConfig, builder: ImageBuilder) -> Images:
    """The first images of a run."""
    return next(iter(image_loader(config, builder)))[0]


def validation_images(config: ImageRunConfig, builder: ImageBuilder) -> list[Images] | None:
    """
    The first images of the validation data, each once, or None without such data.

    Of several sources, each gives as many as the others, or all it has. If one of them is streamed, its length is unknown,
    and they are mixed as in training.
    """
    if config.validation_data is None:
        return None
    ((task, data),) = data_of(config.validation_data, config.batch_size).items()

    def loader_of(sources: tuple[DataSource | OpenedSource, ...]) -> StepLoader:
        only = {task: TaskData(sources, data.rows)}
        return StepLoader(only, builder, seed=config.seed, max_broken=config.max_broken)

    loader, wanted = loader_of(data.sources), config.validation_rows
    tables = [source.table for source in loader.sources[task]]
    if None in tables:
        return _first_batches(loader, wanted, config.batch_size)
    counts = even_counts([len(table) for table in tables], wanted)
    parts = [(loader_of((source,)), count) for source, count in zip(data.sources, counts, strict=True) if count]
    return [batch for part, count in parts for batch in _first_batches(part, count, config.batch_size)]


def _first_batches(loader: StepLoader, count: int, batch_size: int) -> list[Images]:
    steps = iter(loader)
    return [next(steps)[0].first(count - first) for first in range(0, count, batch_size)]


def even_counts(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each of several sizes: `total` in all, or everything, and as evenly as possible."""
    counts = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):  # small ones leave more for the others
        left = sum(1 for other in range(len(sizes)) if (sizes[other], other) >= (sizes[place], place))
        counts[place] = min(sizes[place], (total - sum(counts)) // left)
    return counts
