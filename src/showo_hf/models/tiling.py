"""Overlapping tiles over something larger than a network takes at once. Pure functions."""

from collections.abc import Callable, Iterator

import torch


def tile_starts(first: int, last: int, tile: int, stride: int) -> list[int]:
    """
    Where tiles of `tile` places begin that cover the places `first` to `last`; neighbours are `stride` apart at most.

    There is room for at least one tile. The last one ends at `last`.
    """
    end = last + 1 - tile
    return [*range(first, end, stride), end]


def encode_tiled(
    encode: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, tile: int, factor: int
) -> torch.Tensor:
    """
    Pixels (batch, channels, H, W) to latents (batch, bits, h, w), tile by tile; of what two tiles have in common each
    gives the half that is farther from its own border.

    Args:
        encode: pixels of a tile to its latents.
        tile: tokens of a tile's side. Neighbours overlap by a quarter of it.
        factor: pixels of a token's side.
    """
    height, width = (side // factor for side in pixel_values.shape[-2:])
    latents = None
    for rows, kept_rows in kept_parts(height, tile):
        for columns, kept_columns in kept_parts(width, tile):
            pixels = pixel_values[..., in_pixels(rows, factor), in_pixels(columns, factor)]
            part = encode(pixels)
            if latents is None:
                latents = part.new_empty(*part.shape[:2], height, width)
            inner = part[..., within(kept_rows, rows), within(kept_columns, columns)]
            latents[..., kept_rows, kept_columns] = inner
    return latents


def decode_tiled(
    decode: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor, tile: int, factor: int
) -> torch.Tensor:
    """
    Codes (batch, bits, h, w) to pixels (batch, channels, H, W), tile by tile, faded into each other where they overlap.

    Arguments are those of [`encode_tiled`]. Sums are in float32 at least, whatever `decode` gives.
    """
    height, width = codes.shape[-2:]
    pixels = weights = None
    for rows, _ in kept_parts(height, tile):
        for columns, _ in kept_parts(width, tile):
            part = decode(codes[..., rows, columns])
            if pixels is None:
                sums = {"dtype": torch.promote_types(part.dtype, torch.float32), "device": part.device}
                pixels = torch.zeros(*part.shape[:2], height * factor, width * factor, **sums)
                weights = torch.zeros(height * factor, width * factor, **sums)
            share = tent(part.shape[-2]).to(weights)[:, None] * tent(part.shape[-1]).to(weights)
            pixels[..., in_pixels(rows, factor), in_pixels(columns, factor)] += part * share
            weights[in_pixels(rows, factor), in_pixels(columns, factor)] += share
    return (pixels / weights).to(part.dtype)


def kept_parts(size: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Tiles along an axis of `size` tokens, each with the part of the axis that it stands for."""
    tile = min(tile, size)
    starts = tile_starts(0, size - 1, tile, tile - tile // 4)
    middles = [(after + before + tile) // 2 for before, after in zip(starts, starts[1:], strict=False)]
    for start, first, last in zip(starts, [0, *middles], [*middles, size], strict=True):
        yield slice(start, start + tile), slice(first, last)


def tent(length: int) -> torch.Tensor:
    """Weights (length,) that fall from the middle to the ends, and are nowhere 0."""
    places = torch.arange(length, dtype=torch.float32) + 0.5
    return torch.minimum(places, length - places)


def in_pixels(tokens: slice, factor: int) -> slice:
    """The pixels of a range of tokens."""
    return slice(tokens.start * factor, tokens.stop * factor)


def within(part: slice, whole: slice) -> slice:
    """A range, counted from where another begins."""
    return slice(part.start - whole.start, part.stop - whole.start)
