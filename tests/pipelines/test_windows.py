"""Windows over a grid that is larger than the trained size: the plan, and its use in pipelines."""

import pytest
import tiny
import torch
from conversations import ForwardCalls, generator, grid
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pipelines import (
    EDITING_PIPELINES,
    LARGE_SIDE,
    PROMPTS,
    WINDOW_LENGTH,
    block_mask,
    edit,
    make_pipeline,
    text_to_image,
)

from showo_hf import ShowoExtrapolatePipeline, ShowoImg2ImgPipeline, ShowoInpaintPipeline
from showo_hf.pipelines.windows import plan_windows, share_windows, window_starts
from showo_hf.schedulers import EntropyBoundScheduler, HaltonScheduler, MaskAndReplaceScheduler


@st.composite
def regions(draw):
    """A grid with masked tokens at random positions, and the size of a window."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    window = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    share, seed = draw(st.sampled_from([0.02, 0.3, 1.0])), draw(st.integers(0, 2**16))
    return torch.rand(shape, generator=generator(seed)) < share, window


@given(regions())
@settings(max_examples=80, deadline=None)
def test_windows_cover_masked_tokens_and_include_known_tokens(region):
    masked, window = region
    left = masked.clone()
    for number, position in enumerate(plan_windows(masked, window)):
        expected = tuple(min(side, size) for side, size in zip(window, masked.shape, strict=True))
        assert all(axis.stop <= size for axis, size in zip(position, masked.shape, strict=True))
        assert left[position].shape == expected, "a window lies inside the grid and has at most the trained size"
        assert left[position].any(), "each window has masked tokens"
        assert number == 0 or not left[position].all(), "only the first window may be without known tokens"
        left[position] = False
    assert not left.any()


@given(st.integers(1, 30), st.integers(1, 9), st.data())
@settings(max_examples=80, deadline=None)
def test_starts_cover_an_axis_with_overlapping_windows(size, window, data):
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    starts = window_starts(first, last, size, window)
    assert starts == sorted(set(starts)) and starts[0] >= 0 and starts[-1] + min(window, size) <= size
    covered = {position for start in starts for position in range(start, start + window)}
    assert set(range(first, last + 1)) <= covered
    assert all(later - start <= max(1, window // 2) for start, later in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize(
    "first, last, size, expected",
    [
        (0, 3, 4, [0]),
        (0, 2, 3, [0]),  # smaller than a window
        (4, 5, 8, [3]),  # centred
        (6, 7, 8, [4]),  # limited by the edge of the grid
        (0, 0, 8, [0]),
        (0, 7, 8, [0, 2, 4]),
        (0, 6, 8, [0, 2, 4]),
        (2, 5, 8, [1, 3]),  # as long as a window: two of them see what is around it
        (2, 6, 8, [1, 2, 4]),
        (0, 3, 8, [0, 1]),
        (2, 7, 8, [1, 3, 4]),
    ],
)
def test_window_starts_have_these_values(first, last, size, expected):
    assert window_starts(first, last, size, 4) == expected


@given(st.integers(5, 40), st.integers(4, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_both_ends_of_a_long_span_are_drawn_beside_known_tokens(size, window, data):
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    length = last - first + 1
    if window >= size or length < window or (length == window and first == 0):
        return  # one window draws everything
    masked = torch.zeros(size, size, dtype=torch.bool)
    masked[:, first : last + 1] = True
    for region, axis in ((masked, 1), (masked.T, 0)):
        left = region.clone()
        for place in plan_windows(region, (window, window)):
            drawn = left[place].any(1 - axis).nonzero().flatten() + place[axis].start
            if first in drawn and first > 0:
                assert place[axis].start < first
            if last in drawn and last < size - 1:
                assert place[axis].stop > last + 1
            left[place] = False
        assert not left.any()


def test_a_grid_without_masked_tokens_needs_no_window():
    assert plan_windows(torch.zeros(5, 5, dtype=torch.bool), (4, 4)) == []


def test_images_share_windows_and_keep_their_order():
    plans = [plan_windows(torch.rand(9, 9, generator=generator(seed)) < 0.15, (4, 4)) for seed in range(4)]
    shared = share_windows(plans)
    assert len(shared) < sum(map(len, plans)), "images share windows"
    for number, plan in enumerate(plans):
        assert [window for window, images in shared if number in images] == plan


# In pipelines


@pytest.mark.parametrize("side, windows", [(4, 1), (6, 4), (8, 9), (12, 25)])
def test_the_window_length_does_not_grow_with_the_image(side, windows):
    pipe = make_pipeline(ShowoImg2ImgPipeline)
    calls = ForwardCalls(pipe)
    found = edit(pipe, image=grid(shape=(side, side)), strength=1.0, num_inference_steps=2)
    calls.handle.remove()
    assert found.shape == (1, side, side) and found.max() < tiny.CODES
    assert calls[1:] == [(2, WINDOW_LENGTH)] * 2 * windows


def test_windows_without_masked_tokens_are_skipped():
    pipe = make_pipeline(ShowoInpaintPipeline)
    calls = ForwardCalls(pipe)
    corners = block_mask(slice(0, 2), slice(0, 2), 12) + block_mask(slice(10, 12), slice(10, 12), 12)
    edit(pipe, image=grid(shape=(12, 12)), mask_image=corners)
    calls.handle.remove()
    assert calls[1:] == [(2, WINDOW_LENGTH)] * 4 * 2


def test_inpainting_a_fully_masked_large_image_equals_text_to_image():
    everything = {"mask_image": torch.ones(LARGE_SIDE, LARGE_SIDE), "image": grid(shape=(LARGE_SIDE, LARGE_SIDE))}
    large = text_to_image(height=LARGE_SIDE * tiny.FACTOR, width=LARGE_SIDE * tiny.FACTOR)
    assert torch.equal(edit(make_pipeline(ShowoInpaintPipeline), **everything), large)


#: Masks for three images with different windows. The second image has no masked tokens.
MASKS = [
    block_mask(slice(0, 5), slice(1, 8), LARGE_SIDE),
    torch.zeros(LARGE_SIDE, LARGE_SIDE),
    block_mask(slice(6, 8), slice(0, 2), LARGE_SIDE) + block_mask(slice(0, 1), slice(7, 8), LARGE_SIDE),
]


@pytest.mark.parametrize(
    "kind, options, per_image_options",
    [
        (ShowoInpaintPipeline, {}, {"mask_image": MASKS}),
        (ShowoInpaintPipeline, {"strength": 0.3}, {"mask_image": MASKS}),
        (ShowoImg2ImgPipeline, {"strength": 0.05, "remasking": "random"}, {}),
        (ShowoImg2ImgPipeline, {"strength": 0.05, "remasking": "uncertain"}, {}),
        (ShowoExtrapolatePipeline, {"direction": ["down", "left"]}, {}),
    ],
)
def test_batches_with_one_generator_per_image_equal_single_calls_in_windows(kind, options, per_image_options):
    assert_batch_equals_single_calls(make_pipeline(kind), options, per_image_options)


@pytest.mark.parametrize("scheduler", [HaltonScheduler, MaskAndReplaceScheduler])
def test_batches_equal_single_calls_with_other_schedulers(scheduler):
    pipe = make_pipeline(ShowoInpaintPipeline, scheduler=scheduler(mask_token_id=tiny.CODES))
    assert_batch_equals_single_calls(pipe, {}, {"mask_image": MASKS})


def assert_batch_equals_single_calls(pipe, options: dict, per_image_options: dict[str, list]):
    grids, generators = grid(shape=(3, LARGE_SIDE, LARGE_SIDE)), [generator(number) for number in range(3)]
    together = edit(
        pipe, PROMPTS, image=grids, generator=generators, num_inference_steps=3, **options, **per_image_options
    )
    for number, prompt in enumerate(PROMPTS):
        own_options = {name: values[number] for name, values in per_image_options.items()}
        alone = edit(pipe, prompt, number, image=grids[number], num_inference_steps=3, **options, **own_options)
        assert torch.equal(together[number : number + 1], alone), number


def test_an_image_that_finishes_early_uses_the_same_random_numbers_in_a_batch():
    pipe = make_pipeline(
        ShowoExtrapolatePipeline, scheduler=EntropyBoundScheduler(mask_token_id=tiny.CODES, entropy_bound=8.0)
    )
    calls = ForwardCalls(pipe)
    grids, options = grid(shape=(3, 4, 4)), {"rounds": 2, "direction": "down", "num_inference_steps": 8}
    alone, lengths = [], []
    for number, prompt in enumerate(PROMPTS):
        before = len(calls)
        alone.append(edit(pipe, prompt, number, image=grids[number], **options))
        lengths.append(len(calls) - before)
    calls.handle.remove()
    assert len(set(lengths)) > 1, "the images finish after different numbers of steps"
    together = edit(pipe, PROMPTS, image=grids, generator=[generator(number) for number in range(3)], **options)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("kind", EDITING_PIPELINES)
def test_callbacks_count_the_steps_of_all_windows(kind):
    pipe, seen = make_pipeline(kind), []

    def record(its_pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors["latents"].shape)))
        assert its_pipe.num_timesteps == 2 * (3 if kind is ShowoExtrapolatePipeline else 9)

    options = {"strength": 1.0} if kind is ShowoImg2ImgPipeline else {}
    if kind is ShowoInpaintPipeline:
        options = {"mask_image": torch.ones(LARGE_SIDE, LARGE_SIDE)}
    found = edit(
        pipe, image=grid(shape=(LARGE_SIDE, LARGE_SIDE)), num_inference_steps=2, callback_on_step_end=record, **options
    )
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert [timestep for _, timestep, _ in seen] == [1, 0] * (len(seen) // 2)
    assert {shape for _, _, shape in seen} == {tuple(found.shape)}
