"""Extending images: sides, rounds, and the pixels that were there."""

import numpy as np
import pytest
import tiny
import torch
from painting import PROMPTS, WINDOW, edit, encoded, make
from PIL import Image
from talking import Calls, generator, grid, pixels

from showo_hf import RegionalPrompt, ShowoExtrapolatePipeline


@pytest.fixture
def extrapolate():
    return make(ShowoExtrapolatePipeline)


@pytest.mark.parametrize(
    "direction, shape, place",
    [
        ("left", (4, 6), (slice(None), slice(2, None))),
        ("right", (4, 6), (slice(None), slice(None, 4))),
        ("up", (6, 4), (slice(2, None), slice(None))),
        ("down", (6, 4), (slice(None, 4), slice(None))),
        (["left", "up"], (6, 6), (slice(2, None), slice(2, None))),
        (("up", "down", "left", "right"), (8, 8), (slice(2, 6), slice(2, 6))),
    ],
)
def test_all_sides(extrapolate, direction, shape, place):
    found = edit(extrapolate, PROMPTS[:2], image=grid(shape=(2, 4, 4)), direction=direction)
    assert found.shape == (2, *shape) and found.max() < tiny.CODES
    assert torch.equal(found[:, *place], grid(shape=(2, 4, 4)))
    as_pt = edit(extrapolate, direction=direction, output_type="pt")
    assert as_pt.shape == (1, 3, tiny.FACTOR * shape[0], tiny.FACTOR * shape[1])


def test_a_panorama_by_one_call_is_that_of_several(extrapolate):
    calls = Calls(extrapolate)
    panorama = edit(extrapolate, rounds=5, direction=["right", "left"])
    calls.handle.remove()
    assert panorama.shape == (1, 4, 4 + 5 * 4) and torch.equal(panorama[0, :, 10:14], grid())
    assert [shape for shape in calls if shape[0] == 2 and shape[1] == WINDOW] == [(2, WINDOW)] * 5 * 2 * 4
    draws, grown = generator(), grid()
    for _ in range(5):
        for direction in ("right", "left"):
            grown = edit(extrapolate, image=grown, direction=direction, generator=draws)
    assert torch.equal(panorama, grown)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 9), (9, 2)])
@pytest.mark.parametrize("directions", [["down", "down"], ["right", "left"], ["up", "right"]])
def test_rounds_of_an_image_that_is_smaller_than_a_window_keep_to_their_own(extrapolate, shape, directions):
    image, draws = grid(shape=shape), generator()
    together = edit(extrapolate, image=image, direction=directions, extent=4)
    grown = image
    for direction in directions:
        grown = edit(extrapolate, image=grown, direction=direction, extent=4, generator=draws)
    assert torch.equal(together, grown)


def test_steps_are_counted_over_all_rounds(extrapolate):
    seen = []

    def note(pipe, step, timestep, tensors):
        latents = tensors["latents"]
        assert torch.equal(latents[..., 4:8], grid()[None])
        seen.append((step, pipe.num_timesteps, tuple(latents.shape), int((latents == tiny.CODES).sum())))

    edit(extrapolate, direction=["left", "right"], rounds=2, callback_on_step_end=note)
    steps, totals, shapes, left = zip(*seen, strict=True)
    assert steps == tuple(range(16)) and set(totals) == {16} and set(shapes) == {(1, 4, 12)}
    assert left[3::4] == (24, 16, 8, 0) and list(left) == sorted(left, reverse=True)


def test_new_tokens_follow_what_is_beside_them(extrapolate):
    """Of an image that is longer than a window, only what lies in the window counts."""
    long = grid(shape=(4, 8))
    other_end, other_edge = long.clone(), long.clone()
    other_end[:, :4] = grid(1)
    other_edge[:, 6:] = grid(2)[:, 2:]
    expected = edit(extrapolate, image=long)[..., 8:]
    assert torch.equal(edit(extrapolate, image=other_end)[..., 8:], expected)
    assert not torch.equal(edit(extrapolate, image=other_edge)[..., 8:], expected)


