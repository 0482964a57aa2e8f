"""
Checkpoints without pickles: tensors are safetensors, everything else is JSON, and each file has a checksum.

A checkpoint is a folder `checkpoint-N` for the state after step N. It is written under another name and renamed, so that
a killed process leaves no half checkpoint behind.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..utils.atomic_folder import MARK, discard, recover, sync_folder
from . import shards


CHECKSUMS = "checksums.json"
#: What Adam and its variants hold of each parameter. The last one is there with `amsgrad` alone.
ADAM_ENTRIES = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
MOMENTS = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"))  # of the parameter's shape


class DamagedCheckpointError(Exception):
    """A file of a checkpoint is missing, changed or truncated. The message names it."""


def checkpoint_folders(root: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `root` with their steps, the newest first."""
    found = []
    for path in root.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def clean(root: Path):
    """
    Finish or undo what a killed process left in the folder of checkpoints. The caller holds the lock of `root`.
    """
    for leftover in root.glob(".*"):
        match = re.fullmatch(rf"\.(checkpoint-\d+|best)\.(old|new-[0-9a-f]+)({re.escape(MARK)})?", leftover.name)
        if match and leftover.is_dir():
            recover(root / match[1])


def newest_intact(root: Path) -> Path | None:
    """
    The newest checkpoint whose files are all as they were written, or None if there is no checkpoint at all.

    Warns about each damaged one.

    Raises:
        DamagedCheckpointError: if there are checkpoints, and all are damaged.
    """
    complaint = None
    for step, folder in checkpoint_folders(root):
        try:
            verify(folder)
        except DamagedCheckpointError as error:
            complaint = complaint or error
            warnings.warn(f"The checkpoint of step {step} is left out: {error}", stacklevel=2)
            continue
        return folder
    if complaint is not None:
        raise DamagedCheckpointError(f"No checkpoint is intact. {complaint}")
    return None


def verify(folder: Path):
    """Raise `DamagedCheckpointError` unless every file of a checkpoint has its checksum."""
    sums = read_json(folder / CHECKSUMS)
    if not isinstance(sums, dict) or not sums:
        raise DamagedCheckpointError(f"'{folder / CHECKSUMS}' holds no checksums.")
    for name, expected in sums.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise DamagedCheckpointError(f"'{file}' is missing, or '{CHECKSUMS}' is changed.")
        if checksum(file) != expected:
            raise DamagedCheckpointError(
                f"'{file}' is not as it was written: its checksum is not the one in '{CHECKSUMS}'."
            )


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def seal(folder: Path):
    """Write the checksums of all files of a finished checkpoint, and sync it to disk."""
    sums = {file.name: checksum(file) for file in sorted(folder.iterdir())}
    write_json(folder / CHECKSUMS, sums)
    sync_folder(folder)


# Files


def write_json(file: Path, value: Any):
    """Write JSON. Numbers keep all their digits."""
    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(file: Path) -> Any:
    """Read JSON; a missing or broken file raises `DamagedCheckpointError`."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"'{file}' cannot be read: {error}") from error


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]):
    """
    Write tensors as safetensors. Tensors that share memory are written apart.

    Raises:
        OSError: if the file cannot be written.
    """
    with system_errors(file):
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)


@contextlib.contextmanager
def system_errors(file: Path) -> Iterator[None]:
    """Errors of the system that safetensors raises as its own, such as a full disk, become `OSError` again."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read safetensors; a missing or broken file raises `DamagedCheckpointError`."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"'{file}' cannot be read: {error}") from error


