"""Inpainting: which tokens are masked, which pixels are preserved, and how often the model runs."""

import logging

import numpy as np
import pytest
import tiny
import torch
from conversations import ForwardCalls, generator, grid, pixels
from image_pipelines import (
    MIDDLE_MASK,
    PROMPTS,
    RecordingScheduler,
    block_mask,
    edit,
    encode_image,
    make_pipeline,
    make_recording_pipeline,
    text_to_image,
)
from PIL import Image

from showo_hf import MaskGITScheduler, RegionalPrompt, ShowoInpaintPipeline


@pytest.fixture
def pipe():
    return make_pipeline(ShowoInpaintPipeline)


def masked_tokens_of(**kwargs) -> torch.BoolTensor:
    """The tokens that a call masks, of shape (batch, h, w)."""
    recording = make_recording_pipeline(ShowoInpaintPipeline)
    edit(recording, num_inference_steps=1, **kwargs)
    return recording.scheduler.masked


def enlarge(mask: torch.Tensor, factor: int) -> torch.Tensor:
    return mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


# The mask


def test_masks_of_any_type_and_resolution_mask_the_same_tokens():
    one_pixel_each = torch.zeros(64, 64)
    one_pixel_each[16:48:16, 31:48:16] = 1  # a pixel on the edge of each patch
    as_image = Image.fromarray((enlarge(MIDDLE_MASK, 4) * 255).byte().numpy())
    masks = [
        MIDDLE_MASK,
        MIDDLE_MASK > 0,
        enlarge(MIDDLE_MASK, 4),
        np.array(as_image),
        as_image,
        as_image.convert("RGB"),
    ]
    masks += [
        one_pixel_each,
        [MIDDLE_MASK],
        MIDDLE_MASK[None, None],
        0.4 + 0.1 * MIDDLE_MASK,
        as_image.resize((8, 8), 0),
    ]
    for mask in masks:
        assert torch.equal(masked_tokens_of(mask_image=mask)[0], MIDDLE_MASK > 0)


def test_each_prompt_may_have_its_own_mask():
    masks = [block_mask(slice(0, 1), slice(0, 4)), MIDDLE_MASK]
    found = masked_tokens_of(prompt=PROMPTS[:2], mask_image=masks, num_images_per_prompt=2)
    assert torch.equal(found, torch.stack(masks).repeat_interleave(2, 0) > 0)
    assert torch.equal(
        masked_tokens_of(prompt=PROMPTS[:2], mask_image=torch.stack(masks)[:, None]), torch.stack(masks) > 0
    )


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (torch.ones(8, 12), ValueError, r"must have the aspect ratio of its image, 4x4 .*, got 12x8"),
        (None, ValueError, "`mask_image` must be one mask or one for each of the 1 prompts, got 0"),
        ([MIDDLE_MASK, MIDDLE_MASK], ValueError, "one for each of the 1 prompts, got 2"),
        (torch.ones(3, 8, 8), ValueError, r"`mask_image` as an array must be \(H, W\)"),
        (3, TypeError, "`mask_image` must hold PIL images"),
    ],
)
def test_a_wrong_mask_is_refused_before_any_work(pipe, mask, error, message):
    calls = ForwardCalls(pipe)
    with pytest.raises(error, match=message):
        edit(pipe, mask_image=mask)
    calls.handle.remove()
    assert calls == []


def test_inpainting_a_fully_masked_image_equals_text_to_image(pipe):
    found = edit(pipe, PROMPTS, mask_image=torch.ones(1, 1), image=pixels())
    assert torch.equal(found, text_to_image(PROMPTS))


@pytest.mark.parametrize("options", [{"mask_image": torch.full((4, 4), 0.49)}, {"strength": 0.0}])
def test_an_empty_mask_returns_the_image_with_a_warning(pipe, caplog, options):
    image, calls = pixels(), ForwardCalls(pipe)
    with caplog.at_level(logging.WARNING):
        (found,) = edit(pipe, image=image, output_type="pil", **options)
    assert "No token is edited" in caplog.text
    assert found.tobytes() == image.tobytes()
    assert torch.equal(edit(pipe, image=image, **options), encode_image(image, pipe))
    assert torch.equal(edit(pipe, **options)[0], grid())
    calls.handle.remove()
    assert calls == [], "the model does not run"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        edit(pipe)
    assert "No token is edited" not in caplog.text


