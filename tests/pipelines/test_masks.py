"""Masks: reading, masked tokens, choosing tokens to mask, and feathered seams. Compared with plain loops."""

import numpy as np
import pytest
import torch
from conversations import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf.pipelines.masks import (
    average_mask,
    check_aspect,
    choose_masked,
    feather_mask,
    load_mask,
    mask_to_pil,
    masked_tokens,
    paste_original,
    resize_mask,
)


SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**16)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed))


# Reading masks


def two_thirds_marked(mode="L"):
    """A mask of 2 x 3 pixels. The last two columns are marked."""
    return Image.fromarray(np.array([[0, 255, 255]] * 2, "uint8")).convert(mode)


def test_masks_are_read_from_images_arrays_tensors_and_paths(tmp_path):
    two_thirds_marked().save(tmp_path / "mask.png")
    expected = torch.tensor([[0.0, 1.0, 1.0]] * 2)
    masks = [
        two_thirds_marked(),
        two_thirds_marked("RGB"),
        two_thirds_marked("1"),
        two_thirds_marked("RGBA"),
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
    ]
    masks += [
        np.array(two_thirds_marked()),
        np.array(two_thirds_marked()) > 0,
        np.array(two_thirds_marked())[..., None] / 255,
    ]
    masks += [expected, expected.double(), expected.bfloat16(), expected[None], expected[..., None], expected > 0]
    for mask in masks:
        found = load_mask(mask)
        assert found.dtype == torch.float32 and torch.equal(found, expected), mask


def test_an_8_bit_mask_of_0_and_1_is_not_divided_by_255():
    values = np.array([[0, 1, 1]] * 2, "uint8")
    for mask in (values, torch.tensor(values), Image.fromarray(values)):
        assert load_mask(mask).tolist() == values.tolist()
    assert load_mask(0 * values).max() == 0
    assert torch.equal(load_mask(values + 1), torch.tensor(values + 1) / 255), "values above 1 mean a range to 255"


def test_16_bit_and_float_masks_keep_their_range(tmp_path):
    soft = np.array([[0.0, 0.2, 0.6, 1.0]], "float32")
    expected = torch.from_numpy(soft)
    sixteen = Image.fromarray((soft * 65535).round().astype("uint16"))
    sixteen.save(tmp_path / "mask.png")
    floats = (Image.fromarray(soft), Image.fromarray(255 * soft))
    for mask in (sixteen, sixteen.convert("I"), tmp_path / "mask.png", *floats):
        torch.testing.assert_close(load_mask(mask), expected, rtol=0, atol=1 / 500)
    with pytest.raises(ValueError, match="`mask_image` must have floats from 0 to 1, or to 255, got 0 to 256"):
        load_mask(Image.fromarray(256 * soft))


def test_soft_masks_stay_soft_and_transparent_pixels_are_not_marked():
    soft = torch.tensor([[0.0, 0.25, 1.0]])
    assert torch.equal(load_mask(soft), soft)
    grey = Image.fromarray(np.array([[0, 51, 255]], "uint8"))
    assert torch.allclose(load_mask(grey), torch.tensor([[0.0, 0.2, 1.0]]))
    white = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    white.putpixel((0, 0), (255, 255, 255, 255))
    assert load_mask(white).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (None, TypeError, "`mask_image` must hold PIL images, arrays, tensors, paths or URLs, got NoneType"),
        ("no such file", ValueError, "`mask_image` holds an image that cannot be read"),
        (torch.zeros(2, 3, 3), ValueError, r"must be \(H, W\), \(H, W, 1\) or \(1, H, W\), got shape \(2, 3, 3\)"),
        (torch.zeros(0, 3), ValueError, r"got shape \(0, 3\)"),
        (torch.zeros(3), ValueError, r"got shape \(3,\)"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, "must hold bools, uint8 or floats, got int64"),
        (np.full((2, 2), 1.5), ValueError, r"as floats must be in \[0, 1\], got 1.5 to 1.5"),
        (np.full((2, 2), np.nan), ValueError, r"as floats must be in \[0, 1\]"),
    ],
)
def test_invalid_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        load_mask(mask)


@pytest.mark.parametrize(
    "mask, size", [((8, 8), (512, 512)), ((85, 128), (512, 768)), ((1, 1), (7, 9)), ((4, 6), (2, 3))]
)
def test_any_resolution_with_the_aspect_ratio_is_accepted(mask, size):
    check_aspect(torch.zeros(mask), size)


@pytest.mark.parametrize("mask, size", [((512, 512), (512, 768)), ((768, 512), (512, 768)), ((100, 104), (512, 512))])
def test_another_aspect_ratio_is_refused(mask, size):
    wanted = f"the aspect ratio of its image, {size[1]}x{size[0]} .width x height., got {mask[1]}x{mask[0]}"
    with pytest.raises(ValueError, match=wanted):
        check_aspect(torch.zeros(mask), size)


