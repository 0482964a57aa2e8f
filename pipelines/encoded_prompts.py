"""Encoded prompts: their key-value cache, and how to combine the logits of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from .guidance import guide
from .kv_cache import select_rows


@dataclass(frozen=True)
class EncodedPrompts:
    """
    Keys and values of the prompts. A call computes them once, and every step reuses them.

    The conditional rows come first: one per image, or several per image with regional prompts. With guidance, one
    unconditional row per image follows.

    Args:
        cache (`DynamicCache`): keys and values of shape `(rows, heads, length, head_dim)`.
        attention_mask (`torch.LongTensor` of shape `(rows, length)`): 0 at pads.
        first_position (`int` or `torch.LongTensor` of shape `(rows, 1)`): position of the image's `soi` token.
        image_indices (`torch.LongTensor` of shape `(rows,)`): the image of the batch that each row belongs to.
        weights (`torch.FloatTensor` of shape `(conditional rows, h, w)`, *optional*): weight of each conditional row at
            each image token. None if every image has one plain prompt.
    """

    cache: DynamicCache
    attention_mask: torch.LongTensor
    first_position: int | torch.LongTensor
    image_indices: torch.LongTensor
    weights: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of conditional and unconditional rows."""
        return len(self.image_indices)

    @property
    def num_images(self) -> int:
        """Number of images in the batch."""
        return int(self.image_indices[-1]) + 1  # the last row belongs to the last image

    @property
    def is_guided(self) -> bool:
        """Whether there are unconditional rows."""
        return self.weights is not None or self.num_rows > self.num_images

    def crop(self, rows: slice, columns: slice) -> "EncodedPrompts":
        """Crop `weights` to a window of the token grid. The cache is shared."""
        return self if self.weights is None else replace(self, weights=self.weights[:, rows, columns])

    def select(self, images: Sequence[int]) -> "EncodedPrompts":
        """
        Keep the prompts of some images, given by their ascending indices.

        The result owns its cache, unless nothing is dropped: then it is `self`.
        """
        if len(images) == self.num_images:
            return self
        wanted = torch.tensor(images, device=self.image_indices.device)
        rows = torch.isin(self.image_indices, wanted).nonzero().flatten()
        kept = self.select_rows(rows)
        weights = None if self.weights is None else self.weights[rows[rows < len(self.weights)].cpu()]
        return replace(kept, image_indices=torch.searchsorted(wanted, kept.image_indices), weights=weights)

    def without_guidance(self) -> "EncodedPrompts":
        """
        Drop the unconditional rows, unless `weights` need them.

        The result owns its cache, unless nothing is dropped: then it is `self`.
        """
        if self.weights is not None or not self.is_guided:
            return self
        return self.select_rows(torch.arange(self.num_images, device=self.image_indices.device))

    def select_rows(self, rows: torch.LongTensor) -> "EncodedPrompts":
        """Keep some rows, without their weights. The result owns its cache."""
        first = self.first_position
        return EncodedPrompts(
            cache=select_rows(self.cache, rows),
            attention_mask=self.attention_mask[rows],
            first_position=first if isinstance(first, int) else first[rows],
            image_indices=self.image_indices[rows],
        )

    def combine(self, logits: torch.Tensor, wanted: torch.BoolTensor, guidance_scale: float) -> torch.Tensor:
        """
        Combine the logits of all rows into the guided logits of each image.

        Args:
            logits (`torch.Tensor` of shape `(wanted tokens of all rows, codebook)`): row by row.
            wanted (`torch.BoolTensor` of shape `(images, tokens)`): tokens whose logits were computed.
            guidance_scale (`float`): g in `g c - (g - 1) u`.

        Returns:
            `torch.Tensor` of shape `(wanted tokens, codebook)`, image by image.
        """
        if self.weights is None:
            return guide(guidance_scale, *logits.chunk(self.num_rows // len(wanted)))
        rows = logits.split(wanted.sum(1)[self.image_indices].tolist())
        conditional = compose_logits(
            rows[: -len(wanted)], rows[-len(wanted) :], self.image_indices, self.weights, wanted
        )
        return guide(guidance_scale, conditional, torch.cat(rows[-len(wanted) :]))


def compose_logits(
    conditional: Sequence[torch.Tensor],
    unconditional: Sequence[torch.Tensor],
    image_indices: torch.LongTensor,
    weights: torch.Tensor,
    wanted: torch.BoolTensor,
) -> torch.Tensor:
    """
    Compose several prompts for one image: `c = sum_i w_i c_i + (1 - sum_i w_i) u` ("Compositional visual generation with
    composable diffusion models", arXiv:2206.01714).

    Args:
        conditional: logits of each conditional row, `(wanted tokens, codebook)`.
        unconditional: logits of each image's unconditional row.
        image_indices (`torch.LongTensor`): the image of each conditional row. Further entries are ignored.
        weights (`torch.FloatTensor` of shape `(conditional rows, h, w)`): w_i.
        wanted (`torch.BoolTensor` of shape `(images, h * w)`): tokens whose logits were computed.

    Returns:
        `torch.Tensor` of shape `(wanted tokens, codebook)`, image by image.
    """
    composed = []
    for image, u in enumerate(unconditional):
        total, left = torch.zeros_like(u), torch.ones_like(u[:, :1])
        for row in (image_indices[: len(conditional)] == image).nonzero().flatten().tolist():
            weight = weights[row].to(u).flatten()[wanted[image]].unsqueeze(-1)  # (wanted, 1)
            total, left = total + weight * conditional[row], left - weight
        composed.append(total + left * u)
    return torch.cat(composed)


def join_prompts(prompts: Sequence[EncodedPrompts]) -> EncodedPrompts:
    """Concatenate prompts of the same images as rows of one batch. Shorter ones are padded on the left."""
    longest = max(one.attention_mask.shape[1] for one in prompts)

    def join(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        trailing = (0, 0) * (-1 - dim)  # dimensions after the padded one
        return torch.cat([F.pad(tensor, (*trailing, longest - tensor.shape[dim], 0)) for tensor in tensors])

    layers = [
        (join([layer.keys for layer in same], -2), join([layer.values for layer in same], -2))
        for same in zip(*(one.cache.layers for one in prompts), strict=True)
    ]
    masks = [one.attention_mask for one in prompts]
    first = [torch.full((len(mask), 1), one.first_position) for one, mask in zip(prompts, masks, strict=True)]
    return EncodedPrompts(
        cache=DynamicCache(layers),
        attention_mask=join(masks, -1),
        first_position=torch.cat(first).to(masks[0].device),
        image_indices=torch.cat([one.image_indices for one in prompts]),
    )
