"""The training rows: their content, and what the training makes of them."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.emoji.emoji import EmojiRecord
from recipes.emoji.rows import CAPTIONS, RowMaker, TrainingSet, balanced_draws, write_rows
from recipes.image_tokens import encode_views, move, to_pixel_values
from showo_hf.training.data.loader import StepLoader, TaskData
from showo_hf.training.data.sources import DataSource, open_source
from showo_hf.training.rows import RowBuilder


# Captions are longer than `max_text_length` of the tiny processor, and are truncated.
pytestmark = pytest.mark.filterwarnings("ignore:A text of .* ids was cut")

PROCESSOR = tiny.processor()
PAD, SOI, EOI, MASK, OFFSET = (
    getattr(PROCESSOR, name)
    for name in ("pad_token_id", "soi_token_id", "eoi_token_id", "mask_token_id", "image_token_offset")
)


def record(unified, style="noto", tone=None, name="thing"):
    return EmojiRecord(unified, unified, style, name, (), tone, "Food & Drink", "food-fruit", held_out=False)


def training_set(views: int = 2) -> TrainingSet:
    styles = ("noto", "twemoji", "fluent3d")
    records = [record(f"{i // 2:04X}", styles[i % 2], name=f"thing {i // 2}") for i in range(8)]
    tokens = torch.arange(16).repeat(views, 8, 1).view(views, 8, 4, 4).clone()
    tokens[1:] += 32  # a moved view
    return TrainingSet(records, ["red"] * 8, tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The rows of 8 emoji, 8 of each for a task."""
    output = tmp_path_factory.mktemp("rows") / "rows"
    assert write_rows(training_set(), output, rows=8) == {"t2i": 64, "mmu": 64, "mixed": 16}
    return output


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


TONES = ("light", "medium", "dark")


