import argparse
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from showo_hf.training.loop import (
    OPTIMIZERS,
    LoopOptions,
    add_loop_arguments,
    build_optimizers,
    inner_matrices,
    loop_options,
    step_generator,
    train,
)


class Stop(Exception):
    """An interruption of the run."""


def run(folder, stop_at=None, **changes):
    """Fit a linear function for a few steps. Returns the averaged weights and the number of steps."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    options = {"steps": 8, "batch_size": 4, "learning_rate": 0.05, "warmup_steps": 2, "save_every": 3, "log_every": 2}
    options = LoopOptions(output=str(folder / "out"), mixed_precision="no", **{**options, **changes})
    done = []

    def make_batch(generator):
        if len(done) == stop_at:
            raise Stop
        done.append(1)
        x = torch.randn(options.batch_size, 3, generator=generator)
        return {"x": x, "y": x.sum(-1, keepdim=True)}

    def compute_loss(wrapped, batch):
        loss = (wrapped(batch["x"]) - batch["y"]).square().mean()
        return loss, {"squared": loss.detach()}

    def save(module, target):
        target.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), target / "model.safetensors")

    train(model, options, make_batch, compute_loss, save)
    return load_file(folder / "out" / "model.safetensors"), len(done)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, optimizer):
    whole, steps = run(tmp_path / "whole", optimizer=optimizer)
    assert steps == 8
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_at=5, optimizer=optimizer)
    assert not (tmp_path / "stopped" / "out").exists()  # the model is written at the end
    resumed, steps = run(tmp_path / "stopped", optimizer=optimizer)
    assert steps == 5  # from the checkpoint at step 3
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])


def test_a_run_that_is_out_of_time_can_resume(tmp_path):
    _, steps = run(tmp_path, max_minutes=0.0)
    assert steps == 0
    _, steps = run(tmp_path)
    assert steps == 8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_lowers_the_loss_and_logs_it(tmp_path, optimizer):
    run(tmp_path, steps=200, warmup_steps=10, log_every=20, optimizer=optimizer)
    rows = [json.loads(line) for line in (tmp_path / "out-log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(20, 201, 20))
    assert rows[-1]["squared"] < 0.1 * rows[0]["squared"]
    assert rows[-1]["lr"] < rows[0]["lr"]


def test_only_one_checkpoint_is_left(tmp_path):
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-checkpoint", "out-log.jsonl"]


def test_random_numbers_depend_only_on_seed_step_and_process():
    def draw(*key):
        return torch.rand(4, generator=step_generator(*key))

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    drawn = [draw(0, 0), draw(1, 0), draw(0, 1), draw(0, 0, 1)]
    assert len({tuple(row.tolist()) for row in drawn}) == 4


def test_biases_and_norms_have_no_weight_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    (optimizer,) = build_optimizers(model, LoopOptions("out", 1, 1, 0.1, weight_decay=0.3))
    decayed, free = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.3
    assert [p.ndim for p in free["params"]] == [1, 1, 1] and free["weight_decay"] == 0.0


def test_muon_only_optimizes_inner_matrices():
    model = tiny.showo()
    model.lm_head.requires_grad_(True)
    adamw, muon = build_optimizers(model, LoopOptions("out", 1, 1, 0.1, optimizer="muon"))
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert taken == {id(p) for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert not taken & rest and taken | rest == {id(p) for p in model.parameters() if p.requires_grad}


def test_frozen_matrices_are_not_optimized():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert inner_matrices(model) == [model[0].weight]


def test_arguments_become_options():
    parser = argparse.ArgumentParser()
    add_loop_arguments(parser, batch_size=32)
    options = loop_options(parser.parse_args(["--output", "x", "--steps", "5"]))
    assert (options.output, options.steps, options.batch_size) == ("x", 5, 32)
