"""Varying images: how many tokens are masked, and which."""

import logging

import pytest
import tiny
import torch
from conversations import PROCESSOR, ForwardCalls, generator, grid, pixels
from diffusers import AmusedScheduler
from image_pipelines import PROMPTS, edit, make_pipeline, make_recording_pipeline, text_to_image

from showo_hf import MaskAndReplaceScheduler, MaskGITScheduler, ShowoImg2ImgPipeline
from showo_hf.pipelines.editing_pipeline import LIKELIHOOD_GROUPS
from showo_hf.schedulers import SCHEDULERS
from showo_hf.schedulers.scheduling_utils import sample_uniform


@pytest.fixture
def img2img():
    return make_pipeline(ShowoImg2ImgPipeline)


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
def test_strength_1_equals_text_to_image(img2img, remasking):
    found = edit(img2img, PROMPTS, image=pixels(), strength=1, remasking=remasking)
    assert torch.equal(found, text_to_image(PROMPTS))


def test_strength_0_returns_the_image_with_a_warning(img2img, caplog):
    calls = ForwardCalls(img2img)
    with caplog.at_level(logging.WARNING):
        (found,) = edit(img2img, image=pixels(), strength=0, output_type="pil")
    calls.handle.remove()
    assert "No token is edited" in caplog.text and calls == []
    assert found.tobytes() == pixels().tobytes()


@pytest.mark.parametrize("remasking", ["uncertain", "random"])
@pytest.mark.parametrize("strength, count", [(0.01, 1), (0.3, 5), (0.5, 8), (0.99, 16)])
def test_strength_is_the_share_of_masked_tokens(remasking, strength, count):
    pipe = make_recording_pipeline(ShowoImg2ImgPipeline)
    found = edit(pipe, PROMPTS, strength=strength, remasking=remasking)
    masked = pipe.scheduler.masked
    assert masked.flatten(1).sum(1).tolist() == [count] * 3
    assert torch.equal(found[~masked], grid().expand(3, -1, -1)[~masked])


@pytest.mark.parametrize("schedule, strength, steps", [("linear", 0.5, 6), ("linear", 0.05, 1), ("cosine", 0.45, 4)])
def test_steps_that_would_leave_more_tokens_masked_are_skipped(schedule, strength, steps):
    pipe, seen = make_img2img_pipeline(MaskGITScheduler, schedule), []
    edit(
        pipe,
        strength=strength,
        num_inference_steps=12,
        remasking="random",
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append((step, int(timestep))),
    )
    assert seen == [(step, steps - 1 - step) for step in range(steps)] and pipe.num_timesteps == steps


@pytest.mark.parametrize("kind", [MaskAndReplaceScheduler, AmusedScheduler])
def test_the_masking_schedule_of_any_scheduler_decides_the_skipped_steps(kind):
    pipe = make_img2img_pipeline(kind, "cosine")
    edit(pipe, strength=0.45, num_inference_steps=12, remasking="random")
    assert pipe.num_timesteps == 4


def make_img2img_pipeline(kind, schedule):
    return make_pipeline(ShowoImg2ImgPipeline, scheduler=kind(mask_token_id=tiny.CODES, masking_schedule=schedule))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_any_scheduler_keeps_known_tokens(name):
    pipe = make_pipeline(ShowoImg2ImgPipeline, scheduler=SCHEDULERS[name](mask_token_id=tiny.CODES))
    changed = [int((edit(pipe, strength=strength)[0] != grid()).sum()) for strength in (0.25, 0.75)]
    assert 0 < changed[0] <= 4 and changed[0] < changed[1] <= 12


# Which tokens are masked


