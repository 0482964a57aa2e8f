"""Answers and log-likelihoods of the MMU pipeline, compared with `generate` and `forward` for one row at a time."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import GenerationConfig, TextIteratorStreamer

from showo_hf import MaskGITScheduler, ShowoMMUPipeline
from showo_hf.pipelines.text_sampling import TextOnly


def random_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), "uint8"))


IMAGES = [random_image(seed) for seed in range(3)]
QUESTIONS = ["what is this?", "is it a red apple, an owl or a pear?", "owl?"]
ANSWERS = ["a red apple", "owl", "two hearts on a table"]


def make_pipeline(kind: str) -> ShowoMMUPipeline:
    processor = tiny.clip_processor() if kind == "clip" else tiny.processor()
    text_ids = processor.pad_token_id
    if kind == "clip":
        model = tiny.clip_showo(text_ids)
    else:
        model = tiny.showo("phi", text_ids=text_ids, continuous_latents=kind == "latents")
    pipe = ShowoMMUPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPES = {kind: make_pipeline(kind) for kind in ("codes", "clip", "latents")}
TOKEN_PIPE = PIPES["codes"]


@pytest.fixture(params=PIPES)
def pipe(request):
    return PIPES[request.param]


def conversation(pipe, image, question, answer=None):
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    messages += [] if answer is None else [{"role": "assistant", "content": answer}]
    return pipe.processor.apply_chat_template(
        messages, add_generation_prompt=answer is None, tokenize=True, return_dict=True, return_tensors="pt"
    )


def generate_answer(pipe, image, question, **options) -> str:
    """The answer of `generate` to one question, limited to text ids."""
    inputs = conversation(pipe, image, question)
    ids = pipe.model.generate(
        **inputs, logits_processor=[TextOnly(pipe.processor)], **({"max_new_tokens": 8, "do_sample": False} | options)
    )
    return pipe.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_equal_generate(pipe):
    options = {"max_new_tokens": 8, "batch_size": 2}
    expected = [generate_answer(pipe, IMAGES[0], question) for question in QUESTIONS]
    assert pipe(IMAGES[0], QUESTIONS, **options).texts == expected
    expected = [generate_answer(pipe, image, question) for image, question in zip(IMAGES, QUESTIONS, strict=True)]
    assert pipe(IMAGES, QUESTIONS, **options).texts == expected
    expected = [generate_answer(pipe, image, QUESTIONS[2]) for image in IMAGES]
    assert pipe(IMAGES, QUESTIONS[2], **options).texts == expected
    log_likelihoods = pipe.score(IMAGES, QUESTIONS[2], ["owl"]).log_likelihoods
    assert len({round(one.item(), 4) for one in log_likelihoods}) == 3, (
        "the answers must depend on the image, or this test shows nothing"
    )
    assert not any("<|" in text for text in expected)


def test_beam_search_equals_generate(pipe):
    expected = [generate_answer(pipe, IMAGES[0], question, num_beams=3) for question in QUESTIONS]
    assert pipe(IMAGES[0], QUESTIONS, max_new_tokens=8, num_beams=3).texts == expected


def test_the_model_s_own_cache_settings_change_no_answer(monkeypatch):
    pipe = TOKEN_PIPE
    expected = pipe(IMAGES[0], QUESTIONS, max_new_tokens=8).texts
    for options in ({"use_cache": False}, {"cache_implementation": "static"}, {"cache_implementation": "offloaded"}):
        monkeypatch.setattr(pipe.model, "generation_config", GenerationConfig(**options))
        assert pipe(IMAGES[0], QUESTIONS, max_new_tokens=8).texts == expected, options
    assert pipe(IMAGES[0], QUESTIONS, max_new_tokens=8, use_cache=True).texts == expected


def count_positions(pipe, call) -> int:
    """The number of positions, over all rows, that run through the first layer."""
    counts = []
    hook = pipe.model.model.layers[0].register_forward_hook(
        lambda _, inputs, __: counts.append(inputs[0][..., 0].numel())
    )
    call()
    hook.remove()
    return sum(counts)


def test_an_image_runs_once_for_all_questions():
    questions = ["owl?"] * 6
    single = count_positions(TOKEN_PIPE, lambda: TOKEN_PIPE(IMAGES[0], questions[:1], max_new_tokens=1))
    for batch_size in (2, 6):
        num_positions = count_positions(
            TOKEN_PIPE, lambda size=batch_size: TOKEN_PIPE(IMAGES[0], questions, max_new_tokens=1, batch_size=size)
        )
        image = 1 + 16 + 2  # mmu soi image eoi
        assert num_positions == 6 * single - 5 * image


def test_a_repeated_image_runs_once():
    images, questions = [IMAGES[0], IMAGES[1], IMAGES[0]], ["owl?"] * 3
    three = count_positions(TOKEN_PIPE, lambda: TOKEN_PIPE(IMAGES, questions, max_new_tokens=1))
    two = count_positions(TOKEN_PIPE, lambda: TOKEN_PIPE(images, questions, max_new_tokens=1))
    assert three - two == 1 + 16 + 2
    texts = TOKEN_PIPE(images, questions, max_new_tokens=6).texts
    assert texts[0] == texts[2] and texts[:2] == TOKEN_PIPE(IMAGES[:2], questions[:2], max_new_tokens=6).texts


def test_token_grids_give_the_answers_of_their_images():
    pixels = TOKEN_PIPE.processor(images=IMAGES[0])["pixel_values"]
    grid = TOKEN_PIPE.model.image_tokenizer.encode(pixels).image_tokens[0]
    assert (
        TOKEN_PIPE(grid, QUESTIONS, max_new_tokens=6).texts == TOKEN_PIPE(IMAGES[0], QUESTIONS, max_new_tokens=6).texts
    )


@torch.no_grad()
def test_log_likelihoods_equal_one_forward_pass(pipe):
    result = pipe.score(IMAGES, QUESTIONS, [ANSWERS, ANSWERS[:1], ANSWERS[1:]], batch_size=4)
    assert [len(row) for row in result.log_likelihoods] == [len(row) for row in result.lengths] == [3, 1, 2]
    for number, (image, question, answers) in enumerate(
        zip(IMAGES, QUESTIONS, [ANSWERS, ANSWERS[:1], ANSWERS[1:]], strict=True)
    ):
        for column, answer in enumerate(answers):
            inputs = conversation(pipe, image, question, answer)
            length = inputs["input_ids"].shape[1] - conversation(pipe, image, question)["input_ids"].shape[1]
            assert result.lengths[number][column] == length
            log_p = pipe.model(**inputs).logits.log_softmax(-1)[0, :-1].gather(-1, inputs["input_ids"][0, 1:, None])
            torch.testing.assert_close(result.log_likelihoods[number][column], log_p[-length:].sum())


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 7), st.permutations(range(3)))
def test_log_likelihoods_do_not_depend_on_batch_size_or_order(batch_size, order):
    expected = TOKEN_PIPE.score(IMAGES, QUESTIONS, ANSWERS).log_likelihoods
    images, questions = ([values[i] for i in order] for values in (IMAGES, QUESTIONS))
    found = TOKEN_PIPE.score(images, questions, ANSWERS, batch_size=batch_size).log_likelihoods
    torch.testing.assert_close(found, [expected[i] for i in order])


def test_sampling_is_reproducible_and_independent_of_the_batch():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    options = {"do_sample": True, "max_new_tokens": 10, "temperature": 1.5, "top_k": 50}
    together = TOKEN_PIPE(IMAGES, QUESTIONS, generator=generators(), **options).texts
    single = [
        TOKEN_PIPE(IMAGES[i], QUESTIONS[i], generator=[one], **options).texts[0] for i, one in enumerate(generators())
    ]
    assert together == single
    assert together == TOKEN_PIPE(IMAGES, QUESTIONS, generator=generators(), batch_size=1, **options).texts
    assert together != TOKEN_PIPE(IMAGES, QUESTIONS, generator=torch.Generator().manual_seed(9), **options).texts


def test_images_of_different_sizes_are_answered_one_by_one():
    grids = [GRID, GRID[:2]]
    together = TOKEN_PIPE(grids, QUESTIONS[0], max_new_tokens=6, batch_size=1).texts
    assert together == [TOKEN_PIPE(one, QUESTIONS[0], max_new_tokens=6).texts[0] for one in grids]


def test_a_streamer_receives_the_answer():
    streamer = TextIteratorStreamer(TOKEN_PIPE.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    (text,) = TOKEN_PIPE(IMAGES[0], QUESTIONS[0], max_new_tokens=8, streamer=streamer).texts
    assert "".join(streamer).strip() == text


def test_a_saved_pipeline_gives_the_same_answers(tmp_path):
    TOKEN_PIPE.save_pretrained(tmp_path)
    loaded = ShowoMMUPipeline.from_pretrained(tmp_path)
    assert loaded(IMAGES[0], QUESTIONS, max_new_tokens=6, return_dict=False) == (
        TOKEN_PIPE(IMAGES[0], QUESTIONS, max_new_tokens=6).texts,
    )


GRID = torch.zeros(4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: TOKEN_PIPE([], "x"), ValueError, "`images` must hold at least one image"),
        (lambda: TOKEN_PIPE(IMAGES[:2], QUESTIONS), ValueError, "one for each of the 3 `prompts`, got 2"),
        (lambda: TOKEN_PIPE(IMAGES[0], []), ValueError, "`prompts` must hold at least one text"),
        (lambda: TOKEN_PIPE(IMAGES[0], 3), TypeError, "`prompts` must be a text"),
        (lambda: TOKEN_PIPE("missing.png", "x"), ValueError, "cannot be read: 'missing.png'"),
        (lambda: TOKEN_PIPE(GRID + 64, "x"), ValueError, "token grids must hold tokens below 64"),
        (lambda: TOKEN_PIPE([GRID, GRID[:2]], "x"), ValueError, r"one size, in tokens, .* \(4, 4\) and .* \(2, 4\)"),
        (
            lambda: TOKEN_PIPE([GRID] * 2 + [GRID[:2]] * 2, "x", batch_size=2),
            ValueError,
            "`images` must have one size",
        ),
        (lambda: TOKEN_PIPE.score([GRID, GRID[:2]], "x", ["a"] * 8), ValueError, "`images` must have one size"),
        (lambda: PIPES["clip"](GRID, "x"), ValueError, "must be images for a model that reads continuous"),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", max_new_tokens=0), ValueError, "`max_new_tokens` must be an integer"),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", max_new_tokens=1000), ValueError, "and the model has 256"),
        (lambda: TOKEN_PIPE(IMAGES[0], "owl " * 300), ValueError, "and the model has 256"),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", batch_size=0), ValueError, "`batch_size` must be an integer"),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", generator=[]), ValueError, "`generator` must be one or a list of 1"),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", use_cache=False), ValueError, "`use_cache` must be True, .* got False"),
        (
            lambda: TOKEN_PIPE(IMAGES[0], "x", generation_config=GenerationConfig(use_cache=False)),
            ValueError,
            "`use_cache` must be True",
        ),
        (
            lambda: TOKEN_PIPE(IMAGES[0], "x", cache_implementation="static"),
            ValueError,
            "`cache_implementation` must be None, .* got 'static'",
        ),
        (lambda: TOKEN_PIPE(IMAGES[0], "x", prefill_chunk_size=4), ValueError, "`prefill_chunk_size` must be None"),
        (lambda: TOKEN_PIPE.score(IMAGES[0], "x", []), TypeError, "`answers` must be a list of texts"),
        (lambda: TOKEN_PIPE.score(IMAGES[0], "x", [["a"], ["b"]]), ValueError, "one list for each of the 1 questions"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_runs(call, error, message):
    calls = []
    hooks = [pipe.model.model.register_forward_hook(lambda *_: calls.append(1)) for pipe in PIPES.values()]
    with pytest.raises(error, match=message):
        call()
    for hook in hooks:
        hook.remove()
    assert not calls
