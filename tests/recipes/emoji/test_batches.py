"""The rows of each task: their content and their labels."""

import pytest
import tiny
import torch

from recipes.emoji.batches import (
    COMPILED_MULTIPLES,
    TASKS,
    BatchMaker,
    Shares,
    TrainingSet,
    compute_loss,
    draw_weights,
    score_one_image,
)
from recipes.emoji.emoji import EmojiRecord


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
    tokens = torch.arange(16).repeat(views, 8, 1).view(views, 8, 4, 4).int()
    tokens[1:] += 32  # an augmented view
    return TrainingSet(records, ["red"] * 8, tokens)


def batch(size=8, shares=TASKS["all"], seed=0, **options):
    maker = BatchMaker(training_set(), PROCESSOR, size, shares, **options)
    return maker(torch.Generator().manual_seed(seed))


def test_every_emoji_has_the_same_weight_over_its_skin_tones():
    records = [record("A"), record("B"), *(record("B", tone=t) for t in ("light", "dark")), record("B", "twemoji")]
    assert draw_weights(records).tolist() == [1.0, 0.5, 0.25, 0.25, 1.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_text_to_image_rows_label_masked_tokens(compiled):
    made = batch(6, TASKS["images"], compiled=compiled)
    assert set(made) == {"image_ids", "image_labels", "text_ids", "text_labels"}
    ids, labels = made["image_ids"], made["image_labels"]
    multiple = COMPILED_MULTIPLES["image"] if compiled else 1
    assert ids.shape == labels.shape and ids.shape[0] == 6 and ids.shape[1] % multiple == 0
    image, scored = ids[:, -17:-1], labels[:, -17:-1] != -100
    assert torch.equal(scored, image == MASK) and scored.any(1).all()
    assert not (labels[:, :-17] != -100).any() and not (labels[:, -1] != -100).any()
    assert torch.equal(labels[:, -17:-1][scored], (torch.arange(16) + OFFSET).expand(6, -1)[scored])


def test_question_rows_label_only_the_answers():
    made = batch(16, hidden_share=0.0)
    ids, labels = made["question_ids"], made["question_labels"]
    views = set()
    for row, scored in zip(ids, labels, strict=True):
        assert row[0] == PROCESSOR.mmu_token_id and (scored[:20] == -100).all()
        views.add(int(row[2]) - OFFSET)
        kept = scored != -100
        assert torch.equal(row[kept], scored[kept])
        said = PROCESSOR.tokenizer.decode(row[kept].tolist())
        assert said.count("<|endoftext|>") == 3 and "USER" not in said and "ASSISTANT" not in said
    assert views == {0, 32}, "all views are used"


def test_some_image_tokens_of_question_rows_are_masked():
    whole, hidden = (batch(64, hidden_share=share) for share in (0.0, 0.5))
    ids, changed = whole["question_ids"], hidden["question_ids"]
    assert torch.equal(whole["question_labels"], hidden["question_labels"])
    is_image_token = (ids >= OFFSET) & (ids < MASK)
    assert (changed[ids != changed] == MASK).all() and is_image_token[ids != changed].all()
    shares = (ids != changed).sum(1) / is_image_token.sum(1)
    assert 0.15 < shares.mean() < 0.35 and shares.max() < 0.9


def test_mixed_rows_label_the_text_or_one_image():
    kinds = set()
    for seed in range(12):
        made = batch(16, Shares(mixed=1.0), seed)
        for ids, labels in zip(made["mixed_ids"], made["mixed_labels"], strict=True):
            ids, labels = ids[ids != PAD], labels[: (ids != PAD).sum()]
            scored = labels != -100
            opened = scored & (ids == SOI)
            masked = (ids == MASK).nonzero().flatten().tolist()
            kinds.add((bool(masked), int(opened.sum())))
            if masked:
                assert ids[-1] == EOI and all(len(ids) - 18 < place < len(ids) - 1 for place in masked)
                assert (labels[masked] == ids.new_tensor([OFFSET + p - (len(ids) - 17) for p in masked])).all()
            tokens = (ids >= OFFSET) & (ids < MASK)
            assert not (scored & tokens).any(), "visible image tokens have no labels"
            assert not (scored & (ids == EOI)).any()
    assert {(True, 1), (True, 2), (False, 0), (False, 1), (False, 2)} <= kinds


def test_without_a_start_no_image_is_masked():
    row = torch.tensor([0, 5, SOI, *range(OFFSET, OFFSET + 16), EOI, 0, PAD])
    ids, labels = score_one_image(row, row, None, PROCESSOR, torch.Generator().manual_seed(0))
    assert torch.equal(ids, row[:-1])
    assert labels.tolist() == [0, 5, SOI, *[-100] * 17, 0]


def test_a_batch_depends_only_on_its_generator():
    one, other, third = batch(seed=1), batch(seed=1), batch(seed=2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["question_ids"], third["question_ids"])


def test_the_loss_has_a_part_for_each_task():
    model = tiny.showo("llama", text_ids=PAD, text_options={"max_position_embeddings": 512}).train()
    loss, parts = compute_loss(model, batch(8))
    assert {"t2i", "lm", "mmu", "mixed"} <= set(parts)
    loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
    loss, parts = compute_loss(model, batch(8, TASKS["images"]))
    assert set(parts) == {"t2i", "lm"}
    torch.testing.assert_close(loss, parts["t2i"] + 0.1 * parts["lm"])
