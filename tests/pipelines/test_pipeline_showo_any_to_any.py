"""The public behaviour of the any-to-any pipeline."""

import inspect
import logging

import conversations
import numpy as np
import pytest
import tiny
import torch
from conversations import (
    OPTIONS,
    PROCESSOR,
    ForwardCalls,
    answer,
    generator,
    grid,
    image,
    make_chat_pipeline,
    pixels,
    random_chat_pipeline,
    same_parts,
    text,
    trained_chat_pipeline,
    user,
)
from PIL import Image

from showo_hf import (
    AnswerDone,
    ImageDone,
    ImageStep,
    MaskGITScheduler,
    ShowoAnyToAnyPipeline,
    ShowoAnyToAnyPipelineOutput,
    TextPiece,
)
from showo_hf.pipelines.pipeline_showo_any_to_any import AnswerParams


@pytest.fixture
def pipe() -> ShowoAnyToAnyPipeline:
    return random_chat_pipeline()


# Answers


def test_text_and_images_are_returned_in_order():
    output = trained_chat_pipeline()("two hearts", num_inference_steps=3, generator=generator())
    assert isinstance(output, ShowoAnyToAnyPipelineOutput) and output.finish_reason == "stop"
    first, one, second, other = conversations.part_values(output.content)
    assert (first, second) == ("a heart:", "one more:")
    assert all(isinstance(image, Image.Image) and image.size == (16, 16) for image in (one, other))
    assert output.message["role"] == "assistant"
    assert [part["type"] for part in output.message["content"]] == ["text", "image", "text", "image"]
    grids = [part["image"] for part in output.message["content"][1::2]]
    assert all(
        image_tokens.shape == (4, 4) and image_tokens.dtype == torch.int64 and image_tokens.max() < tiny.CODES
        for image_tokens in grids
    )
    assert not torch.equal(*grids)


def test_an_answer_may_be_a_single_image():
    output = trained_chat_pipeline()("an owl", num_inference_steps=3, generator=generator())
    assert [part["type"] for part in output.content] == ["image"]


def test_output_types_agree(pipe):
    latent = answer(pipe)
    assert {"text", "image"} == {part["type"] for part in latent.content}
    outputs = {name: answer(pipe, output_type=name) for name in ("pil", "np", "pt")}
    for number, part in enumerate(latent.content):
        others = {name: output.content[number] for name, output in outputs.items()}
        if part["type"] == "text":
            assert all(other == part for other in others.values())
            continue
        assert part["image"].shape == (4, 4) and part["image"].dtype == torch.int64
        as_pt, as_np, as_pil = (others[name]["image"] for name in ("pt", "np", "pil"))
        torch.testing.assert_close(as_pt, pipe.image_tokenizer.decode(part["image"][None]).sample[0] / 2 + 0.5)
        assert as_pt.shape == (3, 16, 16) and as_np.shape == (16, 16, 3) and as_pil.size == (16, 16)
        np.testing.assert_allclose(as_np, as_pt.movedim(0, -1).numpy(), atol=1e-6)
        assert np.array_equal(np.asarray(as_pil), (as_np * 255).round().astype("uint8"))
    assert all(same_parts(output.message["content"], latent.content) for output in outputs.values())


def test_return_dict_false_returns_a_tuple(pipe):
    content, message, finish_reason = answer(pipe, return_dict=False)
    output = answer(pipe)
    assert same_parts(content, output.content) and finish_reason == output.finish_reason == "length"
    assert same_parts(message["content"], output.message["content"])


def test_messages_may_be_a_text_a_message_or_a_list(pipe):
    expected = answer(pipe, [user("an owl")]).content
    for same in ("an owl", user("an owl"), {"role": "user", "content": "an owl"}, (user("an", " owl"),)):
        assert same_parts(answer(pipe, same).content, expected)


