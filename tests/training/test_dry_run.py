"""A dry run measures the step that the run has."""

from types import SimpleNamespace

import pytest
import small_run
import small_tokenizer_run
import torch

from showo_hf.training.arguments import training_arguments
from showo_hf.training.dry_run import first_parts, plan_of, training_step
from showo_hf.training.showo_training import load_pipeline, objective_of, prepare_model, row_builder


@pytest.mark.parametrize("kind", ["finetune", "diffusion-decoder", "lfq-tokenizer"])
def test_each_accumulated_batch_counts(tmp_path, monkeypatch, kind):
    """By a clock that ticks once for a batch and once for the change of the weights."""
    ticks = iter(range(100))
    monkeypatch.setattr("showo_hf.training.step_time.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    entries = {} if kind == "finetune" else small_tokenizer_run.entries(kind)
    plan = plan_of(small_run.config(tmp_path, **{**entries, "gradient_accumulation_steps": 3, "steps": 900}))
    assert "time of a step  4 s on this machine" in plan
    assert "time of the run 1 h for 900 steps" in plan


@pytest.mark.parametrize("objective", ["masked", "mask_and_replace"])
def test_a_measured_step_has_the_objective_and_what_saves_memory(tmp_path, monkeypatch, objective):
    config = small_run.config(tmp_path, objective=objective, gradient_checkpointing=True, loss_weights={"t2i": 3.0})
    pipe = load_pipeline(config)
    prepare_model(config, pipe)
    builder = row_builder(config, pipe)
    parts = first_parts(config, pipe, builder)
    encode, encoded = pipe.model.encode_images, []
    monkeypatch.setattr(pipe.model, "encode_images", lambda pixels: encoded.append(encode(pixels)) or encoded[-1])
    batch, update = training_step(config, pipe, parts, builder, training_arguments(config, tmp_path))
    assert pipe.model.is_activation_checkpointing

    torch.manual_seed(0)
    batch()
    found = {name: weight.grad.clone() for name, weight in pipe.model.named_parameters() if weight.grad is not None}
    pipe.model.zero_grad()
    torch.manual_seed(0)
    part = builder.finish(parts["t2i"], encoded[0].cpu())
    if objective == "masked":
        loss = pipe.model(input_ids=part.input_ids, labels=part.labels, use_cache=False).loss_t2i
    else:
        loss = objective_of(config, pipe)(pipe.model, part, torch.device("cpu"))
    (3 * loss).backward()
    for name, weight in pipe.model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)

    before = pipe.model.model.embed_tokens.weight.detach().clone()
    update()
    assert not torch.equal(before, pipe.model.model.embed_tokens.weight)
    assert len(encoded) == 1  # in the batch
