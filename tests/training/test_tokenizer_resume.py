"""
Runs of image tokenizers and diffusion decoders go on exactly: two optimizers, LeCAM's averages, the codebook and its
statistics, images in memory. And several processes train as one.
"""

import os
import random
import signal
import time

import parallel_run
import pytest
import small_run
import small_tokenizer_run as tokenizer_run
import torch
from safetensors.torch import load_file
from torch import distributed

from showo_hf.training import checkpoints
from showo_hf.training.adversarial import Adversary
from showo_hf.training.image_tokenizers import ImageTokenizerTrainer
from showo_hf.training.resumable_trainer import ResumableTrainer
from showo_hf.training.run import Unfinished


#: What each case changes.
CASES = {
    "vq-ema": {"kind": "vq-tokenizer"},
    "vq-gradient": {"kind": "vq-tokenizer", "codebook_learning": "gradient", "distance": "cosine"},
    "lfq": {"kind": "lfq-tokenizer", "loss_weights": {"feature_matching": 0.0}},
    "adaptive-spectral": {
        "kind": "lfq-tokenizer",
        "discriminator": {**tokenizer_run.ENTRIES["discriminator"], "adaptive": True, "norm": "spectral"},
        "gradient_accumulation_steps": 2,
    },
    "muon": {"kind": "vq-tokenizer", "muon": True},
    "diffusion-decoder": {"kind": "diffusion-decoder"},
}
#: The tensors of every checkpoint.
FILES = {f"{name}.safetensors" for name in ("model", "ema", "optimizer", "random-0")}
#: What a tokenizer's log has in a row, beside what each row has.
LOGGED = {
    "vq-ema": {"loss_feature_matching", "loss_token_cycle", "tokens_back", "restarted_codes"},
    "vq-gradient": {"loss_feature_matching", "loss_token_cycle", "loss_codebook", "restarted_codes"},
    "lfq": {"loss_entropy"},
    "adaptive-spectral": {"loss_feature_matching", "loss_token_cycle", "generator_weight"},
    "muon": {"loss_feature_matching", "loss_token_cycle", "restarted_codes"},
}


def checkpoint(folder, step):
    return folder / "out-checkpoints" / f"checkpoint-{step}"


def assert_same_runs(first, second, step):
    assert tokenizer_run.same_result(first, second)
    assert tokenizer_run.log_rows(first) == tokenizer_run.log_rows(second)
    one, other = ({file.name: file for file in checkpoint(run, step).glob("*.safetensors")} for run in (first, second))
    assert set(one) == set(other) >= FILES
    for name, file in one.items():
        assert file.read_bytes() == other[name].read_bytes(), name


@pytest.mark.parametrize(
    "case",
    list(LOGGED),
)
@pytest.mark.slow
def test_a_run_that_is_stopped_after_each_step_gives_the_same_weights(tmp_path, case):
    options = small_run.validated(save_steps=3, **CASES[case])
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tokenizer_run.run(whole, **options)
    for step in range(1, 6):
        with pytest.raises(Unfinished, match=f"after step {step}"):
            tokenizer_run.run(stopped, **options, max_minutes=1e-9)
    tokenizer_run.run(stopped, **options)
    assert_same_runs(whole, stopped, 6)
    rows = [row for row in tokenizer_run.log_rows(whole) if "loss" in row]
    assert all({"discriminator", "logits_real", "loss_generator", *LOGGED[case]} <= row.keys() for row in rows[1:])
    if case == "adaptive-spectral":
        assert all(row["generator_weight"] != pytest.approx(0.1) for row in rows[1:])
    assert all("lecam" in row for row in rows[2:]) and "discriminator" not in rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["the discriminator", "the codebook"])
