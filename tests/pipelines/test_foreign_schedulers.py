"""diffusers' own schedulers of masked tokens, in the pipelines."""

import pytest
import tiny
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler, DDIMScheduler, VQDiffusionScheduler
from painting import LARGE, MIDDLE, PROMPTS, edit, hole, make
from talking import Calls, answer, generator, grid, taught

from showo_hf import ShowoExtrapolatePipeline, ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoT2IPipeline


@pytest.fixture(params=[AmusedScheduler, BlockRefinementScheduler], ids=lambda kind: kind.__name__)
def foreign(request):
    """Makes a pipeline around such a scheduler."""

    def make_pipe(kind: type, **options):
        if request.param is AmusedScheduler:
            options = {"mask_token_id": tiny.CODES} | options
        return make(kind, scheduler=request.param(**options))

    return make_pipe


def from_words(pipe, **kwargs):
    options = {"num_inference_steps": 5, "generator": generator(), "output_type": "latent"}
    return pipe(PROMPTS, **(options | kwargs)).images


@pytest.mark.parametrize("size", [{}, {"height": 24, "width": 16}])
def test_everything_is_filled_in(foreign, size):
    pipe = foreign(ShowoT2IPipeline)
    found = from_words(pipe, **size)
    assert found.shape == (3, 6 if size else 4, 4) and found.max() < tiny.CODES
    assert torch.equal(found, from_words(pipe, **size))
    assert not torch.equal(found[0], found[1]), "the prompt matters"
    assert from_words(pipe, output_type="pt").isfinite().all()


@pytest.mark.parametrize(
    "image, mask, options",
    [
        (grid(), MIDDLE, {}),
        (grid(), MIDDLE, {"num_inference_steps": 18}),
        (grid(), torch.ones(4, 4), {"strength": 0.4}),
        (grid(shape=(LARGE, LARGE)), hole(slice(2, 8), slice(0, 5), LARGE), {}),
    ],
)
def test_known_tokens_stay_and_all_others_are_filled_in(foreign, image, mask, options):
    found = edit(foreign(ShowoInpaintPipeline), PROMPTS, image=image, mask_image=mask, **options)
    assert found.shape == (3, *image.shape) and found.max() < tiny.CODES
    assert all(torch.equal(one[mask == 0], image[mask == 0]) for one in found)
    assert all((one != image).any() for one in found)


def test_an_image_that_is_done_needs_no_more_steps():
    pipe = make(ShowoInpaintPipeline, scheduler=BlockRefinementScheduler(threshold=0.0))
    calls = Calls(pipe)
    edit(pipe, num_inference_steps=18)
    calls.handle.remove()
    assert len(calls) == 1 + 1, "the first step is as sure as it needs to be of all tokens"


def test_an_image_is_extended(foreign):
    found = edit(foreign(ShowoExtrapolatePipeline), direction=["left", "down"])
    assert found.shape == (1, 6, 6) and found.max() < tiny.CODES and torch.equal(found[0, :4, 2:], grid())


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_variations(foreign, remasking):
    found = edit(foreign(ShowoImg2ImgPipeline), strength=0.5, remasking=remasking)
    assert 0 < (found[0] != grid()).sum() <= 8 and found.max() < tiny.CODES


def test_a_list_of_generators_is_refused_with_a_clear_message(foreign):
    generators = [generator(number) for number in range(3)]
    for kind, call in (
        (ShowoT2IPipeline, from_words),
        (ShowoInpaintPipeline, lambda pipe, **kw: edit(pipe, PROMPTS, **kw)),
    ):
        pipe = foreign(kind)
        with pytest.raises(
            ValueError, match=f"must be a single one for a {type(pipe.scheduler).__name__}, got a list of 3"
        ):
            call(pipe, generator=generators)


def test_a_conversation_draws_with_any_of_them(foreign):
    pipe = taught()
    pipe.scheduler = foreign(ShowoT2IPipeline).scheduler
    first, again = (answer(pipe, "two hearts", max_new_tokens=30).content for _ in range(2))
    grids, others = ([part["image"] for part in content if part["type"] == "image"] for content in (first, again))
    assert grids and all(one.shape == (4, 4) and one.max() < tiny.CODES for one in grids)
    assert all(torch.equal(one, other) for one, other in zip(grids, others, strict=True))


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (DDIMScheduler(), "`scheduler` must be a scheduler of masked tokens, got DDIMScheduler"),
        (
            VQDiffusionScheduler(num_vec_classes=tiny.CODES + 1),
            "must be a scheduler of masked tokens, got VQDiffusionScheduler",
        ),
        (
            AmusedScheduler(tiny.CODES, "arccos"),
            "`scheduler.config.masking_schedule` must be 'cosine' or 'linear' for Amused",
        ),
    ],
)
@pytest.mark.parametrize("kind", [ShowoT2IPipeline, ShowoInpaintPipeline])
def test_what_does_not_fit_is_refused_before_any_work(kind, scheduler, message):
    pipe = make(kind, scheduler=scheduler)
    calls = Calls(pipe)
    with pytest.raises(ValueError, match=message):
        from_words(pipe) if kind is ShowoT2IPipeline else edit(pipe)
    assert calls == []


def test_an_amused_scheduler_of_another_codebook_is_refused():
    pipe = make(ShowoT2IPipeline, scheduler=AmusedScheduler(mask_token_id=8192))
    with pytest.raises(ValueError, match="must be the model's codebook size, 64, got 8192"):
        from_words(pipe)
