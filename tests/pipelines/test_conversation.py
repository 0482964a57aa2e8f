"""Conversations: which ids each turn runs, how an interrupted turn is rolled back, and how an answer is streamed."""

import conversations
import numpy as np
import pytest
import tiny
import torch
from conversations import (
    IMAGE_LENGTH,
    PROCESSOR,
    ForwardCalls,
    generator,
    grid,
    image,
    random_chat_pipeline,
    same_parts,
    text,
    trained_chat_pipeline,
    user,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from showo_hf import EMBEDDED_MODEL, AnswerDone, Conversation, ImageDone, ImageStep, TextPiece
from showo_hf.pipelines.answers import TextStream
from showo_hf.pipelines.conversation_cache import ConversationCache


GREEDY = {"num_inference_steps": 2, "max_new_tokens": 40, "output_type": "latent"}
SAMPLED = {"num_inference_steps": 2, "max_new_tokens": 8, "max_images": 2, "do_sample": True, "output_type": "latent"}


def template_ids(messages: list[dict], **options) -> list[int]:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} | options
    return PROCESSOR.apply_chat_template(messages, **options)["input_ids"][0].tolist()


def ask(session: Conversation, words: str, seed: int, **options):
    return session.send(words, generator=generator(seed), **(SAMPLED | options))


# Turns


def test_a_later_turn_runs_only_its_new_ids():
    pipe = trained_chat_pipeline()
    session = pipe.start()
    first = session.send("two hearts", generator=generator(), **GREEDY)
    assert [part["type"] for part in first.content] == ["text", "image", "text", "image"]
    assert [part["text"] for part in first.content[::2]] == ["a heart:", "one more:"]
    # The model sampled the last `eot` but has not run it.
    num_cached, calls = len(template_ids(session.messages)) - 1, ForwardCalls(pipe)
    second = session.send("what?", **GREEDY)
    assert second.content == [text("two red hearts.")] and second.finish_reason == "stop"
    whole = template_ids(session.messages)
    num_text_ids = len(PROCESSOR.text_ids("two red hearts."))
    assert calls == [(1, len(whole) - 1 - num_text_ids - num_cached), *[(1, 1)] * num_text_ids]


def test_cached_ids_equal_the_chat_template():
    """Includes answers that were cut at a limit, for which the sampled ids differ from the ids of the text."""
    session = random_chat_pipeline().start({"role": "system", "content": "flat style"})
    for turn, words in enumerate(["an owl", "two hearts", "a cat"]):
        expected = template_ids([*session.messages, user(words)], add_generation_prompt=True)
        *_, done = session.stream(words, generator=generator(turn), **SAMPLED)
        assert session._cache.ids[: len(expected)] == expected
        assert done.message["content"] and same_parts(done.message["content"], session.messages[-1]["content"])


@pytest.mark.parametrize("make", [trained_chat_pipeline, random_chat_pipeline])
def test_each_turn_equals_a_call_with_the_whole_conversation(make):
    pipe = make()
    session = pipe.start()
    messages: list[dict] = []
    for seed, message in enumerate(["two hearts", user(grid(5), "what?"), "an owl", "what?"]):
        ours = ask(session, message, seed)
        recomputed = pipe(
            [*messages, conversations.user(message) if isinstance(message, str) else message],
            generator=generator(seed),
            **SAMPLED,
        )
        assert same_parts(ours.content, recomputed.content) and ours.finish_reason == recomputed.finish_reason
        messages = session.messages
    assert [message["role"] for message in messages] == ["user", "assistant"] * 4


def test_an_answer_can_be_appended_to_its_messages():
    pipe = random_chat_pipeline()
    messages = [user("an owl")]
    session = pipe.start()
    for seed in range(2):
        answer = pipe(messages, generator=generator(seed), **SAMPLED)
        assert same_parts(answer.content, ask(session, messages[-1], seed).content)
        messages += [answer.message, user("two hearts")]
    assert same_parts(session.messages[-1]["content"], messages[-2]["content"])


def test_a_conversation_encodes_the_empty_prompt_once():
    pipe = random_chat_pipeline()
    calls = ForwardCalls(pipe)
    empty = PROCESSOR.text_to_image_prefix([""])["input_ids"].shape[1]
    session = pipe.start()
    for seed in range(3):
        ask(session, "an owl", seed)
    assert calls.count((1, empty)) == 1 and calls.count((2, IMAGE_LENGTH)) > 6


def test_images_are_encoded_once_and_kept_as_tokens():
    pipe = random_chat_pipeline()
    encoded = []
    pipe.image_tokenizer.encoder.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), "uint8")) for seed in (0, 1, 2)
    ]
    session = pipe.start([user(images[0], "a"), {"role": "assistant", "content": "b"}])
    ask(session, user(images[1], images[2], "an owl"), 0)
    ask(session, "a cat", 1)
    assert encoded == [3]
    image_tokens = [
        part["image"] for message in session.messages[:3:2] for part in message["content"] if part["type"] == "image"
    ]
    pixels = PROCESSOR(images=images)["pixel_values"]
    assert torch.equal(torch.stack(image_tokens), pipe.image_tokenizer.encode(pixels).image_tokens)


