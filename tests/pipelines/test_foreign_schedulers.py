"""The pipelines with diffusers' own schedulers for masked tokens."""

import pytest
import tiny
import torch
from conversations import ForwardCalls, answer, generator, grid, trained_chat_pipeline
from diffusers import AmusedScheduler, BlockRefinementScheduler, DDIMScheduler, VQDiffusionScheduler
from image_pipelines import LARGE_SIDE, MIDDLE_MASK, PROMPTS, block_mask, edit, make_pipeline

from showo_hf import ShowoExtrapolatePipeline, ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoT2IPipeline


@pytest.fixture(params=[AmusedScheduler, BlockRefinementScheduler], ids=lambda kind: kind.__name__)
def make_foreign_pipeline(request):
    """A function that makes a pipeline with a diffusers scheduler."""

    def make_pipe(kind: type, **options):
        if request.param is AmusedScheduler:
            options = {"mask_token_id": tiny.CODES} | options
        return make_pipeline(kind, scheduler=request.param(**options))

    return make_pipe


def text_to_image(pipe, **kwargs):
    options = {"num_inference_steps": 5, "generator": generator(), "output_type": "latent"}
    return pipe(PROMPTS, **(options | kwargs)).images


@pytest.mark.parametrize("size", [{}, {"height": 24, "width": 16}])
def test_all_tokens_are_denoised(make_foreign_pipeline, size):
    pipe = make_foreign_pipeline(ShowoT2IPipeline)
    found = text_to_image(pipe, **size)
    assert found.shape == (3, 6 if size else 4, 4) and found.max() < tiny.CODES
    assert torch.equal(found, text_to_image(pipe, **size))
    assert not torch.equal(found[0], found[1]), "the prompt changes the tokens"
    assert text_to_image(pipe, output_type="pt").isfinite().all()


@pytest.mark.parametrize(
    "image, mask, options",
    [
        (grid(), MIDDLE_MASK, {}),
        (grid(), MIDDLE_MASK, {"num_inference_steps": 18}),
        (grid(), torch.ones(4, 4), {"strength": 0.4}),
        (grid(shape=(LARGE_SIDE, LARGE_SIDE)), block_mask(slice(2, 8), slice(0, 5), LARGE_SIDE), {}),
    ],
)
def test_known_tokens_stay_unchanged_and_masked_tokens_are_denoised(make_foreign_pipeline, image, mask, options):
    found = edit(make_foreign_pipeline(ShowoInpaintPipeline), PROMPTS, image=image, mask_image=mask, **options)
    assert found.shape == (3, *image.shape) and found.max() < tiny.CODES
    assert all(torch.equal(one[mask == 0], image[mask == 0]) for one in found)
    assert all((one != image).any() for one in found)


def test_a_finished_image_needs_no_more_steps():
    pipe = make_pipeline(ShowoInpaintPipeline, scheduler=BlockRefinementScheduler(threshold=0.0))
    calls = ForwardCalls(pipe)
    edit(pipe, num_inference_steps=18)
    calls.handle.remove()
    assert len(calls) == 1 + 1, "the first step unmasks all tokens, because the threshold is 0"


def test_an_image_is_extended(make_foreign_pipeline):
    found = edit(make_foreign_pipeline(ShowoExtrapolatePipeline), direction=["left", "down"])
    assert found.shape == (1, 6, 6) and found.max() < tiny.CODES and torch.equal(found[0, :4, 2:], grid())


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_varying_changes_part_of_the_tokens(make_foreign_pipeline, remasking):
    found = edit(make_foreign_pipeline(ShowoImg2ImgPipeline), strength=0.5, remasking=remasking)
    assert 0 < (found[0] != grid()).sum() <= 8 and found.max() < tiny.CODES


def test_a_list_of_generators_is_refused(make_foreign_pipeline):
    generators = [generator(number) for number in range(3)]
    for kind, call in (
        (ShowoT2IPipeline, text_to_image),
        (ShowoInpaintPipeline, lambda pipe, **kw: edit(pipe, PROMPTS, **kw)),
    ):
        pipe = make_foreign_pipeline(kind)
        with pytest.raises(
            ValueError, match=f"must be a single one for a {type(pipe.scheduler).__name__}, got a list of 3"
        ):
            call(pipe, generator=generators)


def test_a_conversation_uses_a_foreign_scheduler(make_foreign_pipeline):
    pipe = trained_chat_pipeline()
    pipe.scheduler = make_foreign_pipeline(ShowoT2IPipeline).scheduler
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
def test_unsupported_schedulers_are_refused_before_any_work(kind, scheduler, message):
    pipe = make_pipeline(kind, scheduler=scheduler)
    calls = ForwardCalls(pipe)
    with pytest.raises(ValueError, match=message):
        text_to_image(pipe) if kind is ShowoT2IPipeline else edit(pipe)
    assert calls == []


def test_an_amused_scheduler_for_another_codebook_size_is_refused():
    pipe = make_pipeline(ShowoT2IPipeline, scheduler=AmusedScheduler(mask_token_id=8192))
    with pytest.raises(ValueError, match="must be the model's codebook size, 64, got 8192"):
        text_to_image(pipe)
