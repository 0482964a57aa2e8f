"""Prompts of several parts, and guidance over the steps: their numbers, and what they make of images."""

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painting import PROMPTS, WINDOW, edit, from_words, make
from PIL import Image
from talking import PROCESSOR, Calls, generator, grid

from showo_hf import RegionalPrompt, ShowoInpaintPipeline, ShowoT2IPipeline
from showo_hf.pipelines.denoising import PromptContext, predict_logits
from showo_hf.pipelines.encoded_prompts import compose_logits
from showo_hf.pipelines.guidance import GUIDANCE_SCHEDULES, check_guidance, guidance_at, guide
from showo_hf.pipelines.prompts import is_plain, regional_prompts, token_weights


ONES = torch.ones(1, 1)


# Guidance


def test_guided_logits():
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
def test_the_scale_over_five_steps(schedule, expected):
    found = [guidance_at(5.0, step, 5, schedule) for step in range(5)]
    assert found == pytest.approx(expected)
    within = [guidance_at(5.0, step, 5, schedule, (0.25, 0.5)) for step in range(5)]
    assert within == pytest.approx([1.0, *expected[1:3], 1.0, 1.0])


@given(st.floats(0, 20), st.integers(1, 30), st.sampled_from(sorted(GUIDANCE_SCHEDULES)), st.data())
@settings(max_examples=60, deadline=None)
def test_the_scale_rises_from_none_to_the_whole(scale, num_steps, schedule, data):
    ends = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    found = [guidance_at(scale, step, num_steps, schedule, tuple(ends)) for step in range(num_steps)]
    assert all(1 <= one <= max(1, scale) + 1e-9 for one in found)
    if scale <= 1:
        assert set(found) == {1.0}, "as its own documentation says"
    inside = [one for step, one in enumerate(found) if ends[0] <= step / max(1, num_steps - 1) <= ends[1]]
    assert inside == sorted(inside)


@pytest.mark.parametrize("interval", [(0.5,), "half", None, (0.0, 1.5), (-0.1, 1), (0.5, float("nan")), ("0", "1")])
def test_a_wrong_interval_is_refused(interval):
    with pytest.raises(ValueError, match="`guidance_interval` must be"):
        check_guidance(2.0, "constant", interval)


def test_schedules_and_intervals_in_a_pipeline():
    plain, none = from_words(num_inference_steps=2), from_words(num_inference_steps=2, guidance_scale=1.0)
    late = from_words(num_inference_steps=2, guidance_interval=(0.5, 1))
    assert torch.equal(
        plain, from_words(num_inference_steps=2, guidance_interval=(0, 1), guidance_schedule="constant")
    )
    for schedule in ("linear", "cosine"):
        # Of two steps the first is not guided and the last one fully.
        assert torch.equal(from_words(num_inference_steps=2, guidance_schedule=schedule), late)
    assert torch.equal(from_words(num_inference_steps=2, guidance_interval=(0.2, 0.8)), none)
    assert len({tuple(one.flatten().tolist()) for one in (plain, late, none)}) == 3


def test_steps_outside_of_the_interval_run_no_unconditional_rows():
    pipe = make(ShowoT2IPipeline)
    calls = Calls(pipe)
    pipe("owl", num_inference_steps=4, guidance_interval=(0.3, 0.7), generator=generator(), output_type="latent")
    calls.handle.remove()
    assert calls[1:] == [(1, WINDOW), (2, WINDOW), (2, WINDOW), (1, WINDOW)]


# Parts


def test_prompts_are_texts_and_lists_of_parts():
    part = RegionalPrompt("owl", 2.0)
    assert regional_prompts("owl") == [[RegionalPrompt("owl")]]
    assert regional_prompts(["owl", "heart"]) == [[RegionalPrompt("owl")], [RegionalPrompt("heart")]]
    assert regional_prompts([part, RegionalPrompt("heart")]) == [[part, RegionalPrompt("heart")]]
    assert regional_prompts([[part], "heart"]) == [[part], [RegionalPrompt("heart")]]
    for wrong in (part, [part, "heart"], [[part, "heart"]], [[]], [[part], None]):
        with pytest.raises(TypeError, match="`prompt` must (be|hold)"):
            regional_prompts(wrong)


