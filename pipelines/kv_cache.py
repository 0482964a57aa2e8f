"""Rows and positions of a key-value cache: select, concatenate, crop."""

import torch
from transformers import DynamicCache


def crop_to(cache: DynamicCache, length: int):
    """Keep the first `length` positions of every layer. After an interrupt, layers can differ in length."""
    for layer in cache.layers:
        layer.crop(min(0, length - layer.get_seq_length()))


def select_rows(cache: DynamicCache, rows: torch.LongTensor) -> DynamicCache:
    """Copy some rows, given as `(rows,)`, into a new cache."""
    layers = [
        (layer.keys[rows.to(layer.keys.device)], layer.values[rows.to(layer.values.device)]) for layer in cache.layers
    ]
    return DynamicCache(layers)


def join_rows(caches: list[DynamicCache]) -> DynamicCache:
    """Concatenate the rows of caches of equal length into a new cache."""
    layers = [
        (torch.cat([layer.keys for layer in same]), torch.cat([layer.values for layer in same]))
        for same in zip(*(cache.layers for cache in caches), strict=True)
    ]
    return DynamicCache(layers)