@contextlib.contextmanager
def loading(file: Path, *others: Path) -> Iterator[None]:
    """
    Turn errors while the content of files is loaded into `DamagedCheckpointError`, which names the files.

    Checksums find accidents. They do not find files that were written by someone else, with sums that fit.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        names = "".join(f" or '{other.name}'" for other in others)
        raise DamagedCheckpointError(f"'{file}'{names} does not fit this run. {what}") from error


def check_like(name: str, value: Any, own: Any):
    """
    Raise `ValueError` unless a value of a JSON file has the form of this run's own: types, keys, lengths, no NaN.

    Texts are compared for their type, and numbers may differ.
    """
    if isinstance(own, dict):
        if not isinstance(value, dict) or set(value) != set(own):
            keys = sorted(map(str, set(value) ^ set(own))) if isinstance(value, dict) else [repr(value)[:80]]
            raise ValueError(f"`{name}` must have the keys of this run's; these differ: {', '.join(keys)}.")
        for key in own:
            check_like(f"{name}.{key}", value[key], own[key])
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, list) or len(value) != len(own):
            raise ValueError(f"`{name}` must be a list of length {len(own)}, got {repr(value)[:80]}.")
        for number, (one, other) in enumerate(zip(value, own, strict=True)):
            check_like(f"{name}[{number}]", one, other)
    elif isinstance(own, float) or (isinstance(own, int) and not isinstance(own, bool)):
        limit = math.inf if isinstance(own, float) and math.isinf(own) else 2.0**63
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -limit <= value <= limit:
            raise ValueError(f"`{name}` must be a number, got {repr(value)[:80]}.")
    elif type(value) is not type(own):
        raise ValueError(f"`{name}` must be like {own!r}, got {repr(value)[:80]}.")


# Weights


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_parameters(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], what: str):
    """
    Copy values into parameters of the same names.

    Raises:
        ValueError: if names, shapes or dtypes differ, or a value is not finite.
    """
    differing = sorted(set(parameters) ^ set(values))
    differing += [
        name
        for name, own in parameters.items()
        if name in values and (own.shape != values[name].shape or own.dtype != values[name].dtype)
    ]
    if differing:
        raise ValueError(f"{what} is of another model: {len(differing)} tensors differ, such as '{differing[0]}'.")
    check_finite(values)
    for name, parameter in parameters.items():
        shards.local(parameter).copy_(shards.local_part(values[name], parameter))


def read_group(folder: Path, name: str, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of `name`, such as "model", of a checkpoint that one or several processes wrote.

    Args:
        like: the tensors that will take them.
    """
    file = folder / f"{name}.safetensors"
    if not file.exists() and shards.has_shards(folder):
        return shards.read_shards(folder, name, like)
    return read_tensors(file)