def test_an_image_equals_its_tokens(pipe):
    image = pixels()
    image_tokens = pipe.image_tokenizer.encode(PROCESSOR(images=image)["pixel_values"]).image_tokens[0]
    expected = answer(pipe, [user(image_tokens, "an owl")]).content
    array, tensor = np.asarray(image), torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)
    for same in (image, array, tensor, tensor.float() / 255, image.convert("RGBA")):
        assert same_parts(answer(pipe, [user(same, "an owl")]).content, expected)
    assert not same_parts(answer(pipe, [user(grid(), "an owl")]).content, expected)


# Random numbers and sampling


def test_a_generator_makes_answers_reproducible(pipe):
    assert same_parts(answer(pipe).content, answer(pipe).content)
    assert not same_parts(answer(pipe).content, answer(pipe, seed=1).content)
    assert same_parts(answer(pipe).content, answer(pipe, generator=[generator()]).content)


def test_the_global_seed_is_used_without_a_generator(pipe):
    torch.manual_seed(3)
    first = answer(pipe, generator=None)
    torch.manual_seed(3)
    assert same_parts(first.content, answer(pipe, generator=None).content)


def test_greedy_text_does_not_depend_on_the_seed(pipe):
    pipe = random_chat_pipeline(soi=-1e4)
    outputs = [answer(pipe, seed=seed, do_sample=False).content for seed in (0, 1)]
    assert outputs[0] == outputs[1] and len(outputs[0][0]["text"]) > 5
    assert answer(pipe, seed=5, top_k=1).content == outputs[0]
    assert answer(pipe, seed=5, top_p=1e-6).content == outputs[0]
    assert answer(pipe, seed=5, text_temperature=1e-4).content == outputs[0]


def test_sampling_options_change_the_text():
    pipe = random_chat_pipeline(soi=-1e4)
    plain = answer(pipe, max_new_tokens=40).content
    for option in ({"text_temperature": 3.0}, {"top_k": 3}, {"top_p": 0.3}):
        assert answer(pipe, max_new_tokens=40, **option).content != plain


