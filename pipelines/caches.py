"""Rows and positions of a key-value cache: some of them kept, some put together."""

import torch
from transformers import DynamicCache


def crop_cache(cache: DynamicCache, length: int):
    """Keep the first `length` positions of every layer, however many each has after an interrupt."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def select_rows(cache: DynamicCache, rows: list[int]) -> DynamicCache:
    """A cache of its own with some of the rows."""
    index = torch.tensor(rows)
    layers = [
        (layer.keys[index.to(layer.keys.device)], layer.values[index.to(layer.values.device)])
        for layer in cache.layers
    ]
    return DynamicCache(layers)


def join_rows(caches: list[DynamicCache]) -> DynamicCache:
    """One cache with the rows of several of the same length."""
    layers = [
        (torch.cat([layer.keys for layer in same]), torch.cat([layer.values for layer in same]))
        for same in zip(*(cache.layers for cache in caches), strict=True)
    ]
    return DynamicCache(layers)
