"""Steps whose loss or gradient is not finite or too large: they stop a run, or are skipped."""

import json

import pytest
import small_run
import small_tokenizer_run
import torch

from showo_hf.training import checkpoints
from showo_hf.training.adversarial import Adversary
from showo_hf.training.resumable_trainer import TrainingError


def poison(monkeypatch, batches: set[int], value: float, what: str = "loss"):
    """
    Make the loss of some batches of a run NaN or infinite, or their gradient huge, where the real model computes them.
    """
    import showo_hf.training.losses as module

    original = module.part_losses
    seen = []

    def part_losses(model, part, device, objective=None):
        losses, zero = original(model, part, device, objective)
        if torch.is_grad_enabled():
            seen.append(list(part.keys))
            if len(seen) in batches:
                losses = {name: loss * value for name, loss in losses.items()}
        return losses, zero

    monkeypatch.setattr(module, "part_losses", part_losses)
    return seen


@pytest.mark.parametrize(
    ("value", "options"),
    [(float("nan"), {}), pytest.param(1e6, {"bad_step_norm": 1e3}, marks=pytest.mark.slow)],
    ids=["nan", "exploding"],
)
def test_a_bad_step_stops_the_run_and_names_its_samples(tmp_path, whole, monkeypatch, value, options):
    seen = poison(monkeypatch, {4}, value)
    with pytest.raises(TrainingError) as caught:
        small_run.run(tmp_path / "run", **options)
    message = str(caught.value)
    assert "stopped at step 4" in message
    assert len(seen) == 4 and all(key in message for key in seen[3])
    assert not any(key in message for key in set(seen[2]) - set(seen[3]))
    assert small_run.checkpoints(tmp_path / "run") == ["checkpoint-2"]
    monkeypatch.undo()
    small_run.run(tmp_path / "run", **options)
    assert small_run.same_result(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "value", [1e6, *(pytest.param(value, marks=pytest.mark.slow) for value in (float("nan"), float("inf")))]
)
def test_skipped_steps_leave_the_weights_as_they_are(tmp_path, monkeypatch, capsys, value):
    seen = poison(monkeypatch, {2, 3}, value)
    options = {"bad_step": "skip", "bad_step_norm": 1e3, "save_steps": 1, "save_total_limit": 10, "steps": 4}
    small_run.run(tmp_path, **options)
    root = tmp_path / "out-checkpoints"
    one, two, three, four = (
        checkpoints.read_tensors(root / f"checkpoint-{i}" / "model.safetensors") for i in (1, 2, 3, 4)
    )
    assert small_run.same_weights(one, two) and small_run.same_weights(two, three)
    assert not small_run.same_weights(three, four)
    moments = [checkpoints.read_tensors(root / f"checkpoint-{i}" / "optimizer.safetensors") for i in (1, 3)]
    assert small_run.same_weights(*moments)
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2 and all(key in skipped[0] for key in seen[1])
    rows = [row for row in small_run.log_rows(tmp_path) if "loss" in row]
    assert rows[-1]["skipped_steps"] == 2
    assert all(isinstance(row["loss"], float) for row in rows)
    assert json.loads((root / "checkpoint-4" / "trainer.json").read_text())["bad_steps"] == {"total": 2, "in_a_row": 0}


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path, monkeypatch):
    poison(monkeypatch, {1, 2, 4, 5, 6}, float("nan"))
    with pytest.raises(TrainingError, match="stopped after 3 skipped steps in a row, at step 6: .*samples: "):
        small_run.run(tmp_path, bad_step="skip", bad_step_limit=3, steps=20)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_one_bad_batch_of_an_accumulated_step_spoils_the_step(tmp_path, monkeypatch, batch):
    """Its samples and those of the other batches of the step are named."""
    seen = poison(monkeypatch, {3 + batch}, float("nan"))
    with pytest.raises(TrainingError) as caught:
        small_run.run(tmp_path, gradient_accumulation_steps=3, batch_size=2)
    assert "stopped at step 2" in str(caught.value) and "loss not finite" in str(caught.value)
    assert len(seen) == 6
    for keys in seen[3:]:
        assert all(key in str(caught.value) for key in keys)


def test_a_discriminator_that_is_not_finite_is_named(tmp_path, monkeypatch):
    """The gradient of the tokenizer and its loss are."""
    monkeypatch.setattr(Adversary, "gather", lambda adversary: torch.tensor(float("nan")))
    with pytest.raises(
        TrainingError, match="stopped at step 2: .*, gradient of the discriminator not finite; samples"
    ):
        small_tokenizer_run.run(tmp_path, "vq-tokenizer")
