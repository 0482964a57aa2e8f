"""`generate` with the features of transformers: streamers, stopping criteria, beams, caches, assistants, `pipeline`."""

import copy
import re
from threading import Thread

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from showo_hf import ShowoForCausalLM
from showo_hf.models.omni_attention import image_block_ids


PROCESSOR = tiny.processor()
TOKENIZER = PROCESSOR.tokenizer
MODEL = tiny.showo(text_ids=PROCESSOR.pad_token_id)
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), "uint8")) for seed in (0, 1)]
QUESTION = "<|mmu|><|sov|> what?"
FIRST_LETTER = 1 + 256  # after the end of text and the single bytes


def question(count=1) -> dict:
    """A prompt with one image, given as pixels."""
    return dict(PROCESSOR(images=IMAGES[:count], text=[QUESTION] * count))


def answers(model: ShowoForCausalLM, inputs: dict, **options) -> list[list[int]]:
    """The new ids of each row: greedy, without an end token unless `options` set one."""
    defaults = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    return model.generate(**inputs, **(defaults | options))[:, inputs["input_ids"].shape[1] :].tolist()


def sampled(seed: int, **options) -> list[list[int]]:
    """Answers made only of letters and spaces, so each id is visible in the text."""
    others = [*range(FIRST_LETTER), *range(PROCESSOR.pad_token_id, MODEL.config.vocab_size)]
    torch.manual_seed(seed)
    return answers(MODEL, question(), do_sample=True, max_new_tokens=40, suppress_tokens=others, **options)


# Streamers


