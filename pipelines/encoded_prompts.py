"""Prompts as the loop uses them: their keys and values, and how the logits of several rows become one image's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from .caches import select_rows


@dataclass(frozen=True)
class Composition:
    """
    Several prompts for one image, each with a weight at every token ("Compositional visual generation with composable
    diffusion models", arXiv:2206.01714): the conditional logits are `c = sum_i w_i c_i + (1 - sum_i w_i) u`.

    Args:
        samples (`torch.LongTensor` of shape `(conditional rows,)`): the image that each row belongs to.
        weights (`torch.FloatTensor` of shape `(conditional rows, h, w)`): w_i.
    """

    samples: torch.LongTensor
    weights: torch.Tensor

    def crop(self, rows: slice, columns: slice) -> "Composition":
        """That of a part of the token grid."""
        return replace(self, weights=self.weights[:, rows, columns])

    def select(self, images: torch.LongTensor) -> "Composition":
        """That of some of the images, given by their rising numbers, which are counted anew."""
        kept = torch.isin(self.samples, images)
        return Composition(torch.searchsorted(images, self.samples[kept]), self.weights[kept])

    def compose(
        self, conditional: Sequence[torch.Tensor], unconditional: Sequence[torch.Tensor], unknown: torch.BoolTensor
    ) -> torch.Tensor:
        """
        The conditional logits of all unknown tokens, one image behind the other.

        Args:
            conditional: logits (unknown tokens, codebook) of each conditional row.
            unconditional: those of each image's unconditional row.
            unknown (`torch.BoolTensor` of shape `(batch, tokens)`).
        """
        composed = []
        for sample, u in enumerate(unconditional):
            total, left = torch.zeros_like(u), torch.ones_like(u[:, :1])
            for row in (self.samples == sample).nonzero().flatten().tolist():
                weight = self.weights[row].to(u).flatten()[unknown[sample]].unsqueeze(-1)  # (unknown, 1)
                total, left = total + weight * conditional[row], left - weight
            composed.append(total + left * u)
        return torch.cat(composed)


@dataclass(frozen=True)
class EncodedPrompts:
    """
    Keys and values of the prompts, computed once and used by every step.

    Rows are the conditional ones, one an image or as many as `composition` says, and behind them one unconditional row an
    image where there is guidance.

    Args:
        cache: `DynamicCache` of (rows, heads, length, head_dim).
        attention_mask (`torch.LongTensor` of shape `(rows, length)`): 0 at pads.
        first_position (`int` or `torch.LongTensor` of shape `(rows, 1)`): position of an image's `soi` behind the prompts.
        composition: how several conditional rows make one image, None where each makes its own.
    """

    cache: DynamicCache
    attention_mask: torch.LongTensor
    first_position: int | torch.LongTensor
    composition: Composition | None = None

    @property
    def num_rows(self) -> int:
        """Conditional and unconditional rows together."""
        return self.attention_mask.shape[0]

    def sample_of_rows(self, batch_size: int) -> torch.LongTensor:
        """The image that each row belongs to, (rows,)."""
        device = self.attention_mask.device
        each = torch.arange(batch_size, device=device)
        if self.composition is not None:
            return torch.cat([self.composition.samples.to(device), each])
        return each.repeat(self.num_rows // batch_size)

    def crop(self, rows: slice, columns: slice) -> "EncodedPrompts":
        """The same prompts for a part of the token grid; the cache is shared."""
        return self if self.composition is None else replace(self, composition=self.composition.crop(rows, columns))

    def select(self, images: list[int], batch_size: int) -> "EncodedPrompts":
        """The prompts of some of the images, given by their rising numbers, with a cache of their own."""
        if len(images) == batch_size:
            return self
        wanted = torch.tensor(images)
        rows = torch.isin(self.sample_of_rows(batch_size).cpu(), wanted).nonzero().flatten()
        return self.keep(rows, None if self.composition is None else self.composition.select(wanted))

    def without_guidance(self, batch_size: int) -> "EncodedPrompts":
        """The conditional rows, with a cache of their own; all rows where a composition needs the unconditional ones."""
        if self.composition is not None or self.num_rows == batch_size:
            return self
        return self.keep(torch.arange(batch_size))

    def keep(self, rows: torch.LongTensor, composition: Composition | None = None) -> "EncodedPrompts":
        """Some of the rows, with a cache of their own."""
        first = self.first_position
        return EncodedPrompts(
            select_rows(self.cache, rows.tolist()),
            self.attention_mask[rows.to(self.attention_mask.device)],
            first if isinstance(first, int) else first[rows.to(first.device)],
            composition,
        )


def join_prompts(prompts: Sequence[EncodedPrompts]) -> EncodedPrompts:
    """The rows of several prompts as one batch, with a cache of its own; shorter ones are padded on the left."""
    longest = max(one.attention_mask.shape[1] for one in prompts)

    def joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        behind = (0, 0) * (-1 - dim)  # dimensions behind the one that is padded
        return torch.cat([F.pad(tensor, (*behind, longest - tensor.shape[dim], 0)) for tensor in tensors])

    layers = [
        (joined([layer.keys for layer in same], -2), joined([layer.values for layer in same], -2))
        for same in zip(*(one.cache.layers for one in prompts), strict=True)
    ]
    masks = [one.attention_mask for one in prompts]
    first = [torch.full((len(mask), 1), one.first_position) for one, mask in zip(prompts, masks, strict=True)]
    return EncodedPrompts(DynamicCache(layers), joined(masks, -1), torch.cat(first).to(masks[0].device))