def log_likelihoods(model, prompt: str, image_tokens: torch.LongTensor, masked: torch.BoolTensor) -> torch.Tensor:
    """Log-likelihoods of the masked tokens, from the whole sequence without a cache."""
    inputs = PROCESSOR.text_to_image_prefix([prompt])
    config = model.config
    shown = torch.where(masked, config.mask_token_id, image_tokens + config.image_token_offset)
    image = torch.tensor([[config.soi_token_id, *shown.flatten().tolist(), config.eoi_token_id]])
    seen = torch.cat([inputs["attention_mask"], torch.ones_like(image)], 1)
    ids = torch.cat([inputs["input_ids"], image], 1)
    # The image has the same positions as after a text of full length.
    first = PROCESSOR.max_text_length + 1
    positions = torch.arange(ids.shape[1])[None] + first - inputs["input_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=seen, position_ids=positions.clamp(min=0)).logits
    logits = logits[0, -1 - image_tokens.numel() : -1, config.image_token_offset : config.mask_token_id].log_softmax(
        -1
    )
    return logits.gather(-1, image_tokens.flatten()[:, None])[:, 0].view_as(image_tokens)


@torch.no_grad()
def test_the_least_likely_tokens_are_the_most_uncertain(img2img):
    image_tokens, prompt = grid(), "a red apple"
    group = (
        sample_uniform(image_tokens.view(1, -1), generator()).argsort(-1).argsort(-1).view(4, 4) % LIKELIHOOD_GROUPS
    )
    expected = torch.zeros(4, 4)
    for number in range(LIKELIHOOD_GROUPS):
        masked = group == number
        assert masked.sum() == 4
        expected = torch.where(masked, log_likelihoods(img2img.model, prompt, image_tokens, masked), expected)
    prompts = img2img.encode_prompt(prompt, do_classifier_free_guidance=False)
    found = img2img.token_log_likelihoods(image_tokens[None], prompts, generator())[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)

    pipe = make_recording_pipeline(ShowoImg2ImgPipeline)
    edit(pipe, prompt, strength=0.25)
    least = expected.flatten().argsort()[:4]
    assert pipe.scheduler.masked.flatten().nonzero().flatten().tolist() == sorted(least.tolist())


def test_the_prompt_decides_uncertain_tokens_and_the_generator_random_tokens():
    def masked_tokens(prompt, remasking, seed):
        pipe = make_recording_pipeline(ShowoImg2ImgPipeline)
        edit(pipe, prompt, seed, strength=0.5, remasking=remasking, num_inference_steps=1)
        return pipe.scheduler.masked

    assert not torch.equal(masked_tokens("owl", "uncertain", 0), masked_tokens("two hearts", "uncertain", 0))
    assert torch.equal(masked_tokens("owl", "random", 0), masked_tokens("two hearts", "random", 0))
    assert not torch.equal(masked_tokens("owl", "random", 0), masked_tokens("owl", "random", 1))


def test_a_larger_image_has_a_log_likelihood_for_each_token(img2img):
    image_tokens = grid(shape=(2, 6, 7))
    prompts = img2img.encode_prompt(PROMPTS[:2], do_classifier_free_guidance=False)
    found = img2img.token_log_likelihoods(image_tokens, prompts, [generator(0), generator(1)])
    assert found.shape == image_tokens.shape and (found < 0).all() and found.isfinite().all()


@pytest.mark.parametrize(("shape", "windows"), [((1, 4, 4), None), ((1, 8, 4), 3)])
def test_a_bar_counts_the_windows_of_a_larger_image(img2img, capsys, shape, windows):
    img2img.set_progress_bar_config(disable=False)
    prompts = img2img.encode_prompt("owl", do_classifier_free_guidance=False)
    img2img.token_log_likelihoods(grid(shape=shape), prompts, generator())
    printed = capsys.readouterr().err
    assert f" {windows}/{windows} " in printed if windows else printed == ""


def test_only_uncertain_remasking_needs_extra_model_calls(img2img):
    lengths = {}
    for options in ({"remasking": "random"}, {"remasking": "uncertain"}, {"strength": 1.0}):
        calls = ForwardCalls(img2img)
        edit(img2img, num_inference_steps=1, **options)
        calls.handle.remove()
        lengths[tuple(options.values())] = len(calls)
    assert lengths == {("random",): 2, ("uncertain",): 2 + 1 + LIKELIHOOD_GROUPS, (1.0,): 2}
