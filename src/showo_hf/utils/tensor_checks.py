"""Argument checks of tensors and generators."""

from typing import Any

import numpy as np
import torch
from transformers import Cache

from .validation import shown


def check_tensor(name: str, value: Any):
    """Raise `TypeError` unless `value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {shown(value)}.")


def check_ids(name: str, value: Any):
    """Raise `TypeError` or `ValueError` unless `value` is None or integers of shape (batch, length)."""
    if value is None:
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor of ids, got {shown(value)}.")
    if value.ndim != 2 or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"`{name}` must be ids of shape (batch, length), got {value.dtype} {tuple(value.shape)}.")


def check_floats(name: str, value: Any):
    """Raise `TypeError` or `ValueError` unless `value` is None or a tensor of floats with three dimensions or more."""
    if value is None:
        return
    check_tensor(name, value)
    if not value.is_floating_point() or value.ndim < 3:
        raise ValueError(f"`{name}` must be floats, an item a row, got {value.dtype} {tuple(value.shape)}.")


def check_positions(attention_mask: Any, position_ids: Any, past_key_values: Any):
    """Raise `TypeError` or `ValueError` for a mask, positions or a cache that a model cannot take."""
    if attention_mask is not None and len(getattr(attention_mask, "shape", ())) not in (2, 4):
        raise ValueError(f"`attention_mask` must have two or four dimensions, got {shown(attention_mask)}.")
    if isinstance(attention_mask, np.ndarray):
        raise TypeError(f"`attention_mask` must be a tensor or a flex mask, got {shown(attention_mask)}.")
    if position_ids is not None:
        check_tensor("position_ids", position_ids)
        if position_ids.ndim < 2 or position_ids.is_floating_point():  # some backbones have several for each token
            got = f"{position_ids.dtype} {tuple(position_ids.shape)}"
            raise ValueError(f"`position_ids` must be integers of shape (batch, length), got {got}.")
    if past_key_values is not None and not isinstance(past_key_values, Cache):
        raise TypeError(f"`past_key_values` must be a cache of transformers, got {shown(past_key_values)}.")


def check_generators(generator: Any, batch_size: int):
    """Raise `ValueError` or `TypeError` unless `generator` is None, one generator, or a list of `batch_size`."""
    generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"`generator` must be a `torch.Generator` or a list of them, got {type(one).__name__}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` must be one or a list of {batch_size}, got a list of {len(generator)}.")
