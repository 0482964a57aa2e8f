"""Wrong values for every argument of the processor's calls; see `hostile.try_all`."""

from typing import Any

import pytest
import tiny
import torch
from conversations import PROCESSOR, grid
from hostile import ANY_TEXT, ITSELF, NO_OTHERS, Plain, parameters_of, try_all

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


def test_every_argument_of_the_sequences_is_in_the_grid():
    for call, valid in SEQUENCES.items():
        assert parameters_of(getattr(ShowoProcessor, call)) == set(valid)


def test_a_length_that_no_row_has_is_refused():
    with pytest.raises(ValueError, match="`length` must be at most 16,777,216"):
        PROCESSOR.text_only(["an owl"], length=2**40)


@pytest.mark.parametrize("tokens", [torch.full((1, 4, 4), tiny.CODES + 1), torch.full((1, 4, 4), -1)])
def test_image_tokens_out_of_range_are_refused(tokens):
    with pytest.raises(ValueError, match="`image_tokens` must be from 0 to 63"):
        PROCESSOR.text_to_image(["an owl"], tokens)


MESSAGES = [{"role": "user", "content": "an owl"}]
TEMPLATE_PLAIN: dict[str, Plain] = {
    "chat_template": {"none": ITSELF, "empty text": None, "text": ITSELF},  # a text is a template
    "sanitize_control_tokens": {"none": True, "true": ITSELF},
    "processor_kwargs": {"none": {}, "empty dict": {}},
}


@pytest.mark.parametrize("name", ["conversation", *TEMPLATE_PLAIN, "no_such_option"])
def test_chat_templates(name):
    valid = {"conversation": MESSAGES, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    try_all(PROCESSOR.apply_chat_template, valid, name, has_ids, TEMPLATE_PLAIN.get(name, NO_OTHERS))
