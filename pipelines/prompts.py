"""Prompts that are made of several: with weights, and for regions of the image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from showo_hf.processing.processing_showo import check_texts
from showo_hf.utils.validation import is_number

from .encoded_prompts import Composition
from .masks import cut, load_mask, token_shares


@dataclass(frozen=True)
class RegionalPrompt:
    """
    One of several prompts for the same image. A list of parts stands where a text can stand.

    The guided logits are `u + g sum_i w_i (c_i - u)` ("Compositional visual generation with composable diffusion models",
    arXiv:2206.01714): a weight of 2 follows the part twice as much, a negative one leads away from it.

    Args:
        text: what to show.
        weight: w, any finite number.
        mask: where the part counts: an image (white is where), an array or a tensor of any resolution, in [0, 1], which is
            stretched over the image. None is everywhere. At a token, w is multiplied by the mean of the mask over the
            token's patch.
    """

    text: str
    weight: float = 1.0
    mask: Any = None


Prompt: TypeAlias = str | Sequence[RegionalPrompt]


def prompt_parts(prompt: Any) -> list[tuple[RegionalPrompt, ...]]:
    """
    The parts of each prompt: of a text or a list of texts, of a list of parts, or of a list of these.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if is_composed(prompt):
        prompt = [prompt]
    if isinstance(prompt, (list, tuple)) and any(isinstance(one, RegionalPrompt) for one in prompt):
        kinds = sorted({type(one).__name__ for one in prompt})
        raise TypeError(
            f"`prompt` must be a list of `RegionalPrompt` alone, or of texts and such lists, got {kinds} in it."
        )
    if not (isinstance(prompt, (list, tuple)) and any(map(is_composed, prompt))):
        return [(RegionalPrompt(text),) for text in check_texts("prompt", prompt)]
    for one in prompt:
        if not isinstance(one, str) and not is_composed(one):
            raise TypeError(
                f"`prompt` must be a list of texts and lists of `RegionalPrompt`, got {type(one).__name__} in it."
            )
    return [tuple(one) if is_composed(one) else (RegionalPrompt(one),) for one in prompt]


@dataclass(frozen=True)
class PromptBatch:
    """
    The checked prompts of a call.

    Args:
        prompts: the parts of each prompt, with loaded masks.
        negative_prompt: one text for all of them, or one for each.
        num_images_per_prompt: images of each prompt.
    """

    prompts: list[tuple[RegionalPrompt, ...]]
    negative_prompt: str | Sequence[str] | None = None
    num_images_per_prompt: int = 1

    @property
    def images(self) -> list[tuple[RegionalPrompt, ...]]:
        """The parts of each image's prompt."""
        return [parts for parts in self.prompts for _ in range(self.num_images_per_prompt)]

    def crop(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> "PromptBatch":
        """The prompts for a part of an image of `size`, (height, width): left, top, right and bottom, in pixels."""

        def cropped(part: RegionalPrompt) -> RegionalPrompt:
            return part if part.mask is None else replace(part, mask=cut(token_shares(part.mask, size), box))

        return replace(self, prompts=[tuple(map(cropped, parts)) for parts in self.prompts])

    @property
    def batch_size(self) -> int:
        """How many images there are to make."""
        return len(self.prompts) * self.num_images_per_prompt


def load_masks(parts: Sequence[RegionalPrompt]) -> tuple[RegionalPrompt, ...]:
    """Parts whose masks are tensors (H, W), so that no file is read twice; errors as in [`masks.load_mask`]."""
    return tuple(
        part if part.mask is None else replace(part, mask=load_mask(part.mask, "RegionalPrompt.mask"))
        for part in parts
    )


def is_composed(prompt: Any) -> bool:
    """Whether a prompt is a list of parts."""
    return (
        isinstance(prompt, (list, tuple)) and bool(prompt) and all(isinstance(one, RegionalPrompt) for one in prompt)
    )


def check_parts(prompts: Sequence[Sequence[RegionalPrompt]]):
    """Raise `TypeError` or `ValueError` for a text that is none, or a weight that is no finite number."""
    for part in (part for parts in prompts for part in parts):
        if not isinstance(part.text, str):
            raise TypeError(f"`prompt` must have parts with one text each, got {type(part.text).__name__}.")
        check_texts("prompt", part.text)
        if not is_number(part.weight) or not math.isfinite(part.weight):
            raise ValueError(
                f"`prompt` must have parts with finite weights, got {part.weight!r} for {part.text!r:.40}."
            )


def is_plain(parts: Sequence[RegionalPrompt]) -> bool:
    """Whether a prompt is one text, everywhere and with its own weight."""
    return len(parts) == 1 and parts[0].weight == 1 and parts[0].mask is None


def compose(prompts: Sequence[Sequence[RegionalPrompt]], grid_size: tuple[int, int]) -> Composition | None:
    """How the parts of each image's prompt, with loaded masks, come together on a grid; None where all are plain."""
    if all(map(is_plain, prompts)):
        return None
    samples = [sample for sample, parts in enumerate(prompts) for _ in parts]
    weights = [
        part.weight * torch.ones(grid_size) if part.mask is None else part.weight * token_shares(part.mask, grid_size)
        for parts in prompts
        for part in parts
    ]
    return Composition(torch.tensor(samples), torch.stack(weights))
