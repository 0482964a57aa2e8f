"""Wrong values for every argument of the calls that answer in text, or in text and images; see `hostile.try_all`."""

from typing import Any

import pytest
import torch
from conversations import grid, make_chat_pipeline
from hostile import ANY_TEXT, ITSELF, NO_OTHERS, Plain, assert_complete, networks_of, try_all
from image_pipelines import make_pipeline, shared_model

from showo_hf import ShowoAnyToAnyPipeline, ShowoMMUPipeline
from showo_hf.pipelines.conversation import Conversation


def do_nothing(pipe, step, timestep, tensors):
    """A callback that changes nothing."""


VOCABULARY = 10_000  # more than any vocabulary here
#: How to choose the words.
SAMPLING: dict[str, Plain] = {
    "do_sample": {"true": ITSELF},
    "temperature": {"fraction": ITSELF},
    "text_temperature": {"fraction": ITSELF},
    "top_k": {"none": VOCABULARY, "2**63": VOCABULARY, "5000 digits": VOCABULARY},
    "top_p": {"none": 1.0},
    "generator": {"none": torch.Generator()},
    "return_dict": {"true": ITSELF},
}

# Understanding

MMU = {
    "images": grid(),
    "prompts": "what?",
    "max_new_tokens": 2,
    "batch_size": 2,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "generator": None,
    "return_dict": False,
}
GENERATE_OPTIONS = ("num_beams", "num_return_sequences", "no_such_option", "attention_mask")
MMU_PLAIN = SAMPLING | {"prompts": ANY_TEXT}
SCORE = {"images": grid(), "prompts": "what?", "answers": ["owl"], "batch_size": 2}


def is_text(result: Any) -> bool:
    texts = result[0] if isinstance(result, tuple) else result.texts
    return len(texts) == 1 and isinstance(texts[0], str)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("name", [*MMU, *GENERATE_OPTIONS])
def test_understanding(name, do_sample):
    pipe, plain = make_pipeline(ShowoMMUPipeline), MMU_PLAIN.get(name, NO_OTHERS)
    try_all(pipe, MMU | {"do_sample": do_sample}, name, is_text, plain, networks_of(pipe.model))


@pytest.mark.parametrize("name", SCORE)
def test_scores(name):
    pipe, plain = make_pipeline(ShowoMMUPipeline), {"prompts": ANY_TEXT}.get(name, NO_OTHERS)

    def is_right(result):
        (scores,), (lengths,) = result.log_likelihoods, result.lengths
        return scores.shape == lengths.shape == (1,) and scores.item() < 0 < lengths.item()

    try_all(pipe.score, SCORE, name, is_right, plain, networks_of(pipe.model))


def test_whole_numbers_are_temperatures():
    pipe = make_pipeline(ShowoMMUPipeline)
    options = {"max_new_tokens": 4, "do_sample": True, "return_dict": False}
    first, second = (
        pipe(grid(), "what?", temperature=one, generator=torch.Generator().manual_seed(3), **options)
        for one in (2, 2.0)
    )
    assert first == second


# Conversations

CHAT = {
    "messages": "an owl",
    "max_new_tokens": 2,
    "max_images": 1,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "temperature": None,
    "do_sample": False,
    "text_temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "generator": None,
    "decoder_steps": None,
    "output_type": "latent",
    "return_dict": True,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": ("latents",),
}
MANY = 100_000  # more words and images than the context holds
CHAT_PLAIN: dict[str, Plain] = SAMPLING | {
    "messages": ANY_TEXT,
    "message": ANY_TEXT,
    "max_new_tokens": {"2**63": MANY, "5000 digits": MANY},
    "max_images": {"zero": ITSELF, "2**63": MANY, "5000 digits": MANY},
    "num_inference_steps": {"none": 18},
    "guidance_scale": {"none": 2.75, "zero": 1.0, "fraction": ITSELF},
    "temperature": {"none": 1.0, "zero": 0.0, "fraction": ITSELF},
    "decoder_steps": {"none": 0, "zero": None},
    "callback_on_step_end": {"none": do_nothing},
    "callback_on_step_end_tensor_inputs": {"none": ("latents",), "empty list": ("latents",)},
}
OPTIONS = {name: value for name, value in CHAT.items() if name not in ("messages", "return_dict")}


def is_answer(result: Any) -> bool:
    _, message, reason = result if isinstance(result, tuple) else (None, result.message, result.finish_reason)
    return message["role"] == "assistant" and reason in ("stop", "length")


def ends_with_an_answer(events: list) -> bool:
    return events[-1].message["role"] == "assistant" and events[-1].finish_reason in ("stop", "length")


def last_event(call):
    """The end of a stream, from the generator that a call returns."""

    def done(**arguments):
        *_, end = call(**arguments)
        return (end.content, end.message, end.finish_reason)

    return done


@pytest.mark.parametrize("name", CHAT)
def test_conversations(name):
    pipe = make_chat_pipeline(shared_model())
    try_all(pipe, CHAT, name, is_answer, CHAT_PLAIN.get(name, NO_OTHERS), networks_of(pipe.model))


@pytest.mark.parametrize("name", ["messages", *OPTIONS])
def test_streams(name):
    pipe = make_chat_pipeline(shared_model())
    valid, plain = OPTIONS | {"messages": "an owl"}, CHAT_PLAIN.get(name, NO_OTHERS)
    try_all(last_event(pipe.stream), valid, name, is_answer, plain, networks_of(pipe.model))


@pytest.mark.parametrize("name", ["message", "return_dict", "max_new_tokens", "generator", "no_such_option"])
def test_turns(name):
    pipe = make_chat_pipeline(shared_model())

    def send(**arguments):
        return pipe.start().send(**arguments)

    valid = OPTIONS | {"message": "an owl", "return_dict": True}
    try_all(send, valid, name, is_answer, CHAT_PLAIN.get(name, NO_OTHERS), networks_of(pipe.model))


@pytest.mark.parametrize("name", ["message", "max_new_tokens", "generator", "no_such_option"])
def test_streams_of_turns(name):
    pipe = make_chat_pipeline(shared_model())

    def stream(**arguments):
        return pipe.start().stream(**arguments)

    valid, plain = OPTIONS | {"message": "an owl"}, CHAT_PLAIN.get(name, NO_OTHERS)
    try_all(last_event(stream), valid, name, is_answer, plain, networks_of(pipe.model))


def test_starts_of_conversations():
    pipe = make_chat_pipeline(shared_model())
    plain = {"empty list": (), **ANY_TEXT}
    try_all(lambda messages: pipe.start(messages).messages, {}, "messages", lambda found: len(found) < 2, plain)


TRIED: dict[type, dict[str, Any]] = {
    ShowoMMUPipeline: {"__call__": MMU, "score": SCORE},
    ShowoAnyToAnyPipeline: {"__call__": CHAT, "stream": ("messages",), "start": ("messages",)},
    Conversation: {"send": ("message", "return_dict"), "stream": ("message",)},
}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
    assert {*OPTIONS} == {*vars(make_chat_pipeline(shared_model()).answer_params())}
