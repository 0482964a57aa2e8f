import functools
import os
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import small_run

import showo_hf.training.run
import showo_hf.training.showo_training
from showo_hf.training import checkpoints
from showo_hf.training.callbacks import StopSignals
from showo_hf.training.resumable_trainer import TrainingError
from showo_hf.training.run import Unfinished
from showo_hf.training.trainer import ShowoTrainer
from showo_hf.utils.atomic_folder import locked


def steps_of(folder: Path) -> list[int]:
    """The steps of the rows of training in the log."""
    return [row["step"] for row in small_run.log_rows(folder) if "loss" in row]


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> Path:
    """A run that validated, and that nothing stopped."""
    folder = tmp_path_factory.mktemp("validated")
    small_run.run(folder, **small_run.validated(save_steps=3))
    return folder


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds_per_step"} for row in rows]


# Killed runs


def run_that_dies_while_writing(folder: Path, step: int, calls: int, **options):
    """
    A run whose process kills itself in the course of a checkpoint, for a `small_run.Child`.

    Args:
        step: the first step after which the process may die.
        calls: number of calls of `os.fsync` and `os.rename` after that step that the process lives through.
    """
    left = calls

    def counted(function):
        def call(*args):
            nonlocal left
            if max(steps_of(folder), default=0) >= step:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    os.fsync, os.rename = counted(os.fsync), counted(os.rename)
    small_run.run(folder, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_runs_that_are_killed_20_times_give_the_same_weights(tmp_path, workers):
    """At random steps, and at random places of writing checkpoints and best weights."""
    options = small_run.validated(
        steps=200, save_steps=7, eval_steps=10, dataloader_num_workers=workers, ema_decay=0.99, logging_steps=1
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert not small_run.Child(lambda: small_run.run(whole, **options), tmp_path / "whole.txt").wait(seconds=600)
    assert steps_of(whole) == list(range(1, 201)), (tmp_path / "whole.txt").read_text()

    rng = random.Random(0)
    half_written = 0
    for number, target in enumerate(sorted(rng.sample(range(1, 195), 20))):

        def reached(target=target):
            return max(steps_of(killed), default=0) >= target

        if number % 2:
            dying = functools.partial(run_that_dies_while_writing, killed, target, rng.randrange(12), **options)
            child = small_run.Child(dying, tmp_path / "killed.txt")
            assert not child.wait(seconds=300)
            half_written += any(".new-" in path.name for path in (killed / "out-checkpoints").iterdir())
        else:
            child = small_run.Child(lambda: small_run.run(killed, **options), tmp_path / "killed.txt")
            assert child.wait(reached, seconds=300), (tmp_path / "killed.txt").read_text()
            time.sleep(rng.random() * 0.02)
            child.kill()
            child.wait()
        assert child.code == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
        steps = steps_of(killed)
        assert steps == list(range(1, len(steps) + 1))
    assert half_written >= 8
    child = small_run.Child(lambda: small_run.run(killed, **options), tmp_path / "killed.txt")
    assert not child.wait(seconds=600)
    assert child.code == 0, (tmp_path / "killed.txt").read_text()
    assert small_run.same_result(whole, killed)
    assert without_times(small_run.log_rows(whole)) == without_times(small_run.log_rows(killed))
    assert small_run.checkpoints(whole) == small_run.checkpoints(killed)
    for name in ("model", "ema", "optimizer", "random-0"):
        first, second = (one / "out-checkpoints" / "checkpoint-200" / f"{name}.safetensors" for one in (whole, killed))
        assert first.read_bytes() == second.read_bytes()
    first, second = (one / "out-checkpoints" / "best" / "model.safetensors" for one in (whole, killed))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_run_that_is_stopped_after_each_step_gives_the_same_weights(tmp_path, validated):
    options = small_run.validated(save_steps=3)
    for step in range(1, 6):
        with pytest.raises(Unfinished, match=f"after step {step}"):
            small_run.run(tmp_path, **options, max_minutes=1e-9)
    small_run.run(tmp_path, **options)
    assert small_run.same_result(validated, tmp_path)
    assert without_times(small_run.log_rows(validated)) == without_times(small_run.log_rows(tmp_path))


@pytest.mark.slow
def test_the_time_of_a_step_is_right_after_a_run_was_resumed(tmp_path, monkeypatch):
    for step in range(1, 5):
        with pytest.raises(Unfinished, match=f"after step {step}"):
            small_run.run(tmp_path, max_minutes=1e-9)
    whole_step = ShowoTrainer.training_step

    def slow_step(self, *args, **kwargs):
        time.sleep(0.5)
        return whole_step(self, *args, **kwargs)

    monkeypatch.setattr(ShowoTrainer, "training_step", slow_step)
    small_run.run(tmp_path)
    seconds = {row["step"]: row["seconds_per_step"] for row in small_run.log_rows(tmp_path) if "loss" in row}
    assert seconds[5] >= 0.5 and seconds[6] >= 0.5


@pytest.mark.slow
def test_dropout_makes_the_random_state_matter(tmp_path, whole, monkeypatch):
    """If this fails, the tests above do not show that the random state is restored."""
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, max_minutes=1e-9)
    monkeypatch.setattr(ShowoTrainer, "load_random_state", lambda self, folder: None)
    small_run.run(tmp_path)
    assert not small_run.same_result(whole, tmp_path)


# Two runs


@pytest.mark.slow
def test_a_second_run_is_refused_at_once_and_disturbs_nothing(tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    released = tmp_path / "released"

    def run():
        step = ShowoTrainer.training_step

        def held_step(self, *args, **kwargs):
            while self.state.global_step == 30 and not released.exists():
                time.sleep(0.001)
            return step(self, *args, **kwargs)

        ShowoTrainer.training_step = held_step
        small_run.run(first, steps=60, save_steps=1)

    child = small_run.Child(run, tmp_path / "first.txt")
    assert child.wait(lambda: len(steps_of(first)) >= 3), (tmp_path / "first.txt").read_text()
    loaded = []
    monkeypatch.setattr("showo_hf.training.run.load_pipeline", loaded.append)
    refusals = 0
    try:
        while child.running() and refusals < 10:
            started = time.process_time()
            with pytest.raises(TrainingError, match="Another run is writing to .*out"):
                small_run.run(first, steps=60, save_steps=1)
            assert time.process_time() - started < 1
            refusals += 1
    finally:
        released.touch()
    assert refusals == 10 and not loaded
    assert not child.wait() and child.code == 0, (tmp_path / "first.txt").read_text()
    assert steps_of(first) == list(range(1, 61))
    for _, folder in checkpoints.checkpoint_folders(first / "out-checkpoints"):
        checkpoints.verify(folder)


def test_a_killed_process_leaves_no_lock_to_its_workers(tmp_path):
    """Workers live some seconds longer than a killed run."""
    worker = tmp_path / "worker"

    def hold():
        with locked(tmp_path):
            if not os.fork():
                worker.write_text(str(os.getpid()))
                time.sleep(30)
                os._exit(0)
            time.sleep(30)

    child = small_run.Child(hold, tmp_path / "child.txt")
    assert child.wait(lambda: worker.exists() and worker.read_text() != "")
    with pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    child.kill()
    child.wait()
    with locked(tmp_path):
        os.kill(int(worker.read_text()), 0)  # it lives
    os.kill(int(worker.read_text()), signal.SIGKILL)


# Full disks


def mount_small_disk(folder: Path, kilobytes: int):
    """A file system of a few kilobytes, which only the administrator can make."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("cannot mount a file system")


def size_of(folder: Path) -> int:
    return sum(len(content) for content in small_run.files_of(folder).values())


def check_after_a_full_disk(folder: Path, text: str):
    """The last good checkpoint is there, the partial one is not, and one sentence says so."""
    found = small_run.checkpoints(folder)
    assert len(found) == 1 and found[0].startswith("checkpoint-")
    checkpoints.verify(folder / "out-checkpoints" / found[0])
    lines = [line for line in text.splitlines() if line.startswith("showo-hf")]
    assert len(lines) == 1, text
    assert "could not be written" in lines[0] and "the one before it stays" in lines[0]
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    small_run.run(tmp_path / "whole", steps=6, save_steps=1)
    one = size_of(tmp_path / "whole" / "out-checkpoints") // 2
    disk = tmp_path / "disk"
    mount_small_disk(disk, int(1.6 * one / 1024))
    try:
        arguments = small_run.arguments(disk, steps=6, save_steps=1)
        process = small_run.command(arguments)
        _, text = process.communicate(timeout=300)
        assert process.returncode == 1, text
        assert "No space left on device" in text
        check_after_a_full_disk(disk, text)
        subprocess.run(["mount", "-o", f"remount,size={10 * one // 1024}k", str(disk)], check=True)
        process = small_run.command(arguments)
        _, text = process.communicate(timeout=300)
        assert process.returncode == 0, text
        assert small_run.same_result(tmp_path / "whole", disk)
        assert steps_of(disk) == list(range(1, 7))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_limit_of_file_sizes_keeps_the_last_good_checkpoint(tmp_path):
    """As a full disk, where no file system can be mounted: a real error of the system while a tensor is written."""
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(Unfinished):
        small_run.run(folder, max_minutes=1e-9)
    size = (folder / "out-checkpoints" / "checkpoint-1" / "model.safetensors").stat().st_size

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from showo_hf.cli import main

        assert main(["train", *small_run.arguments(folder)]) == 1

    child = small_run.Child(limited, tmp_path / "limited.txt")
    assert not child.wait() and child.code == 0, (tmp_path / "limited.txt").read_text()
    text = (tmp_path / "limited.txt").read_text()
    assert "File too large" in text
    check_after_a_full_disk(folder, text)
    small_run.run(folder)
    assert steps_of(folder) == list(range(1, 7))


# Signals


def send_when(ready, number: int) -> threading.Thread:
    """Send this process a signal as soon as something is true."""

    def watch():
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.001)
        signal.raise_signal(number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("build_trainer", signal.SIGINT),
        pytest.param("evaluate", signal.SIGTERM, marks=pytest.mark.slow),
        ("training_step", signal.SIGTERM),
        pytest.param("validation_parts", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("save_checkpoint", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_moment_stops_a_run_that_can_be_resumed(tmp_path, validated, monkeypatch, moment, number):
    """While data and model are loaded, while validation runs, while a checkpoint is written, and within a step."""
    modules = {"build_trainer": showo_hf.training.run, "validation_parts": showo_hf.training.showo_training}
    options = small_run.validated(save_steps=3)
    owner = modules.get(moment, ShowoTrainer)
    original = getattr(owner, moment)
    sent = []

    def signalled(*arguments, **named):
        if not sent:
            sent.append(1)
            signal.raise_signal(number)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, moment, signalled)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Unfinished) as caught:
        small_run.run(tmp_path / "stopped", **options)
    assert sent and caught.value.signal == number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    expected = {"evaluate": 2, "save_checkpoint": 4, "training_step": 1}.get(moment, 0)
    assert caught.value.step == expected
    if expected:
        checkpoints.verify(tmp_path / "stopped" / "out-checkpoints" / f"checkpoint-{expected}")
    small_run.run(tmp_path / "stopped", **options)
    assert small_run.same_result(validated, tmp_path / "stopped")
    assert without_times(small_run.log_rows(validated)) == without_times(small_run.log_rows(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_without_damage(tmp_path, whole, monkeypatch):
    """In the worst place: while files of a checkpoint are written."""
    folder = tmp_path / "run"
    original = checkpoints.write_json
    written = []

    def write_json(file, value):
        original(file, value)
        written.append(file)
        if len(written) == 15:  # in the second checkpoint
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoints, "write_json", write_json)
    with pytest.raises(KeyboardInterrupt):
        small_run.run(folder)
    monkeypatch.undo()
    assert small_run.checkpoints(folder) == ["checkpoint-2"]
    checkpoints.verify(folder / "out-checkpoints" / "checkpoint-2")
    small_run.run(folder)
    assert small_run.same_result(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_to_the_command(tmp_path, number, code, workers):
    arguments = small_run.arguments(tmp_path, steps=100_000, save_steps=1000, dataloader_num_workers=workers)
    process = small_run.command(arguments, start_new_session=True)
    try:
        end = time.monotonic() + 200
        while len(steps_of(tmp_path)) < 5 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        sent = time.monotonic()
        # The terminal sends Ctrl-C to all processes of the command; the system sends SIGTERM to the first.
        group = number == signal.SIGINT
        os.killpg(process.pid, number) if group else process.send_signal(number)
        out, text = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - sent < 60
    assert process.returncode == code, text
    assert out == "" and "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("showo-hf: The run stopped after step") and last.endswith("The same command continues it.")
    (name,) = small_run.checkpoints(tmp_path)
    assert name in f"checkpoint-{last.split('step ')[1].split('.')[0]}"
    checkpoints.verify(tmp_path / "out-checkpoints" / name)


def test_workers_ignore_the_signals_of_the_terminal():
    with StopSignals() as signals:
        assert signals.received is None
        signals.process = -1  # as in a fork
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received is None