def test_a_part_has_one_text():
    with pytest.raises(TypeError, match="`prompt` must have a text in each `RegionalPrompt`, got list"):
        from_words([RegionalPrompt(["owl", "heart"])])


def test_encoding_prompts_checks_them():
    pipe = make(ShowoT2IPipeline)
    with pytest.raises(ValueError, match="`negative_prompt` must be one text or one for each of the 3 prompts, got 2"):
        pipe.encode_prompt(PROMPTS, ["owl", "heart"])


def test_only_prompts_that_are_not_plain_are_composed():
    assert is_plain([RegionalPrompt("owl")]) and token_weights([[RegionalPrompt("owl")]] * 2, (4, 4)) is None
    for parts in ([RegionalPrompt("owl", 2.0)], [RegionalPrompt("owl", mask=ONES)], [RegionalPrompt("owl")] * 2):
        assert not is_plain(parts)
    mask = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    weights = token_weights(
        [[RegionalPrompt("owl")], [RegionalPrompt("owl", -2.0), RegionalPrompt("heart", 3.0, mask)]], (2, 2)
    )
    assert torch.equal(weights, torch.stack([torch.ones(2, 2), -2 * torch.ones(2, 2), 3 * mask]))


def test_logits_are_composed_for_what_is_unknown():
    draws = generator()
    samples, weights = torch.tensor([0, 0, 1]), torch.randn(3, 2, 3, generator=draws)
    unknown = torch.rand(2, 6, generator=draws) < 0.6
    every = torch.randn(5, 6, 8, generator=draws)  # rows, tokens, codes
    of_row = [unknown[sample] for sample in (0, 0, 1, 0, 1)]
    rows = [logits[kept] for logits, kept in zip(every, of_row, strict=True)]
    found = compose_logits(rows[:3], rows[3:], samples, weights, unknown)
    w = weights.view(3, 6, 1)
    first = w[0] * every[0] + w[1] * every[1] + (1 - w[0] - w[1]) * every[3]
    second = w[2] * every[2] + (1 - w[2]) * every[4]
    torch.testing.assert_close(found, torch.cat([first[unknown[0]], second[unknown[1]]]))


@pytest.mark.parametrize("images", [[0], [1, 2], [0, 2], [0, 1, 2]])
def test_prompts_of_some_of_the_images(images):
    pipe = make(ShowoT2IPipeline)
    prompts = ["owl", [RegionalPrompt("two hearts", 0.5), RegionalPrompt("a red apple")], [RegionalPrompt("owl", 2.0)]]
    for chosen in (prompts, PROMPTS):
        some = pipe.encode_prompt(chosen).select(images)
        expected = pipe.encode_prompt([chosen[number] for number in images])
        tokens = torch.full((len(images), 16), tiny.CODES)
        found, wanted = (
            predict_logits(pipe.model, tokens, PromptContext.of(pipe.model, one, tokens.shape[1]), 2.0)
            for one in (some, expected)
        )
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# Images of them


LEFT = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])  # ends within a patch


