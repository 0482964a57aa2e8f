"""Tiles: the positions they cover, and an image tokenizer that works in tiles."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from showo_hf.models.tiling import decode_tiled, encode_tiled, kept_parts, tile_starts


FACTOR = 4


@given(st.integers(1, 60), st.integers(1, 20))
def test_the_kept_parts_of_the_tiles_cover_the_axis_once(size, tile):
    parts = list(kept_parts(size, tile))
    positions = [position for _, kept in parts for position in range(kept.start, kept.stop)]
    assert positions == list(range(size))
    for whole, kept in parts:
        assert whole.start <= kept.start and kept.stop <= whole.stop <= size
        assert whole.stop - whole.start == min(tile, size)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 60), st.data())
def test_tiles_cover_exactly_the_given_range(first, tile, more, data):
    last = first + tile - 1 + more
    stride = data.draw(st.integers(1, tile))
    starts = tile_starts(first, last, tile, stride)
    assert {position for start in starts for position in range(start, start + tile)} == set(range(first, last + 1))
    assert all(0 < after - before <= stride for before, after in zip(starts, starts[1:], strict=False))


@given(st.integers(2, 60), st.integers(2, 20))
def test_neighbouring_tiles_overlap(size, tile):
    wholes = [whole for whole, _ in kept_parts(size, tile)]
    assert all(after.start < before.stop for before, after in zip(wholes, wholes[1:], strict=False))


def nearest(codes):
    return codes.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_a_network_that_sees_one_token_gives_the_same_in_tiles(height, width, tile):
    codes = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_tiled(nearest, codes, tile, FACTOR), nearest(codes))
    pooled = encode_tiled(lambda pixels: pixels[..., ::FACTOR, ::FACTOR], nearest(codes), tile, FACTOR)
    assert torch.equal(pooled, codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_of_tiles_are_exact_in_every_dtype(dtype):
    codes = torch.full((1, 1, 40, 34), 0.9, dtype=dtype)
    found = decode_tiled(lambda part: part.repeat_interleave(16, -1).repeat_interleave(16, -2), codes, 32, 16)
    assert found.dtype == dtype and found.shape == (1, 1, 640, 544)
    torch.testing.assert_close(found, torch.full_like(found, 0.9))


def test_a_tokenizer_splits_only_large_images_into_tiles():
    tokenizer = tiny.lfq()
    sizes = []
    tokenizer.encoder.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape[-2:])))
    tokenizer.decoder.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    pixels = torch.rand(1, 3, 40, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        whole = tokenizer.encode(pixels).image_tokens
        tokenizer.enable_tiling()
        tiled = tokenizer.encode(pixels).image_tokens
        assert tiled.shape == whole.shape == (1, 10, 7)
        assert tokenizer.decode(tiled).sample.shape == pixels.shape
        assert set(sizes[1:]) == {(16, 16)}, "the trained size"
        small = pixels[..., :16, :16]
        tokens = tokenizer.encode(small).image_tokens
        image = tokenizer.decode(tokens).sample
        tokenizer.disable_tiling()
        assert torch.equal(tokenizer.encode(small).image_tokens, tokens)
        assert torch.equal(tokenizer.decode(tokens).sample, image)
        assert torch.equal(tokenizer.encode(pixels).image_tokens, whole)


@pytest.mark.parametrize("training", [False, True])
def test_a_reconstruction_is_decoded_in_tiles_too(training):
    tokenizer = tiny.lfq().train(training)
    tokenizer.enable_tiling()
    sizes = []
    tokenizer.decoder.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    pixels = torch.rand(1, 3, 40, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    output = tokenizer(pixels)
    assert set(sizes) == {(16, 16)}, "the trained size"
    with torch.no_grad():
        expected = tokenizer.decode(output.image_tokens).sample
    torch.testing.assert_close(output.sample.clamp(-1, 1), expected, rtol=1e-4, atol=1e-4)
    output.sample.square().mean().backward()
    assert tokenizer.decoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("tile_size", [0, 6, -4, 8.0])
def test_an_invalid_tile_size_is_refused(tile_size):
    with pytest.raises(ValueError, match="`tile_size` must be a positive multiple of 4 pixels"):
        tiny.lfq().enable_tiling(tile_size)
