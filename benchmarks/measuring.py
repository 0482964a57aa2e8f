"""Small tools of the benchmarks: paired timings, peak memory of a child process, tables."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """
    Seconds of each function in turn, `repeats` times after one warm-up: machines drift, pairs drift together.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matrix_rate(rows: int, inner: int, columns: int, dtype: torch.dtype = torch.float32, repeats: int = 10) -> float:
    """The machine's rate of matrix products of this shape, in floating-point operations a second: the best of many."""
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    a @ b
    return 2 * rows * inner * columns / min(seconds(lambda: a @ b) for _ in range(repeats))


def status_bytes(field: str) -> int:
    """A memory field of this process in bytes, as Linux tells it: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"`{field}` is not among what this system tells of a process.")


def peak_memory_of(function: Callable[[], object]) -> dict[str, int]:
    """Resident bytes before the call and the most during it; what was needed to get there does not count."""
    gc.collect()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
    function()
    return {"before": before, "peak": status_bytes("VmHWM")}


def in_child(script: str, *arguments: str) -> dict:
    """Run `script` in a fresh process and read the JSON object of its last line."""
    result = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)
