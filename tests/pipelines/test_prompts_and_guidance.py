"""Regional prompts and guidance schedules: their values, and their effect on images."""

import math

import pytest
import tiny
import torch
from conversations import PROCESSOR, ForwardCalls, generator, grid
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pipelines import PROMPTS, WINDOW_LENGTH, edit, make_pipeline, text_to_image
from PIL import Image

from showo_hf import RegionalPrompt, ShowoInpaintPipeline, ShowoT2IPipeline
from showo_hf.pipelines.denoising import PromptContext, predict_logits
from showo_hf.pipelines.encoded_prompts import compose_logits
from showo_hf.pipelines.guidance import GUIDANCE_SCHEDULES, check_guidance, guidance_at, guide
from showo_hf.pipelines.prompts import is_plain, regional_prompts, token_weights


ONES = torch.ones(1, 1)


# Guidance


def test_guidance_extrapolates_logits():
    c, u = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])
    assert guide(3.0, c, u).tolist() == [4.0, -3.0]
    assert torch.equal(guide(1.0, c, u), c) and guide(3.0, c) is c


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [5.0] * 5),
        ("linear", [1.0, 2.0, 3.0, 4.0, 5.0]),
        ("cosine", [1.0, 3 - math.sqrt(2), 3.0, 3 + math.sqrt(2), 5.0]),
    ],
)
def test_guidance_schedules_over_five_steps(schedule, expected):
    found = [guidance_at(5.0, step, 5, schedule) for step in range(5)]
    assert found == pytest.approx(expected)
    within = [guidance_at(5.0, step, 5, schedule, (0.25, 0.5)) for step in range(5)]
    assert within == pytest.approx([1.0, *expected[1:3], 1.0, 1.0])


@given(st.floats(0, 20), st.integers(1, 30), st.sampled_from(sorted(GUIDANCE_SCHEDULES)), st.data())
@settings(max_examples=60, deadline=None)
def test_the_guidance_scale_never_decreases_within_the_interval(scale, num_steps, schedule, data):
    ends = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    found = [guidance_at(scale, step, num_steps, schedule, tuple(ends)) for step in range(num_steps)]
    assert all(1 <= one <= max(1, scale) + 1e-9 for one in found)
    if scale <= 1:
        assert set(found) == {1.0}, "a scale of at most 1 disables guidance"
    inside = [one for step, one in enumerate(found) if ends[0] <= step / max(1, num_steps - 1) <= ends[1]]
    assert inside == sorted(inside)


@pytest.mark.parametrize("interval", [(0.5,), "half", None, (0.0, 1.5), (-0.1, 1), (0.5, float("nan")), ("0", "1")])
def test_invalid_guidance_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="`guidance_interval` must be"):
        check_guidance(2.0, "constant", interval)


def test_a_pipeline_applies_guidance_schedules_and_intervals():
    plain, none = text_to_image(num_inference_steps=2), text_to_image(num_inference_steps=2, guidance_scale=1.0)
    late = text_to_image(num_inference_steps=2, guidance_interval=(0.5, 1))
    assert torch.equal(
        plain, text_to_image(num_inference_steps=2, guidance_interval=(0, 1), guidance_schedule="constant")
    )
    for schedule in ("linear", "cosine"):
        # The first of two steps has no guidance, and the last has the full scale.
        assert torch.equal(text_to_image(num_inference_steps=2, guidance_schedule=schedule), late)
    assert torch.equal(text_to_image(num_inference_steps=2, guidance_interval=(0.2, 0.8)), none)
    assert len({tuple(one.flatten().tolist()) for one in (plain, late, none)}) == 3


def test_steps_outside_the_interval_run_no_unconditional_rows():
    pipe = make_pipeline(ShowoT2IPipeline)
    calls = ForwardCalls(pipe)
    pipe("owl", num_inference_steps=4, guidance_interval=(0.3, 0.7), generator=generator(), output_type="latent")
    calls.handle.remove()
    assert calls[1:] == [(1, WINDOW_LENGTH), (2, WINDOW_LENGTH), (2, WINDOW_LENGTH), (1, WINDOW_LENGTH)]


# Regional prompts


def test_prompts_may_be_texts_and_lists_of_regional_prompts():
    part = RegionalPrompt("owl", 2.0)
    assert regional_prompts("owl") == [[RegionalPrompt("owl")]]
    assert regional_prompts(["owl", "heart"]) == [[RegionalPrompt("owl")], [RegionalPrompt("heart")]]
    assert regional_prompts([part, RegionalPrompt("heart")]) == [[part, RegionalPrompt("heart")]]
    assert regional_prompts([[part], "heart"]) == [[part], [RegionalPrompt("heart")]]
    for wrong in (part, [part, "heart"], [[part, "heart"]], [[]], [[part], None]):
        with pytest.raises(TypeError, match="`prompt` must (be|hold)"):
            regional_prompts(wrong)