def test_sampling_options_without_sampling_warn(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        answer(pipe, do_sample=False)
        assert "have no effect" not in caplog.text
        answer(pipe, do_sample=False, top_p=0.5)
    assert "`top_p` have no effect with `do_sample=False`" in caplog.text


def test_image_options_change_the_image():
    options = {"generator": None, "do_sample": False, "max_new_tokens": 20, "num_inference_steps": 6}

    def images(**kwargs):
        torch.manual_seed(0)
        content = answer(trained_chat_pipeline(), "an owl", **(options | kwargs)).content
        return [part["image"] for part in content if part["type"] == "image"]

    (plain,) = images()
    assert torch.equal(plain, images()[0])
    for kwargs in (
        {"temperature": 50.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 9.0},
        {"num_inference_steps": 2},
    ):
        assert not torch.equal(plain, images(**kwargs)[0])
    assert torch.equal(images(guidance_scale=0.0)[0], images(guidance_scale=1.0)[0])


# Limits


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_max_images_limits_the_images(limit):
    output = answer(random_chat_pipeline(soi=50.0), max_images=limit)
    kinds = [part["type"] for part in output.content]
    assert kinds == ["image"] * limit + ["text"]
    assert output.finish_reason == "length"


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_new_tokens_counts_only_text(limit):
    pipe = random_chat_pipeline(soi=3.0)
    output = answer(pipe, max_new_tokens=limit, max_images=9)
    words = "".join(part["text"] for part in output.content if part["type"] == "text")
    ids = sum(len(PROCESSOR.text_ids(part["text"])) for part in output.content if part["type"] == "text")
    assert words and ids <= limit and output.finish_reason == "length"
    assert len(words) >= limit  # each id gives at least one character


@pytest.mark.parametrize("context", [128, 129, 145, 146, 147])
def test_an_image_is_started_only_if_it_fits_the_context(context):
    pipe = random_chat_pipeline(soi=50.0, context=context)
    prompt, lengths, positions = len(pipe.token_ids([user("an owl")])), ForwardCalls(pipe), []
    pipe.model.model.register_forward_hook(
        lambda module, args, kwargs, output: positions.append(output.past_key_values.get_seq_length()),
        with_kwargs=True,
    )
    output = answer(pipe, max_images=99, max_new_tokens=999, num_inference_steps=1, guidance_scale=1.0)
    images = (context - prompt) // conversations.IMAGE_LENGTH
    room = (context - prompt) % conversations.IMAGE_LENGTH
    assert [part["type"] for part in output.content] == ["image"] * images + ["text"] * (room > 0)
    assert max(positions) <= context and lengths.count((1, 1)) == max(0, room - 1)
    assert output.finish_reason == "length"


def test_a_prompt_may_fill_the_context_except_one_position():
    length = len(random_chat_pipeline().token_ids([user("an owl")]))
    output = answer(random_chat_pipeline(context=length + 1), max_new_tokens=20)
    assert [part["type"] for part in output.content] == ["text"] and len(output.content[0]["text"]) <= 2
    pipe = random_chat_pipeline(context=length)
    calls = ForwardCalls(pipe)
    with pytest.raises(
        ValueError, match=f"`messages` must take fewer positions than the model's {length}, got {length}"
    ):
        answer(pipe)
    assert calls == []


def test_images_count_towards_the_prompt_length(pipe):
    calls = ForwardCalls(pipe)
    encoded = []
    pipe.image_tokenizer.encoder.register_forward_hook(lambda *args: encoded.append(1))
    with pytest.raises(ValueError, match="`messages` must take fewer positions than the model's 512, got 5"):
        answer(pipe, [user(*[pixels()] * 28)])
    assert calls == [] and encoded == []


@pytest.mark.parametrize("do_sample", [True, False])
def test_special_tokens_are_never_sampled_as_text(do_sample):
    names = ("pad", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg", "mask")
    pipe = random_chat_pipeline(soi=-1e4, **dict.fromkeys(names, 80.0))
    with torch.no_grad():
        pipe.model.lm_head.bias[pipe.model.config.image_token_offset :] = 80.0
    output = answer(pipe, do_sample=do_sample, max_new_tokens=25, text_temperature=2.0 if do_sample else 1.0)
    (part,) = output.content
    assert part["type"] == "text" and not any(name in part["text"] for name in ("<|", "[PAD]"))
    # They do not change the sampled text either.
    plain = answer(
        random_chat_pipeline(soi=-1e4),
        do_sample=do_sample,
        max_new_tokens=25,
        text_temperature=2.0 if do_sample else 1.0,
    )
    assert output.content == plain.content


def test_an_answer_ends_at_eot():
    output = answer(random_chat_pipeline(eot=80.0))
    assert output.content == [] and output.message == {"role": "assistant", "content": []}
    assert output.finish_reason == "stop"


# Streaming


def test_a_stream_yields_the_content_of_a_call(pipe):
    for seed in range(3):
        expected = answer(pipe, seed=seed)
        *events, last = pipe.stream("an owl", generator=generator(seed), **OPTIONS)
        assert isinstance(last, AnswerDone) and last.finish_reason == expected.finish_reason
        assert same_parts(last.message["content"], expected.content)
        content, step = [], None
        for event in events:
            if isinstance(event, ImageStep):
                step = event
            elif isinstance(event, ImageDone):
                assert torch.equal(event.image, event.tokens) and torch.equal(event.tokens, step.tokens)
                assert event.index == step.index == sum(part["type"] == "image" for part in content)
                content.append(image(event.image))
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += event.text
            else:
                content.append(text(event.text))
        assert same_parts(content, expected.content)


def test_a_stream_yields_each_step_of_each_image(pipe):
    steps = [
        event for event in pipe.stream("an owl", generator=generator(), **OPTIONS) if isinstance(event, ImageStep)
    ]
    assert [(s.index, s.step, s.num_steps) for s in steps] == [(i, step, 3) for i in range(2) for step in range(3)]
    assert all(step.tokens.shape == (4, 4) and step.tokens.dtype == torch.int64 for step in steps)
    num_masked = [int((step.tokens == tiny.CODES).sum()) for step in steps]
    assert num_masked[2] == num_masked[5] == 0 and 16 > num_masked[0] > num_masked[1] > 0
    for before, after in zip(steps, steps[1:], strict=False):
        known = (before.tokens != tiny.CODES) & (before.index == after.index)
        assert torch.equal(before.tokens[known], after.tokens[known])


def test_text_is_streamed_before_the_answer_is_finished():
    calls = ForwardCalls(pipe := trained_chat_pipeline())
    stream = pipe.stream([user(grid(), "what?")], max_new_tokens=30)
    assert calls == []
    first = next(stream)
    assert first.text == "a" and len(calls) < 8
    assert "".join(event.text for event in [first, *stream] if isinstance(event, TextPiece)) == "an owl."


def test_events_are_immutable():
    with pytest.raises(AttributeError):
        TextPiece("a").text = "b"


# Callbacks and progress


def test_the_callback_is_called_after_each_step_of_each_image(pipe):
    seen = []

    def record(its_pipe, step, timestep, tensors):
        assert its_pipe is pipe and pipe.guidance_scale == 3.0 and pipe.num_timesteps == 3
        seen.append((step, int(timestep), tensors["latents"].clone()))

    content = answer(pipe, callback_on_step_end=record, guidance_scale=3.0).content
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 2), (1, 1), (2, 0)] * 2
    images = [part["image"] for part in content if part["type"] == "image"]
    assert torch.equal(torch.cat([seen[2][2], seen[5][2]]), torch.stack(images))


