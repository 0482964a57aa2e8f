"""Windows over a grid that is larger than the trained one: as a plan, and in a pipeline."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painting import KINDS, LARGE, PROMPTS, WINDOW, edit, from_words, hole, make
from talking import Calls, generator, grid

from showo_hf import ShowoExtrapolatePipeline, ShowoImg2ImgPipeline, ShowoInpaintPipeline
from showo_hf.pipelines.windows import plan_windows, share_windows, window_starts
from showo_hf.schedulers import EntropyBoundScheduler, HaltonScheduler, MaskAndReplaceScheduler


@st.composite
def regions(draw):
    """A grid with unknown tokens anywhere, and the size of a window."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    window = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    share, seed = draw(st.sampled_from([0.02, 0.3, 1.0])), draw(st.integers(0, 2**16))
    return torch.rand(shape, generator=generator(seed)) < share, window


@given(regions())
@settings(max_examples=80, deadline=None)
def test_windows_cover_what_is_unknown_and_see_what_is_known_by_then(region):
    unknown, window = region
    left = unknown.clone()
    for number, place in enumerate(plan_windows(unknown, window)):
        expected = tuple(min(side, size) for side, size in zip(window, unknown.shape, strict=True))
        assert all(axis.stop <= size for axis, size in zip(place, unknown.shape, strict=True))
        assert left[place].shape == expected, "it lies inside, and is no larger than the trained grid"
        assert left[place].any(), "none is made for nothing"
        assert number == 0 or not left[place].all(), "only the first one may see nothing"
        left[place] = False
    assert not left.any()


