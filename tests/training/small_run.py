"""Small training runs: a tiny pipeline folder, a folder of drawn images, and runs in this process, a fork or a new one."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from showo_hf.training.configs import RunConfig
from showo_hf.training.recipe_files import build_config
from showo_hf.training.run import run_recipe


ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "yellow")
TEXTS = ("a {} apple", "a {} pear on a table", "{}", "two {} hearts, flat style")
#: Entries of a recipe for the tiny model. The weights have dropout, so the random state matters.
ENTRIES: dict[str, Any] = {
    "kind": "finetune",
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "lr_scheduler_type": "cosine",
    "save_steps": 2,
    "logging_steps": 1,
    "ema_decay": 0.9,
    "report_to": "none",
    "use_cpu": True,
}


def write_model(folder: Path, dropout: float = 0.1) -> Path:
    """A tiny pipeline folder."""
    pipe = tiny.pipeline(tiny.processor())
    pipe.model.config.text_config.attention_dropout = dropout
    pipe.save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int = 12) -> Path:
    """Drawn images with a `metadata.jsonl`. The texts have different lengths."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        image = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(image).ellipse([number % 5, number % 3, 10 + number % 4, 12], fill=colour)
        image.save(folder / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "text": TEXTS[number % 3 + number % 2].format(colour)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@functools.cache
def shared() -> Path:
    """A folder with `model` and `images`, the same for all runs of this process."""
    folder = Path(tempfile.mkdtemp(prefix="small-run-"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    write_model(folder / "model")
    write_images(folder / "images")
    return folder


def entries(folder: Path, **changes: Any) -> dict[str, Any]:
    """The entries of the recipe of a run. The result is `folder / "out"`. A change to None leaves an entry out."""
    paths = {
        "output": str(folder / "out"),
        "model": str(shared() / "model"),
        "data": str(shared() / "images"),
    }
    return {name: value for name, value in {**ENTRIES, **paths, **changes}.items() if value is not None}


def validated(**changes: Any) -> dict[str, Any]:
    """The changes for a run that validates and keeps the best weights."""
    return {"validation_data": str(shared() / "images"), "eval_steps": 2, "keep_best": True, **changes}


def config(folder: Path, **changes: Any) -> RunConfig:
    """The config of a run."""
    return build_config("test", entries(folder, **changes))


def run(folder: Path, **changes: Any) -> Path:
    """Run in this process. Returns the output folder."""
    return run_recipe(config(folder, **changes))


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of a result."""
    return load_file(output / "model" / "model.safetensors")


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal, bit for bit."""
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def same_result(first: Path, second: Path) -> bool:
    """Whether the runs in two folders have the same weights, bit for bit."""
    return same_weights(weights(first / "out"), weights(second / "out"))


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by their relative paths."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log of the run in `folder`."""
    file = folder / "out-log.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []  # a running process may be within the last one
    return [json.loads(line) for line in lines]


def checkpoints(folder: Path) -> list[str]:
    """The names of what lies in the folder of checkpoints."""
    root = folder / "out-checkpoints"
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


class Child:
    """
    A run in a fork of this process, which starts in milliseconds, unlike a new process.

    Args:
        function: what the child does. Its exit code is 0, or 1 after an exception.
        errors: file of its output and of the traceback.
    """

    def __init__(self, function: Callable[[], Any], errors: Path):
        self.errors = errors
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            self.code: int | None = None
            return
        code = 1
        try:
            with open(errors, "w", buffering=1) as output:
                sys.stdout = sys.stderr = output
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    function()
                    code = 0
                except BaseException:
                    traceback.print_exc(file=output)
        finally:
            os._exit(code)

    def running(self) -> bool:
        """Whether the child still runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = 120.0) -> bool:
        """Wait until the child ends, or something is true. Returns whether it is true, and the child runs."""
        end = time.monotonic() + seconds
        while self.running():
            if until():
                return True
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.errors.read_text())
            time.sleep(0.0005)
        return False

    def kill(self, number: int = signal.SIGKILL):
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def command(
    arguments: Sequence[str], module: Sequence[str] = ("showo_hf_command", "train"), **options: Any
) -> subprocess.Popen:
    """`python -m` with a module that starts `showo-hf train`, in a new process with its output in pipes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *module, *arguments],
        cwd=ROOT,
        env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )


def arguments(folder: Path, **changes: Any) -> list[str]:
    """The arguments of the command for the run of [`config`]."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(entries(folder, **changes)))
    return [str(recipe)]
