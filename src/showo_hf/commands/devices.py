"""`--device`: which devices the installed PyTorch cannot have, as far as its files tell it without being imported."""

from __future__ import annotations

import argparse
import ast
import ctypes
import re
import sys

from ..utils.argument_types import quoted
from ..utils.package_sources import statements_of


DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa", "mtia", "privateuseone")
#: The names in torch's version file of which one tells a version, where torch is built for the device.
BUILT_FOR = {"cuda": ("cuda", "hip"), "xpu": ("xpu",)}
CUDA_DRIVER = "libcuda.so.1"  # torch needs it on Linux
ADDED_DEVICES = "torch.backends"  # the entry points that torch loads when it is imported


def device_name(text: str) -> str:
    """
    The type of `--device`. Raises `ArgumentTypeError` for what is no device, and for one that torch is not built for.

    Whether any other device is there needs torch; see [`model_loading.choose_device`].
    """
    if not re.fullmatch(rf"({'|'.join(DEVICES)})(:[0-9]{{1,4}})?", text):
        raise argparse.ArgumentTypeError(f"must be a device such as cpu, cuda, cuda:1 or mps, got {quoted(text)}")
    reason = absence(text.partition(":")[0])
    if reason:
        raise argparse.ArgumentTypeError(f"must be a device of this machine, got {quoted(text)}: {reason}")
    return text


def absence(kind: str) -> str | None:
    """Why there can be no device of a kind, such as "cuda". None if only torch can tell."""
    if kind == "mps":
        return None if sys.platform == "darwin" else "only macOS has it"
    names = BUILT_FOR.get(kind, ())
    built = torch_build() if names else {}
    if names and set(names) <= set(built) and not any(built[name] for name in names):
        from importlib.metadata import version

        return f"PyTorch {version('torch')} is not built for it"
    if kind == "cuda" and built.get("cuda") and sys.platform == "linux" and not can_load(CUDA_DRIVER):
        return "there is no NVIDIA driver"
    return None


def only_cpu() -> bool:
    """Whether torch can have no device but the CPU: it is built for none, and no package adds one. False if unknown."""
    from importlib.metadata import entry_points

    return all(map(absence, ("cuda", "xpu", "mps"))) and not entry_points(group=ADDED_DEVICES)


def torch_build() -> dict[str, str | None]:
    """What torch's version file says, by name, such as `cuda` and `hip`; None for what it lacks."""
    try:
        lines = statements_of("torch", "version.py")
    except (OSError, ValueError, SyntaxError):
        return {}
    found: dict[str, str | None] = {}
    for line in lines:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant):
            found[targets[0].id] = None if value.value is None else str(value.value)
    return found


def can_load(library: str) -> bool:
    """Whether the system has a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def kind_of(device: str) -> str:
    """The kind of a device: "cuda" for "cuda:1"."""
    return device.partition(":")[0]