def test_an_image_with_an_empty_mask_does_not_change_in_a_batch(pipe, caplog):
    options = {"image": pixels(), "output_type": "pt", "num_inference_steps": 2}
    generators = [generator(0), generator(1)]
    with caplog.at_level(logging.WARNING):
        both = edit(
            pipe, PROMPTS[:2], mask_image=[torch.zeros(4, 4), MIDDLE_MASK], **(options | {"generator": generators})
        )
    assert "No token is edited" in caplog.text
    assert torch.equal((both[0] * 255).round().byte(), torch.tensor(np.array(pixels())).movedim(-1, 0))
    torch.testing.assert_close(both[1:], edit(pipe, PROMPTS[1], 1, mask_image=MIDDLE_MASK, **options))


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_strength_is_the_share_of_marked_tokens_that_is_masked(remasking):
    three_rows = block_mask(slice(0, 3), slice(0, 4))
    for strength, count in [(0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)]:
        masked = masked_tokens_of(mask_image=three_rows, strength=strength, remasking=remasking)[0]
        assert masked.sum() == count and not (masked & (three_rows == 0)).any()


# Pixels


def test_preserved_pixels_are_returned_bit_for_bit(pipe):
    corner, image = block_mask(slice(0, 1), slice(0, 1)), pixels()
    options = {"image": image, "mask_image": corner}
    (found,) = edit(pipe, preserve_pixels=True, output_type="pil", **options)
    (decoded,) = edit(pipe, output_type="pil", **options)
    found, decoded, original = (np.array(one) for one in (found, decoded, image))
    assert np.array_equal(found[:4, :4], decoded[:4, :4])
    assert np.array_equal(found[8:], original[8:]) and np.array_equal(found[:, 8:], original[:, 8:])
    assert not np.array_equal(found[4:8, :4], original[4:8, :4])
    assert not np.array_equal(decoded[8:], original[8:]), (
        "without `preserve_pixels`, all pixels are decoded from tokens"
    )


def inpaint_crop(pipe, image, mask, box, **kwargs):
    """Inpaint a box of the image separately and paste it back under the mask."""
    (inpainted,) = edit(pipe, image=image.crop(box), mask_image=mask.crop(box), output_type="pil", **kwargs)
    whole = image.copy()
    resized = inpainted.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    whole.paste(resized, box[:2], mask.crop(box))
    return whole


@pytest.mark.parametrize(
    "size, marked, padding, box, options",
    [
        ((40, 40), (12, 12, 20, 20), 4, (8, 8, 24, 24), {}),
        ((40, 40), (12, 12, 20, 20), 4, (8, 8, 24, 24), {"preserve_pixels": True}),
        ((60, 40), (0, 0, 10, 6), 0, (0, 0, 10, 10), {}),  # enlarged to a square
        ((60, 10), (12, 2, 40, 8), 1, (11, 0, 41, 10), {}),  # the image is too small for a square
        ((60, 10), (12, 2, 40, 8), 1, (11, 0, 41, 10), {"height": 16, "width": 16}),
        ((60, 40), (20, 10, 30, 14), 0, (20, 10, 30, 15), {"height": 16, "width": 32}),
    ],
)
def test_a_crop_around_the_mask_is_inpainted_at_full_size(pipe, size, marked, padding, box, options):
    image, mask = pixels(size=size[::-1]), Image.new("L", size)
    mask.paste(255, marked)
    (found,) = edit(pipe, image=image, mask_image=mask, padding_mask_crop=padding, output_type="pil", **options)
    assert found.size == size
    expected = inpaint_crop(pipe, image, mask, box, **options)
    assert np.array_equal(np.array(found), np.array(expected))
    outside, inside = np.array(mask) == 0, np.array(mask) == 255
    assert np.array_equal(np.array(found)[outside], np.array(image)[outside])
    assert not np.array_equal(np.array(found)[inside], np.array(image)[inside])


def test_low_mask_values_neither_enlarge_the_crop_nor_change_other_pixels(pipe):
    image, soft = pixels(size=(40, 40)), torch.zeros(40, 40)
    soft[8:20, 8:20] = 0.02
    soft[12:20, 12:20] = 1
    everywhere = soft.clamp(min=0.02)
    options = {"image": image, "padding_mask_crop": 0, "output_type": "pil"}
    (expected,) = edit(pipe, mask_image=(soft == 1), **options)
    for mask in (soft, everywhere):
        (found,) = edit(pipe, mask_image=mask, **options)
        assert np.array_equal(np.array(found), np.array(expected))


