"""What does vector quantization cost? Prints one table. Run as

    OMP_NUM_THREADS=1 python benchmarks/image_tokenizers.py

Compares the quantization of 4,096 latents with 16,384 codes with one matrix product of that size: the product of the
latents and the codebook, which gives a table of all scores.

- product: the table is new each time, so the time in which the system gives memory to it counts.
- product, out: the table is there already (`torch.mm(out=)`).
- nearest: the search for the nearest codes.
- step: what quantization costs a step of training: the search, the codes' entries, and their update by EMA. No entry dies,
  so none is restarted.
- cdist + argmin: the search in a table of all distances.

The ratios are of CPU time, medians of pairs, so that other work on the machine changes them little. On a GPU they are of
wall-clock time. Memory is the growth of the peak during one call.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import can_measure_memory, median_ratio, paired_seconds, peak_memory_of, print_table

from showo_hf.models.vector_quantizer import VectorQuantizer, nearest_codes
from showo_hf.utils.argument_types import positive_integer


CODES = 16384
LATENTS = 4096
CHANNELS = (256, 8)
#: Each ratio, and whose memory is measured.
RATIOS = [("nearest", "product"), ("nearest", "product, out"), ("step", "product, out"), ("cdist + argmin", "product")]
MEMORY = ("product", "nearest", "step", "cdist + argmin")
HEADER = [
    *("channels", "product", "product, out"),
    *(f"{over} / {under}" for over, under in RATIOS),
    *(f"memory: {name}" for name in MEMORY),
    "same codes",
]


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


def training_step(quantizer: VectorQuantizer, latents: torch.Tensor):
    """The quantizer's part of a step of training, without gradients."""
    indices = quantizer.nearest(latents)
    quantizer.entries(indices)
    quantizer.update(latents, indices, torch.Generator().manual_seed(0))


@torch.no_grad()
def quantization(device: str, repeats: int) -> list[list[str]]:
    """A row for each number of channels, with the columns of `HEADER`."""
    rows = []
    for channels in CHANNELS:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(LATENTS, channels, generator=generator).to(device)
        codebook = torch.randn(CODES, channels, generator=generator).to(device)
        quantizer = VectorQuantizer(CODES, channels, learning="ema").to(device)
        quantizer.codebook.copy_(codebook)
        table = torch.empty(LATENTS, CODES, device=device)
        functions = {
            "product": partial(torch.mm, latents, codebook.T),
            "product, out": partial(torch.mm, latents, codebook.T, out=table),
            "nearest": partial(nearest_codes, latents, codebook),
            "step": partial(training_step, quantizer, latents),
            "cdist + argmin": partial(full_table, latents, codebook),
        }
        agreeing = (functions["nearest"]() == functions["cdist + argmin"]()).double().mean().item()
        if device == "cpu":
            times = paired_cpu_seconds(functions, repeats)
        else:
            times = paired_seconds(functions, repeats, device)
        rows.append(
            [
                str(channels),
                *(f"{median(times[name]) * 1000:.1f} ms" for name in ("product", "product, out")),
                *(f"{median_ratio(times[over], times[under]):.2f}" for over, under in RATIOS),
                *(memory(functions[name], device) for name in MEMORY),
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
    parser.add_argument("--repeats", type=positive_integer, default=15)
    options = parser.parse_args()
    print(f"{CODES} codes, {LATENTS} latents; {options.device}, {torch.get_num_threads()} thread(s)\n")
    print_table(HEADER, quantization(options.device, options.repeats))


if __name__ == "__main__":
    main()
