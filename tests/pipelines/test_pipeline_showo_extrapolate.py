"""Extending images: directions, rounds, and preserved pixels."""

import numpy as np
import pytest
import tiny
import torch
from conversations import ForwardCalls, generator, grid, pixels
from image_pipelines import PROMPTS, WINDOW_LENGTH, edit, encode_image, make_pipeline
from PIL import Image

from showo_hf import RegionalPrompt, ShowoExtrapolatePipeline


@pytest.fixture
def pipe():
    return make_pipeline(ShowoExtrapolatePipeline)


@pytest.mark.parametrize(
    "direction, shape, known_region",
    [
        ("left", (4, 6), (slice(None), slice(2, None))),
        ("right", (4, 6), (slice(None), slice(None, 4))),
        ("up", (6, 4), (slice(2, None), slice(None))),
        ("down", (6, 4), (slice(None, 4), slice(None))),
        (["left", "up"], (6, 6), (slice(2, None), slice(2, None))),
        (("up", "down", "left", "right"), (8, 8), (slice(2, 6), slice(2, 6))),
    ],
)
def test_images_are_extended_on_all_sides(pipe, direction, shape, known_region):
    found = edit(pipe, PROMPTS[:2], image=grid(shape=(2, 4, 4)), direction=direction)
    assert found.shape == (2, *shape) and found.max() < tiny.CODES
    assert torch.equal(found[:, *known_region], grid(shape=(2, 4, 4)))
    as_pt = edit(pipe, direction=direction, output_type="pt")
    assert as_pt.shape == (1, 3, tiny.FACTOR * shape[0], tiny.FACTOR * shape[1])


def test_rounds_equal_repeated_calls(pipe):
    calls = ForwardCalls(pipe)
    panorama = edit(pipe, rounds=5, direction=["right", "left"])
    calls.handle.remove()
    assert panorama.shape == (1, 4, 4 + 5 * 4) and torch.equal(panorama[0, :, 10:14], grid())
    assert [shape for shape in calls if shape[0] == 2 and shape[1] == WINDOW_LENGTH] == [
        (2, WINDOW_LENGTH)
    ] * 5 * 2 * 4
    rng, extended = generator(), grid()
    for _ in range(5):
        for direction in ("right", "left"):
            extended = edit(pipe, image=extended, direction=direction, generator=rng)
    assert torch.equal(panorama, extended)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 9), (9, 2)])
@pytest.mark.parametrize("directions", [["down", "down"], ["right", "left"], ["up", "right"]])
def test_directions_equal_repeated_calls_for_images_smaller_than_a_window(pipe, shape, directions):
    image, rng = grid(shape=shape), generator()
    together = edit(pipe, image=image, direction=directions, extent=4)
    extended = image
    for direction in directions:
        extended = edit(pipe, image=extended, direction=direction, extent=4, generator=rng)
    assert torch.equal(together, extended)


def test_steps_are_counted_over_all_rounds(pipe):
    seen = []

    def record(its_pipe, step, timestep, tensors):
        latents = tensors["latents"]
        assert torch.equal(latents[..., 4:8], grid()[None])
        seen.append((step, its_pipe.num_timesteps, tuple(latents.shape), int((latents == tiny.CODES).sum())))

    edit(pipe, direction=["left", "right"], rounds=2, callback_on_step_end=record)
    steps, totals, shapes, left = zip(*seen, strict=True)
    assert steps == tuple(range(16)) and set(totals) == {16} and set(shapes) == {(1, 4, 12)}
    assert left[3::4] == (24, 16, 8, 0) and list(left) == sorted(left, reverse=True)


def test_new_tokens_depend_only_on_tokens_in_their_window(pipe):
    """In an image longer than a window, tokens outside the window have no effect."""
    long = grid(shape=(4, 8))
    other_end, other_edge = long.clone(), long.clone()
    other_end[:, :4] = grid(1)
    other_edge[:, 6:] = grid(2)[:, 2:]
    expected = edit(pipe, image=long)[..., 8:]
    assert torch.equal(edit(pipe, image=other_end)[..., 8:], expected)
    assert not torch.equal(edit(pipe, image=other_edge)[..., 8:], expected)


@pytest.mark.parametrize(
    "extent, direction, added", [(None, "right", 2), (4, "up", 1), (12, "left", 3), (None, ["left", "down"], 2)]
)
def test_the_extent_is_in_pixels_and_defaults_to_half_the_trained_size(pipe, extent, direction, added):
    shape = edit(pipe, extent=extent, direction=direction).shape
    assert sum(shape[1:]) == 8 + added * (1 if isinstance(direction, str) else 2)