@pytest.mark.parametrize(
    "extent, direction, added", [(None, "right", 2), (4, "up", 1), (12, "left", 3), (None, ["left", "down"], 2)]
)
def test_the_extent_is_told_in_pixels_and_is_half_a_side_by_default(extrapolate, extent, direction, added):
    shape = edit(extrapolate, extent=extent, direction=direction).shape
    assert sum(shape[1:]) == 8 + added * (1 if isinstance(direction, str) else 2)


def test_preserved_pixels_come_back_bit_for_bit(extrapolate):
    image = pixels()
    options = {"image": image, "direction": ["right", "up"], "extent": 4, "output_type": "pil"}
    (found,) = edit(extrapolate, preserve_pixels=True, **options)
    (decoded,) = edit(extrapolate, **options)
    assert found.size == (20, 20)
    found, decoded, original = (np.array(one) for one in (found, decoded, image))
    assert np.array_equal(found[8:, :12], original[4:, :12])
    assert np.array_equal(found[:4], decoded[:4]) and np.array_equal(found[:, 16:], decoded[:, 16:])
    assert not np.array_equal(found[4:8, :12], original[:4, :12]), "the seam"


def test_an_image_is_encoded_once_and_its_tokens_stay(extrapolate):
    image = pixels()
    assert torch.equal(edit(extrapolate, image=image, rounds=3)[..., :4], encoded(image, extrapolate))


@pytest.mark.parametrize("direction, order", [("right", [0, 0, 1, 2]), ("left", [2, 1, 0, 0])])
def test_parts_of_a_prompt_lie_on_the_finished_image(extrapolate, direction, order):
    """Of two rounds the first is an owl, the second two hearts; the given half is anything."""
    parts = [
        RegionalPrompt(text, mask=np.uint8([[255 * (number == place) for place in order]]))
        for number, text in enumerate(["a green pear", "owl", "two hearts"])
    ]
    draws, grown = generator(), grid()
    for text in ("owl", "two hearts"):
        grown = edit(extrapolate, text, image=grown, direction=direction, generator=draws)
    found = edit(extrapolate, [parts], image=grid(), direction=direction, rounds=2, generator=generator())
    assert torch.equal(found, grown)


def test_parts_of_a_prompt_lie_on_an_image_that_grows_to_all_sides(extrapolate):
    directions, draws, grown = ["up", "left", "down", "right"], generator(), grid()
    for direction in directions:
        grown = edit(extrapolate, direction, image=grown, direction=direction, generator=draws)
    masks = {
        "up": (slice(0, 2), slice(2, 6)),
        "left": (slice(0, 6), slice(0, 2)),
        "down": (slice(6, 8), slice(0, 6)),
        "right": (slice(0, 8), slice(6, 8)),
    }
    parts = []
    for text, place in masks.items():
        mask = torch.zeros(8, 8)
        mask[place] = 1
        parts.append(RegionalPrompt(text, mask=mask))
    found = edit(extrapolate, [parts], image=grid(), direction=directions, generator=generator())
    assert torch.equal(found, grown)


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
def test_wrong_input_is_refused_before_any_work(extrapolate, inputs, message):
    calls = Calls(extrapolate)
    with pytest.raises(ValueError, match=message):
        edit(extrapolate, **inputs)
    calls.handle.remove()
    assert calls == []


def test_texts_and_masks_are_read_once_however_many_rounds_there_are(extrapolate, tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 2, 0)).save(file)
    parts = [RegionalPrompt("owl", mask=str(file)), RegionalPrompt("two hearts")]
    expected = edit(extrapolate, [parts], rounds=3)
    prompts = []

    def note(model, args, kwargs):
        if not bool((kwargs["input_ids"] == model.config.soi_token_id).any()):
            prompts.append(kwargs["input_ids"].shape)
            file.unlink()  # what is not read by now never will be

    handle = extrapolate.model.register_forward_pre_hook(note, with_kwargs=True)
    found = edit(extrapolate, [parts], rounds=3)
    handle.remove()
    assert torch.equal(found, expected) and len(prompts) == 1