@given(
    tones=st.dictionaries(st.sampled_from("ABCDE"), st.integers(0, 3), min_size=1),
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_every_emoji_is_drawn_equally_often_whatever_its_skin_tones(tones, count, seed):
    records = [record(one, tone=tone) for one, number in tones.items() for tone in (None, *TONES[:number])]
    drawn = [records[index] for index in balanced_draws(records, count, random.Random(seed))]
    assert Counter(one.unified for one in drawn) == dict.fromkeys(tones, count)
    for unified, number in tones.items():
        of_emoji = Counter(one.tone for one in drawn if one.unified == unified)
        assert of_emoji[None] == (count - count // 2 if number else count)
        counts = [of_emoji[tone] for tone in TONES[:number]]
        assert not counts or max(counts) - min(counts) <= 1


def test_an_emoji_that_only_has_skin_tones_is_drawn_as_often():
    records = [record("A", tone="light"), record("A", tone="dark"), record("A", "twemoji")]
    assert Counter(balanced_draws(records, 6, random.Random(0))) == {0: 3, 1: 3, 2: 6}


def test_text_to_image_rows_have_several_captions_of_their_image(folder):
    rows = lines(folder / "t2i.jsonl")
    assert all(
        len(row["text"]) == CAPTIONS and row["image_tokens"] == torch.arange(16).view(4, 4).tolist() for row in rows
    )
    names = Counter(text.split("thing ")[1][0] for row in rows for text in row["text"])
    assert names == dict.fromkeys("0123", 2 * 8 * CAPTIONS)


def test_questions_are_about_all_views(folder):
    first = Counter()
    for row in lines(folder / "mmu.jsonl"):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 3
        images = [
            part
            for message in row["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image"
        ]
        assert len(images) == 1
        first[images[0]["image_tokens"][0][0]] += 1
    assert set(first) == {0, 32}


def test_the_files_depend_only_on_the_seed(folder, tmp_path):
    write_rows(training_set(), tmp_path / "same", rows=8)
    write_rows(training_set(), tmp_path / "other", rows=8, seed=1)
    for task in ("t2i", "mmu", "mixed"):
        made = [(path / f"{task}.jsonl").read_bytes() for path in (folder, tmp_path / "same", tmp_path / "other")]
        assert made[0] == made[1] != made[2]


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows` must be an integer of at least 1"):
        write_rows(training_set(), tmp_path / "out", rows=0)


def batches(folder, tasks, steps, **options):
    """What training makes of the rows of some tasks."""
    files = {"lm": "t2i"}
    data = {task: TaskData((DataSource(str(folder / f"{files.get(task, task)}.jsonl")),), 8) for task in tasks}
    made = iter(StepLoader(data, RowBuilder(PROCESSOR, **options), seed=0))
    return [next(made)[0] for _ in range(steps)]


def test_training_reads_all_files(folder):
    (batch,) = batches(folder, ("t2i", "lm", "mmu", "mixed"), 1)
    assert list(batch) == ["t2i", "lm", "mmu", "mixed"]
    assert all(part.complete and len(part.input_ids) == 8 for part in batch.values())
    image = batch["t2i"].input_ids[:, -17:-1]
    scored = batch["t2i"].labels[:, -17:-1] != -100
    assert torch.equal(scored, image == MASK) and scored.any(1).all()
    assert torch.equal(batch["t2i"].labels[:, -17:-1][scored], (torch.arange(16) + OFFSET).expand(8, -1)[scored])


def test_only_the_answers_of_questions_have_labels(folder):
    for batch in batches(folder, ("mmu",), 4):
        for row, labels in zip(batch["mmu"].input_ids, batch["mmu"].labels, strict=True):
            assert row[0] == PROCESSOR.mmu_token_id and (labels[:20] == -100).all()
            said = PROCESSOR.tokenizer.decode(row[labels != -100].tolist())
            assert said.count("<|endoftext|>") == 3 and "USER" not in said and "ASSISTANT" not in said


def test_mixed_rows_label_the_text_or_one_image(folder):
    kinds = set()
    for batch in batches(folder, ("mixed",), 16):
        for ids, labels in zip(batch["mixed"].input_ids, batch["mixed"].labels, strict=True):
            ids, labels = ids[ids != PAD], labels[: (ids != PAD).sum()]
            scored = labels != -100
            masked = (ids == MASK).nonzero().flatten().tolist()
            kinds.add((bool(masked), int((scored & (ids == SOI)).sum())))
            if masked:
                assert ids[-1] == EOI and all(len(ids) - 18 < place < len(ids) - 1 for place in masked)
            tokens = (ids >= OFFSET) & (ids < MASK)
            assert not (scored & tokens).any(), "visible image tokens have no labels"
            assert not (scored & (ids == EOI)).any()
    assert {(True, 1), (True, 2), (False, 0), (False, 1), (False, 2)} <= kinds


def test_all_kinds_of_mixed_conversations_are_made():
    maker = RowMaker(training_set(), random.Random(0))
    images = Counter()
    for _ in range(60):
        messages = maker.mixed(3)["messages"]
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        roles = [
            m["role"]
            for m in messages
            if isinstance(m["content"], list) and any(p["type"] == "image" for p in m["content"])
        ]
        images[tuple(roles)] += 1
        assert all(part["type"] in ("text", "image") for part in parts)
    # a drawing or a story, a restyling, a comparison, and small talk
    assert set(images) == {("assistant",), ("user", "assistant"), ("user", "user"), ()}


def test_the_rows_are_those_of_the_training_images(folder):
    opened = open_source(DataSource(str(folder / "t2i.jsonl")), "t2i")
    example = opened.example(opened.table[0], "first", 0)
    assert example.image_tokens.dtype == torch.int64 and example.image_tokens.shape == (4, 4)


def test_views_are_the_image_and_moved_versions():
    images = np.full((3, 16, 16, 3), 255, dtype=np.uint8)
    images[:, 4:12, 4:12] = np.array([[[200, 0, 0]]])
    tokenizer = tiny.lfq(sample_size=16)
    views = encode_views(tokenizer, images, 2)
    assert views.shape == (3, 3, 4, 4) and views.dtype == torch.int64
    assert torch.equal(views[0], tokenizer.encode(to_pixel_values(images)).image_tokens)
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])
    assert torch.equal(views, encode_views(tokenizer, images, 2))


def test_moved_images_keep_their_size_and_get_white_borders():
    black = torch.full((20, 3, 32, 32), -1.0)
    moved = move(black, torch.Generator().manual_seed(0))
    assert moved.shape == black.shape and moved.min() == -1 and moved.max() == 1
    assert torch.equal(moved, move(black, torch.Generator().manual_seed(0)))
    white = torch.ones(2, 3, 32, 32)
    torch.testing.assert_close(move(white, torch.Generator().manual_seed(0)), white)