def test_changing_returned_messages_does_not_change_the_session():
    session = random_chat_pipeline().start("hello")
    ask(session, user(grid(), "an owl"), 0)
    messages = session.messages
    assert messages[0] == {"role": "user", "content": "hello"}
    messages[-2]["content"].clear()
    messages.clear()
    assert len(session.messages) == 3 and len(session.messages[1]["content"]) == 2


# Interrupted turns


def interrupt_last_layer(pipe, calls: int):
    """Interrupt the model after `calls` calls, in its last layer: the cache of the other layers has already grown."""
    count = 0

    def hook(module, args):
        nonlocal count
        count += 1
        if count > calls:
            handle.remove()
            raise KeyboardInterrupt

    handle = pipe.model.model.layers[-1].register_forward_pre_hook(hook)


def assert_continues_unchanged(session: Conversation, before: list[dict], expected: list[list[dict]]):
    """Assert that the session still has the messages `before` and continues with the answers `expected`."""
    assert [message["role"] for message in session.messages] == [message["role"] for message in before]
    assert all(
        same_parts(a["content"], b["content"])
        for a, b in zip(session.messages, before, strict=True)
        if a["role"] == "assistant"
    )
    for seed, content in enumerate(expected, start=1):
        assert same_parts(ask(session, "two hearts", seed).content, content)


@pytest.fixture(scope="module")
def undisturbed_answers() -> list[list[dict]]:
    """The answers of a conversation without interrupts."""
    session = random_chat_pipeline().start()
    return [ask(session, "an owl" if seed == 0 else "two hearts", seed).content for seed in range(3)]


@pytest.mark.parametrize("turns_before", [0, 1])
@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 8, 13])
def test_an_interrupt_in_the_model_leaves_the_conversation_unchanged(undisturbed_answers, turns_before, calls):
    pipe = random_chat_pipeline()
    session = pipe.start()
    for _ in range(turns_before):
        ask(session, "an owl", 0)
    before = session.messages
    interrupt_last_layer(pipe, calls)
    with pytest.raises(KeyboardInterrupt):
        ask(session, user(grid(3), "another one"), 9, max_new_tokens=30)
    if turns_before:
        assert_continues_unchanged(session, before, undisturbed_answers[1:])
    else:
        assert session.messages == []
        assert same_parts(ask(session, "an owl", 0).content, undisturbed_answers[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_while_denoising_leaves_the_conversation_unchanged(undisturbed_answers, error):
    pipe = random_chat_pipeline()
    session = pipe.start()
    ask(session, "an owl", 0)
    before, steps = session.messages, []

    def stop(its_pipe, step, timestep, tensors):
        steps.append(step)
        if len(steps) == 3:  # in the second image
            raise error

    with pytest.raises(error):
        ask(session, "another one", 4, max_new_tokens=30, callback_on_step_end=stop)
    assert steps == [0, 1, 0]
    assert_continues_unchanged(session, before, undisturbed_answers[1:])


@pytest.mark.parametrize("kind", [TextPiece, ImageStep, ImageDone])
def test_an_abandoned_stream_leaves_the_conversation_unchanged(undisturbed_answers, kind):
    session = random_chat_pipeline().start()
    ask(session, "an owl", 0)
    before = session.messages
    for event in session.stream("another one", generator=generator(4), **SAMPLED):
        if isinstance(event, kind):
            break
    del event
    assert_continues_unchanged(session, before, undisturbed_answers[1:])


def test_a_stream_read_to_its_last_event_adds_the_turn():
    session = random_chat_pipeline().start()
    for event in session.stream("an owl", generator=generator(), **SAMPLED):
        if isinstance(event, AnswerDone):
            break
    assert len(session.messages) == 2
    stream = session.stream("two hearts", generator=generator(), **SAMPLED)
    del stream  # never started
    assert len(session.messages) == 2


def test_an_unfinished_image_raises_and_is_not_yielded(undisturbed_answers):
    session = random_chat_pipeline().start()
    ask(session, "an owl", 0)
    before, events = session.messages, []

    def mask_all_tokens(its_pipe, step, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], tiny.CODES)}

    with pytest.raises(RuntimeError, match="An image has tokens from 64 to 64 after its last step"):
        for event in session.stream("a", generator=generator(4), **SAMPLED, callback_on_step_end=mask_all_tokens):
            events.append(event)
    assert not any(isinstance(event, ImageDone) for event in events)
    assert_continues_unchanged(session, before, undisturbed_answers[1:])