def test_a_regional_prompt_has_one_text():
    with pytest.raises(TypeError, match="`prompt` must have a text in each `RegionalPrompt`, got list"):
        text_to_image([RegionalPrompt(["owl", "heart"])])


def test_encode_prompt_checks_the_negative_prompts():
    pipe = make_pipeline(ShowoT2IPipeline)
    with pytest.raises(ValueError, match="`negative_prompt` must be one text or one for each of the 3 prompts, got 2"):
        pipe.encode_prompt(PROMPTS, ["owl", "heart"])


def test_only_regional_prompts_have_token_weights():
    assert is_plain([RegionalPrompt("owl")]) and token_weights([[RegionalPrompt("owl")]] * 2, (4, 4)) is None
    for parts in ([RegionalPrompt("owl", 2.0)], [RegionalPrompt("owl", mask=ONES)], [RegionalPrompt("owl")] * 2):
        assert not is_plain(parts)
    mask = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    weights = token_weights(
        [[RegionalPrompt("owl")], [RegionalPrompt("owl", -2.0), RegionalPrompt("heart", 3.0, mask)]], (2, 2)
    )
    assert torch.equal(weights, torch.stack([torch.ones(2, 2), -2 * torch.ones(2, 2), 3 * mask]))


def test_logits_are_composed_for_masked_tokens():
    rng = generator()
    samples, weights = torch.tensor([0, 0, 1]), torch.randn(3, 2, 3, generator=rng)
    masked = torch.rand(2, 6, generator=rng) < 0.6
    all_logits = torch.randn(5, 6, 8, generator=rng)  # rows, tokens, codebook
    masked_of_row = [masked[sample] for sample in (0, 0, 1, 0, 1)]
    rows = [logits[kept] for logits, kept in zip(all_logits, masked_of_row, strict=True)]
    found = compose_logits(rows[:3], rows[3:], samples, weights, masked)
    w = weights.view(3, 6, 1)
    first = w[0] * all_logits[0] + w[1] * all_logits[1] + (1 - w[0] - w[1]) * all_logits[3]
    second = w[2] * all_logits[2] + (1 - w[2]) * all_logits[4]
    torch.testing.assert_close(found, torch.cat([first[masked[0]], second[masked[1]]]))


@pytest.mark.parametrize("images", [[0], [1, 2], [0, 2], [0, 1, 2]])
def test_selected_prompts_equal_prompts_encoded_separately(images):
    pipe = make_pipeline(ShowoT2IPipeline)
    prompts = ["owl", [RegionalPrompt("two hearts", 0.5), RegionalPrompt("a red apple")], [RegionalPrompt("owl", 2.0)]]
    for chosen in (prompts, PROMPTS):
        selected = pipe.encode_prompt(chosen).select(images)
        expected = pipe.encode_prompt([chosen[number] for number in images])
        tokens = torch.full((len(images), 16), tiny.CODES)
        found, wanted = (
            predict_logits(pipe.model, tokens, PromptContext.of(pipe.model, one, tokens.shape[1]), 2.0)
            for one in (selected, expected)
        )
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# Images from regional prompts


LEFT = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])  # the edge lies inside a patch


@pytest.mark.parametrize(
    "parts, equal_options",
    [
        ([RegionalPrompt("owl", mask=ONES)], {"prompt": "owl"}),
        ([RegionalPrompt("owl", 1)], {"prompt": "owl"}),
        ([RegionalPrompt("owl", 2.0)], {"prompt": "owl", "guidance_scale": 5.5}),
        ([RegionalPrompt("owl", 0.25), RegionalPrompt("owl", 0.75)], {"prompt": "owl"}),
        ([RegionalPrompt("owl", mask=LEFT), RegionalPrompt("owl", mask=1 - LEFT)], {"prompt": "owl"}),
        ([RegionalPrompt("owl"), RegionalPrompt("two hearts", 0.0)], {"prompt": "owl"}),
        ([RegionalPrompt("two hearts", mask=0 * LEFT), RegionalPrompt("owl")], {"prompt": "owl"}),
        ([RegionalPrompt("owl", 0.0)], {"prompt": ""}),
        ([RegionalPrompt("two hearts"), RegionalPrompt("owl"), RegionalPrompt("owl", -1.0)], {"prompt": "two hearts"}),
    ],
)
def test_regional_prompts_equivalent_to_a_text_give_the_same_image(parts, equal_options):
    assert torch.equal(text_to_image(parts), text_to_image(**equal_options))


