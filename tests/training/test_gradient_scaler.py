"""Bad steps of runs with a gradient scaler, which `fp16` has: the real one of torch, on a CPU."""

import json
import math

import pytest
import small_run
import torch

import showo_hf.training.losses
from showo_hf.training import checkpoints
from showo_hf.training.errors import TrainingError
from showo_hf.training.trainer import ShowoTrainer


@pytest.fixture
def scaled(monkeypatch):
    """Gives the runs that follow a scaler with a scale."""
    before = ShowoTrainer.__init__

    def use(scale: float):
        def init(trainer, *arguments, **options):
            before(trainer, *arguments, **options)
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        monkeypatch.setattr(ShowoTrainer, "__init__", init)

    return use


@pytest.fixture
def multiplied(monkeypatch):
    """Multiplies the losses of some steps."""
    original = showo_hf.training.losses.part_losses

    def use(steps: set[int], value: float):
        done = []

        def part_losses(*arguments):
            losses, zero = original(*arguments)
            done.append(1)
            return {name: loss * value if len(done) in steps else loss for name, loss in losses.items()}, zero

        monkeypatch.setattr(showo_hf.training.losses, "part_losses", part_losses)

    return use


def bad_steps(folder, step: int) -> dict[str, int]:
    return json.loads((folder / "out-checkpoints" / f"checkpoint-{step}" / "trainer.json").read_text())["bad_steps"]


@pytest.mark.parametrize("value", [math.nan, pytest.param(1e6, marks=pytest.mark.slow)])
def test_skipped_steps_leave_the_weights_as_they_are(tmp_path, scaled, multiplied, value):
    scaled(16.0)
    multiplied({2, 3}, value)
    options = {"bad_step": "skip", "bad_step_norm": 1e3, "save_steps": 1, "save_total_limit": 10, "steps": 4}
    small_run.run(tmp_path, **options)
    one, two, three, four = (
        checkpoints.read_tensors(tmp_path / "out-checkpoints" / f"checkpoint-{step}" / "model.safetensors")
        for step in (1, 2, 3, 4)
    )
    assert small_run.same_weights(one, two) and small_run.same_weights(two, three)
    assert not small_run.same_weights(three, four)
    assert bad_steps(tmp_path, 3) == {"total": 2, "in_a_row": 2}
    assert bad_steps(tmp_path, 4) == {"total": 2, "in_a_row": 0}
    assert all(0 < row["loss_t2i"] < 100 for row in small_run.log_rows(tmp_path) if "loss_t2i" in row)


@pytest.mark.parametrize(("value", "scale"), [(math.nan, 16.0), (1e30, 1.0)])
def test_a_bad_step_stops_the_run(tmp_path, scaled, multiplied, value, scale):
    """The second loss is finite, and its gradient would be too large at a smaller scale, too."""
    scaled(scale)
    multiplied({2}, value)
    with pytest.raises(TrainingError, match="stopped at step 2: .*samples: "):
        small_run.run(tmp_path)


def test_the_search_for_a_scale_is_no_bad_step(tmp_path, scaled):
    """At first, the norm of the scaled gradient is too large for float32."""
    scaled(2.0**67)
    small_run.run(tmp_path, steps=8, bad_step_norm=1e6)
    norms = [row["grad_norm"] for row in small_run.log_rows(tmp_path) if "grad_norm" in row]
    assert not isinstance(norms[0], float) or not math.isfinite(norms[0])
    assert bad_steps(tmp_path, 8) == {"total": 0, "in_a_row": 0}
    assert not small_run.same_weights(
        small_run.weights(small_run.shared() / "model"), small_run.weights(tmp_path / "out")
    )
