"""Repainting: which tokens, which pixels come back, and how little work it is."""

import logging

import numpy as np
import pytest
import tiny
import torch
from painting import MIDDLE, PROMPTS, WatchedScheduler, edit, encoded, from_words, hole, make, watched
from PIL import Image
from talking import Calls, generator, grid, pixels

from showo_hf import MaskGITScheduler, RegionalPrompt, ShowoInpaintPipeline


@pytest.fixture
def inpaint():
    return make(ShowoInpaintPipeline)


def unknown_of(**kwargs) -> torch.BoolTensor:
    """Which tokens (batch, h, w) a call paints."""
    pipe = watched(ShowoInpaintPipeline)
    edit(pipe, num_inference_steps=1, **kwargs)
    return pipe.scheduler.unknown


def enlarged(mask: torch.Tensor, factor: int) -> torch.Tensor:
    return mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


# The mask


def test_masks_of_any_kind_and_resolution_mark_the_same_tokens():
    one_pixel_each = torch.zeros(64, 64)
    one_pixel_each[16:48:16, 31:48:16] = 1  # an edge of each patch
    as_image = Image.fromarray((enlarged(MIDDLE, 4) * 255).byte().numpy())
    kinds = [MIDDLE, MIDDLE > 0, enlarged(MIDDLE, 4), np.array(as_image), as_image, as_image.convert("RGB")]
    kinds += [one_pixel_each, [MIDDLE], MIDDLE[None, None], 0.4 + 0.1 * MIDDLE, as_image.resize((8, 8), 0)]
    for mask in kinds:
        assert torch.equal(unknown_of(mask_image=mask)[0], MIDDLE > 0)


def test_each_prompt_may_have_its_mask():
    masks = [hole(slice(0, 1), slice(0, 4)), MIDDLE]
    found = unknown_of(prompt=PROMPTS[:2], mask_image=masks, num_images_per_prompt=2)
    assert torch.equal(found, torch.stack(masks).repeat_interleave(2, 0) > 0)
    assert torch.equal(unknown_of(prompt=PROMPTS[:2], mask_image=torch.stack(masks)[:, None]), torch.stack(masks) > 0)


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (torch.ones(8, 12), ValueError, r"must have the aspect ratio of its image, 4x4 .*, got 12x8"),
        (None, ValueError, "`mask_image` must be one mask or one for each of the 1 prompts, got 0"),
        ([MIDDLE, MIDDLE], ValueError, "one for each of the 1 prompts, got 2"),
        (torch.ones(3, 8, 8), ValueError, r"`mask_image` as an array must be \(H, W\)"),
        (3, TypeError, "`mask_image` must hold PIL images"),
    ],
)
def test_a_wrong_mask_is_refused_before_any_work(inpaint, mask, error, message):
    calls = Calls(inpaint)
    with pytest.raises(error, match=message):
        edit(inpaint, mask_image=mask)
    calls.handle.remove()
    assert calls == []


def test_everything_unknown_is_text_to_image(inpaint):
    found = edit(inpaint, PROMPTS, mask_image=torch.ones(1, 1), image=pixels())
    assert torch.equal(found, from_words(PROMPTS))


@pytest.mark.parametrize("nothing", [{"mask_image": torch.full((4, 4), 0.49)}, {"strength": 0.0}])
def test_with_nothing_to_paint_the_image_comes_back_with_a_warning(inpaint, caplog, nothing):
    image, calls = pixels(), Calls(inpaint)
    with caplog.at_level(logging.WARNING):
        (found,) = edit(inpaint, image=image, output_type="pil", **nothing)
    assert "No token is edited" in caplog.text
    assert found.tobytes() == image.tobytes()
    assert torch.equal(edit(inpaint, image=image, **nothing), encoded(image, inpaint))
    assert torch.equal(edit(inpaint, **nothing)[0], grid())
    calls.handle.remove()
    assert calls == [], "the model has nothing to do"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        edit(inpaint)
    assert "No token is edited" not in caplog.text