def test_preserved_pixels_are_returned_bit_for_bit(pipe):
    image = pixels()
    options = {"image": image, "direction": ["right", "up"], "extent": 4, "output_type": "pil"}
    (found,) = edit(pipe, preserve_pixels=True, **options)
    (decoded,) = edit(pipe, **options)
    assert found.size == (20, 20)
    found, decoded, original = (np.array(one) for one in (found, decoded, image))
    assert np.array_equal(found[8:, :12], original[4:, :12])
    assert np.array_equal(found[:4], decoded[:4]) and np.array_equal(found[:, 16:], decoded[:, 16:])
    assert not np.array_equal(found[4:8, :12], original[:4, :12]), "the seam is blended"


def test_known_tokens_stay_unchanged_over_rounds(pipe):
    image = pixels()
    assert torch.equal(edit(pipe, image=image, rounds=3)[..., :4], encode_image(image, pipe))


@pytest.mark.parametrize("direction, order", [("right", [0, 0, 1, 2]), ("left", [2, 1, 0, 0])])
def test_regional_prompts_refer_to_the_finished_image(pipe, direction, order):
    """The first round is an owl and the second two hearts. The prompt on the given image has no effect."""
    parts = [
        RegionalPrompt(text, mask=np.uint8([[255 * (number == part) for part in order]]))
        for number, text in enumerate(["a green pear", "owl", "two hearts"])
    ]
    rng, extended = generator(), grid()
    for text in ("owl", "two hearts"):
        extended = edit(pipe, text, image=extended, direction=direction, generator=rng)
    found = edit(pipe, [parts], image=grid(), direction=direction, rounds=2, generator=generator())
    assert torch.equal(found, extended)


def test_regional_prompts_refer_to_an_image_extended_on_all_sides(pipe):
    directions, rng, extended = ["up", "left", "down", "right"], generator(), grid()
    for direction in directions:
        extended = edit(pipe, direction, image=extended, direction=direction, generator=rng)
    masks = {
        "up": (slice(0, 2), slice(2, 6)),
        "left": (slice(0, 6), slice(0, 2)),
        "down": (slice(6, 8), slice(0, 6)),
        "right": (slice(0, 8), slice(6, 8)),
    }
    parts = []
    for text, region in masks.items():
        mask = torch.zeros(8, 8)
        mask[region] = 1
        parts.append(RegionalPrompt(text, mask=mask))
    found = edit(pipe, [parts], image=grid(), direction=directions, generator=generator())
    assert torch.equal(found, extended)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {"direction": "north"},
            r"`direction` must be one of \['left', 'right', 'up', 'down'\], or a list of them, got 'north'",
        ),
        ({"direction": ["left", "north"]}, r"got \['left', 'north'\]"),
        ({"direction": []}, r"`direction` must be one of .*, got \[\]"),
        ({"direction": None}, "`direction` must be one of .*, got None"),
        ({"extent": 6}, "`extent` must be a multiple of 4 pixels from 4 to 12, got 6"),
        ({"extent": 16}, "`extent` must be a multiple of 4 pixels from 4 to 12, got 16"),
        ({"extent": 0}, "`extent` must be a multiple of 4 pixels from 4 to 12, got 0"),
        ({"extent": 4.0}, "`extent` must be a multiple of 4 pixels from 4 to 12, got 4.0"),
        ({"rounds": 0}, "`rounds` must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused_before_any_work(pipe, inputs, message):
    calls = ForwardCalls(pipe)
    with pytest.raises(ValueError, match=message):
        edit(pipe, **inputs)
    calls.handle.remove()
    assert calls == []


def test_prompts_and_masks_are_read_once_for_all_rounds(pipe, tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 2, 0)).save(file)
    parts = [RegionalPrompt("owl", mask=str(file)), RegionalPrompt("two hearts")]
    expected = edit(pipe, [parts], rounds=3)
    prompts = []

    def record(model, args, kwargs):
        if not bool((kwargs["input_ids"] == model.config.soi_token_id).any()):
            prompts.append(kwargs["input_ids"].shape)
            file.unlink()  # later reads would fail

    handle = pipe.model.register_forward_pre_hook(record, with_kwargs=True)
    found = edit(pipe, [parts], rounds=3)
    handle.remove()
    assert torch.equal(found, expected) and len(prompts) == 1