def test_each_part_of_the_state_matters(tmp_path, monkeypatch, part):
    """If this fails, the test above does not show that the state is restored."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tokenizer_run.run(whole)
    if part == "the codebook":
        monkeypatch.setattr(ImageTokenizerTrainer, "changing_tensors", ResumableTrainer.changing_tensors)
    for _ in range(3):
        stop_once(stopped)
    if part == "the discriminator":
        monkeypatch.setattr(ImageTokenizerTrainer, "load_more_state", ResumableTrainer.load_more_state)
    tokenizer_run.run(stopped)
    assert not tokenizer_run.same_result(whole, stopped)


def stop_once(folder, **options):
    """Do one step of a run."""
    with pytest.raises(Unfinished):
        tokenizer_run.run(folder, **options, max_minutes=1e-9)


@pytest.mark.parametrize("name", ["discriminator.safetensors", "discriminator-optimizer.json"])
def test_a_checkpoint_of_another_discriminator_is_refused(tmp_path, name):
    with pytest.raises(Unfinished):
        tokenizer_run.run(tmp_path, max_minutes=1e-9)
    root = checkpoint(tmp_path, 1)
    (root / name).unlink()
    (root / checkpoints.CHECKSUMS).unlink()
    checkpoints.seal(root)
    with pytest.raises(checkpoints.DamagedCheckpointError, match=name.split(".")[0]):
        tokenizer_run.run(tmp_path)


def dying_run(folder, step, calls, **options):
    """A run that kills itself while it writes a checkpoint after `step`, after so many calls of the system."""
    left = calls

    def counted(function):
        def call(*args):
            nonlocal left
            if max((row["step"] for row in small_run.log_rows(folder)), default=0) >= step:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    os.fsync, os.rename = counted(os.fsync), counted(os.rename)
    tokenizer_run.run(folder, **options)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vq-ema", "vq-gradient", "muon", "adaptive-spectral", "diffusion-decoder"])
def test_runs_that_are_killed_give_the_same_weights(tmp_path, case):
    """20 times, at random steps, and at random places of writing checkpoints."""
    sizes = {0: 8, 60: 16}
    options = small_run.validated(
        steps=120, save_steps=5, eval_steps=10, ema_decay=0.99, image_size=sizes, **CASES[case]
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert not small_run.Child(lambda: tokenizer_run.run(whole, **options), tmp_path / "whole.txt").wait(seconds=600)

    rng = random.Random(0)
    for number, target in enumerate(sorted(rng.sample(range(1, 115), 20))):

        def reached(target=target):
            return max((row["step"] for row in small_run.log_rows(killed)), default=0) >= target

        if number % 2:
            calls = rng.randrange(12)
            child = small_run.Child(
                lambda target=target, calls=calls: dying_run(killed, target, calls, **options), tmp_path / "killed.txt"
            )
            assert not child.wait(seconds=300)
        else:
            child = small_run.Child(lambda: tokenizer_run.run(killed, **options), tmp_path / "killed.txt")
            assert child.wait(reached, seconds=300), (tmp_path / "killed.txt").read_text()
            time.sleep(rng.random() * 0.02)
            child.kill()
            child.wait()
        assert child.code == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
    child = small_run.Child(lambda: tokenizer_run.run(killed, **options), tmp_path / "killed.txt")
    assert not child.wait(seconds=600)
    assert child.code == 0, (tmp_path / "killed.txt").read_text()
    assert_same_runs(whole, killed, 120)


# Several processes


#: Of a codebook, without what each device computes of its own images: restarted codes, and feature matching.
SHARED = {
    "loss_weights": {"feature_matching": 0.0, "token_cycle": 0.1},
    "architecture": {**tokenizer_run.KINDS["vq-tokenizer"]["architecture"], "dead_code_threshold": 0.0},
}
#: An LFQ tokenizer's entropy is of the images of each device.
AS_ONE = {
    "vq-ema": SHARED,
    "vq-gradient": {**SHARED, "codebook_learning": "gradient"},
    "lfq": {"kind": "lfq-tokenizer", "loss_weights": SHARED["loss_weights"], "entropy_weight": 0.0},
    "diffusion-decoder": {"kind": "diffusion-decoder"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", AS_ONE)
def test_two_processes_train_as_one(tmp_path, case):
    """Model, discriminator, LeCAM's averages and codebook are those of one process with twice the rows."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    options = {**AS_ONE[case], "steps": 8}
    tokenizer_run.run(one, **options | {"batch_size": 4})
    parallel_run.run(2, two, lambda rank: tokenizer_run.run(two, **options | {"batch_size": 2}))
    rows = [[row for row in tokenizer_run.log_rows(folder) if "loss" in row] for folder in (one, two)]
    assert [row["step"] for row in rows[1]] == list(range(1, 9))
    for mine, other in zip(*rows, strict=True):
        assert set(mine) == set(other)
        for name, value in mine.items():
            assert value == pytest.approx(other[name], abs=2e-4, rel=2e-3), (mine["step"], name)
    for name in ("model", "discriminator") if case in LOGGED else ("model",):
        first, second = (load_file(checkpoint(folder, 8) / f"{name}.safetensors") for folder in (one, two))
        assert set(first) == set(second)
        for key, value in first.items():
            torch.testing.assert_close(
                value, second[key], rtol=0, atol=2e-3, msg=lambda text, key=key: f"{key} {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq-tokenizer", "lfq-tokenizer"])
def test_weights_codes_and_discriminators_are_equal_on_all_processes(tmp_path, kind):
    """With the default losses, of which each process computes the entropy of its own images, and with restarted codes."""

    def work(rank: int):
        kept = []
        average, step = ImageTokenizerTrainer.average, Adversary.step

        def after_update(trainer):
            average(trainer)
            assert distributed.get_backend() == "gloo" and distributed.get_world_size() == 2
            kept.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

        def after_step(adversary, *arguments, **named):
            step(adversary, *arguments, **named)
            kept.append({name: value.clone() for name, value in adversary.state_dict().items()})

        ImageTokenizerTrainer.average, Adversary.step = after_update, after_step
        tokenizer_run.run(tmp_path, kind, steps=6, loss_weights={})
        torch.save(kept, tmp_path / f"rank-{rank}.pt")

    parallel_run.run(2, tmp_path, work)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == len(second) == 11  # six tokenizers, and five steps of the discriminator
    for one, other in zip(first, second, strict=True):
        assert small_run.same_weights(one, other) and all(value.isfinite().all() for value in one.values())
    last = next(state for state in reversed(first) if state.keys() == first[0].keys())
    changed = {name for name, value in last.items() if not torch.equal(value, first[0][name])}
    assert changed >= {"encoder.conv_in.weight", "decoder.conv_out.weight"}
    rows = [row for row in tokenizer_run.log_rows(tmp_path) if "loss" in row]
    assert rows[-1]["loss_feature_matching"] > 0 and rows[-1]["loss_generator"] != 0
    if kind == "vq-tokenizer":
        assert rows[0]["restarted_codes"] > 0 and "quantizer.codebook" in changed
    else:
        assert rows[-1]["loss_entropy"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vq-ema", "vq-gradient", "lfq", "diffusion-decoder"])
def test_two_processes_go_on_where_they_stopped(tmp_path, case):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir(), stopped.mkdir()
    parallel_run.run(2, whole, lambda rank: tokenizer_run.run(whole, **CASES[case]))

    for _ in range(2):
        parallel_run.run(2, stopped, lambda rank: stop_once(stopped, **CASES[case]))
    parallel_run.run(2, stopped, lambda rank: tokenizer_run.run(stopped, **CASES[case]))
    assert_same_runs(whole, stopped, 6)
