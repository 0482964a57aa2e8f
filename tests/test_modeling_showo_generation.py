"""`generate` with what transformers brings along: streamers, stopping criteria, beams, sampling, `pipeline`."""

import re
from threading import Thread

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import StoppingCriteria, TextIteratorStreamer, TextStreamer, pipeline

from showo_hf import ShowoForCausalLM


PROCESSOR = tiny.processor()
TOKENIZER = PROCESSOR.tokenizer
MODEL = tiny.showo(text_ids=PROCESSOR.pad_token_id)
PICTURES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), "uint8")) for seed in (0, 1)]
QUESTION = "<|mmu|><|sov|> what?"
FIRST_LETTER = 1 + 256  # end of text and the single bytes come before it


def question(count=1) -> dict:
    """A prompt with one picture, given as pixels."""
    return dict(PROCESSOR(images=PICTURES[:count], text=[QUESTION] * count))


def answers(model: ShowoForCausalLM, inputs: dict, **options) -> list[list[int]]:
    """The new ids of each row; greedy, and never ended by an id unless `options` say so."""
    defaults = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    return model.generate(**inputs, **(defaults | options))[:, inputs["input_ids"].shape[1] :].tolist()


def sampled(seed: int, **options) -> list[list[int]]:
    """Answers of letters and spaces alone, so that each id shows in the text."""
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
    """Stops each row behind the id `last`."""

    def __init__(self, last: int):
        self.last = last

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.last


def test_an_own_criterion_stops_the_answer(model):
    inputs = {"input_ids": torch.tensor([[model.config.mmu_token_id, *tiny.picture(model.config), 0, 5]])}
    (whole,) = answers(model, inputs)
    last = whole[3]
    assert answers(model, inputs, stopping_criteria=[After(last)]) == [whole[: whole.index(last) + 1]]


def test_a_stop_string_over_several_ids_ends_the_answer_behind_it():
    (whole,) = sampled(0)
    text = TOKENIZER.decode(whole)
    stop = re.search(r"[a-zA-Z]{2}", text)[0]
    expected = next(whole[:n] for n in range(len(whole)) if stop in TOKENIZER.decode(whole[:n]))
    assert 1 < len(expected) < len(whole)
    assert sampled(0, stop_strings=[stop], tokenizer=TOKENIZER) == [expected]


# Beams


@pytest.mark.parametrize("beams", [1, 3])
def test_with_pictures_as_pixels_a_cache_changes_no_id(beams):
    inputs = question(2)
    cached = answers(MODEL, inputs, num_beams=beams, max_new_tokens=6)
    assert cached == answers(MODEL, inputs, num_beams=beams, max_new_tokens=6, use_cache=False)
    assert cached[0] != cached[1], "a model that does not look at its picture would hide a difference"


@torch.no_grad()
def test_the_scores_of_beams_are_those_of_one_forward_over_all_ids(model):
    prompt = [model.config.mmu_token_id, *tiny.picture(model.config), 0, 5]
    options = {"max_new_tokens": 5, "num_beams": 4, "num_return_sequences": 4, "do_sample": False}
    # Text alone: a `soi` in an answer would open a picture, whose positions one forward lets look ahead.
    options |= {"eos_token_id": None, "suppress_tokens": [*range(tiny.TEXT_IDS, model.config.vocab_size)]}
    output = model.generate(
        torch.tensor([prompt]), **options, length_penalty=1.0, output_scores=True, return_dict_in_generate=True
    )
    log_p = model(output.sequences).logits.log_softmax(-1)[:, :-1]  # of the id behind each place
    of_ids = log_p.gather(-1, output.sequences[:, 1:, None]).squeeze(-1)[:, len(prompt) - 1 :]  # (beams, 5)
    torch.testing.assert_close(output.sequences_scores, of_ids.mean(-1), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 4
    assert (output.sequences_scores.diff() <= 0).all()


# Sampling


def test_a_seed_repeats_what_is_sampled():
    first = sampled(1, num_return_sequences=3)
    assert sampled(1, num_return_sequences=3) == first
    assert sampled(2, num_return_sequences=3) != first
    assert len({tuple(row) for row in first}) == 3


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
    ids = answers(MODEL, question(2), max_new_tokens=6, eos_token_id=MODEL.config.eos_token_id)
    expected = [TOKENIZER.decode(row, skip_special_tokens=True) for row in ids]
    one = pipe(images=PICTURES[0], text=QUESTION, **OPTIONS)
    assert one == [{"input_text": QUESTION, "generated_text": expected[0]}]
    both = pipe(images=[[picture] for picture in PICTURES], text=[QUESTION] * 2, **OPTIONS)
    assert [answer["generated_text"] for answer in both] == expected