def test_the_callback_can_replace_the_tokens(pipe):
    def all_seven(its_pipe, step, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], 7)}

    content = answer(pipe, callback_on_step_end=all_seven).content
    assert all((part["image"] == 7).all() for part in content if part["type"] == "image")
    seen = []
    answer(pipe, callback_on_step_end=lambda *args: seen.append(args[3]), callback_on_step_end_tensor_inputs=[])
    assert seen == [{}] * 6


def test_progress_is_shown_on_stderr_unless_disabled(pipe, capsys):
    answer(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    answer(pipe)
    assert capsys.readouterr().err.count("3/3") >= 2


# Invalid input is refused before any work


def part(**kwargs):
    return [{"role": "user", "content": [kwargs]}]


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        ({"messages": None}, TypeError, "`messages` must be a text, a message or a list of messages, got NoneType"),
        ({"messages": 3}, TypeError, "`messages` must be a text"),
        ({"messages": []}, ValueError, "`messages` must end with a message of 'user', got none"),
        ({"messages": [3]}, TypeError, "`messages` must hold dicts with 'role' and 'content', got 3"),
        ({"messages": {"role": "user"}}, TypeError, "`messages` must hold dicts with 'role' and 'content'"),
        ({"messages": {"role": "bot", "content": "a"}}, ValueError, r"roles among \['system', 'user', 'assistant'\]"),
        ({"messages": {"role": "user", "content": 3}}, TypeError, "a text or a list of parts as 'content', got int"),
        (
            {"messages": {"role": "assistant", "content": "a"}},
            ValueError,
            "end with a message of 'user', got a message",
        ),
        (
            {"messages": [user("a"), {"role": "system", "content": "a"}, user("a")]},
            ValueError,
            "at the beginning only",
        ),
        ({"messages": [{**user(grid()), "role": "system"}, user("a")]}, ValueError, "got one from 'system'"),
        ({"messages": part(type="video", video="a")}, ValueError, r"parts \{'type': 'text', 'text': ...\} or"),
        ({"messages": part(type="text", text=3)}, ValueError, "`messages` must have parts"),
        ({"messages": part(type="image")}, ValueError, "with one of .*'image', 'url', 'path', 'base64'"),
        ({"messages": part(type="image", image=grid(), url="a")}, ValueError, "with one of"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, ValueError, "`messages` must have parts"),
        ({"messages": part(type="image", image="none.png")}, ValueError, "`messages` holds an image that cannot be"),
        ({"messages": part(type="image", image=3)}, TypeError, "`messages` must hold PIL images"),
        (
            {"messages": part(type="image", image=grid() + 64)},
            ValueError,
            "token grids with image tokens from 0 to 63",
        ),
        (
            {"messages": part(type="image", image=grid() - 64)},
            ValueError,
            "token grids with image tokens from 0 to 63",
        ),
        ({"messages": part(type="image", image=grid()[:0])}, ValueError, "token grids with image tokens from 0 to 63"),
        ({"max_new_tokens": 0}, ValueError, "`max_new_tokens` must be an integer of at least 1, got 0"),
        ({"max_images": -1}, ValueError, "`max_images` must be an integer of at least 0, got -1"),
        ({"max_images": 1.0}, ValueError, "`max_images` must be an integer"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an integer of at least 1, got 0"),
        ({"guidance_scale": -1.0}, ValueError, "`guidance_scale` must be a finite number that is not negative"),
        ({"temperature": float("nan")}, ValueError, "`temperature` must be a finite number"),
        ({"text_temperature": 0.0}, ValueError, "`text_temperature` must be above 0, got 0"),
        ({"text_temperature": -1.0}, ValueError, "`text_temperature` must be a finite number that is not negative"),
        ({"top_k": 0}, ValueError, "`top_k` must be an integer of at least 1, got 0"),
        ({"top_p": 0.0}, ValueError, "`top_p` must be above 0 and at most 1, or None, got 0.0"),
        ({"top_p": 1.5}, ValueError, "`top_p` must be above 0 and at most 1, or None, got 1.5"),
        ({"output_type": "jpeg"}, ValueError, "`output_type` must be 'pil', 'np', 'pt' or 'latent', got 'jpeg'"),
        ({"generator": 3}, TypeError, "`generator` must be a `torch.Generator` or a list of them, got int"),
        ({"generator": [generator(), generator()]}, ValueError, "a list of 1, got a list of 2"),
        ({"callback_on_step_end_tensor_inputs": ["logits"]}, ValueError, r"among \['latents'\], got \['logits'\]"),
        ({"height": 32}, TypeError, "no argument .'height'.|unexpected keyword argument 'height'"),
    ],
)
def test_wrong_input_is_refused_before_any_work(pipe, inputs, error, message):
    calls = ForwardCalls(pipe)
    inputs = {"messages": "an owl"} | inputs
    with pytest.raises(error, match=message):
        pipe(**inputs)
    with pytest.raises(error, match=message):
        pipe.stream(**inputs)  # before the first event is requested
    assert calls == []