def test_a_regional_prompt_affects_only_its_region():
    regional = [RegionalPrompt("owl", mask=LEFT), RegionalPrompt("two hearts", mask=1 - LEFT)]
    found = text_to_image(regional, num_inference_steps=1)
    # In a single step, tokens do not depend on the other sampled tokens.
    assert torch.equal(found[..., :1], text_to_image("owl", num_inference_steps=1)[..., :1])
    assert torch.equal(found[..., 2:], text_to_image("two hearts", num_inference_steps=1)[..., 2:])
    as_image = Image.new("L", (5, 1))
    as_image.paste(255, (0, 0, 2, 1))
    assert torch.equal(
        found, text_to_image([RegionalPrompt("owl", mask=as_image), regional[1]], num_inference_steps=1)
    )


def test_regional_prompts_without_guidance_mix_logits_with_unconditional_rows():
    pipe, tokens = make_pipeline(ShowoT2IPipeline), torch.full((1, 16), tiny.CODES)

    def logits(prompt, scale=1.0):
        prompts = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        context = PromptContext.of(pipe.model, prompts, tokens.shape[1])
        return predict_logits(pipe.model, tokens, context, scale), prompts.num_rows

    mixed, rows = logits([RegionalPrompt("owl", 0.25), RegionalPrompt("two hearts", 0.75)])
    assert rows == 3
    torch.testing.assert_close(mixed, 0.25 * logits("owl")[0] + 0.75 * logits("two hearts")[0], atol=1e-4, rtol=1e-4)
    less, _ = logits([RegionalPrompt("owl", 0.25)])
    torch.testing.assert_close(less, 0.25 * logits("owl")[0] + 0.75 * logits("")[0], atol=1e-4, rtol=1e-4)


def test_guidance_scales_up_to_one_disable_guidance_of_regional_prompts():
    parts = [RegionalPrompt("owl", 0.25), RegionalPrompt("two hearts", 0.75)]
    assert torch.equal(text_to_image(parts, guidance_scale=0.0), text_to_image(parts, guidance_scale=1.0))
    assert torch.equal(
        text_to_image([RegionalPrompt("owl", mask=ONES)], guidance_scale=0.5), text_to_image("owl", guidance_scale=1.0)
    )


def test_a_negative_prompt_replaces_the_unconditional_rows():
    parts = [RegionalPrompt("owl", 0.0)]
    assert torch.equal(
        text_to_image(parts, negative_prompt="two hearts"), text_to_image("two hearts", guidance_scale=1.0)
    )


def test_a_batch_may_mix_regional_and_plain_prompts():
    prompts = [PROMPTS[0], [RegionalPrompt(PROMPTS[1]), RegionalPrompt(PROMPTS[2], 0.5)]]
    together = text_to_image(
        prompts, generator=[generator(number) for number in (0, 0, 1, 1)], num_images_per_prompt=2
    )
    assert torch.equal(together[:1], text_to_image(PROMPTS[0])) and torch.equal(together[:1], together[1:2])
    assert torch.equal(together[3:], text_to_image(prompts[1], seed=1))
    assert not torch.equal(together[3:], text_to_image(PROMPTS[1], seed=1))


def test_regions_refer_to_the_whole_of_a_larger_image():
    """Two regions with the same text equal one text in every window."""
    pipe, image = make_pipeline(ShowoInpaintPipeline), grid(shape=(6, 8))
    options = {"image": image, "mask_image": torch.ones(3, 4), "num_inference_steps": 2}
    parts = [RegionalPrompt("owl", mask=LEFT), RegionalPrompt("owl", mask=1 - LEFT)]
    assert torch.equal(edit(pipe, parts, **options), edit(pipe, "owl", **options))
    other = [parts[0], RegionalPrompt("two hearts", mask=1 - LEFT)]
    assert not torch.equal(edit(pipe, other, **options), edit(pipe, "owl", **options))


def test_each_text_is_encoded_once():
    pipe = make_pipeline(ShowoT2IPipeline)
    parts = [RegionalPrompt("owl"), RegionalPrompt("", 2.0), RegionalPrompt("owl", -1.0)]
    shapes = []
    hook = pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = pipe.encode_prompt([parts, "two hearts"])
    hook.remove()
    assert shapes == [(3, PROCESSOR.text_to_image_prefix(["owl", "", "two hearts"])["input_ids"].shape[1])]
    assert prompts.num_rows == 4 + 2
