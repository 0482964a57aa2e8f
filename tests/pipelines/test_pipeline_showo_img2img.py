"""Variations: how many tokens are made anew, and which."""

import logging

import pytest
import tiny
import torch
from diffusers import AmusedScheduler
from painting import PROMPTS, edit, from_words, make, watched
from talking import PROCESSOR, Calls, generator, grid, pixels

from showo_hf import MaskAndReplaceScheduler, MaskGITScheduler, ShowoImg2ImgPipeline
from showo_hf.pipelines.editing_pipeline import LIKELIHOOD_GROUPS
from showo_hf.schedulers import SCHEDULERS
from showo_hf.schedulers.scheduling_utils import sample_uniform


@pytest.fixture
def img2img():
    return make(ShowoImg2ImgPipeline)


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_strength_1_is_text_to_image(img2img, remasking):
    found = edit(img2img, PROMPTS, image=pixels(), strength=1, remasking=remasking)
    assert torch.equal(found, from_words(PROMPTS))


def test_strength_0_gives_the_image_back_with_a_warning(img2img, caplog):
    calls = Calls(img2img)
    with caplog.at_level(logging.WARNING):
        (found,) = edit(img2img, image=pixels(), strength=0, output_type="pil")
    calls.handle.remove()
    assert "No token is edited" in caplog.text and calls == []
    assert found.tobytes() == pixels().tobytes()


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
@pytest.mark.parametrize("strength, count", [(0.01, 1), (0.3, 5), (0.5, 8), (0.99, 16)])
def test_strength_is_the_share_of_tokens_that_is_made_anew(remasking, strength, count):
    pipe = watched(ShowoImg2ImgPipeline)
    found = edit(pipe, PROMPTS, strength=strength, remasking=remasking)
    unknown = pipe.scheduler.unknown
    assert unknown.flatten(1).sum(1).tolist() == [count] * 3
    assert torch.equal(found[~unknown], grid().expand(3, -1, -1)[~unknown])


@pytest.mark.parametrize("schedule, strength, steps", [("linear", 0.5, 6), ("linear", 0.05, 1), ("cosine", 0.45, 4)])
def test_steps_that_would_leave_more_unknown_are_left_out(schedule, strength, steps):
    pipe, seen = varying(MaskGITScheduler, schedule), []
    edit(
        pipe,
        strength=strength,
        num_inference_steps=12,
        remasking="random",
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append((step, int(timestep))),
    )
    assert seen == [(step, steps - 1 - step) for step in range(steps)] and pipe.num_timesteps == steps


@pytest.mark.parametrize("kind", [MaskAndReplaceScheduler, AmusedScheduler])
def test_steps_are_left_out_by_the_masking_schedule_of_any_scheduler(kind):
    pipe = varying(kind, "cosine")
    edit(pipe, strength=0.45, num_inference_steps=12, remasking="random")
    assert pipe.num_timesteps == 4


def varying(kind, schedule):
    return make(ShowoImg2ImgPipeline, scheduler=kind(mask_token_id=tiny.CODES, masking_schedule=schedule))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_any_scheduler_keeps_what_is_known(name):
    pipe = make(ShowoImg2ImgPipeline, scheduler=SCHEDULERS[name](mask_token_id=tiny.CODES))
    changed = [int((edit(pipe, strength=strength)[0] != grid()).sum()) for strength in (0.25, 0.75)]
    assert 0 < changed[0] <= 4 and changed[0] < changed[1] <= 12


# Which tokens


def likelihood(model, prompt: str, codes: torch.LongTensor, hidden: torch.BoolTensor) -> torch.Tensor:
    """log p of hidden tokens, from the whole sequence and without any cache."""
    inputs = PROCESSOR.text_to_image_prefix([prompt])
    config = model.config
    shown = torch.where(hidden, config.mask_token_id, codes + config.image_token_offset)
    image = torch.tensor([[config.soi_token_id, *shown.flatten().tolist(), config.eoi_token_id]])
    seen = torch.cat([inputs["attention_mask"], torch.ones_like(image)], 1)
    ids = torch.cat([inputs["input_ids"], image], 1)
    # The image stands where it does behind a text of full length.
    first = PROCESSOR.max_text_length + 1
    positions = torch.arange(ids.shape[1])[None] + first - inputs["input_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=seen, position_ids=positions.clamp(min=0)).logits
    logits = logits[0, -1 - codes.numel() : -1, config.image_token_offset : config.mask_token_id].log_softmax(-1)
    return logits.gather(-1, codes.flatten()[:, None])[:, 0].view_as(codes)


@torch.no_grad()
def test_the_most_uncertain_tokens_are_those_that_the_model_finds_the_least_likely(img2img):
    codes, prompt = grid(), "a red apple"
    group = sample_uniform(codes.view(1, -1), generator()).argsort(-1).argsort(-1).view(4, 4) % LIKELIHOOD_GROUPS
    expected = torch.zeros(4, 4)
    for number in range(LIKELIHOOD_GROUPS):
        hidden = group == number
        assert hidden.sum() == 4
        expected = torch.where(hidden, likelihood(img2img.model, prompt, codes, hidden), expected)
    prompts = img2img.encode_prompt(prompt, do_classifier_free_guidance=False)
    found = img2img.token_log_likelihoods(codes[None], prompts, generator())[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)

    pipe = watched(ShowoImg2ImgPipeline)
    edit(pipe, prompt, strength=0.25)
    least = expected.flatten().argsort()[:4]
    assert pipe.scheduler.unknown.flatten().nonzero().flatten().tolist() == sorted(least.tolist())


def test_the_prompt_tells_what_is_uncertain_and_chance_what_is_random():
    def chosen(prompt, remasking, seed):
        pipe = watched(ShowoImg2ImgPipeline)
        edit(pipe, prompt, seed, strength=0.5, remasking=remasking, num_inference_steps=1)
        return pipe.scheduler.unknown

    assert not torch.equal(chosen("owl", "uncertain", 0), chosen("two hearts", "uncertain", 0))
    assert torch.equal(chosen("owl", "random", 0), chosen("two hearts", "random", 0))
    assert not torch.equal(chosen("owl", "random", 0), chosen("owl", "random", 1))


def test_likelihoods_of_a_larger_image_are_told_for_all_tokens(img2img):
    codes = grid(shape=(2, 6, 7))
    prompts = img2img.encode_prompt(PROMPTS[:2], do_classifier_free_guidance=False)
    found = img2img.token_log_likelihoods(codes, prompts, [generator(0), generator(1)])
    assert found.shape == codes.shape and (found < 0).all() and found.isfinite().all()


def test_only_asking_what_is_uncertain_costs_calls(img2img):
    lengths = {}
    for options in ({"remasking": "random"}, {"remasking": "uncertain"}, {"strength": 1.0}):
        calls = Calls(img2img)
        edit(img2img, num_inference_steps=1, **options)
        calls.handle.remove()
        lengths[tuple(options.values())] = len(calls)
    assert lengths == {("random",): 2, ("uncertain",): 2 + 1 + LIKELIHOOD_GROUPS, (1.0,): 2}
