import copy

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf.training.data.examples import Example
from showo_hf.training.rows import IGNORED, RowBuilder, chosen_text, images_of, score_one_image


PROCESSOR = tiny.processor()
MODEL = tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)
PAD, T2I, MMU, SOI, EOI, SOT, EOT, MASK = (
    getattr(PROCESSOR, f"{name}_token_id") for name in ("pad", "t2i", "mmu", "soi", "eoi", "sot", "eot", "mask")
)
OFFSET = PROCESSOR.image_token_offset
TASKS = ("t2i", "lm", "mmu", "mixed")
pytestmark = pytest.mark.filterwarnings("ignore:A text of")  # which is cut
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def grid(seed: int) -> torch.LongTensor:
    return torch.randint(tiny.CODES, (tiny.SIDE, tiny.SIDE), generator=torch.Generator().manual_seed(seed))


def message(role: str, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


texts = st.lists(st.sampled_from("a red green apple pear two hearts owl cat table of flat".split()), max_size=14).map(
    " ".join
)
seeds = st.integers(0, 2**63 - 1)
grids = st.integers(0, 1000).map(grid)


@st.composite
def conversations(draw, generated: bool):
    """Messages; with `generated`, the assistant makes images as well."""
    messages = []
    for _ in range(draw(st.integers(1, 3))):
        asked = [draw(grids)] if draw(st.booleans()) else []
        answered = [draw(grids)] if generated and draw(st.booleans()) else []
        messages.append(message("user", *asked, draw(texts) or "what?"))
        messages.append(message("assistant", draw(texts) or "yes", *answered))
    return messages


@st.composite
def examples(draw, task: str):
    """An example of a task, with stored image tokens."""
    key, seed = f"row-{draw(st.integers(0, 10**6))}", draw(seeds)
    if task == "mixed" or (task == "mmu" and draw(st.booleans())):
        return Example(key, seed, messages=draw(conversations(generated=task == "mixed")))
    text = draw(texts | st.lists(texts, min_size=1, max_size=3))
    return Example(key, seed, image_tokens=None if task == "lm" else draw(grids), text=text)


def rows_of(task: str):
    return st.lists(examples(task), min_size=1, max_size=4)


def stripped(ids: torch.Tensor, labels: torch.Tensor) -> tuple[list[int], list[int]]:
    """A row without its padding. No text of the tests holds the id of the padding."""
    kept = ids != PAD
    assert (labels[~kept] == IGNORED).all()
    return ids[kept].tolist(), labels[kept].tolist()


def built(task: str, rows: list[Example], **options):
    part = RowBuilder(PROCESSOR, **options).part(task, copy.deepcopy(rows))
    assert part.complete and part.keys == [row.key for row in rows]
    assert part.input_ids.dtype == part.labels.dtype == torch.int64
    assert part.input_ids.shape == part.labels.shape
    return part


@pytest.mark.parametrize("task", TASKS)
@FEW
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(task, data):
    rows = data.draw(rows_of(task))
    options = {"condition_dropout": 0.5, "image_dropout": 0.7}
    together = built(task, rows, **options)
    for number, row in enumerate(rows):
        alone = built(task, [row], **options)
        assert stripped(together.input_ids[number], together.labels[number]) == stripped(
            alone.input_ids[0], alone.labels[0]
        )
    turned = built(task, rows[::-1], **options)
    assert turned.counts == together.counts
    for number in range(len(rows)):
        assert stripped(turned.input_ids[-1 - number], turned.labels[-1 - number]) == stripped(
            together.input_ids[number], together.labels[number]
        )


@pytest.mark.parametrize("task", TASKS)
@FEW
@given(data=st.data())
def test_the_counts_are_those_of_the_model(task, data):
    part = built(task, data.draw(rows_of(task)), image_dropout=0.5)
    with torch.no_grad():
        output = MODEL(input_ids=part.input_ids, labels=part.labels)
    counts = {name: getattr(output, f"count_{name}") for name in ("t2i", "lm", "mmu")}
    assert part.counts == {name: int(count) for name, count in counts.items() if count is not None}
    assert part.counts


# Text to image


@FEW
@given(data=st.data())
def test_text_to_image_rows_have_labels_where_tokens_are_masked(data):
    rows = data.draw(rows_of("t2i"))
    part = built("t2i", rows, condition_dropout=0.0)
    for row, ids, labels, tokens in zip(rows, part.input_ids, part.labels, part.image_tokens, strict=True):
        assert torch.equal(tokens, row.image_tokens.flatten())
        kept = ids[ids != PAD].tolist()
        prompt = PROCESSOR.text_to_image([chosen_text(row)], row.image_tokens[None], padding="longest")["input_ids"][0]
        masked = ids == MASK
        assert 1 <= masked.sum() <= tokens.numel()
        assert torch.equal(labels != IGNORED, masked)
        assert kept[0] == T2I and kept[-1] == EOI
        assert torch.where(masked, labels, ids)[ids != PAD].tolist() == prompt[prompt != PAD].tolist()
    assert part.counts == {"t2i": int((part.labels != IGNORED).sum())}


def test_masks_follow_the_schedule():
    """The mean share of masked tokens of the cosine schedule is 2 / pi."""
    rows = [Example(str(i), i, image_tokens=grid(i), text="owl") for i in range(600)]
    part = built("t2i", rows)
    share = (part.input_ids == MASK).float().sum(1) / tiny.SIDE**2
    assert abs(share.mean().item() - 2 / torch.pi) < 0.03
    assert share.min() <= 0.2 and share.max() >= 0.95
    everything = built("t2i", rows[:5], schedule=lambda u: torch.ones_like(u))
    assert ((everything.input_ids == MASK).sum(1) == tiny.SIDE**2).all()


def test_rows_without_masks_keep_their_tokens():
    rows = [
        Example("a", 1, image_tokens=grid(1), text="owl"),
        Example("b", 2, image_tokens=grid(2), text="a red apple"),
    ]
    part = built("t2i", rows, masked=False, condition_dropout=0.0)
    assert not (part.input_ids == MASK).any()
    inside = part.labels != IGNORED
    assert torch.equal(part.labels[inside], part.input_ids[inside])
    assert part.labels[inside].tolist() == (torch.cat([grid(1).flatten(), grid(2).flatten()]) + OFFSET).tolist()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_emptied_prompts(share):
    rows = [Example(str(i), i * 7919, image_tokens=grid(0), text="two hearts") for i in range(1000)]
    part = built("t2i", rows, condition_dropout=share)
    empty = len(PROCESSOR.text_to_image([""], grid(0)[None], padding="longest")["input_ids"][0])
    emptied = ((part.input_ids != PAD).sum(1) == empty).float().mean().item()
    assert abs(emptied - share) < (0.05 if 0 < share < 1 else 1e-9)


def test_one_of_several_texts_is_drawn():
    several = [Example(str(i), i, image_tokens=grid(0), text=["owl", "a red apple", "two hearts"]) for i in range(300)]
    drawn = [chosen_text(example) for example in several]
    for text in ("owl", "a red apple", "two hearts"):
        assert 70 < drawn.count(text) < 130
    assert drawn == [chosen_text(example) for example in several]


# Text


@FEW
@given(rows=rows_of("lm"))
def test_text_rows_have_a_label_on_every_id(rows):
    part = built("lm", rows)
    longest = PROCESSOR.max_text_length + PROCESSOR.num_image_tokens
    for row, ids, labels in zip(rows, part.input_ids, part.labels, strict=True):
        expected = [SOT, *PROCESSOR.text_ids(chosen_text(row))[:longest], EOT]
        assert stripped(ids, labels) == (expected, expected)


def test_long_texts_are_cut_to_the_length_of_an_image_sequence():
    part = built("lm", [Example("long", 0, text="a red apple on a table " * 50), Example("short", 1, text="owl")])
    assert part.input_ids.shape == (2, PROCESSOR.max_text_length + PROCESSOR.num_image_tokens + 2)
    assert part.input_ids[0, 0] == SOT and part.input_ids[0, -1] == EOT


# Understanding


@FEW
@given(row=examples("mmu"))
def test_only_answers_have_labels(row):
    part = built("mmu", [row])
    ids, labels = stripped(part.input_ids[0], part.labels[0])
    if row.messages is None:
        made = PROCESSOR.understanding([chosen_text(row)], [row.image_tokens])
        assert ids == made["input_ids"][0].tolist() and labels == made["labels"][0].tolist()
        return
    inputs = PROCESSOR.apply_chat_template(
        [row.messages], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    assert ids == inputs["input_ids"][0].tolist()
    answers = torch.as_tensor(inputs["assistant_masks"])[0].bool().tolist()
    assert labels == [one if answer else IGNORED for one, answer in zip(ids, answers, strict=True)]
    assert any(answers) and not all(answers)


@FEW
@given(row=examples("mmu"))
def test_image_dropout_masks_image_tokens_alone(row):
    plain, hidden = built("mmu", [row]), built("mmu", [row], image_dropout=1.0)
    assert torch.equal(plain.labels, hidden.labels)
    changed = plain.input_ids != hidden.input_ids
    assert (hidden.input_ids[changed] == MASK).all()
    before = plain.input_ids[changed]
    assert ((before >= OFFSET) & (before < MASK)).all()


def test_the_share_of_hidden_tokens():
    rows = [Example(str(i), i * 31, image_tokens=grid(i), text="owl") for i in range(500)]
    part = built("mmu", rows, image_dropout=0.6)
    share = (part.input_ids == MASK).float().sum(1) / tiny.SIDE**2
    assert abs(share.mean().item() - 0.3) < 0.03
    assert share.max() < 0.95 and share.min() == 0.0


# Mixed conversations


@FEW
@given(row=examples("mixed"))
def test_of_a_mixed_row_either_text_or_one_image_has_labels(row):
    part = built("mixed", [row])
    ids, labels = part.input_ids[0], part.labels[0]
    full, answers = RowBuilder(PROCESSOR).conversation(row.messages, images_of(row))
    scored = labels != IGNORED
    image_labels = scored & (labels >= OFFSET) & (labels < MASK)
    if not image_labels.any():
        assert torch.equal(ids, full)
        keep = ~((full >= OFFSET) & (full < MASK)) & (full != EOI)
        assert torch.equal(labels, torch.where(keep, answers, IGNORED))
        return
    assert torch.equal(image_labels, ids == MASK)
    assert ids[-1] == EOI and labels[-1] == IGNORED
    first = len(ids) - 1 - PROCESSOR.num_image_tokens
    assert image_labels.nonzero().min() >= first and ids[first - 1] == SOI
    assert torch.equal(torch.where(ids == MASK, labels, ids), full[: len(ids)])
    assert answers[first - 1] == SOI  # the assistant made it


def test_half_of_the_mixed_rows_with_images_train_an_image():
    messages = [
        message("user", "an owl"),
        message("assistant", grid(1)),
        message("user", "more"),
        message("assistant", grid(2)),
    ]
    rows = [Example(str(i), i * 101, messages=messages) for i in range(400)]
    part = built("mixed", rows)
    masked = (part.input_ids == MASK).any(1)
    assert 160 < int(masked.sum()) < 240
    lengths = (part.input_ids != PAD).sum(1)
    assert len(lengths[masked].unique()) == 2  # the first or the second image


def test_an_image_that_is_scored_ends_the_row():
    image = tiny.image(tiny.showo_config(text_ids=PROCESSOR.pad_token_id))
    ids = torch.tensor([SOT, 5, *image, 6, *image, 7, EOT])
    labels = ids.clone()
    generator = torch.Generator().manual_seed(0)
    same, scored = score_one_image(ids, labels, None, PROCESSOR, generator)
    assert torch.equal(same, ids)
    text = torch.tensor([one if one < OFFSET and one != EOI else IGNORED for one in ids.tolist()])
    assert torch.equal(scored, text)
    start = 2 + len(image) + 1
    ended, scored = score_one_image(ids, labels, start, PROCESSOR, generator)
    assert len(ended) == start + len(image)
    assert torch.equal(scored[: start + 1], text[: start + 1])
    assert torch.equal(scored[start + 1 :] != IGNORED, ended[start + 1 :] == MASK)


# Broken and wrong rows


@pytest.mark.parametrize("task", TASKS)
def test_a_part_without_examples_is_complete(task):
    part = built(task, [])
    assert part.input_ids.shape == (0, 1) and part.counts == {}


def test_examples_without_what_the_task_needs_are_named():
    builder = RowBuilder(PROCESSOR)
    with pytest.raises(ValueError, match="The example 'lost' has no text"):
        builder.part("lm", [Example("lost", 0)])
    with pytest.raises(ValueError, match="'mixed' must have `messages`; 'lost' has none"):
        builder.part("mixed", [Example("lost", 0, text="owl")])


def test_images_wait_for_their_tokens():
    """Some rows have stored tokens, others images."""
    red = Image.new("RGB", (16, 16), "red")
    rows = [
        Example("a", 1, image=red, text="owl"),
        Example("b", 2, image_tokens=grid(2), text="a red apple"),
        Example("c", 3, image=red.rotate(90), text="two hearts"),
    ]
    builder = RowBuilder(PROCESSOR, condition_dropout=0.0)
    part = builder.part("t2i", rows)
    assert not part.complete and part.pixel_values.shape == (2, 3, 16, 16)
    part = builder.finish(part, torch.stack([grid(7), grid(8)]))
    assert part.pixel_values is None and part.examples == []
    assert torch.equal(part.image_tokens, torch.stack([grid(7), grid(2), grid(8)]).flatten(1))
    talk = [
        message("user", red, "what?"),
        message("assistant", "red"),
        message("user", grid(3), "and?"),
        message("assistant", "owl"),
    ]
    part = builder.part("mmu", [Example("d", 4, messages=talk)])
    assert part.pixel_values.shape == (1, 3, 16, 16)
    ids = builder.finish(part, grid(9)[None]).input_ids[0]
    inside = ids[(ids >= OFFSET) & (ids < MASK)] - OFFSET
    assert inside.tolist() == [*grid(9).flatten().tolist(), *grid(3).flatten().tolist()]


@FEW
@given(conversations(generated=True), st.integers(1, 120))
def test_long_conversations_are_cut_before_an_incomplete_image(messages, longest):
    example = Example("row", 0, messages=messages)
    builder = RowBuilder(PROCESSOR, max_length=longest)
    images = images_of(example)
    whole, _ = RowBuilder(PROCESSOR).conversation(messages, images)
    ids, labels = builder.conversation(messages, images)
    assert len(ids) == len(labels) <= longest
    assert torch.equal(ids, whole[: len(ids)])
    assert (ids == SOI).sum() == (ids == EOI).sum()
    if len(whole) > longest and len(ids) < longest:  # an image did not fit
        assert whole[len(ids)] == SOI


def test_images_of_conversations_are_masked_by_the_schedule():
    messages = [message("user", "draw"), message("assistant", grid(0))]
    builder = RowBuilder(PROCESSOR, schedule=torch.ones_like)
    parts = [builder({"mixed": [Example("row", seed, messages=messages)]})["mixed"] for seed in range(12)]
    masked = [int((part.input_ids == MASK).sum()) for part in parts]
    assert set(masked) == {0, tiny.SIDE**2}  # rows that train the text, and rows that train the whole image
