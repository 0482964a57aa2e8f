"""Conversations with `transformers.pipeline`, for a tiny model and the embedded model."""

import numpy as np
import pytest
import tiny
from PIL import Image
from transformers import pipeline
from transformers.pipelines import any_to_any
from transformers.utils import is_torchvision_available

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM, ShowoProcessor


IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), "uint8")) for seed in (0, 1)]
QUESTION = "what is this?"
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("pipeline"))
    pipe = tiny.pipeline(tiny.processor())
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tiny", "embedded"])
def folder(request, tiny_folder) -> str:
    return tiny_folder if request.param == "tiny" else EMBEDDED_MODEL


@pytest.fixture
def torchvision(monkeypatch):
    """Disable transformers' check for torchvision. Show-o's processor does not use it."""
    if not is_torchvision_available():
        monkeypatch.setattr(any_to_any, "requires_backends", lambda *_: None)


def conversation(image, question=QUESTION):
    parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def expected_answers(folder: str) -> list[str]:
    """The answers of `generate`."""
    model, processor = (
        component_class.from_pretrained(f"{folder}/model") for component_class in (ShowoForCausalLM, ShowoProcessor)
    )
    answers = []
    for image in IMAGES:
        inputs = processor.apply_chat_template(
            conversation(image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return answers


def test_image_text_to_text_answers_equal_generate(folder):
    pipe = pipeline("image-text-to-text", model=f"{folder}/model")
    assert type(pipe.model) is ShowoForCausalLM
    options = {"generate_kwargs": OPTIONS}
    answers = [
        pipe(text=conversation(image), return_full_text=False, **options)[0]["generated_text"] for image in IMAGES
    ]
    assert [answer.strip() for answer in answers] == expected_answers(folder)
    full = pipe(text=conversation(IMAGES[0]), **options)[0]["generated_text"]
    assert full[-1]["role"] == "assistant" and full[-1]["content"].strip() == answers[0].strip()
    # The conversation continues with the answer and another image.
    further = [*full, *conversation(IMAGES[1], "and this?")]
    assert pipe(text=further, **options)[0]["generated_text"][-1]["role"] == "assistant"


def test_any_to_any_answers_equal_generate(folder, torchvision):
    pipe = pipeline("any-to-any", model=f"{folder}/model")
    assert type(pipe.model) is ShowoForCausalLM
    answers = [
        pipe(conversation(image), return_full_text=False, generate_kwargs=OPTIONS)[0]["generated_text"]
        for image in IMAGES
    ]
    assert [answer.strip() for answer in answers] == expected_answers(folder)
    with pytest.raises(ValueError, match="`generation_mode=image` is not supported"):
        pipe(conversation(IMAGES[0]), generation_mode="image")
