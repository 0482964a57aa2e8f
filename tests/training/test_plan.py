"""The plan of a run: counts, tokens, operations, and memory against what torch keeps and what a process takes."""

import dataclasses
import math

import pytest
import small_run
import tiny
import torch
from benchmarks.measuring import can_measure_memory
from benchmarks.training_memory import CASES, measure_in_child
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from transformers import Qwen3Config, TrainingArguments

from showo_hf.training.dry_run import new_optimizer, optimizer_states, strategy_of
from showo_hf.training.plan import (
    MemoryOptions,
    ModelSizes,
    ParameterCounts,
    TaskRows,
    flops_per_step,
    format_plan,
    parameter_counts,
    published_rows,
    step_memory,
    tokens_per_step,
    training_memory,
)
from showo_hf.training.step_time import StepTime, measure_step_time


#: The published 1.3 B model, without its image tokenizer.
PUBLISHED = ModelSizes(
    hidden=2048,
    layers=24,
    heads=32,
    kv_heads=32,
    head_dim=64,
    intermediate=8192,
    vocab=58498,
    block="parallel",
    qk_norm="layer",
    tied=False,
)
WIDE = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
STAGE1 = published_rows(15, 4, 10)


def test_parameter_counts():
    model = tiny.showo("llama")
    for weight in model.model.layers[0].parameters():
        weight.requires_grad_(False)
    counts = parameter_counts(model)
    assert counts.total == sum(weight.numel() for weight in model.parameters())
    assert counts.trained == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert counts.frozen == counts.total - counts.trained > 0
    assert counts.parts["embedding"] == counts.parts["lm_head"] == (model.lm_head.weight.numel(),) * 2
    assert counts.parts["image_tokenizer"][1] == 0
    assert list(counts.parts) == ["embedding", "layers", "lm_head", "image_tokenizer"]


