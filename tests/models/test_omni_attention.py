"""The omni-attention mask, compared with a slow mask that follows the text of the paper."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask
from transformers import DynamicCache

from showo_hf.models.omni_attention import image_block_ids, starts_with


# Warnings of torch and transformers about uncompiled flex attention.
pytestmark = pytest.mark.filterwarnings("ignore:_compile flag", "ignore:flex_attention called without")

CONFIG = tiny.showo_config(images=False)
PAD, SOI, EOI = CONFIG.pad_token_id, CONFIG.soi_token_id, CONFIG.eoi_token_id
MMU, T2I = CONFIG.mmu_token_id, CONFIG.t2i_token_id
MODEL = tiny.showo(images=False)


IMAGE_IDS = {*range(CONFIG.image_token_offset, CONFIG.mask_token_id + 1), CONFIG.image_token_id}

# Random sequences

texts = st.lists(st.integers(0, tiny.TEXT_IDS - 1), min_size=1, max_size=4)
codes = st.lists(st.integers(CONFIG.image_token_offset, CONFIG.mask_token_id), min_size=1, max_size=4)
images = codes.map(lambda ids: [SOI, *ids, EOI])
pieces = st.one_of(texts, images, images.map(lambda ids: [MMU, *ids]), st.sampled_from([[MMU], [T2I], [0]]))
unclosed = codes.map(lambda ids: [SOI, *ids])


@st.composite
def rows(draw):
    parts = draw(st.lists(st.one_of(pieces, pieces, unclosed), min_size=1, max_size=4))
    return [token for part in parts for token in part]


@st.composite
def batches(draw):
    """Rows of several kinds and lengths, padded on the left or on the right."""
    drawn = draw(st.lists(rows(), min_size=1, max_size=3))
    length = max(map(len, drawn)) + draw(st.integers(0, 2))
    padded = []
    for row in drawn:
        pads = [PAD] * (length - len(row))
        padded.append(pads + row if draw(st.booleans()) else row + pads)
    return torch.tensor(padded)


# Section 3.2 of the paper: text tokens attend causally, image tokens attend to each other in full, and every token
# attends to all tokens before it. An image goes from soi to eoi. In understanding sequences the task token before it
# belongs to it.


def images_of(row: list[int]) -> list[set[int]]:
    found, current = [], None
    for position, token in enumerate(row):
        if token == SOI:
            current = {position}
            if position > 0 and row[position - 1] == MMU:
                current.add(position - 1)
            found.append(current)
        elif current is not None and (token == EOI or token in IMAGE_IDS):
            current.add(position)
        if token != SOI and token not in IMAGE_IDS:
            current = None  # closed by eoi, or ended by text
    return found


def slow_mask(input_ids: torch.Tensor) -> torch.Tensor:
    batch, length = input_ids.shape
    seen = torch.zeros(batch, length, length, dtype=torch.bool)
    for b, row in enumerate(input_ids.tolist()):
        found = images_of(row)
        for query in range(length):
            for key in range(length):
                same_image = any(query in image and key in image for image in found)
                seen[b, query, key] = row[key] != PAD and (key <= query or same_image)
    return seen


def fast_mask(input_ids: torch.Tensor, implementation: str, attention_mask=None) -> torch.Tensor:
    """The mask of the model as booleans (batch, queries, keys)."""
    MODEL.set_attn_implementation(implementation)
    batch, length = input_ids.shape
    if attention_mask is None:
        attention_mask = MODEL.padding_mask(input_ids, None)
    # Without compilation, which flex attention would repeat for each shape.
    with torch.compiler.set_stance("force_eager"):
        mask = MODEL.omni_attention_mask(MODEL.get_input_embeddings()(input_ids), input_ids, attention_mask)
    if implementation == "flex_attention":
        mask = create_mask(mask.mask_mod, batch, 1, length, length, device="cpu")
    elif implementation == "eager":
        mask = mask == 0
    return mask[:, 0].expand(batch, -1, -1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@settings(deadline=None, max_examples=60)
@given(batches())
def test_the_mask_follows_the_paper(implementation, input_ids):
    is_id = input_ids != PAD
    expected = slow_mask(input_ids)[is_id]
    assert torch.equal(fast_mask(input_ids, implementation)[is_id], expected)
    with_mask = fast_mask(input_ids, implementation, attention_mask=is_id.long())
    assert torch.equal(with_mask[is_id], expected)


@settings(deadline=None, max_examples=30)
@given(batches())
def test_block_ids_number_the_images_of_each_row(input_ids):
    block_ids = image_block_ids(input_ids, CONFIG)
    for row, blocks in zip(input_ids.tolist(), block_ids.tolist(), strict=True):
        expected = [-1] * len(row)
        for number, image in enumerate(images_of(row)):
            for position in image:
                if row[position] != PAD:
                    expected[position] = number
        assert blocks == expected


@torch.no_grad()
def logits(input_ids, implementation="sdpa", **kwargs):
    MODEL.set_attn_implementation(implementation)
    return MODEL(input_ids, **kwargs).logits


@settings(deadline=None, max_examples=20)
@given(batches())
def test_eager_and_sdpa_agree(input_ids):
    is_id = input_ids != PAD
    torch.testing.assert_close(logits(input_ids, "eager")[is_id], logits(input_ids)[is_id], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_flex_attention_agrees(stance):
    input_ids = torch.tensor(
        [
            [PAD, PAD, T2I, 0, 5, 7, 0, *tiny.image(CONFIG, 1)],
            [MMU, *tiny.image(CONFIG, 2), 0, 9, 8, 0, PAD, PAD],
        ]
    )
    is_id = input_ids != PAD
    with torch.compiler.set_stance(stance):
        ours = logits(input_ids, "flex_attention")[is_id]
    torch.testing.assert_close(ours, logits(input_ids, "eager")[is_id], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(rows(), st.integers(0, 3), st.integers(0, 3))
def test_pads_change_nothing(row, left, right):
    alone = logits(torch.tensor([row]))
    positions = torch.arange(len(row))
    input_ids = torch.tensor([[PAD] * left + row + [PAD] * right])
    positions = torch.cat([torch.zeros(left, dtype=torch.long), positions, torch.full((right,), len(row))])[None]
    padded = logits(input_ids, position_ids=positions)
    torch.testing.assert_close(padded[:, left : left + len(row)], alone, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(pieces, min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_a_cached_prefix_changes_nothing(prefixes, data):
    """Left-padded prefixes, then an image, then a text: one call for each."""
    # Prefixes end with a text id, because a task token would belong to the image after it.
    prefixes = [[*(token for part in parts for token in part), 1] for parts in prefixes]
    length = max(map(len, prefixes))
    tails = []
    for tail in (images, texts):
        first = data.draw(tail)
        tails.append(torch.tensor([first] * len(prefixes)))
    prefix = torch.tensor([[PAD] * (length - len(row)) + row for row in prefixes])
    whole = torch.cat([prefix, *tails], dim=1)
    cache = DynamicCache(config=CONFIG.text_config)
    parts, done = [], 0
    for part in (prefix, *tails):
        done += part.shape[1]
        attention_mask = (whole[:, :done] != PAD).long()
        parts.append(logits(part, attention_mask=attention_mask, past_key_values=cache, use_cache=True))
    is_id = whole != PAD
    torch.testing.assert_close(torch.cat(parts, 1)[is_id], logits(whole)[is_id], rtol=1e-4, atol=1e-4)


def test_the_first_token_of_an_image_depends_on_its_last_token():
    """The effect of the mask on the logits: images attend in full, texts causally."""
    image, text = tiny.image(CONFIG), [3, 4, 5, 6]
    base = torch.tensor([[0, *text, *image]])
    other_token, other_text = base.clone(), base.clone()
    other_token[0, -2] = CONFIG.image_token_offset + (base[0, -2] - CONFIG.image_token_offset + 1) % tiny.CODES
    other_text[0, 4] = 7
    changed = (logits(base) - logits(other_token)).abs().amax(-1)[0] > 1e-4
    assert changed[5:].all() and not changed[:5].any()
    changed = (logits(base) - logits(other_text)).abs().amax(-1)[0] > 1e-4
    assert changed[4:].all() and not changed[:4].any()


def test_given_blocks_replace_the_blocks_of_the_ids():
    """A given block lets two text tokens see each other."""
    input_ids = torch.tensor([[0, 3, 4, 5, 6]])
    blocks = torch.tensor([[-1, 0, 0, -1, -1]])
    other = input_ids.clone()
    other[0, 2] = 9
    changed = logits(input_ids, block_sequence_ids=blocks) - logits(other, block_sequence_ids=blocks)
    assert (changed.abs().amax(-1)[0] > 1e-4).tolist() == [False, True, True, True, True]


def test_embeddings_instead_of_ids_are_causal_unless_blocks_are_given():
    input_ids = torch.tensor([[0, 3, *tiny.image(CONFIG)]])
    embeddings = MODEL.get_input_embeddings()(input_ids)
    with torch.no_grad():
        causal = MODEL(inputs_embeds=embeddings).logits
        full = MODEL(inputs_embeds=embeddings, block_sequence_ids=image_block_ids(input_ids, CONFIG)).logits
    torch.testing.assert_close(full, logits(input_ids), rtol=1e-4, atol=1e-4)
    assert (causal - full).abs().max() > 1e-3


@settings(deadline=None, max_examples=30)
@given(batches(), st.sampled_from([MMU, T2I, SOI, 0]))
def test_starts_with_skips_pads(input_ids, token):
    expected = [next(one for one in row if one != PAD) == token for row in input_ids.tolist()]
    assert starts_with(input_ids, token, PAD).tolist() == expected


def test_starts_with_without_a_pad_token():
    assert starts_with(torch.tensor([[5, 1], [1, 5]]), 5, None).tolist() == [True, False]
