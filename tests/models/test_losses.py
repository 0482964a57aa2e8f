"""The cross-entropy in chunks, the numbers of labels, and the heads that it does not apply to."""

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from showo_hf.models import losses
from showo_hf.models.losses import linear_cross_entropy, scored_positions


CONFIG = tiny.showo_config()
MMU, T2I, PAD, SOI = CONFIG.mmu_token_id, CONFIG.t2i_token_id, CONFIG.pad_token_id, CONFIG.soi_token_id


def arguments(positions=7, hidden=5, classes=11, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(positions, hidden), (classes, hidden), *[(classes,)] * bias]
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return tensors, torch.randint(classes, (positions,), generator=generator)


def plain(hidden_states, weight, bias, labels):
    return F.cross_entropy(F.linear(hidden_states, weight, bias).to(torch.float64), labels)


@given(
    positions=st.integers(1, 12),
    classes=st.integers(1, 20),
    chunk=st.integers(1, 60),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_value_and_gradients_equal_those_of_all_logits_at_once(positions, classes, chunk, bias, seed):
    tensors, labels = arguments(positions, classes=classes, bias=bias, seed=seed)
    wide = (*tensors, *[None] * (not bias))
    wanted = plain(*wide, labels)
    before, losses.CHUNK_LOGITS = losses.CHUNK_LOGITS, chunk
    try:
        found = linear_cross_entropy(*wide, labels)
    finally:
        losses.CHUNK_LOGITS = before
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, tensors), torch.autograd.grad(3 * wanted, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.003), (torch.float32, 1e-5)])
@pytest.mark.parametrize("autocast", [False, True])
def test_products_in_half_precision(monkeypatch, dtype, tolerance, autocast):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 3 * 300)
    tensors, labels = arguments(64, 32, 300, torch.float64)
    wanted = plain(*tensors, labels)
    ours = [tensor.detach().to(torch.float32 if autocast else dtype).requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
        found = linear_cross_entropy(*ours, labels)
    assert found.dtype == torch.float32  # a loss in half precision would have three digits
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance / 2)
    gradients = zip(torch.autograd.grad(found, ours), torch.autograd.grad(wanted, tensors), ours, strict=True)
    for one, other, tensor in gradients:
        assert one.dtype == tensor.dtype
        assert (one.double() - other).norm() <= tolerance * other.norm()


def test_small_gradients_survive_the_range_of_float16():
    """The gradient of a mean over many labels is below float16's smallest number until a gradient scaler scales it."""
    tensors, labels = arguments(4096, 4, 512, torch.float32)
    small = [tensor.detach().half().requires_grad_() for tensor in tensors]
    scale = 2.0**12
    (hidden, *_) = torch.autograd.grad(scale * linear_cross_entropy(*small, labels), small)
    (wanted, *_) = torch.autograd.grad(scale * plain(*tensors, labels), tensors)
    assert (hidden.float() - wanted).norm() <= 0.01 * wanted.norm()


def test_only_what_is_trained_gets_a_gradient():
    (hidden, weight, bias), labels = arguments()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert weight.grad is None and hidden.grad is not None and bias.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, bias, labels).requires_grad


def test_a_retained_graph_can_run_backward_twice():
    tensors, labels = arguments()
    loss = linear_cross_entropy(*tensors, labels)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, tensors), strict=True):
        assert torch.equal(one, other)


def test_memory_does_not_grow_with_all_logits(monkeypatch):
    """No tensor of the forward and backward pass is larger than a chunk of logits or an argument."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * 500)
    tensors, labels = arguments(200, 8, 500, torch.float32)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        linear_cross_entropy(*tensors, labels).backward()
    sizes = [math.prod(shape) for event in recorded.events() for shape in event.input_shapes or () if shape]
    assert any(event.name == "aten::_log_softmax" for event in recorded.events())
    assert max(sizes) <= 500 * 8


# In the model


def some_rows():
    """A text-to-image row, an understanding row, a text, and a text with an image, with labels everywhere."""
    image = tiny.image(CONFIG, 1)
    made = [
        [PAD, PAD, T2I, 0, 5, 0, *image],
        [MMU, *image, 0, 9, 8, 0],
        [0, 3, 4, 5, 0],
        [0, 3, *image, 4, 0],
    ]
    ids = torch.full((4, max(map(len, made))), PAD)
    for row, values in zip(ids, made, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids, ids.masked_fill(ids == PAD, -100)


def test_counts_are_the_numbers_of_scored_labels():
    ids, labels = some_rows()
    model = tiny.showo()
    found = {name: mask.sum().item() for name, mask in scored_positions(ids, labels, CONFIG).items()}
    # Three images of 18 ids; in the text with an image, the `soi` counts as text as well.
    assert found == {"t2i": 3 * 18, "lm": 4 + 4, "mmu": 4 + 1}
    output = model(ids, labels=labels)
    for name, count in found.items():
        assert getattr(output, f"count_{name}").item() == count
        assert getattr(output, f"count_{name}").dtype == torch.int64
    assert model(ids[2:3], labels=labels[2:3]).count_t2i is None
    assert model(ids).count_lm is None


def test_losses_of_parts_average_to_those_of_the_batch():
    ids, labels = some_rows()
    model = tiny.showo()
    whole = model(ids, labels=labels)
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1]) for i in range(4)]
    for name in losses.LOSS_NAMES:
        pairs = [(getattr(one, f"loss_{name}"), getattr(one, f"count_{name}")) for one in parts]
        known = [(mean, count) for mean, count in pairs if count is not None]
        mean = sum(mean * count for mean, count in known) / sum(count for _, count in known)
        torch.testing.assert_close(getattr(whole, f"loss_{name}"), mean)


@pytest.mark.parametrize("plain_head", [True, False])
def test_labels_outside_the_vocabulary_are_refused(plain_head):
    """Python's indexing would take -1 for the last id."""
    ids, labels = some_rows()
    model = tiny.showo()
    if not plain_head:
        model.lm_head = Adapted(CONFIG.hidden_size, CONFIG.vocab_size)
    last = CONFIG.vocab_size - 1
    for wrong in (-1, CONFIG.vocab_size):
        with pytest.raises(ValueError, match=rf"`labels` must be ids from 0 to {last}, or -100 .* got .*{wrong}"):
            model(ids, labels=labels.where(labels != 9, wrong))
    unscored = labels.clone()
    unscored[2, 0] = -1  # the first of a row is no label
    assert model(ids, labels=unscored).loss == model(ids, labels=labels).loss


class Adapted(nn.Linear):
    """A head whose forward is more than a product with its weight."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


def test_a_head_with_its_own_forward_is_used_as_it_is():
    ids, labels = some_rows()
    model = tiny.showo()
    adapted = tiny.showo()
    adapted.lm_head = Adapted(*model.lm_head.weight.shape[::-1])
    adapted.lm_head.weight.data = model.lm_head.weight.data / 2
    adapted.lm_head.bias.data = model.lm_head.bias.data / 2
    torch.testing.assert_close(adapted(ids, labels=labels).loss, model(ids, labels=labels).loss)
