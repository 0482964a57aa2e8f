"""Conversations to prompts: `apply_chat_template`."""

import copy

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf import ShowoProcessor


CLIP_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROCESSOR = tiny.processor()
CLIP = tiny.clip_processor()
RED = Image.new("RGB", (16, 16), "red")
GRID = torch.arange(16).view(4, 4)
MMU, SOI, EOI, SOT, PAD, SOV = (
    getattr(PROCESSOR, f"{name}_token_id") for name in ("mmu", "soi", "eoi", "sot", "pad", "image")
)
BLOCK = [SOI, *(GRID.flatten() + PROCESSOR.image_token_offset).tolist(), EOI]
PLACEHOLDERS = [SOI, *[SOV] * 16, EOI]


def user(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": "user", "content": content}


def model(*parts):
    return {**user(*parts), "role": "assistant"}


def inputs(messages, processor=PROCESSOR, prompt=True, **options):
    return processor.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def ids(messages, processor=PROCESSOR, **options) -> list[int]:
    return inputs(messages, processor, **options)["input_ids"][0].tolist()


def words(text: str) -> list[int]:
    return PROCESSOR.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("grid", [False, True])
def test_a_question_about_an_image(grid):
    batch = inputs([user(GRID if grid else RED, "what?")])
    expected = [MMU, *(BLOCK if grid else PLACEHOLDERS), SOT, *words("USER: \nwhat? ASSISTANT:")]
    assert batch["input_ids"].tolist() == [expected]
    assert ("pixel_values" in batch) != grid
    # With transformers' usual order the image still comes first, as in training.
    assert ids([user("what?", GRID if grid else RED)]) == expected


def test_several_turns_and_images():
    messages = [user(RED, GRID, "what?"), model("an owl"), user("and", GRID, "this?")]
    expected = [MMU, *PLACEHOLDERS, *BLOCK, SOT, *words("USER: \nwhat? ASSISTANT: an owl"), SOT]
    expected += [*words("USER: \nand"), *BLOCK, *words("this? ASSISTANT:")]
    assert ids(messages) == expected
    assert inputs(messages)["pixel_values"].shape == (1, 3, 16, 16)


def test_text_alone_and_answers_with_images():
    messages = [{"role": "user", "content": "show me an owl"}, model("an owl:", GRID, "there")]
    expected = [SOT, *words("USER: \nshow me an owl ASSISTANT: an owl:"), *BLOCK, *words("there"), SOT]
    assert ids(messages, prompt=False) == expected
    assert ids([user("hi"), model(GRID)], prompt=False) == [SOT, *words("USER: \nhi ASSISTANT:"), *BLOCK, SOT]


def test_the_clip_template_has_a_system_prompt_and_no_start_of_text():
    placeholders = [SOI, *[SOV] * 4, EOI]
    start = [MMU, *words(CLIP_SYSTEM_PROMPT), *placeholders, *words("USER: what? ASSISTANT:")]
    assert ids([user(RED, "what?")], CLIP) == start
    system = {"role": "system", "content": "be brief."}
    own = [MMU, *words("be brief."), *placeholders, *words("USER: what? ASSISTANT:")]
    assert ids([system, user(RED, "what?")], CLIP) == own
    assert ids([user("what?")], CLIP) == [SOT, *words(CLIP_SYSTEM_PROMPT + "USER: what? ASSISTANT:")]
    assert ids([system, user(RED, "what?")]) == [MMU, *PLACEHOLDERS, SOT, *words("be brief. USER: \nwhat? ASSISTANT:")]


def test_a_batch_is_padded_on_the_left_and_keeps_the_order_of_images():
    blue = Image.new("RGB", (16, 16), "blue")
    batch = inputs([[user(RED, "what is this?")], [user(blue, "owl?")]])
    assert batch["input_ids"][1, 0] == PAD and batch["attention_mask"][1, 0] == 0
    assert batch["pixel_values"][0, 0].mean() > 0.9 and batch["pixel_values"][1, 2].mean() > 0.9


def test_an_answer_can_be_continued():
    messages = [user(RED, "what?"), model("an o")]
    continued = ids(messages, prompt=False, continue_final_message=True)
    assert continued == [MMU, *PLACEHOLDERS, SOT, *words("USER: \nwhat? ASSISTANT: an o")]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
tokens = st.sampled_from(["<|soi|>", "<|sov|>", "<|endoftext|>", "[PAD]", "<|mmu|>"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(texts, tokens), min_size=1, max_size=4).map("".join))
def test_names_of_special_tokens_in_messages_are_plain_text(text):
    found = ids([user(GRID, text)])
    assert found[:19] == [MMU, *BLOCK] and found[19] == SOT
    assert max(found[20:]) < PAD and SOT not in found[20:]
    decoded = PROCESSOR.tokenizer.decode(found[20:])
    assert decoded.startswith("USER: \n") and decoded.endswith(" ASSISTANT:")
    plain = text.replace(" ", "")  # a piece of a text may gain the space of a first word
    assert plain in decoded.replace(" ", "")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["owl", "a red apple", "two hearts, please"]), min_size=1, max_size=3))
def test_sanitizing_does_not_change_ordinary_text(texts):
    messages = [message for text in texts for message in (user(text), model("owl"))]
    assert ids(messages, prompt=False) == ids(messages, prompt=False, sanitize_control_tokens=False)


def test_the_assistant_mask_covers_answers():
    messages = [user(RED, "what?"), model("an owl"), user("draw"), model("here:", GRID, "owl")]
    batch = inputs(messages, prompt=False, return_assistant_tokens_mask=True)
    said = batch["input_ids"][batch["assistant_masks"].bool()].tolist()
    assert said == [*words("an owl"), SOT, *words("here:"), *BLOCK, *words("owl"), SOT]


def test_messages_are_not_changed():
    messages = [user("what?"), model("an owl")]
    before = copy.deepcopy(messages)
    ids(messages, prompt=False)
    assert messages == before


def test_the_template_is_saved(tmp_path):
    for processor in (PROCESSOR, CLIP):
        processor.save_pretrained(tmp_path)
        loaded = ShowoProcessor.from_pretrained(tmp_path)
        assert loaded.chat_template == processor.chat_template
        assert ids([user(RED, "what?")], loaded) == ids([user(RED, "what?")], processor)
    own = PROCESSOR.apply_chat_template([user("x")], chat_template="{{ messages[0].role }}")
    assert own == "user"


@pytest.mark.parametrize(
    "messages, error, message",
    [
        ([{"role": "tool", "content": "x"}], Exception, "'user', 'assistant' or, first, 'system', got 'tool'"),
        ([user("x"), {"role": "system", "content": "x"}], Exception, "got 'system'"),
        (
            [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
            Exception,
            "'text' or 'image', got 'video'",
        ),
        ([user("no-such-file.png", RED), user(3, "x")], TypeError, "got int: 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "1 placeholders .* and got 0 `images`"),
        ([user(torch.full((4, 4), 65), "x")], ValueError, "from 0 to 63"),
    ],
)
def test_wrong_messages_are_refused(messages, error, message):
    with pytest.raises(error, match=message):
        ids(messages)


def test_an_image_that_cannot_be_read_is_named():
    part = {"type": "image", "path": "missing.png"}
    with pytest.raises(ValueError, match="cannot be read: 'missing.png'"):
        ids([{"role": "user", "content": [part]}])