def test_an_image_with_nothing_to_paint_is_as_alone_beside_others(inpaint, caplog):
    options = {"image": pixels(), "output_type": "pt", "num_inference_steps": 2}
    generators = [generator(0), generator(1)]
    with caplog.at_level(logging.WARNING):
        both = edit(
            inpaint, PROMPTS[:2], mask_image=[torch.zeros(4, 4), MIDDLE], **(options | {"generator": generators})
        )
    assert "No token is edited" in caplog.text
    assert torch.equal((both[0] * 255).round().byte(), torch.tensor(np.array(pixels())).movedim(-1, 0))
    torch.testing.assert_close(both[1:], edit(inpaint, PROMPTS[1], 1, mask_image=MIDDLE, **options))


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_strength_is_the_share_of_the_marked_tokens_that_is_painted(remasking):
    three_rows = hole(slice(0, 3), slice(0, 4))
    for strength, count in [(0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)]:
        unknown = unknown_of(mask_image=three_rows, strength=strength, remasking=remasking)[0]
        assert unknown.sum() == count and not (unknown & (three_rows == 0)).any()


# Pixels


def test_preserved_pixels_come_back_bit_for_bit(inpaint):
    corner, image = hole(slice(0, 1), slice(0, 1)), pixels()
    options = {"image": image, "mask_image": corner}
    (found,) = edit(inpaint, preserve_pixels=True, output_type="pil", **options)
    (decoded,) = edit(inpaint, output_type="pil", **options)
    found, decoded, original = (np.array(one) for one in (found, decoded, image))
    assert np.array_equal(found[:4, :4], decoded[:4, :4])
    assert np.array_equal(found[8:], original[8:]) and np.array_equal(found[:, 8:], original[:, 8:])
    assert not np.array_equal(found[4:8, :4], original[4:8, :4])
    assert not np.array_equal(decoded[8:], original[8:]), "without, all pixels come from tokens"


def crop_by_hand(inpaint, image, mask, box, **kwargs):
    """The image with a box of it repainted by itself, and put back where the mask is."""
    (painted,) = edit(inpaint, image=image.crop(box), mask_image=mask.crop(box), output_type="pil", **kwargs)
    whole = image.copy()
    resized = painted.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    whole.paste(resized, box[:2], mask.crop(box))
    return whole


@pytest.mark.parametrize(
    "size, marked, padding, box, options",
    [
        ((40, 40), (12, 12, 20, 20), 4, (8, 8, 24, 24), {}),
        ((40, 40), (12, 12, 20, 20), 4, (8, 8, 24, 24), {"preserve_pixels": True}),
        ((60, 40), (0, 0, 10, 6), 0, (0, 0, 10, 10), {}),  # made square
        ((60, 10), (12, 2, 40, 8), 1, (11, 0, 41, 10), {}),  # no room for a square
        ((60, 10), (12, 2, 40, 8), 1, (11, 0, 41, 10), {"height": 16, "width": 16}),
        ((60, 40), (20, 10, 30, 14), 0, (20, 10, 30, 15), {"height": 16, "width": 32}),
    ],
)
def test_a_crop_around_the_mask_is_painted_at_full_size(inpaint, size, marked, padding, box, options):
    image, mask = pixels(size=size[::-1]), Image.new("L", size)
    mask.paste(255, marked)
    (found,) = edit(inpaint, image=image, mask_image=mask, padding_mask_crop=padding, output_type="pil", **options)
    assert found.size == size
    expected = crop_by_hand(inpaint, image, mask, box, **options)
    assert np.array_equal(np.array(found), np.array(expected))
    outside, inside = np.array(mask) == 0, np.array(mask) == 255
    assert np.array_equal(np.array(found)[outside], np.array(image)[outside])
    assert not np.array_equal(np.array(found)[inside], np.array(image)[inside])


def test_what_is_hardly_marked_makes_no_crop_larger_and_changes_nothing_outside(inpaint):
    image, soft = pixels(size=(40, 40)), torch.zeros(40, 40)
    soft[8:20, 8:20] = 0.02
    soft[12:20, 12:20] = 1
    everywhere = soft.clamp(min=0.02)
    options = {"image": image, "padding_mask_crop": 0, "output_type": "pil"}
    (expected,) = edit(inpaint, mask_image=(soft == 1), **options)
    for mask in (soft, everywhere):
        (found,) = edit(inpaint, mask_image=mask, **options)
        assert np.array_equal(np.array(found), np.array(expected))


