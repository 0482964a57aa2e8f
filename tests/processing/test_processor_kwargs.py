"""Keyword arguments of `ShowoProcessor.__call__` and `apply_chat_template`."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image


PROCESSOR = tiny.processor()
CLIP = tiny.clip_processor()
PAD, SOI, EOI = (getattr(PROCESSOR, f"{name}_token_id") for name in ("pad", "soi", "eoi"))
RED = Image.new("RGB", (16, 16), "red")
APPLE = PROCESSOR.text_ids("a red apple")
OWL = PROCESSOR.text_ids("owl")
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what?"}]}]


def chat(**kwargs):
    return PROCESSOR.apply_chat_template(
        MESSAGES, tokenize=True, return_dict=True, add_generation_prompt=True, **kwargs
    )


# Texts


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first"])
def test_truncation(truncation):
    batch = PROCESSOR(text=["a red apple " * 100, "owl"], truncation=truncation, max_length=16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 16)
    assert batch["input_ids"][0].tolist() == PROCESSOR.text_ids("a red apple " * 100)[:16]
    assert batch["input_ids"][1].tolist() == [PAD] * (16 - len(OWL)) + OWL


def test_truncation_cuts_the_tokenizer_s_side():
    processor = tiny.processor()
    processor.tokenizer.truncation_side = "left"
    whole = processor(text="a red apple <|sov|>", images=RED)["input_ids"]
    cut = processor(text="a red apple <|sov|>", images=RED, truncation=True, max_length=20)["input_ids"]
    assert torch.equal(cut, whole[:, -20:])
    with pytest.raises(ValueError, match="would cut an image"):
        processor(text="a red apple <|sov|>", images=RED, truncation=True, max_length=17)


def test_truncation_keeps_images_whole():
    texts = "<|sov|> a red apple"
    whole = PROCESSOR(text=texts, images=RED)["input_ids"]
    cut = PROCESSOR(text=texts, images=RED, truncation=True, max_length=19)["input_ids"]
    assert torch.equal(cut, whole[:, :19])
    assert torch.equal(PROCESSOR(text=texts, images=RED, truncation=True, max_length=500)["input_ids"], whole)
    for max_length in (1, 17):
        with pytest.raises(ValueError, match=f"`max_length={max_length}` would cut an image"):
            PROCESSOR(text=texts, images=RED, truncation=True, max_length=max_length)
    with pytest.raises(ValueError, match="would cut an image"):
        PROCESSOR(text="owl <|sov|>", images=torch.zeros(2, 2).long(), truncation=True, max_length=len(OWL) + 2)


def test_padding_to_max_length():
    batch = PROCESSOR(text=["owl", "a red apple"], padding="max_length", max_length=30)
    assert batch["input_ids"].tolist() == [[PAD] * (30 - len(row)) + row for row in (OWL, APPLE)]
    assert batch["attention_mask"].sum(1).tolist() == [len(OWL), len(APPLE)]
    multiple = PROCESSOR(text="owl", padding="max_length", max_length=30, pad_to_multiple_of=8)
    assert multiple["input_ids"].shape == (1, 32)
    assert PROCESSOR(text="owl", pad_to_multiple_of=8)["input_ids"].shape == (1, 8)


def test_the_tokenizer_s_own_limit_is_the_default():
    processor = tiny.processor()
    processor.tokenizer.model_max_length = 12
    assert processor(text="owl", padding="max_length")["input_ids"].shape == (1, 12)
    assert processor(text="a red apple " * 9, truncation=True)["input_ids"].shape == (1, 12)


def test_no_padding():
    batch = PROCESSOR(text=["owl", "a red apple"], padding=False, return_tensors=None)
    assert batch["input_ids"] == [OWL, APPLE]
    assert PROCESSOR(text="owl", padding="do_not_pad")["input_ids"].tolist() == [OWL]
    with pytest.raises(ValueError, match="padding"):
        PROCESSOR(text=["owl", "a red apple"], padding=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(side):
    batch = PROCESSOR(text=["owl", "a red apple"], padding_side=side)
    assert (batch["input_ids"][0, 0] == PAD) == (side == "left")


def test_the_default_padding_side_is_left():
    expected = PROCESSOR(text=["owl", "a red apple"], padding_side="left")["input_ids"]
    assert torch.equal(PROCESSOR(text=["owl", "a red apple"])["input_ids"], expected)
    assert torch.equal(PROCESSOR(text=["owl", "a red apple"], padding_side=None)["input_ids"], expected)


def test_return_tensors():
    arrays = PROCESSOR(text="<|sov|> owl", images=RED, return_tensors="np")
    tensors = PROCESSOR(text="<|sov|> owl", images=RED)
    lists = PROCESSOR(text="<|sov|> owl", images=RED, return_tensors=None)
    assert arrays.keys() == tensors.keys() == {"input_ids", "attention_mask", "pixel_values"}
    for name, tensor in tensors.items():
        assert isinstance(tensor, torch.Tensor) and isinstance(arrays[name], np.ndarray)
        assert np.array_equal(arrays[name], tensor.numpy()) and np.array_equal(lists[name], tensor.numpy())
    assert isinstance(lists["input_ids"], list)
    assert isinstance(PROCESSOR(images=RED, return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(ValueError, match="`return_tensors` must be one of .*'np'.*, got 'tf'"):
        PROCESSOR(text="owl", return_tensors="tf")


def test_parts_of_the_result():
    assert set(PROCESSOR(text="owl", return_attention_mask=False)) == {"input_ids"}
    batch = PROCESSOR(text=["<|sov|> owl", "<|sov|>"], images=[RED, RED], return_offsets_mapping=True)
    first, second = batch["offset_mapping"]
    assert first[:18] == [(0, 7)] * 18 and first[-1][1] == len("<|sov|> owl")
    assert second == [(0, 0)] * (len(first) - 18) + [(0, 7)] * 18
    cut = PROCESSOR(text="a red apple", truncation=True, max_length=2, return_offsets_mapping=True)
    assert len(cut["offset_mapping"][0]) == cut["input_ids"].shape[1] == 2


# Images


@pytest.mark.parametrize("processor", [PROCESSOR, CLIP], ids=["discrete", "clip"])
def test_options_of_the_image_processor(processor):
    white = Image.new("RGB", (16, 16), "white")
    usual = processor(images=white)["pixel_values"]
    flat = processor(images=white, do_rescale=False, do_normalize=False)["pixel_values"]
    nested = processor(images=white, images_kwargs={"do_rescale": False, "do_normalize": False})["pixel_values"]
    assert flat.shape == usual.shape and (flat == 255).all() and torch.equal(flat, nested)
    small = processor(images=white, size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})
    assert small["pixel_values"].shape == (1, 3, 4, 4)
    with_text = processor(images=white, text="<|sov|>", do_rescale=False, do_normalize=False)
    assert torch.equal(with_text["pixel_values"], flat)


def test_an_image_with_text_keeps_its_number_of_positions():
    with pytest.raises(ValueError, match=r"must have the shape \(3, 16, 16\), got \(3, 4, 4\)"):
        PROCESSOR(images=RED, text="<|sov|>", crop_size={"height": 4, "width": 4})


# Names


def test_grouped_arguments():
    expected = PROCESSOR(text="a red apple", truncation=True, max_length=2, return_tensors="np")
    grouped = PROCESSOR(
        text="a red apple",
        text_kwargs={"truncation": True, "max_length": 2},
        common_kwargs={"return_tensors": "np"},
    )
    assert isinstance(grouped["input_ids"], np.ndarray)
    assert np.array_equal(grouped["input_ids"], expected["input_ids"])


def test_arguments_that_ask_for_nothing_are_accepted():
    options = {"videos": None, "audio": None, "return_token_type_ids": False, "stride": 0, "videos_kwargs": {}}
    assert PROCESSOR(text="owl", **options)["input_ids"].tolist() == [OWL]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"image": RED}, TypeError, "unexpected keyword argument 'image'. Allowed are .*images"),
        ({"padding_sid": "left"}, TypeError, "unexpected keyword argument 'padding_sid'"),
        ({"videos": [RED]}, TypeError, "unexpected keyword argument 'videos'"),
        ({"stride": 4}, TypeError, "unexpected keyword argument 'stride'"),
        ({"return_overflowing_tokens": True}, TypeError, "'return_overflowing_tokens'"),
        ({"text_kwargs": {"max_len": 4}}, TypeError, "'max_len' in `text_kwargs`"),
        ({"images_kwargs": {"padding": True}}, TypeError, "'padding' in `images_kwargs`"),
        ({"common_kwargs": {"paddding": True}}, TypeError, "'paddding' in `common_kwargs`"),
        ({"text_kwargs": "longest"}, TypeError, "`text_kwargs` must be a dictionary, got str"),
        ({"padding": True, "text_kwargs": {"padding": False}}, ValueError, "`padding` was given twice"),
        ({"padding": "longst"}, ValueError, "`padding` must be one of .*, got 'longst'"),
        ({"truncation": "only_second", "max_length": 4}, ValueError, "there is no second text"),
        ({"truncation": "all", "max_length": 4}, ValueError, "`truncation` must be one of .*, got 'all'"),
        ({"max_length": 4}, ValueError, "`max_length=4` has no effect without"),
        ({"truncation": True}, ValueError, "`truncation` needs `max_length`"),
        ({"padding": "max_length"}, ValueError, "`padding='max_length'` needs `max_length`"),
        ({"truncation": True, "max_length": 0}, ValueError, "`max_length` must be .* at least 1, got 0"),
        ({"truncation": True, "max_length": 4.0}, ValueError, "`max_length` must be .* got 4.0"),
        ({"pad_to_multiple_of": True}, ValueError, "`pad_to_multiple_of` must be .* got True"),
        ({"truncation": True, "max_length": 9, "pad_to_multiple_of": 2}, ValueError, "got 9 and 2"),
        ({"padding_side": "top"}, ValueError, "must be 'left' or 'right', got 'top'"),
        (
            {"return_offsets_mapping": True, "sanitize_control_tokens": True},
            ValueError,
            "`return_offsets_mapping` and `sanitize_control_tokens` cannot be combined",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        PROCESSOR(text="owl", **options)
    with pytest.raises(error, match=message):
        PROCESSOR(images=[RED], **options)


# Conversations


def test_a_conversation_takes_the_same_arguments():
    ids = chat()["input_ids"]
    assert torch.equal(chat(truncation=True, max_length=21)["input_ids"], ids[:, :21])
    nested = chat(processor_kwargs={"padding": "max_length", "max_length": 64, "padding_side": "right"})
    assert nested["input_ids"][0].tolist() == ids[0].tolist() + [PAD] * (64 - ids.shape[1])
    assert isinstance(chat(return_tensors="np")["pixel_values"], np.ndarray)
    assert (chat(do_rescale=False, do_normalize=False)["pixel_values"][0, 0] == 255).all()
    masks = chat(truncation=True, max_length=21, return_assistant_tokens_mask=True)["assistant_masks"]
    assert len(masks[0]) == 21


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": RED}, "unexpected keyword argument 'image'"),
        ({"add_generation_promt": True}, "unexpected keyword argument 'add_generation_promt'"),
        ({"processor_kwargs": {"padding_sid": "left"}}, "'padding_sid' in `processor_kwargs`"),
    ],
)
def test_a_conversation_refuses_unknown_arguments(options, message, tokenize):
    with pytest.raises(TypeError, match=message):
        PROCESSOR.apply_chat_template(MESSAGES, tokenize=tokenize, **options)


def test_a_conversation_refuses_to_cut_an_image():
    with pytest.raises(ValueError, match="would cut an image"):
        chat(truncation=True, max_length=16)


def test_variables_of_a_template_are_arguments():
    template = "{% for message in messages %}{% generation %}{{ mood }}{% endgeneration %}{% endfor %}"
    assert PROCESSOR.apply_chat_template(MESSAGES, chat_template=template, mood="glad") == "glad"