def check_finite(tensors: Mapping[str, torch.Tensor]):
    """Raise `ValueError` if a tensor holds NaN or an infinite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(shards.local(tensor)).all()):
            raise ValueError(f"'{name}' holds numbers that are not finite.")


# Optimizer


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    The state of an optimizer as tensors, by `parameter/entry`, and as a JSON document.

    Args:
        names: the names of the optimizer's parameters in the order of its groups.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{names[index]}/{key}"] = value
            else:
                scalars.setdefault(names[index], {})[key] = value
    groups = [
        {**{key: plain(value) for key, value in group.items()}, "params": [names[i] for i in group["params"]]}
        for group in state["param_groups"]
    ]
    return tensors, {"groups": groups, "scalars": scalars}


def plain(value: Any) -> Any:
    """A setting of an optimizer as JSON holds it."""
    return value.item() if isinstance(value, torch.Tensor) else value


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: list[str],
    tensors: Mapping[str, torch.Tensor],
    document: Mapping[str, Any],
):
    """
    Load what [`optimizer_tensors`] gave.

    Raises:
        ValueError: if the parameters or the settings of the groups have other names, or values do not fit them.
    """
    current = optimizer.state_dict()
    check_finite(tensors)
    index = {name: number for number, name in enumerate(names)}
    groups = matched_groups(document["groups"], current["param_groups"], names)
    if groups is None:
        raise ValueError("The optimizer of the checkpoint has other parameters than this run's.")
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index[name], {})[entry] = value
    for name, entries in document["scalars"].items():
        state.setdefault(index[name], {}).update(entries)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        check_entries(optimizer, names[number], parameters[number], entries)
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape:
                part = shards.local_part(value, parameters[number])
                entries[entry] = shards.spread_like(part, parameters[number])
    loaded = []
    for saved, own in zip(groups, current["param_groups"], strict=True):
        check_like("groups", without_parameters(saved), without_parameters(own))
        values = {key: tuple(value) if isinstance(own[key], tuple) else value for key, value in saved.items()}
        loaded.append({**values, "params": own["params"]})
    optimizer.load_state_dict({"state": state, "param_groups": loaded})


def matched_groups(saved: list[Any], own: list[dict[str, Any]], names: list[str]) -> list[Any] | None:
    """
    The saved settings of each of the optimizer's groups, or None if they are not of the same parameters.

    A run on another number of processes may have more or fewer groups, because parameters that are spread over
    processes and whole ones are in groups apart.
    """
    if len(saved) == len(own):
        return saved if [name for group in saved for name in group["params"]] == names else None
    group_of = {name: group for group in saved for name in group["params"]}
    if sorted(name for group in saved for name in group["params"]) != sorted(names):
        return None
    groups = []
    for group in own:
        of_parameters = [without_parameters(group_of[names[number]]) for number in group["params"]]
        if any(one != of_parameters[0] for one in of_parameters):
            return None
        groups.append(of_parameters[0])
    return groups


def check_entries(optimizer: torch.optim.Optimizer, name: str, parameter: torch.Tensor, entries: Mapping[str, Any]):
    """Raise `ValueError` if what an optimizer holds of a parameter has other names or shapes than it writes."""
    if isinstance(optimizer, torch.optim.Adam) and set(entries) not in ADAM_ENTRIES:
        raise ValueError(f"The optimizer's entries of '{name}' are {', '.join(sorted(entries))}.")
    for entry, value in entries.items():
        if entry in MOMENTS and (not isinstance(value, torch.Tensor) or value.shape != parameter.shape):
            raise ValueError(f"'{name}/{entry}' must have the shape {tuple(parameter.shape)}.")
        if entry == "step" and isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"'{name}/step' must be one number, got the shape {tuple(value.shape)}.")


def without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group of an optimizer, as JSON holds them."""
    return {key: plain(value) for key, value in group.items() if key != "params"}


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of an optimizer's parameters in the order of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


# Random state


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of the generators of Python, NumPy and torch as tensors and a JSON document."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda-{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    document = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, int(position), int(has_gauss), float(cached)],
    }
    return tensors, document


def load_random_state(tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any]):
    """Restore what [`random_state`] gave."""
    version, numbers, gauss = document["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, cached = document["numpy"]
    keys = tensors["numpy"]
    if not 0 <= position <= 624 or keys.shape != (624,) or keys.dtype != torch.int64:
        # NumPy would read beyond its memory.
        raise ValueError("The random state of NumPy is not valid.")
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    states = cuda_states(tensors)
    if torch.cuda.is_available() and len(states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states)


def cuda_states(tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The states of the CUDA devices by their numbers: as texts, 10 would come before 2."""
    names = (name for name in tensors if name.startswith("cuda-"))
    return [tensors[name] for name in sorted(names, key=lambda name: int(name.removeprefix("cuda-")))]


# Rotation


def delete_old(root: Path, keep: int | None, step: int):
    """
    Delete all but the newest `keep` checkpoints; None keeps them all.

    Args:
        step: the step of the checkpoint that was just written. Those of later steps were damaged when the run resumed
            before them, and are deleted, so that they do not take the place of intact ones.
    """
    later = [folder for number, folder in checkpoint_folders(root) if number > step]
    others = [folder for number, folder in checkpoint_folders(root) if number <= step]
    for folder in [*later, *(others[keep:] if keep else [])]:
        discard(folder, folder)