@given(st.integers(1, 30), st.integers(1, 9), st.data())
@settings(max_examples=80, deadline=None)
def test_starts_along_an_axis(size, window, data):
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    starts = window_starts(first, last, size, window)
    assert starts == sorted(set(starts)) and starts[0] >= 0 and starts[-1] + min(window, size) <= size
    covered = {place for start in starts for place in range(start, start + window)}
    assert set(range(first, last + 1)) <= covered
    assert all(later - start <= max(1, window // 2) for start, later in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize(
    "first, last, size, expected",
    [
        (0, 3, 4, [0]),
        (0, 2, 3, [0]),  # a smaller grid
        (4, 5, 8, [3]),  # in the middle
        (6, 7, 8, [4]),  # as far as the grid goes
        (0, 0, 8, [0]),
        (0, 7, 8, [0, 2, 4]),
        (0, 6, 8, [0, 2, 3]),
        (2, 5, 8, [2]),
        (2, 6, 8, [2, 3]),
    ],
)
def test_starts_as_told(first, last, size, expected):
    assert window_starts(first, last, size, 4) == expected


def test_nothing_unknown_needs_no_window():
    assert plan_windows(torch.zeros(5, 5, dtype=torch.bool), (4, 4)) == []


def test_images_share_windows_and_each_keeps_its_order():
    plans = [plan_windows(torch.rand(9, 9, generator=generator(seed)) < 0.15, (4, 4)) for seed in range(4)]
    shared = share_windows(plans)
    assert len(shared) < sum(map(len, plans)), "they are made together"
    for number, plan in enumerate(plans):
        assert [window for window, images in shared if number in images] == plan


# In a pipeline


@pytest.mark.parametrize("side, windows", [(4, 1), (6, 4), (8, 9), (12, 25)])
def test_the_model_sees_no_more_as_the_image_grows(side, windows):
    pipe = make(ShowoImg2ImgPipeline)
    calls = Calls(pipe)
    found = edit(pipe, image=grid(shape=(side, side)), strength=1.0, num_inference_steps=2)
    calls.handle.remove()
    assert found.shape == (1, side, side) and found.max() < tiny.CODES
    assert calls[1:] == [(2, WINDOW)] * 2 * windows


def test_only_windows_with_something_to_paint_are_made():
    pipe = make(ShowoInpaintPipeline)
    calls = Calls(pipe)
    corners = hole(slice(0, 2), slice(0, 2), 12) + hole(slice(10, 12), slice(10, 12), 12)
    edit(pipe, image=grid(shape=(12, 12)), mask_image=corners)
    calls.handle.remove()
    assert calls[1:] == [(2, WINDOW)] * 4 * 2


def test_a_large_grid_with_everything_unknown_is_text_to_image():
    everything = {"mask_image": torch.ones(LARGE, LARGE), "image": grid(shape=(LARGE, LARGE))}
    large = from_words(height=LARGE * tiny.FACTOR, width=LARGE * tiny.FACTOR)
    assert torch.equal(edit(make(ShowoInpaintPipeline), **everything), large)


#: Different masks for three images: their windows are not the same, and one has nothing to edit.
MASKS = [
    hole(slice(0, 5), slice(1, 8), LARGE),
    torch.zeros(LARGE, LARGE),
    hole(slice(6, 8), slice(0, 2), LARGE) + hole(slice(0, 1), slice(7, 8), LARGE),
]


@pytest.mark.parametrize(
    "kind, options, of_each",
    [
        (ShowoInpaintPipeline, {}, {"mask_image": MASKS}),
        (ShowoInpaintPipeline, {"strength": 0.3}, {"mask_image": MASKS}),
        (ShowoImg2ImgPipeline, {"strength": 0.05, "remasking": "random"}, {}),
        (ShowoImg2ImgPipeline, {"strength": 0.05, "remasking": "uncertain"}, {}),
        (ShowoExtrapolatePipeline, {"direction": ["down", "left"]}, {}),
    ],
)
def test_in_windows_a_batch_with_a_generator_each_gives_what_each_gives_alone(kind, options, of_each):
    assert_as_alone(make(kind), options, of_each)


@pytest.mark.parametrize("scheduler", [HaltonScheduler, MaskAndReplaceScheduler])
def test_so_it_is_with_other_schedulers(scheduler):
    pipe = make(ShowoInpaintPipeline, scheduler=scheduler(mask_token_id=tiny.CODES))
    assert_as_alone(pipe, {}, {"mask_image": MASKS})


def assert_as_alone(pipe, options: dict, of_each: dict[str, list]):
    grids, generators = grid(shape=(3, LARGE, LARGE)), [generator(number) for number in range(3)]
    together = edit(pipe, PROMPTS, image=grids, generator=generators, num_inference_steps=3, **options, **of_each)
    for number, prompt in enumerate(PROMPTS):
        its_own = {name: values[number] for name, values in of_each.items()}
        alone = edit(pipe, prompt, number, image=grids[number], num_inference_steps=3, **options, **its_own)
        assert torch.equal(together[number : number + 1], alone), number


def test_an_image_that_is_done_early_draws_what_it_draws_beside_others():
    pipe = make(ShowoExtrapolatePipeline, scheduler=EntropyBoundScheduler(mask_token_id=tiny.CODES, entropy_bound=8.0))
    calls = Calls(pipe)
    grids, options = grid(shape=(3, 4, 4)), {"rounds": 2, "direction": "down", "num_inference_steps": 8}
    alone, lengths = [], []
    for number, prompt in enumerate(PROMPTS):
        before = len(calls)
        alone.append(edit(pipe, prompt, number, image=grids[number], **options))
        lengths.append(len(calls) - before)
    calls.handle.remove()
    assert len(set(lengths)) > 1, "they are done after different numbers of steps"
    together = edit(pipe, PROMPTS, image=grids, generator=[generator(number) for number in range(3)], **options)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_count_the_steps_of_all_windows(kind):
    pipe, seen = make(kind), []

    def note(its_pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors["latents"].shape)))
        assert its_pipe.num_timesteps == 2 * (3 if kind is ShowoExtrapolatePipeline else 9)

    options = {"strength": 1.0} if kind is ShowoImg2ImgPipeline else {}
    if kind is ShowoInpaintPipeline:
        options = {"mask_image": torch.ones(LARGE, LARGE)}
    found = edit(pipe, image=grid(shape=(LARGE, LARGE)), num_inference_steps=2, callback_on_step_end=note, **options)
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert [timestep for _, timestep, _ in seen] == [1, 0] * (len(seen) // 2)
    assert {shape for _, _, shape in seen} == {tuple(found.shape)}