def test_a_model_without_image_tokenizer_works_on_token_grids():
    model = tiny.showo(text_ids=PROCESSOR.pad_token_id, images=False)
    with torch.no_grad():
        model.lm_head.bias[PROCESSOR.soi_token_id] = 9.0
    pipe = make_chat_pipeline(model)
    output = answer(pipe, [user(grid(), "an owl")])
    assert "image" in {part["type"] for part in output.content}
    with pytest.raises(ValueError, match="`output_type` must be 'latent'"):
        pipe("an owl")
    with pytest.raises(ValueError, match="`messages` must have token grids as images for a model without an image"):
        answer(pipe, [user(pixels(), "an owl")])


def test_a_model_with_continuous_image_features_is_refused():
    processor = tiny.clip_processor()
    pipe = make_chat_pipeline(tiny.clip_showo(processor.pad_token_id), processor)
    calls = ForwardCalls(pipe)
    with pytest.raises(ValueError, match="`model` must read images as image tokens, got one that reads continuous"):
        answer(pipe)
    assert calls == []


def test_a_scheduler_for_another_codebook_size_is_refused(pipe):
    pipe.scheduler = MaskGITScheduler()
    with pytest.raises(ValueError, match="must be the model's codebook size, 64, got 8192"):
        answer(pipe)


def test_stream_and_call_have_the_same_options():
    call_options = inspect.signature(ShowoAnyToAnyPipeline.__call__).parameters
    stream_options = inspect.signature(AnswerParams).parameters
    of_the_model = {"num_inference_steps": None, "guidance_scale": None}
    assert {name: parameter.default for name, parameter in stream_options.items()} | of_the_model == {
        name: parameter.default
        for name, parameter in call_options.items()
        if name not in ("self", "messages", "return_dict")
    }
