"""Wrong values for every argument of the processor's calls; see `hostile.try_all`."""

from typing import Any

import pytest
import tiny
import torch
from conversations import PROCESSOR, grid
from hostile import ANY_TEXT, ITSELF, NO_OTHERS, Plain, assert_complete, parameters_of, try_all
from transformers.processing_utils import ProcessorMixin

from showo_hf import ShowoProcessor
from showo_hf.processing.processor_kwargs import GROUPS, TEXT_DEFAULTS


DEFAULT: Plain = {"none": ITSELF}
#: The values that are accepted, by argument of `__call__`.
PLAIN: dict[str, Plain] = {
    **dict.fromkeys([*TEXT_DEFAULTS, *GROUPS, "common_kwargs"], DEFAULT),
    "images": {"none": [], "empty list": ITSELF, "list of none": []},
    "text": ANY_TEXT,
    "padding": {"none": True, "true": "longest"},
    "truncation": {"none": False},
    "padding_side": {"none": "left"},
    "add_special_tokens": {"none": False, "true": ITSELF},
    "return_attention_mask": {"none": True, "true": ITSELF},
    "return_offsets_mapping": {"none": False, "true": ITSELF},
    "return_text_replacement_offsets": {"none": False, "true": ITSELF},
    "sanitize_control_tokens": {"none": False, "true": ITSELF},
    **dict.fromkeys([*GROUPS, "common_kwargs"], {"none": {}, "empty dict": {}}),
}


def has_ids(data: Any) -> bool:
    return len(data["input_ids"]) == 1


@pytest.mark.parametrize("name", ["images", "text", *TEXT_DEFAULTS, *GROUPS, "common_kwargs"])
def test_processor(name):
    try_all(PROCESSOR, {"text": "an owl", "images": None}, name, has_ids, PLAIN[name])


SEQUENCES: dict[str, dict[str, Any]] = {
    "text_to_image_prefix": {"prompts": ["an owl"]},
    "text_to_image": {"prompts": ["an owl"], "image_tokens": None, "num_image_tokens": None, "padding": "longest"},
    "understanding": {"texts": ["an owl"], "image_tokens": [grid()], "length": None},
    "text_only": {"texts": ["an owl"], "length": None},
    "mixed": {"sequences": [["an owl", grid()]], "length": None},
}
SEQUENCE_PLAIN: dict[str, Plain] = {
    **dict.fromkeys(("prompts", "texts"), ANY_TEXT),
    "num_image_tokens": {"none": tiny.SIDE**2},
    "length": {"none": ITSELF},
}
SEQUENCE_GRID = [(call, name) for call, valid in SEQUENCES.items() for name in valid]


@pytest.mark.parametrize(("call", "name"), SEQUENCE_GRID)
def test_sequences(call, name):
    plain = SEQUENCE_PLAIN.get(name, NO_OTHERS)
    if call == "text_to_image" and name == "image_tokens":
        plain = DEFAULT
    try_all(getattr(PROCESSOR, call), SEQUENCES[call], name, has_ids, plain)


def test_a_length_that_no_row_has_is_refused():
    with pytest.raises(ValueError, match="`length` must be at most 16,777,216"):
        PROCESSOR.text_only(["an owl"], length=2**40)


@pytest.mark.parametrize("tokens", [torch.full((1, 4, 4), tiny.CODES + 1), torch.full((1, 4, 4), -1)])
def test_image_tokens_out_of_range_are_refused(tokens):
    with pytest.raises(ValueError, match="`image_tokens` must be from 0 to 63"):
        PROCESSOR.text_to_image(["an owl"], tokens)


# Conversations

TEMPLATE = {
    "conversation": [{"role": "user", "content": "an owl"}],
    "chat_template": None,
    "sanitize_control_tokens": None,
}
#: The arguments that are passed on to transformers.
TEMPLATE_OPTIONS = {
    "tools": None,
    "documents": None,
    "add_generation_prompt": False,
    "continue_final_message": False,
    "return_assistant_tokens_mask": False,
    "tokenize": True,
    "return_tensors": "pt",
    "return_dict": True,
    "load_audio_from_video": False,
    "processor_kwargs": None,
}
FLAG: Plain = {"true": ITSELF}
TEMPLATE_PLAIN: dict[str, Plain] = {
    "chat_template": {"none": ITSELF, "empty text": None, "text": ITSELF},  # a text is a template
    "sanitize_control_tokens": {"none": True, **FLAG},
    "processor_kwargs": {"none": {}, "empty dict": {}},
    "tools": {"none": [], "empty list": None},
    "documents": {"none": [], "empty list": None},
    "continue_final_message": FLAG,
    "return_tensors": {"none": ITSELF},
    **dict.fromkeys(("add_generation_prompt", "return_assistant_tokens_mask", "tokenize", "return_dict"), FLAG),
    "load_audio_from_video": FLAG,
}


@pytest.mark.parametrize("name", [*TEMPLATE, *TEMPLATE_OPTIONS, "padding", "no_such_option"])
def test_chat_templates(name):
    plain = TEMPLATE_PLAIN.get(name, PLAIN["padding"] if name == "padding" else NO_OTHERS)
    try_all(PROCESSOR.apply_chat_template, TEMPLATE | TEMPLATE_OPTIONS, name, has_ids, plain)


def test_every_argument_of_chat_templates_is_in_the_grid():
    assert parameters_of(ProcessorMixin.apply_chat_template) == {*TEMPLATE, *TEMPLATE_OPTIONS}


# Making a processor

PARTS = {
    "image_processor": PROCESSOR.image_processor,
    "tokenizer": PROCESSOR.tokenizer,
    "chat_template": None,
    "codebook_size": tiny.CODES,
    "num_image_tokens": tiny.SIDE**2,
    "max_text_length": 10,
    "vision_processor": tiny.clip_processor().vision_processor,
    "num_image_features": 4,
    "known_words": None,
}
PARTS_PLAIN: dict[str, Plain] = {
    "chat_template": {"none": tiny.clip_processor().chat_template, "empty text": ITSELF, "text": ITSELF},
    "known_words": {"none": ITSELF, "empty dict": ITSELF},
    "vision_processor": {"empty dict": ITSELF},  # the entries of a saved one, all of them defaults
}


@pytest.mark.parametrize("name", PARTS)
def test_constructor(name):
    def build(**parts) -> dict[str, Any]:
        made = ShowoProcessor(**parts)
        made.apply_chat_template(TEMPLATE["conversation"], tokenize=True)
        return made.to_dict() | {"chat_template": made.chat_template}

    try_all(build, PARTS, name, lambda made: len(made) > 5, PARTS_PLAIN.get(name, NO_OTHERS))


@pytest.mark.parametrize("template", [{"default": "a", "other": 1}, {1: "a"}, {"default": "\ud800"}])
def test_chat_templates_by_name_are_texts(template):
    with pytest.raises((ValueError, TypeError), match="`chat_template` must"):
        ShowoProcessor(**PARTS | {"chat_template": template})


def test_the_image_processor_and_the_tokenizer_are_required():
    for name in ("image_processor", "tokenizer"):
        with pytest.raises(TypeError, match=f"`{name}` must be"):
            ShowoProcessor(**{key: value for key, value in PARTS.items() if key != name})


TRIED: dict[type, dict[str, Any]] = {
    ShowoProcessor: {
        "__init__": PARTS,
        "__call__": ("images", "text"),
        "apply_chat_template": TEMPLATE,
        **SEQUENCES,
    }
}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