def test_regional_prompts_keep_their_position_in_a_crop(pipe):
    image, mask = pixels(size=(40, 40)), Image.new("L", (40, 40))
    mask.paste(255, (24, 4, 40, 20))
    left = torch.tensor([[1.0, 0.0]])
    parts = [RegionalPrompt("owl", mask=left), RegionalPrompt("two hearts", mask=1 - left)]
    options = {"image": image, "mask_image": mask, "padding_mask_crop": 0, "output_type": "pil"}
    (found,), (right,) = edit(pipe, [parts], **options), edit(pipe, "two hearts", **options)
    assert np.array_equal(np.array(found), np.array(right))
    assert not np.array_equal(np.array(found), np.array(edit(pipe, "owl", **options)[0]))


def test_cropping_keeps_a_thin_mark_at_high_resolution():
    thin = torch.zeros(160, 160)
    thin[81, 60:100] = 1
    pipe = make_recording_pipeline(ShowoInpaintPipeline)
    edit(pipe, image=pixels(size=(40, 40)), mask_image=thin, padding_mask_crop=3, output_type="pil")
    assert pipe.scheduler.masked.any()


@pytest.mark.parametrize("options", [{"mask_image": torch.full((4, 4), 0.4)}, {"strength": 0.0}])
def test_a_crop_with_an_empty_mask_returns_the_whole_image(pipe, options, caplog):
    image = pixels(size=(40, 40))
    with caplog.at_level(logging.WARNING):
        (found,) = edit(pipe, image=image, padding_mask_crop=2, output_type="pil", **options)
    assert found.size == (40, 40) and found.tobytes() == image.tobytes() and "No token is edited" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"output_type": "pt"},
            "unless one image of pixels is edited with `output_type='pil'`, got 2 with 1 and 'pt'",
        ),
        ({"image": grid()}, "`padding_mask_crop` must be None unless .*, got 2 with tokens"),
        ({"num_images_per_prompt": 2}, "`padding_mask_crop` must be None unless .*, got 2 with 2 and 'pil'"),
        ({"padding_mask_crop": -1}, "`padding_mask_crop` must be an integer of at least 0, got -1"),
        ({"padding_mask_crop": 1.5}, "`padding_mask_crop` must be an integer"),
    ],
)
def test_invalid_crops_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipe, **({"image": pixels(), "padding_mask_crop": 2, "output_type": "pil"} | options))


# Model calls


class NeverNoopScheduler(MaskGITScheduler):
    """A scheduler that runs the model at every step."""

    def is_noop(self, timestep, sample):
        return False


@pytest.mark.parametrize("marked, expected", [(1, 1), (3, 3), (6, 6)])
def test_noop_steps_do_not_call_the_model(marked, expected):
    mask = (torch.arange(16).view(4, 4) < marked).float()
    for seeds in (generator(), [generator(number) for number in range(3)]):
        found = {}
        for kind in (MaskGITScheduler, NeverNoopScheduler):
            pipe = make_pipeline(ShowoInpaintPipeline, scheduler=kind(mask_token_id=tiny.CODES))
            calls = ForwardCalls(pipe)
            state = [one.get_state() for one in (seeds if isinstance(seeds, list) else [seeds])]
            tokens = edit(pipe, PROMPTS, mask_image=mask, num_inference_steps=18, generator=seeds)
            for one, before in zip(seeds if isinstance(seeds, list) else [seeds], state, strict=True):
                one.set_state(before)
            calls.handle.remove()
            found[kind] = (tokens, len(calls) - 1)
        assert torch.equal(found[MaskGITScheduler][0], found[NeverNoopScheduler][0])
        assert found[NeverNoopScheduler][1] == 18 and found[MaskGITScheduler][1] == expected


def test_logits_cover_only_masked_tokens(pipe):
    shapes = []
    hook = pipe.model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape[0]))
    edit(pipe)
    hook.remove()
    assert shapes[1:] == [2 * left for left in (4, 3, 2, 1)]


def test_the_scheduler_gets_the_size_of_the_window(pipe):
    pipe.scheduler = RecordingScheduler(mask_token_id=tiny.CODES)
    edit(pipe, image=grid(shape=(3, 8)), mask_image=block_mask(slice(0, 3), slice(0, 2), 8)[:3])
    assert pipe.scheduler.grid_sizes == [(3, 4)]