def test_an_iterator_streams_the_answer_in_pieces():
    (expected,) = sampled(0)
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    thread = Thread(target=sampled, args=(0,), kwargs={"streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == TOKENIZER.decode(expected)
    assert len([piece for piece in pieces if piece]) > 2


def test_a_streamer_prints_prompt_and_answer(capsys):
    inputs = TOKENIZER("a red apple", return_tensors="pt")
    (new_ids,) = answers(MODEL, inputs, streamer=TextStreamer(TOKENIZER))
    assert capsys.readouterr().out == TOKENIZER.decode(inputs["input_ids"][0].tolist() + new_ids) + "\n"


# Stopping criteria


class After(StoppingCriteria):
    """Stop each row after the id `last`."""

    def __init__(self, last: int):
        self.last = last

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.last


def test_a_custom_criterion_stops_the_answer(model):
    inputs = {"input_ids": torch.tensor([[model.config.mmu_token_id, *tiny.image(model.config), 0, 5]])}
    (whole,) = answers(model, inputs)
    last = whole[3]
    assert answers(model, inputs, stopping_criteria=[After(last)]) == [whole[: whole.index(last) + 1]]


def test_a_stop_string_of_several_ids_ends_the_answer():
    (whole,) = sampled(0)
    text = TOKENIZER.decode(whole)
    stop = re.search(r"[a-zA-Z]{2}", text)[0]
    expected = next(whole[:n] for n in range(len(whole)) if stop in TOKENIZER.decode(whole[:n]))
    assert 1 < len(expected) < len(whole)
    assert sampled(0, stop_strings=[stop], tokenizer=TOKENIZER) == [expected]


# Beams


@pytest.mark.parametrize("beams", [1, 3])
def test_with_images_as_pixels_a_cache_does_not_change_the_answer(beams):
    inputs = question(2)
    cached = answers(MODEL, inputs, num_beams=beams, max_new_tokens=6)
    assert cached == answers(MODEL, inputs, num_beams=beams, max_new_tokens=6, use_cache=False)
    assert cached[0] != cached[1], "a model that ignores its image would hide a difference"


@torch.no_grad()
def test_beam_scores_equal_the_scores_of_one_forward_pass(model):
    prompt = [model.config.mmu_token_id, *tiny.image(model.config), 0, 5]
    options = {"max_new_tokens": 5, "num_beams": 4, "num_return_sequences": 4, "do_sample": False}
    # Text only: in one forward pass, a generated `soi` would start an image block, which is not causal.
    options |= {"eos_token_id": None, "suppress_tokens": [*range(tiny.TEXT_IDS, model.config.vocab_size)]}
    output = model.generate(
        torch.tensor([prompt]), **options, length_penalty=1.0, output_scores=True, return_dict_in_generate=True
    )
    log_p = model(output.sequences).logits.log_softmax(-1)[:, :-1]  # of the id after each position
    of_ids = log_p.gather(-1, output.sequences[:, 1:, None]).squeeze(-1)[:, len(prompt) - 1 :]  # (beams, 5)
    torch.testing.assert_close(output.sequences_scores, of_ids.mean(-1), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 4
    assert (output.sequences_scores.diff() <= 0).all()


# Sampling


def test_a_seed_makes_sampling_reproducible():
    first = sampled(1, num_return_sequences=3)
    assert sampled(1, num_return_sequences=3) == first
    assert sampled(2, num_return_sequences=3) != first
    assert len({tuple(row) for row in first}) == 3


# Caches


CACHES = {
    "no cache": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "offloaded": {"cache_implementation": "offloaded"},
}
any_cache = pytest.mark.parametrize(
    "cache", [pytest.param(name, marks=[pytest.mark.gpu] if name == "offloaded" else []) for name in CACHES]
)


def on_its_device(model: ShowoForCausalLM, inputs: dict, cache: str) -> tuple[ShowoForCausalLM, dict]:
    """The model and its inputs on a device that the cache supports: an offloaded cache needs a GPU."""
    device = "cuda" if cache == "offloaded" else "cpu"
    own = model if device == "cpu" else copy.deepcopy(model).to(device)
    return own, {name: value.to(device) for name, value in inputs.items()}


def as_grids(images: list[Image.Image]) -> list[torch.Tensor]:
    """The image tokens of images, (h, w) each."""
    pixels = PROCESSOR.image_processor(images, return_tensors="pt")["pixel_values"]
    return list(MODEL.image_tokenizer.encode(pixels).image_tokens)


def ask(*conversations: list[dict]) -> dict:
    """Model inputs for the next answer of conversations."""
    inputs = PROCESSOR.apply_chat_template(
        list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(inputs)


def says(role: str, *parts) -> dict:
    """A message of texts and images."""
    kinds = ("text" if isinstance(part, str) else "image" for part in parts)
    return {"role": role, "content": [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]}


def conversations(images: list) -> list[list[dict]]:
    """Conversations of different length: no image, one image, two images, and two images in two turns."""
    one, two = images
    return [
        [says("user", "owl?")],
        [says("user", one, "a red apple?")],
        [says("user", one, two, "which of the two?")],
        [says("user", two, "what?"), says("assistant", "owl"), says("user", "and ", one, "?")],
    ]


@any_cache
@pytest.mark.parametrize("as_tokens", [False, True])
def test_conversations_in_a_batch_equal_conversations_alone_with_any_cache(cache, as_tokens):
    images = as_grids(IMAGES) if as_tokens else IMAGES
    expected = [row for one in conversations(images) for row in answers(MODEL, ask(one))]
    assert len({tuple(row) for row in expected}) == 4
    model, together = on_its_device(MODEL, ask(*conversations(images)), cache)
    assert answers(model, together, **CACHES[cache]) == expected
    for conversation, row in zip(conversations(images), expected, strict=True):
        model, alone = on_its_device(MODEL, ask(conversation), cache)
        assert answers(model, alone, **CACHES[cache]) == [row]


@pytest.mark.parametrize("cache", ["no cache", "static"])
def test_any_cache_with_a_vision_tower(cache):
    processor = tiny.clip_processor()
    model = tiny.clip_showo(text_ids=processor.pad_token_id)
    texts = ["<|mmu|> owl <|sov|> what?", "<|mmu|><|sov|> a red apple?", "owl"]
    inputs = dict(processor(images=IMAGES, text=texts))
    assert answers(model, inputs, **CACHES[cache]) == answers(model, inputs)


def test_rows_of_a_batch_end_independently():
    inputs = question(2)
    whole = answers(MODEL, inputs)
    last = next(token for token in whole[0] if token not in whole[1])
    length = whole[0].index(last) + 1
    short, long = answers(MODEL, inputs, eos_token_id=last)
    assert short == [*whole[0][:length], *[PROCESSOR.pad_token_id] * (12 - length)]
    assert long == whole[1]


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("all_images", [False, True])
def test_a_conversation_continues_from_its_cache(as_tokens, all_images):
    images = as_grids(IMAGES) if as_tokens else IMAGES
    text_only = {"suppress_tokens": [*range(PROCESSOR.pad_token_id, MODEL.config.vocab_size)]}
    cache = DynamicCache(config=MODEL.config.text_config)
    first = ask([says("user", images[0], "what?")])
    (said,) = answers(MODEL, first, past_key_values=cache, **text_only)
    further = dict(PROCESSOR(images=images[1], text="USER: \n<|sov|> and this? ASSISTANT:"))
    before = torch.cat([first["input_ids"], torch.tensor([[*said, PROCESSOR.eot_token_id]])], 1)
    ids = {"input_ids": torch.cat([before, further["input_ids"]], 1)}
    pixels = [part["pixel_values"] for part in (first, further) if "pixel_values" in part]
    every = {"pixel_values": torch.cat(pixels)} if pixels else {}
    new = {"pixel_values": pixels[-1]} if pixels else {}
    expected = answers(MODEL, ids | every)
    read = cache.get_seq_length()
    assert read == len(before[0]) - 2, "the last id and the end token are not in the cache yet"
    again = copy.deepcopy(cache)
    assert answers(MODEL, ids | (every if all_images else new), past_key_values=again) == expected
    # Only the new ids, with the attention mask of all ids.
    alone = {"input_ids": ids["input_ids"][:, read:], "attention_mask": torch.ones_like(ids["input_ids"])}
    assert answers(MODEL, alone | new, past_key_values=cache) == expected


@pytest.mark.slow
def test_a_static_cache_lets_decoding_compile_to_one_graph():
    config = CompileConfig(backend="eager", fullgraph=True)
    config._compile_all_devices = True  # by default `generate` compiles only on accelerators
    inputs = question()
    found = answers(MODEL, inputs, cache_implementation="static", compile_config=config)
    assert found == answers(MODEL, inputs)


def test_embeddings_instead_of_ids():
    ids = ask([says("user", *as_grids(IMAGES), "what?")])["input_ids"]
    embeddings = {
        "inputs_embeds": MODEL.get_input_embeddings()(ids),
        "block_sequence_ids": image_block_ids(ids, MODEL.config),
    }
    new_ids = MODEL.generate(**embeddings, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert new_ids.tolist() == answers(MODEL, {"input_ids": ids})


@pytest.mark.parametrize("as_tokens", [False, True])
def test_prefill_chunks_are_refused_for_prompts_with_images(as_tokens):
    inputs = ask([says("user", (as_grids(IMAGES) if as_tokens else IMAGES)[0], "what?")])
    with pytest.raises(ValueError, match="chunk"):
        answers(MODEL, inputs, prefill_chunk_size=8)
    text = ask([says("user", "a red apple on a table")])
    assert answers(MODEL, text, prefill_chunk_size=8) == answers(MODEL, text)


@pytest.mark.parametrize("where", ["argument", "config", "model"])
def test_prefill_chunks_are_refused_wherever_they_are_set(where):
    model = copy.deepcopy(MODEL)
    options = {"argument": {"prefill_chunk_size": 8}, "model": {}}.get(where)
    if where == "config":
        options = {"generation_config": GenerationConfig(prefill_chunk_size=8, max_new_tokens=4)}
    elif where == "model":
        model.generation_config.prefill_chunk_size = 8
    with (
        CountForwards(model) as forwards,
        pytest.raises(ValueError, match="`prefill_chunk_size` must be None .* got 8"),
    ):
        model.generate(**question(), **options)
    assert forwards.count == 0


@pytest.mark.parametrize("as_embeddings", [False, True])
def test_a_prompt_as_long_as_the_context_is_refused(as_embeddings):
    context = MODEL.config.text_config.max_position_embeddings
    ids = torch.ones(1, context, dtype=torch.int64)
    inputs = {"inputs_embeds": MODEL.get_input_embeddings()(ids)} if as_embeddings else {"input_ids": ids}
    with CountForwards(MODEL) as forwards, pytest.raises(ValueError, match=f"shorter than .* {context} positions"):
        MODEL.generate(**inputs, max_new_tokens=1)
    assert forwards.count == 0


# Assistants and prompt lookup


class CountForwards:
    """Counts the forward passes of a model inside a `with` block."""

    def __init__(self, model: ShowoForCausalLM):
        self.model = model

    def __enter__(self):
        self.count = 0
        self.hook = self.model.register_forward_pre_hook(lambda *_: setattr(self, "count", self.count + 1))
        return self

    def __exit__(self, *_):
        self.hook.remove()


any_prompt = pytest.mark.parametrize("prompt", ["text", "tokens", "pixels"])


def prompt_inputs(prompt: str) -> dict:
    images = as_grids(IMAGES) if prompt == "tokens" else IMAGES
    return ask([says("user", "owl?")] if prompt == "text" else [says("user", *images, "a red apple?")])


@any_prompt
@pytest.mark.parametrize("layers", [1, 2])
def test_an_assistant_does_not_change_the_answer(prompt, layers):
    assistant = tiny.showo(text_ids=PROCESSOR.pad_token_id, seed=1, text_options={"num_hidden_layers": layers})
    inputs = prompt_inputs(prompt)
    assert answers(MODEL, inputs, assistant_model=assistant) == answers(MODEL, inputs)


@any_prompt
def test_a_plain_language_model_may_assist(prompt):
    torch.manual_seed(0)
    assistant = LlamaForCausalLM(tiny.text_config("llama", MODEL.config.vocab_size)).eval()
    inputs = prompt_inputs(prompt)
    assert answers(MODEL, inputs, assistant_model=assistant) == answers(MODEL, inputs)


@any_prompt
def test_an_assistant_that_knows_the_answer_saves_steps(prompt):
    inputs = prompt_inputs(prompt)
    assistant = tiny.showo(text_ids=PROCESSOR.pad_token_id)  # the same weights
    assistant.generation_config.num_assistant_tokens = 5
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    with CountForwards(MODEL) as forwards:
        assert answers(MODEL, inputs, assistant_model=assistant) == answers(MODEL, inputs, max_new_tokens=12)
    assert forwards.count - 12 == 2, "12 ids are two rounds of five accepted guesses and one id of the model"


@any_prompt
@pytest.mark.parametrize("num_tokens", [3, 10])
def test_prompt_lookup_does_not_change_the_answer(prompt, num_tokens):
    inputs = prompt_inputs(prompt)
    expected = answers(MODEL, inputs, max_new_tokens=40)
    assert answers(MODEL, inputs, max_new_tokens=40, prompt_lookup_num_tokens=num_tokens) == expected


def test_prompt_lookup_saves_steps_if_the_model_repeats_itself():
    inputs = ask([says("user", IMAGES[0], "what?")])
    words = [*range(FIRST_LETTER, FIRST_LETTER + 3)]
    others = [i for i in range(MODEL.config.vocab_size) if i not in words]
    options = {"max_new_tokens": 40, "suppress_tokens": others}
    expected = answers(MODEL, inputs, **options)
    with CountForwards(MODEL) as forwards:
        assert answers(MODEL, inputs, **options, prompt_lookup_num_tokens=5) == expected
    assert forwards.count < 30


# Answers with special tokens in them: generated ids are always text


class Says(LogitsProcessor):
    """Forces an answer to start with the given ids."""

    def __init__(self, ids: list[int], prompt_length: int):
        self.ids, self.prompt_length = ids, prompt_length

    def __call__(self, input_ids, scores):
        position = input_ids.shape[1] - self.prompt_length
        if position >= len(self.ids):
            return scores
        forced = torch.full_like(scores, -float("inf"))
        forced[:, self.ids[position]] = 0.0
        return forced


WAYS = CACHES | {"looked up": {"prompt_lookup_num_tokens": 6}, "assisted": {}}
STRANGE = {
    "soi": [MODEL.config.soi_token_id],
    "image": tiny.image(MODEL.config, 7, tokens=3),
    "mmu soi": [MODEL.config.mmu_token_id, MODEL.config.soi_token_id],
    "placeholder": [MODEL.config.image_token_id],
    "pad": [PROCESSOR.pad_token_id],
    "eoi": [MODEL.config.eoi_token_id],
}


@pytest.mark.parametrize("way", ["no cache", "static", "looked up", "assisted"])
@pytest.mark.parametrize("strange", STRANGE)
@any_prompt
def test_special_tokens_in_an_answer_are_text(prompt, strange, way):
    inputs = prompt_inputs(prompt)
    options = {"logits_processor": [Says(STRANGE[strange], inputs["input_ids"].shape[1])], "max_new_tokens": 20}
    options |= {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    expected = MODEL.generate(**inputs, **options)
    if way == "assisted":
        options["assistant_model"] = tiny.showo(text_ids=PROCESSOR.pad_token_id)
    found = MODEL.generate(**inputs, **options, **WAYS[way])
    assert torch.equal(found.sequences, expected.sequences)
    logits = torch.stack(found.logits[:20]), torch.stack(expected.logits)  # (ids, 1, vocab_size)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_a_looked_up_image_is_text():
    # The prompt ends with the id before its image, so prompt lookup guesses the image.
    image = tiny.image(MODEL.config, 3)
    ids = [PROCESSOR.sot_token_id, FIRST_LETTER, *image, 5, 6, FIRST_LETTER]
    inputs = {"input_ids": torch.tensor([ids])}
    options = {"logits_processor": [Says(image[:2], len(ids))], "max_new_tokens": 20}
    expected = answers(MODEL, inputs, **options)
    assert answers(MODEL, inputs, **options, prompt_lookup_num_tokens=10) == expected
    assert answers(MODEL, inputs, **options, use_cache=False) == expected


@torch.no_grad()
def test_an_answer_matches_the_loop_of_the_original():
    inputs = {"input_ids": torch.tensor([[MODEL.config.mmu_token_id, *tiny.image(MODEL.config, 2), 0, 5]])}
    strange = tiny.image(MODEL.config, 7, tokens=2)
    said = list(inputs["input_ids"][0])
    prompt = len(said)
    omni = torch.ones(prompt + 20, prompt + 20).tril().bool()
    omni[:prompt, :prompt] |= torch.arange(prompt) < prompt - 2  # the image of the prompt and its task token
    omni[prompt - 2 :] &= torch.ones(prompt + 20, prompt + 20).tril().bool()[prompt - 2 :]
    expected = []
    for step in range(20):
        ids = torch.tensor([[*said, *expected]])
        mask = omni[: ids.shape[1], : ids.shape[1]]
        logits = MODEL(ids, attention_mask=mask[None, None]).logits[0, -1]
        expected.append(strange[step] if step < len(strange) else int(logits.argmax()))
    options = {"logits_processor": [Says(strange, prompt)], "max_new_tokens": 20}
    assert answers(MODEL, inputs, **options) == [expected]


# transformers.pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


OPTIONS = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}


def test_text_generation(folder):
    prompts = ["owl", "a red apple"]
    pipe = pipeline("text-generation", model=folder)
    assert type(pipe.model) is ShowoForCausalLM
    expected = []
    for prompt in prompts:
        inputs = TOKENIZER(prompt, return_tensors="pt")
        (new_ids,) = answers(MODEL, inputs, max_new_tokens=6, eos_token_id=MODEL.config.eos_token_id)
        expected.append([{"generated_text": TOKENIZER.decode(new_ids, skip_special_tokens=True)}])
    assert pipe(prompts, **OPTIONS) == expected
    assert pipe(prompts, batch_size=2, **OPTIONS) == expected


def test_image_text_to_text(folder):
    pipe = pipeline("image-text-to-text", model=folder)
    options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": 6, "do_sample": False}}
    ids = answers(MODEL, question(2), max_new_tokens=6, eos_token_id=MODEL.config.eos_token_id)
    expected = [TOKENIZER.decode(row, skip_special_tokens=True) for row in ids]
    one = pipe(images=IMAGES[0], text=QUESTION, **options)
    assert one == [{"input_text": QUESTION, "generated_text": expected[0]}]
    both = pipe(images=[[image] for image in IMAGES], text=[QUESTION] * 2, **options)
    assert [answer["generated_text"] for answer in both] == expected