def test_a_session_streams_one_answer_at_a_time():
    session = random_chat_pipeline().start()
    stream = session.stream("an owl", generator=generator(), **SAMPLED)
    waiting = session.stream("two hearts", **SAMPLED)
    first = next(stream)
    for attempt in (lambda: session.stream("a"), lambda: next(waiting)):
        with pytest.raises(RuntimeError, match="An answer is being streamed"):
            attempt()
    assert isinstance([first, *stream][-1], AnswerDone)
    assert len(session.messages) == 2
    stream = session.stream("two hearts", **SAMPLED)
    next(stream)
    stream.close()
    ask(session, "two hearts", 0)


def test_a_conversation_that_fills_the_context_is_refused():
    session = random_chat_pipeline(soi=50.0, context=256).start()
    session.send("an owl", max_images=20, num_inference_steps=1, max_new_tokens=200, generator=generator())
    before, calls = session.messages, ForwardCalls(session._pipe)
    with pytest.raises(ValueError, match="`messages` must take fewer positions than the model's 256, got 2"):
        session.send("two hearts")
    assert calls == [] and len(session.messages) == len(before)


# Streamed text


TOKENIZERS = {
    "tiny": PROCESSOR.tokenizer,
    "embedded": AutoTokenizer.from_pretrained(f"{EMBEDDED_MODEL}/model"),
    "phi": AutoTokenizer.from_pretrained(f"{conversations.GOLDEN}/phi-1_5-tokenizer"),
}


def pieces_of(name: str, ids: list[int], opens_answer: bool) -> list[str]:
    streamed = TextStream(TOKENIZERS[name], opens_answer)
    return [piece.text for token in ids for piece in streamed.add(token)] + [piece.text for piece in streamed.close()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(words=st.text(st.characters(codec="utf-8") | st.sampled_from(" \n漢字🍎"), max_size=30))
def test_pieces_concatenate_to_the_text(name, words):
    ids = TOKENIZERS[name](words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    text = TOKENIZERS[name].decode(ids) if name == "embedded" else words  # its tokenizer ignores case
    assert "".join(pieces_of(name, ids, False)) == text
    assert "".join(pieces_of(name, ids, True)) == text.lstrip()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_contain_whole_characters(name):
    words = "two red hearts 🍎🍐 and\n a 漢字 too"
    ids = TOKENIZERS[name](words, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(name, ids, True)
    assert "".join(pieces) == words and len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_first_piece_of_an_answer_has_no_leading_space():
    ids = TOKENIZERS["phi"](" yes.", add_special_tokens=False)["input_ids"]
    assert pieces_of("phi", ids, True) == ["yes", "."]
    assert pieces_of("phi", ids, False) == [" yes", "."]


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(1, 256), max_size=12))
def test_invalid_bytes_do_not_block_later_text(ids):
    """A model can write any bytes. The valid text among them is still streamed."""
    assert "".join(pieces_of("tiny", [*ids, *PROCESSOR.text_ids("owl")], False)).endswith("owl")


# The key-value cache


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_cache_keeps_the_common_prefix_without_partial_images(data):
    config = tiny.showo_config()
    parts = st.one_of(st.just([5]), st.just([6, 7]), st.integers(0, 2).map(lambda seed: tiny.image(config, seed, 3)))
    draw = st.lists(parts, min_size=1, max_size=6)
    old, new = data.draw(draw), data.draw(draw)
    shared = data.draw(draw)
    cache = ConversationCache(tiny.showo())
    cache.ids = [config.mmu_token_id, *[i for part in shared + old for i in part]]
    cache.cache.update(*[torch.randn(1, 4, len(cache.ids), 8)] * 2, 0)
    ids = [config.mmu_token_id, *[i for part in shared + new for i in part]]
    before = list(cache.ids)
    new_ids = cache.reuse_prefix(ids)
    assert cache.ids + new_ids == ids and new_ids
    assert cache.ids == before[: len(cache)]
    assert cache.cache.get_seq_length() == len(cache)
    delimiters = [i for i in cache.ids if i in (config.soi_token_id, config.eoi_token_id)]
    assert len(delimiters) % 2 == 0 and not (
        cache.ids[-1:] == [config.mmu_token_id] and new_ids[0] == config.soi_token_id
    )
    num_equal = next(
        (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
    )
    assert num_equal - len(cache) <= 5 + 1  # drops at most one image and its task token


def test_image_parts_may_hold_an_image_or_a_path(tmp_path):
    pil_image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8"))
    pil_image.save(tmp_path / "a.png")
    pipe = random_chat_pipeline()
    parts = [image(pil_image), image(str(tmp_path / "a.png")), {"type": "image", "path": tmp_path / "a.png"}]
    answers = [
        pipe([{"role": "user", "content": [part, text("an owl")]}], generator=generator(), **SAMPLED) for part in parts
    ]
    assert all(same_parts(answer.content, answers[0].content) for answer in answers)
