"""Tools for benchmarks: paired timings, peak memory, child processes, tables."""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


PROCESS = Path("/proc/self")  # process information on Linux


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, including its work on `device`."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str):
    """Wait until an accelerator has finished all work. A no-op for a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def paired_seconds(
    functions: dict[str, Callable[[], object]], repeats: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """
    Time the functions in turn, `repeats` times after one warm-up. The speed of a machine drifts, but hardly within a turn.
    With `warm_up=False`, the functions have run before.
    """
    for function in functions.values() if warm_up else ():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matrix_rate(rows: int, inner: int, columns: int, device: str = "cpu", repeats: int = 10) -> float:
    """The best rate of fp32 matrix products of this shape, in floating-point operations per second."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    a @ b
    return 2 * rows * inner * columns / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def can_measure_memory(device: str) -> bool:
    """Whether [`peak_memory_of`] works: on CUDA, and on CPUs under Linux."""
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and (PROCESS / "clear_refs").exists())


def peak_memory_of(function: Callable[[], object], device: str = "cpu") -> dict[str, int]:
    """The bytes in use before a call, and the peak during the call."""
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return {"before": before, "peak": torch.cuda.max_memory_allocated(device)}
    give_back_freed_memory()
    before = status_bytes("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # resets VmHWM
    function()
    return {"before": before, "peak": status_bytes("VmHWM")}


def give_back_freed_memory():
    """Return freed memory to the system. Otherwise the allocator reuses it, and the peak does not include it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
    if trim is not None:
        trim(0)


def status_bytes(field: str, process: Path = PROCESS) -> int:
    """A memory field of a process, by default this one, in bytes: VmRSS is the current use, VmHWM the peak."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"`{field}` is not in {process / 'status'}.")


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_child(script: str, *arguments: str) -> dict:
    """Run `script` in a new process, and parse the JSON object in its last line."""
    result = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)
