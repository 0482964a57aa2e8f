"""Overlapping tiles, to run a network on inputs larger than it takes at once. Pure functions."""

from collections.abc import Callable, Iterator

import torch


def tile_starts(first: int, last: int, tile: int, stride: int) -> list[int]:
    """
    First positions of tiles of length `tile` that cover the positions `first` to `last`.

    Neighbours are at most `stride` apart, and the last tile ends at `last`. There must be room for one tile.
    """
    end = last + 1 - tile
    return [*range(first, end, stride), end]


def encode_tiled(
    encode: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, tile: int, factor: int
) -> torch.Tensor:
    """
    Encode pixels (batch, channels, H, W) to latents (batch, bits, h, w), tile by tile.

    Where two tiles overlap, each gives the half that is farther from its own border.

    Args:
        encode: maps the pixels of a tile to its latents.
        tile: side of a tile in tokens. Neighbours overlap by a quarter of it.
        factor: side of a token in pixels.
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
    Decode quantized latents (batch, bits, h, w) to pixels (batch, channels, H, W), tile by tile.

    Tiles are blended where they overlap. Same arguments as [`encode_tiled`]. Sums are in float32 or better.
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
    """Tiles along an axis of `size` tokens, each with the part of the axis that is taken from it."""
    tile = min(tile, size)
    overlap = max(1, tile // 4) if tile > 1 else 0  # one token is all or nothing
    starts = tile_starts(0, size - 1, tile, tile - overlap)
    middles = [(after + before + tile) // 2 for before, after in zip(starts, starts[1:], strict=False)]
    for start, first, last in zip(starts, [0, *middles], [*middles, size], strict=True):
        yield slice(start, start + tile), slice(first, last)


def tent(length: int) -> torch.Tensor:
    """Positive weights (length,) that fall from the middle to both ends."""
    centers = torch.arange(length, dtype=torch.float32) + 0.5
    return torch.minimum(centers, length - centers)


def in_pixels(tokens: slice, factor: int) -> slice:
    """The range of pixels of a range of tokens."""
    return slice(tokens.start * factor, tokens.stop * factor)


def within(part: slice, whole: slice) -> slice:
    """The range `part`, relative to the start of `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)