def test_parts_of_a_prompt_keep_their_place_when_a_crop_is_painted(inpaint):
    image, mask = pixels(size=(40, 40)), Image.new("L", (40, 40))
    mask.paste(255, (24, 4, 40, 20))
    left = torch.tensor([[1.0, 0.0]])
    parts = [RegionalPrompt("owl", mask=left), RegionalPrompt("two hearts", mask=1 - left)]
    options = {"image": image, "mask_image": mask, "padding_mask_crop": 0, "output_type": "pil"}
    (found,), (right,) = edit(inpaint, [parts], **options), edit(inpaint, "two hearts", **options)
    assert np.array_equal(np.array(found), np.array(right))
    assert not np.array_equal(np.array(found), np.array(edit(inpaint, "owl", **options)[0]))


def test_a_thin_mark_at_a_high_resolution_is_not_lost_in_cropping():
    thin = torch.zeros(160, 160)
    thin[81, 60:100] = 1
    pipe = watched(ShowoInpaintPipeline)
    edit(pipe, image=pixels(size=(40, 40)), mask_image=thin, padding_mask_crop=3, output_type="pil")
    assert pipe.scheduler.unknown.any()


@pytest.mark.parametrize("nothing", [{"mask_image": torch.full((4, 4), 0.4)}, {"strength": 0.0}])
def test_a_crop_with_nothing_to_paint_gives_the_whole_image(inpaint, nothing, caplog):
    image = pixels(size=(40, 40))
    with caplog.at_level(logging.WARNING):
        (found,) = edit(inpaint, image=image, padding_mask_crop=2, output_type="pil", **nothing)
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
def test_a_crop_that_cannot_be_is_refused(inpaint, options, message):
    with pytest.raises(ValueError, match=message):
        edit(inpaint, **({"image": pixels(), "padding_mask_crop": 2, "output_type": "pil"} | options))


# The work


class RestlessScheduler(MaskGITScheduler):
    """Runs the model in each step."""

    def is_noop(self, timestep, sample):
        return False


@pytest.mark.parametrize("marked, expected", [(1, 1), (3, 3), (6, 6)])
def test_steps_that_fill_in_nothing_need_no_model(inpaint, marked, expected):
    mask = (torch.arange(16).view(4, 4) < marked).float()
    for seeds in (generator(), [generator(number) for number in range(3)]):
        found = {}
        for kind in (MaskGITScheduler, RestlessScheduler):
            pipe = make(ShowoInpaintPipeline, scheduler=kind(mask_token_id=tiny.CODES))
            calls = Calls(pipe)
            state = [one.get_state() for one in (seeds if isinstance(seeds, list) else [seeds])]
            tokens = edit(pipe, PROMPTS, mask_image=mask, num_inference_steps=18, generator=seeds)
            for one, before in zip(seeds if isinstance(seeds, list) else [seeds], state, strict=True):
                one.set_state(before)
            calls.handle.remove()
            found[kind] = (tokens, len(calls) - 1)
        assert torch.equal(found[MaskGITScheduler][0], found[RestlessScheduler][0])
        assert found[RestlessScheduler][1] == 18 and found[MaskGITScheduler][1] == expected


def test_only_unknown_tokens_run_through_the_head(inpaint):
    shapes = []
    hook = inpaint.model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape[0]))
    edit(inpaint)
    hook.remove()
    assert shapes[1:] == [2 * left for left in (4, 3, 2, 1)]


def test_the_scheduler_learns_the_size_of_the_window(inpaint):
    inpaint.scheduler = WatchedScheduler(mask_token_id=tiny.CODES)
    edit(inpaint, image=grid(shape=(3, 8)), mask_image=hole(slice(0, 3), slice(0, 2), 8)[:3])
    assert inpaint.scheduler.grid_sizes == [(3, 4)]