@pytest.mark.parametrize("backbone", ["phi", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_of_a_config(backbone, tied):
    model = tiny.showo(backbone, images=False, tie_word_embeddings=tied, text_options=WIDE, lm_head_bias=False)
    sizes = ModelSizes.of(model.config)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert sizes.parameters == matrices
    assert (sizes.block, sizes.qk_norm) == ({"phi": "parallel", "llama": "gated"}[backbone], "layer")
    assert ModelSizes.of(tiny.showo_config("llama", qk_layernorm=False)).qk_norm == "none"


def test_published_model_has_its_parameters():
    assert PUBLISHED.parameters / 1e9 == pytest.approx(1.45, abs=0.01)


# What a forward pass keeps


def kept_bytes(model, batch, autocast: bool) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without weights and autocast's copies."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {tuple(weight.shape) for weight in model.model.layers.parameters() if weight.ndim == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_copy = autocast and tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in weights and not is_copy:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # the reference keeps the address from reuse
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**batch, use_cache=False)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("kind", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(
    "backbone, kv_heads, qk_layernorm",
    [("phi", 4, True), ("llama", 4, True), ("llama", 2, True), ("llama", 4, False), ("qwen3", 4, True)],
)
def test_activations_are_what_torch_keeps(kind, backbone, kv_heads, qk_layernorm):
    options = WIDE | {"num_key_value_heads": kv_heads}
    changes = {"qk_layernorm": qk_layernorm}
    if backbone == "qwen3":
        vocab_size = tiny.showo_config().vocab_size
        changes["text_config"] = Qwen3Config(**options, vocab_size=vocab_size, head_dim=32)
    model = tiny.showo(backbone, images=False, text_options=options, **changes).train()
    config = model.config
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    rows = [[config.t2i_token_id, 1, 2, 3, *tiny.image(config, seed, 60)] for seed in range(3)]
    ids = torch.tensor(rows)
    labels = torch.where(ids >= config.image_token_offset, ids, -100)
    kept = kept_bytes(model, {"input_ids": ids, "labels": labels}, kind == "autocast")

    task = TaskRows("t2i", 3, ids.shape[1], int((labels != -100).sum()))
    memory = MemoryOptions(
        weight_bytes=2 if kind == "bfloat16" else 4, compute_bytes=4 if kind == "float32" else 2, device="cpu"
    )
    activations, loss, _ = step_memory(ModelSizes.of(config), task, memory)
    assert activations + loss == pytest.approx(kept, rel=0.02)


def test_checkpointing_keeps_the_inputs_of_layers():
    model = tiny.showo("phi", images=False, text_options=WIDE).train()
    model.activation_checkpointing_enable()
    config = model.config
    ids = torch.tensor([[config.t2i_token_id, 1, 2, *tiny.image(config, seed, 60)] for seed in range(3)])
    labels = torch.where(ids >= config.image_token_offset, ids, -100)
    kept = kept_bytes(model, {"input_ids": ids, "labels": labels}, autocast=False)
    task = TaskRows("t2i", 3, ids.shape[1], int((labels != -100).sum()))
    options = MemoryOptions(compute_bytes=4, checkpointing=True, device="cpu")
    activations, loss, _ = step_memory(ModelSizes.of(config), task, options)
    assert activations + loss == pytest.approx(kept, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not can_measure_memory("cpu"), reason="needs /proc/self/clear_refs")
@pytest.mark.parametrize("name", CASES)
def test_memory_of_a_step(name, monkeypatch):
    # Freed memory goes back to the system at once, so that the peak is that of the tensors.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    result = measure_in_child(name)
    assert result["planned"] == pytest.approx(result["measured"], rel=0.1), result


# Sharding


def plan_of(strategy: str = "none", ranks: int = 1, **options):
    return training_memory(PUBLISHED, STAGE1, MemoryOptions(strategy=strategy, ranks=ranks, **options))


def test_ddp_keeps_everything_and_adds_buckets():
    one, eight = plan_of(), plan_of("ddp", 8)
    assert eight.total - one.total == eight.gradients - one.gradients == PUBLISHED.parameters * 4
    assert plan_of("ddp", 64) == eight


def test_fsdp_shards_states():
    one, eight, many = plan_of(), plan_of("fsdp", 8), plan_of("fsdp", 64)
    assert eight.optimizer == math.ceil(PUBLISHED.parameters / 8) * 8
    assert (eight.activations, eight.loss) == (one.activations, one.loss)
    assert many.total < eight.total < one.total
    # What is gathered does not shrink with the number of devices.
    assert many.weights > (2 * PUBLISHED.layer_matrices + 2 * PUBLISHED.head) * 2


def test_tensor_parallel_splits_layers_but_not_the_embedding():
    one, two = plan_of(), plan_of("tp", 2)
    assert two.optimizer == (PUBLISHED.parameters + PUBLISHED.head) // 2 * 8
    assert one.activations / 2 < two.activations < one.activations


@pytest.mark.parametrize("option, more", [("ema", True), ("checkpointing", False)])
def test_options_that_cost_or_save_memory(option, more):
    assert (plan_of(**{option: True}).total > plan_of().total) == more


def test_the_loss_holds_logits_of_a_chunk():
    few, more = (published_rows(rows, 1, 1)[:1] for rows in (15, 30))
    plans = [training_memory(PUBLISHED, tasks, MemoryOptions()) for tasks in (few, more)]
    assert plans[0].loss == plans[1].loss == PUBLISHED.head * 2  # the head's gradient in bfloat16
    # A head in parts computes all logits at once.
    assert plan_of("tp", 2).loss == 3 * 4 * few[0].labelled * PUBLISHED.vocab


def test_adapters():
    options = MemoryOptions(ema=True)
    adapter = training_memory(PUBLISHED, STAGE1, options, total=PUBLISHED.parameters + 1000, trained=1000)
    assert (adapter.gradients, adapter.optimizer, adapter.ema) == (4000, 8000, 4000)


@given(
    ranks=st.integers(1, 64),
    strategy=st.sampled_from(["ddp", "fsdp", "tp"]),
    rows=st.integers(1, 32),
    checkpointing=st.booleans(),
)
def test_more_rows_never_need_less(ranks, strategy, rows, checkpointing):
    options = MemoryOptions(strategy=strategy, ranks=ranks, checkpointing=checkpointing)
    few, more = (training_memory(PUBLISHED, published_rows(n, 1, 1), options) for n in (rows, rows + 1))
    assert all(value >= 0 for value in dataclasses.astuple(few))
    assert more.total > few.total
    assert few.total == sum(dataclasses.astuple(few))


def test_largest_task_decides():
    both = training_memory(PUBLISHED, STAGE1, MemoryOptions())
    alone = training_memory(PUBLISHED, STAGE1[:1], MemoryOptions())
    assert both == alone  # tasks have forward and backward passes of their own


# Tokens, operations, time


def test_tokens_and_images_of_the_published_stage():
    assert tokens_per_step(STAGE1, ranks=48) == 48 * 29 * 387
    images = 48 * (published_rows(14, 4, 10)[0].rows + 10)
    assert images == 1152  # the paper's images of a step, with 14 + 10 a device
    assert tokens_per_step(STAGE1, accumulation=3) == 3 * tokens_per_step(STAGE1)


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny.showo("llama", images=False, text_options=WIDE).train()
    model.set_attn_implementation("eager")  # the counter does not know sdpa's kernel on a CPU
    config = model.config
    ids = torch.tensor([[config.t2i_token_id, 1, 2, *tiny.image(config, seed, 60)] for seed in range(3)])
    labels = torch.where(ids >= config.image_token_offset, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels).loss.backward()
    task = TaskRows("t2i", 3, ids.shape[1], int((labels != -100).sum()))
    assert flops_per_step(ModelSizes.of(config), [task]) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_measured_time_leaves_the_first_step_out(monkeypatch):
    clock = iter([0, 100, 100, 200, *(0, 1, 1, 1.5), *(0, 3, 3, 3.5), *(0, 2, 2, 2.5)])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    result = measure_step_time(lambda: calls.append("batch"), lambda: calls.append("update"), accumulation=2)
    assert (calls, result.seconds, result.median) == (["batch", "update"] * 4, [2.5, 6.5, 4.5], 4.5)


def test_printed_plan():
    counts = ParameterCounts(1_450_000_000, 1_400_000_000, {"layers": (1_450_000_000, 1_400_000_000)})
    text = format_plan(
        counts,
        PUBLISHED,
        STAGE1,
        MemoryOptions(strategy="fsdp", ranks=8),
        data_ranks=8,
        steps=1000,
        step_time=StepTime([1.8, 1.8]),
    )
    assert "trained 1,400,000,000, frozen 50,000,000" in text
    assert "t2i 15 x 387, lm 4 x 387, mmu 10 x 387" in text
    assert f"{8 * 29 * 387:,} on 8 x this device" in text
    assert "8 (fsdp)" in text
    assert "1.8 s on this machine" in text
    assert "0.5 h for 1,000 steps" in text
    memory = training_memory(PUBLISHED, STAGE1, MemoryOptions(strategy="fsdp", ranks=8), counts.total, counts.trained)
    assert f"memory          {memory.total / 2**30:.2f} GiB per device" in text


@pytest.mark.parametrize(
    ("sizes", "strategy", "line"),
    [
        ({}, ("ddp", 8), "8 (ddp)"),
        ({"fsdp_size": 8}, ("fsdp", 8), "8 (fsdp)"),
        ({"fsdp_size": 2}, ("fsdp", 2), "8 (fsdp)"),
        ({"tp_size": 4}, ("tp", 4), "8 (tp)"),
    ],
)
def test_replicas_save_no_memory(tmp_path, sizes, strategy, line):
    """Of 8 devices, those that share the weights decide the memory of each."""
    config = small_run.config(tmp_path, **sizes)
    found, ranks = strategy_of(config, 8)
    assert (found, ranks) == strategy
    counts, options = ParameterCounts(1, 1, {}), MemoryOptions(strategy=found, ranks=ranks)
    text = format_plan(counts, PUBLISHED, STAGE1, options, data_ranks=8 // config.tp_size)
    assert f"devices         {line}\n" in text
    assert strategy_of(config, 1) == ("none", 1)


@pytest.mark.parametrize(
    ("muon", "optim"),
    [
        (True, "adamw_torch"),
        *((False, name) for name in ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")),
    ],
)
def test_the_states_are_those_of_the_optimizer(tmp_path, muon, optim):
    config = small_run.config(tmp_path, muon=muon)
    args = TrainingArguments(str(tmp_path / "out"), optim=optim, use_cpu=True)
    model = tiny.showo()
    model.image_tokenizer.requires_grad_(False)
    optimizer = new_optimizer(config, model, args)
    ids = torch.tensor([[0, 3, *tiny.image(model.config), 4, 0]])
    model(ids, labels=ids).loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:  # also of the image projection and others that this row does not use
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    optimizer.step()
    kept = sum(
        value.numel()
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and name != "step"
    )
    states = optimizer_states(config, model, args)
    assert kept == round(states * sum(weight.numel() for weight in trained))
    assert (1 < states < 2) if muon else states in (0, 1, 2)
    assert plan_of(optimizer_states=states).optimizer == round(states * PUBLISHED.parameters) * 4


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "zero"}, "`strategy` must be one of none, ddp, fsdp, tp, got 'zero'"),
        ({"ranks": 0}, "`ranks` must be an integer of at least 1, got 0"),
        ({"ranks": 2}, "`ranks` must be 1 without a strategy, got 2"),
        ({"compute_bytes": 8}, "`compute_bytes` must be 2 or 4, got 8"),
        ({"weight_bytes": 2, "compute_bytes": 4}, "`compute_bytes` must be at most `weight_bytes`, got 4"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryOptions(**options)


def test_no_task():
    with pytest.raises(ValueError, match="at least one task"):
        training_memory(PUBLISHED, [], MemoryOptions())
