"""The `prompt` argument: texts and regional prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from showo_hf.processing.processing_showo import check_texts
from showo_hf.utils.validation import MAX_SCALE, check_unicode, is_number, shown

from .masks import average_mask, crop_mask, load_mask


@dataclass(frozen=True)
class RegionalPrompt:
    """
    One of several prompts for the same image. A list of them takes the place of a text prompt.

    The guided logits are `u + g sum_i w_i (c_i - u)` ("Compositional visual generation with composable diffusion models",
    arXiv:2206.01714). A weight of 2 follows the prompt twice as much. A negative weight leads away from it.

    Args:
        text (`str`): what to show.
        weight (`float`, defaults to 1.0): w, from -10,000 to 10,000.
        mask (*optional*): where the prompt applies: an image (white is 1), an array or a tensor of any resolution, in
            [0, 1], stretched over the image. None is everywhere. At each token, w is multiplied by the mean of the mask
            over the token's patch.
    """

    text: str
    weight: float = 1.0
    mask: Any = None


Prompt: TypeAlias = str | Sequence[RegionalPrompt]


def regional_prompts(prompt: Prompt | Sequence[Prompt]) -> list[list[RegionalPrompt]]:
    """
    Turn the `prompt` argument of a call into one list of regional prompts per prompt.

    Raises:
        TypeError, ValueError: if `prompt` is not a text, a list of [`RegionalPrompt`], or a list of these.
    """
    if is_regional(prompt):
        return [list(prompt)]  # type: ignore[arg-type]
    if isinstance(prompt, (list, tuple)) and any(isinstance(one, RegionalPrompt) for one in prompt):
        kinds = sorted({type(one).__name__ for one in prompt})
        raise TypeError(
            f"`prompt` must hold either `RegionalPrompt` only, or texts and lists of `RegionalPrompt`, got {kinds}."
        )
    if not (isinstance(prompt, (list, tuple)) and any(map(is_regional, prompt))):
        return [[RegionalPrompt(text)] for text in check_texts("prompt", prompt)]
    for one in prompt:
        if not isinstance(one, str) and not is_regional(one):
            raise TypeError(f"`prompt` must hold texts and lists of `RegionalPrompt`, got {type(one).__name__}.")
    return [list(one) if is_regional(one) else [RegionalPrompt(one)] for one in prompt]


def check_prompt(prompt: Prompt | Sequence[Prompt], negative_prompt: str | Sequence[str] | None):
    """Raise `TypeError` or `ValueError` for prompts, weights, or a number of negative prompts that are not allowed."""
    prompts = regional_prompts(prompt)
    for part in (part for parts in prompts for part in parts):
        if not isinstance(part.text, str):
            raise TypeError(
                f"`prompt` must have a text in each `RegionalPrompt`, got {type(part.text).__name__} as `text`."
            )
        check_unicode("RegionalPrompt.text", [part.text])
        if not is_number(part.weight) or not abs(part.weight) <= MAX_SCALE:
            raise ValueError(
                f"`prompt` must have finite weights, got {shown(part.weight)} for {part.text!r:.40}: "
                f"`weight` is from {-MAX_SCALE:,g} to {MAX_SCALE:,g}."
            )
    if negative_prompt is not None:
        negative = check_texts("negative_prompt", negative_prompt)
        if len(negative) not in (1, len(prompts)):
            raise ValueError(
                f"`negative_prompt` must be one text or one for each of the {len(prompts)} prompts, got {len(negative)}."
            )


def load_prompt_masks(prompt: Prompt | Sequence[Prompt]) -> list[list[RegionalPrompt]]:
    """Load the masks of regional prompts as tensors (H, W). Raises the errors of [`masks.load_mask`]."""
    return [
        [
            part if part.mask is None else replace(part, mask=load_mask(part.mask, "RegionalPrompt.mask"))
            for part in parts
        ]
        for parts in regional_prompts(prompt)
    ]


def crop_prompt_masks(
    prompts: Sequence[Sequence[RegionalPrompt]], box: tuple[int, int, int, int], size: tuple[int, int]
) -> list[list[RegionalPrompt]]:
    """
    Crop loaded masks to a part of the image.

    Args:
        box (`tuple[int, int, int, int]`): left, top, right and bottom, in pixels.
        size (`tuple[int, int]`): height and width of the image, in pixels.
    """
    return [
        [
            part if part.mask is None else replace(part, mask=crop_mask(average_mask(part.mask, size), box))
            for part in parts
        ]
        for parts in prompts
    ]


def is_regional(prompt: Any) -> bool:
    """Whether a prompt is a list of [`RegionalPrompt`]."""
    return (
        isinstance(prompt, (list, tuple)) and bool(prompt) and all(isinstance(one, RegionalPrompt) for one in prompt)
    )


def is_plain(parts: Sequence[RegionalPrompt]) -> bool:
    """Whether regional prompts are a single one with weight 1 and without a mask, which is a plain text prompt."""
    return len(parts) == 1 and parts[0].weight == 1 and parts[0].mask is None


def token_weights(prompts: Sequence[Sequence[RegionalPrompt]], grid_size: tuple[int, int]) -> torch.FloatTensor | None:
    """
    Compute the weight of each regional prompt at each image token.

    Args:
        prompts: the regional prompts of each image, with loaded masks.
        grid_size (`tuple[int, int]`): rows and columns of tokens.

    Returns:
        `torch.FloatTensor` of shape `(regional prompts of all images, h, w)`; None if every image has one plain prompt.
    """
    if all(map(is_plain, prompts)):
        return None
    weights = [
        part.weight * (torch.ones(grid_size) if part.mask is None else average_mask(part.mask, grid_size))
        for parts in prompts
        for part in parts
    ]
    return torch.stack(weights)