# Tokens


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_token_is_masked_if_its_patch_has_a_marked_pixel(height, width, rows, columns, seed):
    mask = noise(height, width, seed=seed) ** 4  # few pixels are marked
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    for y, x in (mask >= 0.5).nonzero().tolist():
        for row in range(rows):
            for column in range(columns):
                # Compare intervals as fractions of the image: y / height to (y + 1) / height, for example.
                across = x * columns < (column + 1) * width and column * width < (x + 1) * columns
                down = y * rows < (row + 1) * height and row * height < (y + 1) * rows
                expected[row, column] |= across and down
    assert torch.equal(masked_tokens(mask, (rows, columns)), expected)


def test_a_value_of_one_half_counts_as_marked():
    assert masked_tokens(torch.tensor([[0.49, 0.5]]), (1, 2)).tolist() == [[False, True]]


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_averages_of_a_mask_and_its_complement_sum_to_one(height, width, rows, columns, seed):
    mask = noise(height, width, seed=seed)
    shares = average_mask(mask, (rows, columns))
    assert shares.shape == (rows, columns)
    torch.testing.assert_close(shares + average_mask(1 - mask, (rows, columns)), torch.ones(rows, columns))
    if height % rows == width % columns == 0:
        patches = mask.view(rows, height // rows, columns, width // columns)
        torch.testing.assert_close(shares, patches.mean((1, 3)))


def test_resizing_keeps_single_marked_pixels():
    mask = torch.zeros(64, 64)
    mask[37, 5] = 1
    assert resize_mask(mask, (16, 16)).nonzero().tolist() == [[9, 1]]
    assert (load_mask(mask_to_pil(mask)) == mask).all()


@given(st.integers(1, 4), st.integers(1, 12), st.floats(0, 1), SEEDS)
@settings(max_examples=80, deadline=None)
def test_a_share_of_the_candidates_is_masked(batch, tokens, share, seed):
    candidates, order = noise(batch, tokens, seed=seed) < 0.6, noise(batch, tokens, seed=seed + 1)
    found = choose_masked(candidates, share, order)
    for is_candidate, ranks, masked in zip(candidates, order, found, strict=True):
        count = round(share * int(is_candidate.sum()) + 1e-9)
        if share > 0 and is_candidate.any():
            count = max(1, count)
        assert abs(int(masked.sum()) - count) <= (abs(share * int(is_candidate.sum()) % 1 - 0.5) < 1e-3)
        assert not (masked & ~is_candidate).any()
        if masked.any() and (is_candidate & ~masked).any():
            assert ranks[masked].max() < ranks[is_candidate & ~masked].min()


def test_shares_of_zero_and_one():
    candidates, order = torch.tensor([[True, False, True]]), torch.tensor([[0.0, 1.0, 2.0]])
    assert torch.equal(choose_masked(candidates, 1, order), candidates)
    assert not choose_masked(candidates, 0, order).any()
    assert choose_masked(candidates, 1e-9, order).tolist() == [[True, False, False]]


# Pixels


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_feathered_seam_is_one_patch_wide(rows, columns, patch, seed):
    masked = noise(1, rows, columns, seed=seed) < 0.25
    share = feather_mask(masked, patch)
    assert share.shape == (1, 1, rows * patch, columns * patch) and share.min() >= 0 and share.max() <= 1
    masked_patches = masked[0].nonzero().tolist()
    for y in range(rows * patch):
        for x in range(columns * patch):
            # Chebyshev distance in pixels to the nearest masked patch: 0 inside it.
            distance = min(
                (
                    max(
                        row * patch - y, y - (row + 1) * patch + 1, column * patch - x, x - (column + 1) * patch + 1, 0
                    )
                    for row, column in masked_patches
                ),
                default=10**6,
            )
            value = share[0, 0, y, x].item()
            assert distance > 0 or value == 1
            assert distance == 0 or len(masked_patches) > 1 or value < 1, (
                "only between two masked patches may the value be 1"
            )
            assert (value == 0) == (distance > 2 * (patch // 2))


def test_pixels_away_from_masked_patches_are_returned_bit_for_bit():
    masked = torch.zeros(2, 6, 6, dtype=torch.bool)
    masked[0, 0, 0] = True
    inpainted, original = noise(2, 3, 24, 24, seed=1), noise(2, 3, 24, 24, seed=2)
    found = paste_original(inpainted, original, masked)
    assert torch.equal(found[0, :, :4, :4], inpainted[0, :, :4, :4])
    assert torch.equal(found[0, :, 8:], original[0, :, 8:]) and torch.equal(found[0, :, :, 8:], original[0, :, :, 8:])
    assert torch.equal(found[1], original[1])
    seam = found[0, :, 4:8, :4]
    low, high = (pick(inpainted[0], original[0])[:, 4:8, :4] for pick in (torch.minimum, torch.maximum))
    assert (low < seam).all() and (seam < high).all()
