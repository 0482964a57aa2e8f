"""Compare the time of a scheduler step with diffusers' schedulers. Prints one table of ratios. Run as

    python benchmarks/schedulers.py

The baselines are diffusers' schedulers of the same kind, and the operations that every such step needs: one softmax over
the logits and one draw from each distribution.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AmusedScheduler, VQDiffusionScheduler
from measuring import median_ratio, paired_seconds, print_table

from showo_hf.schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler
from showo_hf.schedulers.scheduling_maskgit import MaskGITScheduler


STEPS = 8
TIME = 48  # of 100; the mask-and-replace step is measured here, where half of the tokens are changed
Row = tuple[str, str, str]  # what, measured, target


@dataclass(frozen=True)
class Sizes:
    """Shape of the logits."""

    batch: int = 4
    tokens: int = 256
    codebook_size: int = 8192


FULL = Sizes()
SMALL = Sizes(batch=2, tokens=8, codebook_size=32)


def inputs(sizes: Sizes, device: str, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.LongTensor]:
    """Random logits (batch, tokens, codebook), and token ids (batch, tokens), half of them masked."""
    generator = torch.Generator().manual_seed(0)
    shape = sizes.batch, sizes.tokens
    logits = sharpness * torch.randn(*shape, sizes.codebook_size, generator=generator)
    tokens = torch.randint(sizes.codebook_size, shape, generator=generator)
    sample = torch.where(torch.rand(shape, generator=generator) < 0.5, sizes.codebook_size, tokens)
    return logits.to(device), sample.to(device)


def softmax_and_draw(logits: torch.Tensor):
    """One softmax and one draw."""
    torch.multinomial(logits.softmax(-1).flatten(0, 1), 1)


def mask_and_replace_ways(sizes: Sizes, device: str) -> dict[str, Callable[[], object]]:
    """Functions to measure: a step of our scheduler with and without options, a step of diffusers', and the floor."""
    logits, sample = inputs(sizes, device)
    options: dict[str, dict] = {
        "ours": {},
        "truncated": {"truncation_rate": 0.86},
        "purity": {"purity": True},
        "absorbing": {"mask_share": 1.0},
    }
    ways: dict[str, Callable[[], object]] = {}
    for name, chosen in options.items():
        scheduler = MaskAndReplaceScheduler(sizes.codebook_size, num_train_timesteps=100, **chosen)
        scheduler.set_timesteps(25, device=device)
        ways[name] = lambda scheduler=scheduler: scheduler.step(logits, TIME, sample)
    theirs = VQDiffusionScheduler(sizes.codebook_size + 1, num_train_timesteps=100)
    theirs.set_timesteps(100, device=device)
    log_p0 = logits.log_softmax(-1).transpose(1, 2).contiguous()  # the layout of its model: (batch, codebook, tokens)
    ways["diffusers"] = lambda: theirs.step(log_p0, TIME, sample)
    ways["floor"] = lambda: softmax_and_draw(logits)
    return ways


def mask_and_replace_rows(sizes: Sizes, device: str, repeats: int) -> list[Row]:
    """`MaskAndReplaceScheduler.step` compared with diffusers' scheduler and with the floor."""
    times = paired_seconds(mask_and_replace_ways(sizes, device), repeats, device)
    rows = [
        ratio_row(
            "MaskAndReplaceScheduler.step: diffusers' VQDiffusionScheduler.step / ours", times, "diffusers", "ours"
        )
        + ("at least 2",),
        ratio_row("ours / one softmax and one multinomial", times, "ours", "floor") + ("at most 1.3",),
    ]
    for name, what in (
        ("truncated", "with truncation at 0.86"),
        ("purity", "with purity"),
        ("absorbing", "absorbing"),
    ):
        rows.append(ratio_row(f"ours {what} / ours", times, name, "ours") + ("reported",))
    return rows


def maskgit_rows(sizes: Sizes, device: str, repeats: int) -> list[Row]:
    """`MaskGITScheduler.step` compared with diffusers' AmusedScheduler."""
    logits, sample = inputs(sizes, device)
    ours = MaskGITScheduler(sizes.codebook_size, temperature_rule="linear")
    theirs = AmusedScheduler(sizes.codebook_size)
    ours.set_timesteps(STEPS, device=device)
    theirs.set_timesteps(STEPS, device=device)
    timestep = ours.timesteps[STEPS // 2]
    ways = {
        "diffusers": lambda: theirs.step(logits, timestep, sample),
        "ours": lambda: ours.step(logits, timestep, sample),
        "floor": lambda: softmax_and_draw(logits),
    }
    times = paired_seconds(ways, repeats, device)
    return [
        ratio_row("MaskGITScheduler.step: diffusers' AmusedScheduler.step / ours", times, "diffusers", "ours")
        + ("1",),
        ratio_row("MaskGITScheduler.step / one softmax and one multinomial", times, "ours", "floor") + ("reported",),
    ]


def ratio_row(what: str, times: dict[str, list[float]], over: str, under: str) -> tuple[str, str]:
    """The name of a row, and its ratio with the two medians."""
    medians = [1e3 * statistics.median(times[name]) for name in (over, under)]
    return what, f"{median_ratio(times[over], times[under]):.2f} ({medians[0]:.1f} ms, {medians[1]:.1f} ms)"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="device to measure on; the targets are for a CPU")
    parser.add_argument("--repeats", type=int, default=9, help="number of interleaved runs; the median counts")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, for a quick check without meaningful numbers"
    )
    options = parser.parse_args(arguments)
    sizes = SMALL if options.small else FULL
    with torch.no_grad():
        rows = [
            *mask_and_replace_rows(sizes, options.device, options.repeats),
            *maskgit_rows(sizes, options.device, options.repeats),
        ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; ", end="")
    print(
        f"logits ({sizes.batch}, {sizes.tokens}, {sizes.codebook_size}); medians of {options.repeats} interleaved runs\n"
    )
    print_table(("what", "device", "measured", "target"), [(what, options.device, *cells) for what, *cells in rows])


if __name__ == "__main__":
    main()
