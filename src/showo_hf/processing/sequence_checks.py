"""Checks of the arguments of `ShowoProcessor`: its parts, and of what it builds sequences."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ImageProcessingMixin, PreTrainedTokenizerBase

from ..models.configuration_showo import LARGEST_MODEL
from ..utils.validation import check_count, check_flag, check_unicode, shown


def check_parts(
    image_processor: Any, tokenizer: Any, chat_template: Any, vision_processor: Any, num_image_features: Any
):
    """Raise `TypeError` or `ValueError` unless the parts of a processor are of their classes, and go together."""
    if not isinstance(image_processor, ImageProcessingMixin):
        raise TypeError(f"`image_processor` must be an image processor of transformers, got {shown(image_processor)}.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"`tokenizer` must be a tokenizer of transformers, got {shown(tokenizer)}.")
    if vision_processor is not None and not isinstance(vision_processor, (dict, ImageProcessingMixin)):
        raise TypeError(f"`vision_processor` must be an image processor or None, got {shown(vision_processor)}.")
    templates = chat_template if isinstance(chat_template, dict) else {"default": chat_template}
    for name, template in templates.items():
        if not isinstance(name, str):
            raise TypeError(f"`chat_template` must have texts as names, got {shown(name)}.")
        check_template(template)
    if (vision_processor is None) != (num_image_features is None):
        raise ValueError(
            "`vision_processor` and `num_image_features` must be given together, "
            f"got {type(vision_processor).__name__} and {shown(num_image_features)}."
        )
    if num_image_features is not None:
        check_count("num_image_features", num_image_features, most=LARGEST_MODEL["num_image_tokens"])


def check_numbers(codebook_size: Any, num_image_tokens: Any, max_text_length: Any):
    """Raise `ValueError` unless the sizes of a processor are counts that a model can have."""
    check_count("codebook_size", codebook_size, most=LARGEST_MODEL["codebook_size"])
    check_count("num_image_tokens", num_image_tokens, most=LARGEST_MODEL["num_image_tokens"])
    check_count("max_text_length", max_text_length, least=2, most=LARGEST_MODEL["max_text_length"])


def check_grids(name: str, grids: Any) -> Sequence[torch.LongTensor]:
    """Raise `TypeError` unless `grids` are integer tensors, one for each row."""
    if not isinstance(grids, (torch.Tensor, list, tuple)) or (isinstance(grids, torch.Tensor) and grids.ndim < 2):
        raise TypeError(f"`{name}` must be a tensor of image tokens for each row, got {shown(grids)}.")
    for grid in grids:
        check_grid(name, grid)
    return grids  # type: ignore[return-value]


def check_grid(name: str, grid: Any):
    """Raise `TypeError` unless `grid` is a tensor of integers that is not empty."""
    is_tensor = isinstance(grid, torch.Tensor) and grid.numel() > 0
    if not is_tensor or grid.dtype == torch.bool or grid.is_floating_point() or grid.is_complex():
        raise TypeError(f"`{name}` must hold tensors of image tokens, got {shown(grid)}.")


def check_sequences(sequences: Any) -> Sequence[Sequence[str | torch.LongTensor]]:
    """Raise `TypeError` or `ValueError` unless `sequences` are rows of texts and token grids."""
    if not isinstance(sequences, (list, tuple)) or not sequences:
        raise TypeError(f"`sequences` must be a list of rows, got {shown(sequences)}.")
    for parts in sequences:
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"`sequences` must hold lists of texts and token grids, got {shown(parts)}.")
        for part in parts:
            if isinstance(part, str):
                check_unicode("sequences", [part])
            else:
                check_grid("sequences", part)
    return sequences


def check_conversation(conversation: Any):
    """Raise `TypeError` unless `conversation` is a list of messages, or a list of such lists."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise TypeError(f"`conversation` must be a list of messages, got {shown(conversation)}.")
    for message in conversation:
        messages = message if isinstance(message, (list, tuple)) else [message]
        if not all(isinstance(one, dict) for one in messages):
            raise TypeError(f"`conversation` must hold messages, which are dicts, got {shown(message)}.")


def check_template(chat_template: Any, sanitize_control_tokens: Any = None):
    """Raise `TypeError` or `ValueError` unless the template is None or a text, and the flag None or a bool."""
    if chat_template is not None and not isinstance(chat_template, str):
        raise TypeError(f"`chat_template` must be a text or None, got {shown(chat_template)}.")
    if chat_template is not None:
        check_unicode("chat_template", [chat_template])
    if sanitize_control_tokens is not None:
        check_flag("sanitize_control_tokens", sanitize_control_tokens)
