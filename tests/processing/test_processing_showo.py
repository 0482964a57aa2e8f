"""Sequences of the processor: parity with the original, parts, `__call__`, saving."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from showo_hf import ShowoConfig, ShowoProcessor
from showo_hf.processing.processing_showo import PAD_TOKEN, SPECIAL_TOKENS, add_showo_tokens


PROCESSOR = tiny.processor()
PAD, SOI, EOI, MASK = (getattr(PROCESSOR, f"{name}_token_id") for name in ("pad", "soi", "eoi", "mask"))
SOT, EOT, T2I, MMU = (getattr(PROCESSOR, f"{name}_token_id") for name in ("sot", "eot", "t2i", "mmu"))
OFFSET = PROCESSOR.image_token_offset

texts = st.text(st.characters(codec="utf-8"), max_size=12)
grids = st.integers(0, 10**6).map(
    lambda seed: torch.randint(tiny.CODES, (2, 2), generator=torch.Generator().manual_seed(seed))
)


def image_block(grid) -> list[int]:
    return [SOI, *(grid.flatten() + OFFSET).tolist(), EOI]


# Parity with the original


@pytest.mark.parametrize("kind", ["t2i_gen", "t2i", "mmu", "lm"])
@pytest.mark.filterwarnings("error")
def test_prompts_match_the_original(reference, reference_processor, kind):
    prompts, length = reference.prompts, 387
    images = reference.tensors["prompting.image_ids"] - reference_processor.image_token_offset
    batch = {
        "t2i_gen": lambda: reference_processor.text_to_image(prompts),
        "t2i": lambda: reference_processor.text_to_image(prompts, images),
        "mmu": lambda: reference_processor.understanding(prompts, images, length=length),
        "lm": lambda: reference_processor.text_only(prompts, length=length),
    }[kind]()
    assert torch.equal(batch["input_ids"], reference.tensors[f"prompting.{kind}.ids"])
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == reference.special_ids["<|pad|>"])
    if kind == "t2i_gen":
        assert "labels" not in batch
    else:
        assert torch.equal(batch["labels"], reference.tensors[f"prompting.{kind}.labels"])


def test_the_published_vocabulary(reference, reference_processor):
    for token, value in reference.special_ids.items():
        assert getattr(reference_processor, f"{token[2:5]}_token_id") == value
    assert reference_processor.image_token_offset == 50305
    assert reference_processor.mask_token_id == 58497
    assert reference_processor.special_token_ids() == ShowoConfig().special_token_ids()


# Sequences


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:A text of")
def test_text_to_image(prompts):
    batch = PROCESSOR.text_to_image(prompts)
    assert batch["input_ids"].shape == (len(prompts), 11 + 18)
    for row, mask, prompt in zip(batch["input_ids"].tolist(), batch["attention_mask"], prompts, strict=True):
        ids = PROCESSOR.text_ids(prompt)[:8]
        expected = [T2I, SOT, *ids, EOT, SOI, *[MASK] * 16, EOI]
        pads = len(row) - len(expected)
        assert row == [PAD] * pads + expected
        assert mask.tolist() == [0] * pads + [1] * len(expected)
    prefix = PROCESSOR.text_to_image_prefix(prompts)
    length = prefix["input_ids"].shape[1]
    assert torch.equal(prefix["input_ids"], batch["input_ids"][:, 11 - length : 11])
    assert torch.equal(prefix["attention_mask"], batch["attention_mask"][:, 11 - length : 11])
    assert prefix["position_ids"].tolist() == [list(range(11 - length, 11))] * len(prompts)
    assert prefix["attention_mask"].sum(1).max() == length, "no pads but between rows of different length"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, grids), min_size=1, max_size=3), st.integers(0, 3))
@pytest.mark.filterwarnings("ignore:A text of")
def test_understanding(pairs, extra):
    prompts, images = zip(*pairs, strict=True)
    plain = PROCESSOR.understanding(prompts, images)
    length = plain["input_ids"].shape[1] + extra
    batch = PROCESSOR.understanding(prompts, images, length=length)
    for i, (prompt, grid) in enumerate(pairs):
        image, text = [MMU, *image_block(grid)], [SOT, *PROCESSOR.text_ids(prompt)[:8], EOT]
        pads = length - len(image) - len(text)
        assert batch["input_ids"][i].tolist() == image + text + [PAD] * pads
        assert batch["labels"][i].tolist() == [-100] * len(image) + text + [-100] * pads
        assert batch["attention_mask"][i].tolist() == [1] * (length - pads) + [0] * pads


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.one_of(texts, grids), max_size=3), min_size=1, max_size=3))
def test_mixed(sequences):
    batch = PROCESSOR.mixed(sequences)
    for i, parts in enumerate(sequences):
        ids = [SOT]
        for part in parts:
            ids += PROCESSOR.text_ids(part) if isinstance(part, str) else image_block(part)
        ids.append(EOT)
        pads = batch["input_ids"].shape[1] - len(ids)
        assert batch["input_ids"][i].tolist() == ids + [PAD] * pads
        assert batch["labels"][i].tolist() == ids + [-100] * pads


def test_text_only_has_labels_on_every_id():
    batch = PROCESSOR.text_only(["owl", "two hearts"])
    is_id = batch["input_ids"] != PAD
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(~is_id, -100))


def test_given_and_masked_tokens_of_a_grid():
    ids = PROCESSOR.image_ids(torch.tensor([[0, 63], [tiny.CODES, 5]]))
    assert ids == [SOI, OFFSET, OFFSET + 63, MASK, OFFSET + 5, EOI]
    assert PROCESSOR.image_ids(None, 2) == [SOI, MASK, MASK, EOI]


def test_a_long_text_is_truncated_with_a_warning():
    text = "a red apple " * 5
    with pytest.warns(UserWarning, match="cut to the 8 that `max_text_length` leaves"):
        ids = PROCESSOR.closed_text_ids(text)
    assert ids == [SOT, *PROCESSOR.text_ids(text)[:8], EOT]


def test_longest_padding_has_no_extra_columns():
    batch = PROCESSOR.text_to_image(["owl", "a red apple"], padding="longest")
    prefix = PROCESSOR.text_to_image_prefix(["owl", "a red apple"])
    assert torch.equal(batch["input_ids"][:, :-18], prefix["input_ids"])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: PROCESSOR.text_to_image(["a"], torch.zeros(2, 4, 4).long()), "equally many, got 1 and 2"),
        (
            lambda: PROCESSOR.text_to_image(["a", "b"], [torch.zeros(4).long(), torch.zeros(5).long()]),
            r"equally many in each row, got \[4, 5\]",
        ),
        (lambda: PROCESSOR.understanding(["a", "b"], torch.zeros(1, 4).long()), "equally many, got 2 and 1"),
        (lambda: PROCESSOR.text_only(["a red apple"], length=3), "`length` must hold the longest row"),
        (lambda: PROCESSOR(), "Give `text`, `images` or both"),
        (lambda: PROCESSOR(text="no image", images=Image.new("RGB", (4, 4))), "0 placeholders .* and got 1 `images`"),
        (lambda: PROCESSOR(text=["<|sov|>", "<|sov|>"], images=[Image.new("RGB", (4, 4))]), "2 placeholders"),
        (lambda: PROCESSOR(text="<|sov|>"), "1 placeholders .* and got 0 `images`"),
        (lambda: ShowoProcessor(PROCESSOR.image_processor, tiny.text_tokenizer()), "`tokenizer` lacks"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# `__call__`


def test_each_placeholder_becomes_an_image_block():
    image = Image.fromarray(np.full((32, 20, 3), 255, dtype=np.uint8))
    batch = PROCESSOR(images=[image, image], text=["<|mmu|><|sov|> owl", "<|sov|>"])
    block = [SOI, *[PROCESSOR.image_token_id] * 16, EOI]
    owl = PROCESSOR.tokenizer("<|sov|> owl", add_special_tokens=False)["input_ids"][1:]
    first = [MMU, *block, *owl]
    assert batch["input_ids"].tolist() == [first, [PAD] * (len(first) - 18) + block]
    assert batch["attention_mask"].sum(1).tolist() == [len(first), 18]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    torch.testing.assert_close(batch["pixel_values"], torch.ones(2, 3, 16, 16), msg="white is 1, black -1")
    right = PROCESSOR(images=[image, image], text=["<|mmu|><|sov|> owl", "<|sov|>"], padding_side="right")
    assert right["input_ids"][1].tolist() == block + [PAD] * (len(first) - 18)


def test_the_model_accepts_the_output_of_a_call():
    model = tiny.showo(text_ids=PAD)
    batch = PROCESSOR(images=Image.new("RGB", (8, 8), "red"), text="<|mmu|><|sov|> what?")
    ids = model.generate(**batch, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert ids.shape == (1, batch["input_ids"].shape[1] + 2)


def test_only_images_or_only_texts():
    assert set(PROCESSOR(images=Image.new("RGB", (8, 8)))) == {"pixel_values"}
    assert PROCESSOR(text="owl")["input_ids"].tolist() == [PROCESSOR.text_ids("owl")]


# The vocabulary, saving


def test_special_tokens_follow_the_text_ids_in_the_published_order():
    tokenizer = tiny.text_tokenizer()
    size = len(tokenizer)
    add_showo_tokens(tokenizer)
    expected = list(range(size, size + 10))
    assert tokenizer.convert_tokens_to_ids([PAD_TOKEN, *SPECIAL_TOKENS]) == expected
    assert tokenizer.pad_token_id == size
    assert len(add_showo_tokens(tokenizer)) == size + 10, "a second call adds nothing"
    assert OFFSET == size + 10 and MASK == OFFSET + tiny.CODES


def test_save_and_load(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    for loader in (ShowoProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is ShowoProcessor
        assert (loaded.codebook_size, loaded.num_image_tokens, loaded.max_text_length) == (64, 16, 10)
        ours, theirs = (one.text_to_image(["a red apple", "猫"])["input_ids"] for one in (PROCESSOR, loaded))
        assert torch.equal(ours, theirs)
        image = Image.new("RGB", (9, 7), "blue")
        assert torch.equal(loaded(images=image)["pixel_values"], PROCESSOR(images=image)["pixel_values"])


def test_special_tokens_in_a_prompt_are_plain_text():
    prompt = "owl [PAD] <|soi|> <|t2i|> red"
    ids = PROCESSOR.text_ids(prompt)
    assert max(ids) < PAD
    assert PROCESSOR.tokenizer.decode(ids) == prompt


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: PROCESSOR.text_to_image([]), "`prompts` must hold at least one text"),
        (lambda: PROCESSOR.text_to_image(["owl"], padding="max"), "`padding` must be 'max_length' or 'longest'"),
        (lambda: PROCESSOR.image_ids(torch.tensor([9999])), "`image_tokens` must be from 0 to 63, or 64"),
        (lambda: PROCESSOR.image_ids(torch.tensor([-1])), "`image_tokens` must be from 0 to 63"),
        (lambda: PROCESSOR(text="owl", padding_side="Left"), "`padding_side` must be 'left' or 'right', got 'Left'"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_text_is_one_row():
    assert torch.equal(PROCESSOR.text_only("owl")["input_ids"], PROCESSOR.text_only(["owl"])["input_ids"])
