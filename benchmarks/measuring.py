"""Small tools of the benchmarks: paired timings, peak memory of a child process, tables."""

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


PROCESS = Path("/proc/self")  # what Linux tells of this process


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, with all that it started on `device`."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str):
    """Let an accelerator finish what it was given; a CPU has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def paired_seconds(
    functions: dict[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """
    Seconds of each function in turn, `repeats` times after one warm-up: machines drift, pairs drift together.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matrix_rate(rows: int, inner: int, columns: int, device: str = "cpu", repeats: int = 10) -> float:
    """The rate of fp32 matrix products of this shape, in floating-point operations a second: the best of many."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    a @ b
    return 2 * rows * inner * columns / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def can_measure_memory(device: str) -> bool:
    """Whether [`peak_memory_of`] works here: on CUDA by torch, on a CPU where Linux tells."""
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and (PROCESS / "clear_refs").exists())


def peak_memory_of(function: Callable[[], object], device: str = "cpu") -> dict[str, int]:
    """Bytes held before the call and the most during it; what was needed to get there does not count."""
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return {"before": before, "peak": torch.cuda.max_memory_allocated(device)}
    give_back_freed_memory()
    before = status_bytes("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # sets VmHWM to what is resident now
    function()
    return {"before": before, "peak": status_bytes("VmHWM")}


def give_back_freed_memory():
    """Hand what was freed back to the system: the allocator would use it again, and a peak would not show that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def status_bytes(field: str) -> int:
    """A memory field of this process in bytes, as Linux tells it: VmRSS now, VmHWM at most so far."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"`{field}` is not among what this system tells of a process.")


def folder_bytes(folder: Path) -> int:
    """Size of a folder with all below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_child(script: str, *arguments: str) -> dict:
    """Run `script` in a fresh process and read the JSON object of its last line."""
    result = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)
