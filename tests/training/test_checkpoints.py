import ast
import functools
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from showo_hf.training import checkpoints
from showo_hf.training.checkpoints import DamagedCheckpointError


#: Names that other software gives to pickles in checkpoints.
PICKLES = (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scheduler.bin",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "random_states_0.pkl",
    "training_args.bin",
    "custom_checkpoint_0.pkl",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
    "adapter_model.bin",
    "model.pt",
    "ema.pt",
    "position.pkl",
    "random-0.pkl",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the finished run, without its result."""
    shutil.copytree(finished, tmp_path / "run", ignore=lambda where, names: {"out"} & set(names))
    return tmp_path / "run"


def drop_checkpoint(folder: Path, step: int):
    shutil.rmtree(folder / "out-checkpoints" / f"checkpoint-{step}")


# Pickles


class Attack:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@functools.cache  # Python cannot remove an audit hook
def events() -> list[tuple[str, str]]:
    """The files that are opened, and the names that pickles look up, from the first call on."""
    found: list[tuple[str, str]] = []

    def hook(event, arguments):
        if event == "open":
            found.append((event, str(arguments[0])))
        elif event == "pickle.find_class":
            found.append((event, f"{arguments[0]}.{arguments[1]}"))

    sys.addaudithook(hook)
    return found


def test_pickles_in_a_checkpoint_are_never_opened(folder, tmp_path):
    opened = events()
    drop_checkpoint(folder, 6)
    root = folder / "out-checkpoints"
    mark = tmp_path / "code-was-run"
    for where in (root, root / "checkpoint-4", root / "best"):
        for name in PICKLES:
            torch.save(Attack(mark), where / name)
    with pytest.raises(FileExistsError):  # the attack works, if someone loads it
        mark.mkdir()
        torch.load(root / "optimizer.pt", weights_only=False)
    mark.rmdir()
    opened.clear()
    small_run.run(folder, **small_run.validated())
    files = [Path(name).name for event, name in opened if event == "open"]
    assert "optimizer.safetensors" in files or "optimizer.json" in files  # the hook sees files
    assert not set(files) & set(PICKLES)
    assert not [name for event, name in opened if event == "pickle.find_class"]
    assert not mark.exists()


def test_no_module_of_training_loads_pickles():
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in [*(ROOT / "src/showo_hf").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not {name.name.partition(".")[0] for name in node.names} & forbidden, file
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden, file
                if (node.module or "").partition(".")[0] == "torch":
                    assert "load" not in {name.name for name in node.names}, file
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "np.load", "numpy.load", "torch.distributed.checkpoint.load"), file


# Damage


def names_of(checkpoint: Path) -> list[str]:
    return sorted(file.name for file in checkpoint.iterdir())


def damage(file: Path, kind: str):
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "longer":
        file.write_bytes(content + b"\0")
    elif kind == "folder":
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "longer", "folder"])
def test_damage_of_every_file_is_found_and_named(checkpoint, tmp_path, kind):
    assert len(names_of(checkpoint)) >= 13
    for name in names_of(checkpoint):
        copy = tmp_path / name / "checkpoint-4"
        shutil.copytree(checkpoint, copy)
        damage(copy / name, kind)
        with pytest.raises(DamagedCheckpointError) as caught:
            checkpoints.verify(copy)
        assert str(copy / name) in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_found_wherever_it_is(checkpoint, tmp_path_factory, data):
    name = data.draw(st.sampled_from(names_of(checkpoint)))
    content = bytearray((checkpoint / name).read_bytes())
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    content[position // 8] ^= 1 << position % 8
    copy = tmp_path_factory.mktemp("flipped")
    for file in checkpoint.iterdir():
        os.link(file, copy / file.name)
    (copy / name).unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(DamagedCheckpointError) as caught:
        checkpoints.verify(copy)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "position.json", "checksums.json"])
def test_the_checkpoint_before_a_damaged_one_is_used(folder, finished, name):
    root = folder / "out-checkpoints"
    damage(root / "checkpoint-6" / name, "truncated")
    with pytest.warns(UserWarning, match=f"The checkpoint of step 6 is left out: .*{name}"):
        small_run.run(folder, **small_run.validated())
    assert small_run.same_weights(small_run.weights(folder / "out"), small_run.weights(finished / "out"))
    assert small_run.checkpoints(folder) == ["best", "checkpoint-4", "checkpoint-6"]
    checkpoints.verify(root / "checkpoint-6")  # it was written again
    steps = [row["step"] for row in small_run.log_rows(folder) if "loss" in row]
    assert steps == list(range(1, 7))


def test_without_an_intact_checkpoint_nothing_starts(folder):
    root = folder / "out-checkpoints"
    damage(root / "checkpoint-6" / "ema.safetensors", "truncated")
    damage(root / "checkpoint-4" / "schedule.json", "missing")
    before = small_run.files_of(root)
    with (
        pytest.warns(UserWarning),
        pytest.raises(DamagedCheckpointError, match="No checkpoint is intact.*ema.safeten"),
    ):
        small_run.run(folder, **small_run.validated())
    assert small_run.files_of(root) == before
    assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_damage_of_the_best_weights_is_found_before_the_run_goes_on(folder, kind):
    damage(folder / "out-checkpoints" / "best" / "model.safetensors", kind)
    drop_checkpoint(folder, 6)
    with pytest.raises(DamagedCheckpointError, match="best weights so far are damaged: .*model.safetensors"):
        small_run.run(folder, **small_run.validated())
    small_run.run(folder, **small_run.validated(keep_best=False))
    assert (folder / "out" / "model_index.json").exists()


def test_damaged_checkpoints_do_not_push_out_intact_ones(folder):
    root = folder / "out-checkpoints"
    for step in (10, 20, 30):
        shutil.copytree(root / "checkpoint-6", root / f"checkpoint-{step}")
        damage(root / f"checkpoint-{step}" / "ema.json", "truncated")
    with pytest.warns(UserWarning, match="step 30"):
        small_run.run(folder, **small_run.validated())  # from step 6: nothing is trained, nothing deleted
    assert len(small_run.checkpoints(folder)) == 6
    drop_checkpoint(folder, 6)
    with pytest.warns(UserWarning, match="step 30"):
        small_run.run(folder, **small_run.validated())
    assert small_run.checkpoints(folder) == ["best", "checkpoint-4", "checkpoint-6"]


# Round trips


def test_optimizers_and_random_state_survive(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    names = ["weight", "bias"]
    for make in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad):
        options = {"momentum": 0.9} if make is torch.optim.SGD else {}
        first = make(model.parameters(), lr=0.1, **options)
        model(torch.randn(4, 3)).sum().backward()
        first.step()
        tensors, document = checkpoints.optimizer_tensors(first, names)
        checkpoints.write_tensors(tmp_path / "o.safetensors", tensors)
        checkpoints.write_json(tmp_path / "o.json", document)
        second = make(model.parameters(), lr=0.3, **options)
        checkpoints.load_optimizer(
            second,
            names,
            checkpoints.read_tensors(tmp_path / "o.safetensors"),
            checkpoints.read_json(tmp_path / "o.json"),
        )
        mine, theirs = first.state_dict(), second.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        for number, entries in mine["state"].items():
            for entry, value in entries.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][number][entry]))


def test_the_random_state_survives(tmp_path):
    tensors, document = checkpoints.random_state()
    checkpoints.write_tensors(tmp_path / "r.safetensors", tensors)
    checkpoints.write_json(tmp_path / "r.json", document)
    drawn = random.random(), np.random.rand(), torch.rand(())
    checkpoints.load_random_state(
        checkpoints.read_tensors(tmp_path / "r.safetensors"), checkpoints.read_json(tmp_path / "r.json")
    )
    assert drawn == (random.random(), np.random.rand(), torch.rand(()))


def test_the_random_states_of_more_than_ten_devices_keep_their_order():
    states = {f"cuda-{number}": torch.tensor([number]) for number in range(12)}
    found = checkpoints.cuda_states({"torch": torch.tensor([-1]), **states})
    assert torch.cat(found).tolist() == list(range(12))


def test_what_killed_processes_left_is_cleaned_up(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    for name in (
        "checkpoint-3",
        f".checkpoint-4.new-{'0a1b' * 8}.showo-hf",  # killed while it wrote
        ".checkpoint-3.old.showo-hf",  # killed after it replaced
        ".best.old.showo-hf",  # killed between the two renames
        f".best.new-{'00ff' * 8}.showo-hf",
        f".checkpoint-5.new-{'0a1b' * 8}",  # of an earlier version
        ".checkpoint-x.new-1",  # not ours
        ".other",
    ):
        make(name)
    checkpoints.clean(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".checkpoint-x.new-1", ".other", "best", "checkpoint-3"]
    assert (tmp_path / "best" / "file").read_text() == ".best.old.showo-hf"
    assert (tmp_path / "checkpoint-3" / "file").read_text() == "checkpoint-3"
