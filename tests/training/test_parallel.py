"""Runs of several processes compute what one process computes, and go on where runs of other numbers of them stopped."""

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import parallel_run
import pytest
import small_run
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from showo_hf import ShowoT2IPipeline
from showo_hf.training import checkpoints, parallel, shards
from showo_hf.training.errors import TrainingError
from showo_hf.training.run import Unfinished
from showo_hf.training.saved_progress import saved_position
from showo_hf.training.trainer import ShowoTrainer


pytestmark = pytest.mark.slow

#: Processes, and what each has of the 4 rows of a step.
LAYOUTS = {
    "ddp-2": (2, {"batch_size": 2}),
    "ddp-4": (4, {"batch_size": 1}),
    "fsdp-2": (2, {"batch_size": 2, "fsdp_size": 2}),
    "fsdp-4": (4, {"batch_size": 1, "fsdp_size": 4}),
    "tp-2": (2, {"batch_size": 4, "tp_size": 2}),
    "tp-4": (4, {"batch_size": 4, "tp_size": 4}),
    "fsdp-2-replicated": (4, {"batch_size": 1, "fsdp_size": 2}),
    "fsdp-2-tp-2": (4, {"batch_size": 2, "fsdp_size": 2, "tp_size": 2}),
    "tp-2-replicated": (4, {"batch_size": 2, "tp_size": 2}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Without dropout, whose draws depend on the rows of a process."""
    return str(small_run.write_model(tmp_path_factory.mktemp("parallel") / "model", dropout=0.0))


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("\n".join(text.format(colour) for text in small_run.TEXTS for colour in small_run.COLOURS))
    return str(file)


def three_tasks(model: str, captions: str, **changes):
    """The entries of a run of 20 steps with three tasks, whose backward passes are apart."""
    images = str(small_run.shared() / "images")
    return {
        "model": model,
        "data": {"t2i": images, "lm": captions, "mmu": images},
        "steps": 20,
        "save_steps": 10,
        **small_run.validated(eval_steps=10, validation_data={"t2i": images, "mmu": images}),
        **changes,
    }


def losses(folder: Path) -> list[list[float]]:
    """All losses in the log, in order."""
    return [
        [row[name] for name in sorted(row) if "loss" in name] for row in small_run.log_rows(folder) if row["step"] > 0
    ]


def parameters_are_dtensors(trainer: ShowoTrainer, tp_only: bool) -> bool:
    """Whether the trained weights are spread: all by FSDP2, those of large layers by tensor parallelism alone."""
    trained = checkpoints.trained_parameters(trainer.model)
    large = {name: one for name, one in trained.items() if not tp_only or (one.ndim == 2)}
    frozen = [one for one in trainer.model.parameters() if not one.requires_grad]
    return (
        all(isinstance(one.data, DTensor) for one in large.values())
        and any(shards.local(one).numel() < one.numel() for one in large.values())
        and frozen
        and not any(isinstance(one.data, DTensor) for one in frozen)
    )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, model, captions) -> Path:
    folder = tmp_path_factory.mktemp("one")
    small_run.run(folder, **three_tasks(model, captions, batch_size={"t2i": 4, "lm": 4, "mmu": 4}))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_process(tmp_path, model, captions, one_process, layout):
    processes, changes = LAYOUTS[layout]
    folder = tmp_path / "run"
    rows = changes["batch_size"]
    options = three_tasks(model, captions, **{**changes, "batch_size": dict.fromkeys(("t2i", "lm", "mmu"), rows)})
    tp_size, fsdp_size = changes.get("tp_size", 1), changes.get("fsdp_size", 1)

    def work(rank: int):
        before = ShowoTrainer.training_step

        def training_step(trainer, *arguments, **kwargs):
            if tp_size > 1 or fsdp_size > 1:
                assert parameters_are_dtensors(trainer, tp_only=processes == tp_size)
            return before(trainer, *arguments, **kwargs)

        ShowoTrainer.training_step = training_step
        small_run.run(folder, **options)

    parallel_run.run(processes, folder, work)
    found, expected = losses(folder), losses(one_process)
    assert len(found) == len(expected) == 22
    for row, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(row), torch.tensor(other), rtol=0, atol=1e-5)
    weights, others = (small_run.weights(one / "out") for one in (folder, one_process))
    assert set(weights) == set(others)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=2e-5)
    ShowoT2IPipeline.from_pretrained(folder / "out")
    steps = [row["step"] for row in small_run.log_rows(folder) if "loss" in row]
    assert steps == list(range(1, 21))


def test_accumulated_batches_have_the_gradient_of_one(tmp_path, model, captions, one_process):
    """Each backward pass adds to gradients that are summed over processes."""
    for layout in ("fsdp-2", "tp-2", "ddp-2"):
        processes, changes = LAYOUTS[layout]
        rows = changes["batch_size"] // 2
        changes = {
            **changes,
            "batch_size": dict.fromkeys(("t2i", "lm", "mmu"), rows),
            "gradient_accumulation_steps": 2,
        }
        folder = tmp_path / layout
        parallel_run.run(processes, folder, **three_tasks(model, captions, **changes))
        found = torch.tensor([row[0] for row in losses(folder)])
        torch.testing.assert_close(found, torch.tensor([row[0] for row in losses(one_process)]), rtol=0, atol=1e-5)


# Checkpoints


@pytest.mark.parametrize("layout", ["fsdp-2", "tp-2", "fsdp-2-tp-2"])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, model, layout):
    processes, changes = LAYOUTS[layout]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"model": model, **changes}
    parallel_run.run(processes, whole, **options)

    def stop(rank: int):
        with pytest.raises(Unfinished, match="after step 1"):
            small_run.run(stopped, **options, max_minutes=1e-9)

    parallel_run.run(processes, stopped, stop)
    root = stopped / "out-checkpoints" / "checkpoint-1"
    assert len(list(root.glob("shard-*.safetensors"))) == processes
    checkpoints.verify(root)
    parallel_run.run(processes, stopped, **options)
    assert small_run.same_weights(small_run.weights(whole / "out"), small_run.weights(stopped / "out"))


class Rewritten(Exception):
    """A checkpoint was loaded and written again."""


def rewrite(source: Path, target: Path, processes: int, **options):
    """Load a run's checkpoint on a number of processes, and write it again as another run's."""

    def work(rank: int):
        load = ShowoTrainer.load_random_state

        def load_and_write(trainer, folder):
            load(trainer, folder)
            trainer.settings.root = target / "out-checkpoints"
            trainer.position = trainer.data.state
            trainer.save_checkpoint()
            raise Rewritten

        ShowoTrainer.load_random_state = load_and_write
        with pytest.raises(Rewritten):
            small_run.run(source, **options)

    parallel_run.run(processes, target, work)


def test_a_checkpoint_is_the_same_on_any_number_of_processes(tmp_path, model):
    """From 1 process over 2 and 4 back to 1: weights, optimizer, averages, and the position in the data."""
    first = tmp_path / "1"
    with pytest.raises(Unfinished):
        small_run.run(first, model=model, max_minutes=1e-9)
    before, folder = first, None
    for layout in ("fsdp-2", "fsdp-2-tp-2", "ddp-2", "tp-2", "fsdp-4", None):
        processes, changes = LAYOUTS[layout] if layout else (1, {})
        folder = tmp_path / str(layout)
        rewrite(before, folder, processes, model=model, **changes)
        before = folder
    one, other = (path / "out-checkpoints" / "checkpoint-1" for path in (first, folder))
    for name in ("model", "ema", "optimizer", "random-0"):
        assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
    for name in ("optimizer", "ema", "schedule", "settings"):
        assert checkpoints.read_json(one / f"{name}.json") == checkpoints.read_json(other / f"{name}.json")
    assert saved_position(one) == saved_position(other)


@pytest.mark.parametrize("layout", ["fsdp-2", "ddp-2"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, model, layout):
    processes, changes = LAYOUTS[layout]
    whole = tmp_path / "whole"
    small_run.run(whole, model=model)

    more, fewer = tmp_path / "more", tmp_path / "fewer"
    with pytest.raises(Unfinished):
        small_run.run(more, model=model, max_minutes=1e-9)
    parallel_run.run(processes, more, model=model, **changes)

    def stop(rank: int):
        with pytest.raises(Unfinished):
            small_run.run(fewer, model=model, max_minutes=1e-9, **changes)

    parallel_run.run(processes, fewer, stop)
    small_run.run(fewer, model=model)
    expected = [row["loss_t2i"] for row in small_run.log_rows(whole) if "loss" in row]
    for folder in (more, fewer):
        found = [row["loss_t2i"] for row in small_run.log_rows(folder) if "loss" in row]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_other_rows_of_a_step_are_refused(tmp_path, model):
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, model=model, max_minutes=1e-9)

    def work(rank: int):
        match = r"`batch_size` was {'t2i': 4} and is {'t2i': 8}" if rank == 0 else "Process 0 stopped"
        with pytest.raises(TrainingError, match=match):
            small_run.run(tmp_path, model=model, batch_size=4)

    parallel_run.run(2, tmp_path, work)


def test_a_damaged_shard_is_found(tmp_path, model):
    processes, changes = LAYOUTS["fsdp-2"]
    parallel_run.run(processes, tmp_path, model=model, **changes)
    root = tmp_path / "out-checkpoints"
    (_, newest), (_, before) = checkpoints.checkpoint_folders(root)
    file = next(newest.glob("shard-00002-*"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="shard-00002.*checksum"):
        assert checkpoints.newest_intact(root) == before


# Several processes end together


def test_an_error_of_one_process_ends_all(tmp_path, model):
    def work(rank: int):
        if rank == 1:
            before = ShowoTrainer.training_step

            def training_step(trainer, *arguments, **kwargs):
                if trainer.state.global_step == 2:
                    raise ValueError("a broken process")
                return before(trainer, *arguments, **kwargs)

            ShowoTrainer.training_step = training_step
        small_run.run(tmp_path, model=model, batch_size=2, fsdp_size=2)

    started = time.monotonic()
    children = parallel_run.start(2, work, tmp_path / "errors")
    assert parallel_run.wait(children, seconds=60) == [1, 1]
    assert time.monotonic() - started < 60
    assert "a broken process" in children[1].errors.read_text()
    assert "another process" in children[0].errors.read_text().lower()


def test_a_second_run_is_refused_by_all_its_processes(tmp_path, model):
    (tmp_path / "out-checkpoints").mkdir()
    from showo_hf.utils.atomic_folder import locked

    def work(rank: int):
        match = "Another run is writing" if rank == 0 else "Process 0 stopped: Another run is writing"
        with pytest.raises(TrainingError, match=match):
            small_run.run(tmp_path, model=model, batch_size=2)

    with locked(tmp_path / "out-checkpoints"):
        parallel_run.run(2, tmp_path, work)


def test_a_process_that_cannot_write_stops_all(tmp_path, model):
    """The folder of the checkpoint vanishes for one process, as on a disk that it does not share."""

    def work(rank: int):
        if rank == 1:
            before = checkpoints.random_state

            def random_state():
                raise OSError(28, "No space left on device")

            checkpoints.random_state = random_state
            assert before is not random_state
        with pytest.raises(TrainingError, match="checkpoint-2' could not be written .No space left on device"):
            small_run.run(tmp_path, model=model, batch_size=2, fsdp_size=2)

    parallel_run.run(2, tmp_path, work)
    assert small_run.checkpoints(tmp_path) == []


def test_a_signal_to_one_process_stops_all(tmp_path, model):
    def work(rank: int):
        if rank == 1:
            before = ShowoTrainer.training_step

            def training_step(trainer, *arguments, **kwargs):
                if trainer.state.global_step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return before(trainer, *arguments, **kwargs)

            ShowoTrainer.training_step = training_step
        with pytest.raises(Unfinished, match="after step 3"):
            small_run.run(tmp_path, model=model, batch_size=2)

    parallel_run.run(2, tmp_path, work)
    assert "checkpoint-3" in small_run.checkpoints(tmp_path)


def test_bad_steps_are_skipped_by_all_processes(tmp_path, model):
    for layout in ("fsdp-2", "tp-2"):
        processes, changes = LAYOUTS[layout]
        folder = tmp_path / layout
        options = {"model": model, "bad_step": "skip", "bad_step_norm": 1e-6, "bad_step_limit": 100, **changes}
        parallel_run.run(processes, folder, **options)
        before, after = small_run.weights(Path(model).parent / "model"), small_run.weights(folder / "out")
        assert small_run.same_weights(before, after)


# Arguments


def test_sizes_must_divide_the_processes(tmp_path, model):
    with pytest.raises(TrainingError, match="must divide the number of processes, 1, got 2 and 1"):
        small_run.run(tmp_path, model=model, fsdp_size=2)


def test_deepspeed_needs_its_package(tmp_path, model):
    file = tmp_path / "deepspeed.json"
    with pytest.raises(TrainingError, match="`deepspeed` must be a JSON file"):
        small_run.run(tmp_path, model=model, deepspeed=str(file))
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(TrainingError, match="ZeRO stage of 0 to 2, got 3"):
        small_run.run(tmp_path, model=model, deepspeed=str(file))
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    with pytest.raises(TrainingError, match="together with `fsdp_size`"):
        small_run.run(tmp_path, model=model, deepspeed=str(file), fsdp_size=2)
    if importlib.util.find_spec("deepspeed") is None:
        with pytest.raises(TrainingError, match="pip install deepspeed"):
            small_run.run(tmp_path, model=model, deepspeed=str(file))


@pytest.mark.parametrize("layout", ["ddp-2", "fsdp-2"])
def test_adapters_are_those_of_one_process(tmp_path, model, layout):
    """The base is spread over processes, the adapter is whole on each."""
    processes, changes = LAYOUTS[layout]
    options = {"kind": "lora", "model": model, "rank": 4, "ema_decay": None}
    one, several = tmp_path / "one", tmp_path / "several"
    small_run.run(one, **options)
    parallel_run.run(processes, several, **options, **changes)
    first, second = (load_file(folder / "out" / "adapter_model.safetensors") for folder in (one, several))
    assert set(first) == set(second)
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=0, atol=1e-4)
    found, expected = ([row[0] for row in losses(folder)] for folder in (several, one))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def test_adapters_cannot_be_tensor_parallel(tmp_path, model):
    with pytest.raises(TrainingError, match="`tp_size` must be 1 for adapters, got 2"):
        small_run.run(tmp_path, kind="lora", model=model, tp_size=2)


def test_from_first_in_one_process():
    assert parallel.from_first(lambda: 3) == 3
    with pytest.raises(KeyError), parallel.together():
        raise KeyError("a")


def test_the_norm_of_no_gradients_is_zero():
    assert parallel.gradient_norm([torch.nn.Parameter(torch.ones(2))]).item() == 0