@pytest.mark.parametrize(
    "parts, same",
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
def test_parts_that_say_the_same_as_a_text_make_the_same_image(parts, same):
    assert torch.equal(from_words(parts), from_words(**same))


def test_a_part_counts_in_its_region_alone():
    regional = [RegionalPrompt("owl", mask=LEFT), RegionalPrompt("two hearts", mask=1 - LEFT)]
    found = from_words(regional, num_inference_steps=1)
    # In one step no token sees what another becomes.
    assert torch.equal(found[..., :1], from_words("owl", num_inference_steps=1)[..., :1])
    assert torch.equal(found[..., 2:], from_words("two hearts", num_inference_steps=1)[..., 2:])
    as_image = Image.new("L", (5, 1))
    as_image.paste(255, (0, 0, 2, 1))
    assert torch.equal(found, from_words([RegionalPrompt("owl", mask=as_image), regional[1]], num_inference_steps=1))


def test_without_guidance_parts_are_mixed_and_need_the_unconditional_rows():
    pipe, tokens = make(ShowoT2IPipeline), torch.full((1, 16), tiny.CODES)

    def logits(prompt, scale=1.0):
        prompts = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        context = PromptContext.of(pipe.model, prompts, tokens.shape[1])
        return predict_logits(pipe.model, tokens, context, scale), prompts.num_rows

    mixed, rows = logits([RegionalPrompt("owl", 0.25), RegionalPrompt("two hearts", 0.75)])
    assert rows == 3
    torch.testing.assert_close(mixed, 0.25 * logits("owl")[0] + 0.75 * logits("two hearts")[0], atol=1e-4, rtol=1e-4)
    less, _ = logits([RegionalPrompt("owl", 0.25)])
    torch.testing.assert_close(less, 0.25 * logits("owl")[0] + 0.75 * logits("")[0], atol=1e-4, rtol=1e-4)


def test_a_guidance_of_one_or_less_is_none_for_parts_too():
    parts = [RegionalPrompt("owl", 0.25), RegionalPrompt("two hearts", 0.75)]
    assert torch.equal(from_words(parts, guidance_scale=0.0), from_words(parts, guidance_scale=1.0))
    assert torch.equal(
        from_words([RegionalPrompt("owl", mask=ONES)], guidance_scale=0.5), from_words("owl", guidance_scale=1.0)
    )


def test_a_negative_prompt_stands_for_the_unconditional_rows():
    parts = [RegionalPrompt("owl", 0.0)]
    assert torch.equal(from_words(parts, negative_prompt="two hearts"), from_words("two hearts", guidance_scale=1.0))


def test_composed_and_plain_prompts_side_by_side():
    prompts = [PROMPTS[0], [RegionalPrompt(PROMPTS[1]), RegionalPrompt(PROMPTS[2], 0.5)]]
    together = from_words(prompts, generator=[generator(number) for number in (0, 0, 1, 1)], num_images_per_prompt=2)
    assert torch.equal(together[:1], from_words(PROMPTS[0])) and torch.equal(together[:1], together[1:2])
    assert torch.equal(together[3:], from_words(prompts[1], seed=1))
    assert not torch.equal(together[3:], from_words(PROMPTS[1], seed=1))


def test_regions_lie_on_the_whole_of_a_larger_image():
    """Equal texts left and right are one text, in each of the windows."""
    pipe, image = make(ShowoInpaintPipeline), grid(shape=(6, 8))
    options = {"image": image, "mask_image": torch.ones(3, 4), "num_inference_steps": 2}
    parts = [RegionalPrompt("owl", mask=LEFT), RegionalPrompt("owl", mask=1 - LEFT)]
    assert torch.equal(edit(pipe, parts, **options), edit(pipe, "owl", **options))
    other = [parts[0], RegionalPrompt("two hearts", mask=1 - LEFT)]
    assert not torch.equal(edit(pipe, other, **options), edit(pipe, "owl", **options))


def test_each_text_is_encoded_once():
    pipe = make(ShowoT2IPipeline)
    parts = [RegionalPrompt("owl"), RegionalPrompt("", 2.0), RegionalPrompt("owl", -1.0)]
    shapes = []
    hook = pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = pipe.encode_prompt([parts, "two hearts"])
    hook.remove()
    assert shapes == [(3, PROCESSOR.text_to_image_prefix(["owl", "", "two hearts"])["input_ids"].shape[1])]
    assert prompts.num_rows == 4 + 2
