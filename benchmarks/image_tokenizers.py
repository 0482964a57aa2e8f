"""What does vector quantization cost? Prints one table. Run as

    OMP_NUM_THREADS=1 python benchmarks/image_tokenizers.py

Compares the search for the nearest of 16,384 codes, for 4,096 latents, with one matrix product of that size: the product
of the latents and the codebook, which gives a table of all scores. The ratio is of CPU time, the median of pairs, so that
other work on the machine changes it little. The time in which the system gives memory to the table counts. On a GPU the
ratio is of wall-clock time. Memory is the growth of the peak during one call.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from measuring import can_measure_memory, median_ratio, paired_seconds, peak_memory_of, print_table

from showo_hf.models.vector_quantizer import nearest_codes


CODES = 16384
LATENTS = 4096
CHANNELS = (256, 8)


def cpu_seconds(function: Callable[[], object]) -> float:
    """The CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def paired_cpu_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time the functions in turn, `repeats` times after one warm-up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(cpu_seconds(function))
    return times


def full_table(latents: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    """The nearest codes from a table of all distances, as diffusers computes them."""
    return torch.cdist(latents, codebook).argmin(1)


def quantization(device: str, repeats: int) -> list[list[str]]:
    """A row for each number of channels: ratios to one matrix product, and the memory of each."""
    rows = []
    for channels in CHANNELS:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(LATENTS, channels, generator=generator).to(device)
        codebook = torch.randn(CODES, channels, generator=generator).to(device)
        functions = {
            "product": partial(torch.mm, latents, codebook.T),
            "nearest": partial(nearest_codes, latents, codebook),
            "table": partial(full_table, latents, codebook),
        }
        agreeing = (functions["nearest"]() == functions["table"]()).double().mean().item()
        if device == "cpu":
            times = paired_cpu_seconds(functions, repeats)
        else:
            times = paired_seconds(functions, repeats, device)
        rows.append(
            [
                str(channels),
                f"{sorted(times['product'])[repeats // 2] * 1000:.1f} ms",
                *(f"{median_ratio(times[name], times['product']):.2f}" for name in ("nearest", "table")),
                *(memory(functions[name], device) for name in ("product", "nearest", "table")),
                f"{agreeing:.4f}",
            ]
        )
    return rows


def memory(function: Callable[[], object], device: str) -> str:
    """The growth of the peak memory during one call."""
    if not can_measure_memory(device):
        return "unknown"
    measured = peak_memory_of(function, device)
    return f"{(measured['peak'] - measured['before']) / 1e6:.0f} MB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(f"{CODES} codes, {LATENTS} latents; {options.device}, {torch.get_num_threads()} thread(s)\n")
    header = ["channels", "product", "nearest / product", "cdist + argmin / product"]
    header += ["memory: product", "nearest", "cdist + argmin", "same codes"]
    print_table(header, quantization(options.device, options.repeats))


if __name__ == "__main__":
    main()
