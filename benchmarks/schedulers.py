"""What does a step of a scheduler cost, beside the model's? Prints one table of ratios. Run as

    python benchmarks/schedulers.py

The yardsticks are diffusers' schedulers of the same kind, and what no such step does without: one softmax over the logits
and one draw from each distribution.
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
TIME = 48  # of 100 at which mask-and-replace is measured: half of the tokens are lost
Row = tuple[str, str, str]  # what, measured, wanted


@dataclass(frozen=True)
class Sizes:
    """Samples, tokens of each, and codes of the codebook."""

    batch: int = 4
    tokens: int = 256
    codes: int = 8192


FULL = Sizes()
SMALL = Sizes(batch=2, tokens=8, codes=32)


def inputs(sizes: Sizes, device: str, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.LongTensor]:
    """Random logits, and tokens of which half are masked."""
    generator = torch.Generator().manual_seed(0)
    shape = sizes.batch, sizes.tokens
    logits = sharpness * torch.randn(*shape, sizes.codes, generator=generator)
    codes = torch.randint(sizes.codes, shape, generator=generator)
    sample = torch.where(torch.rand(shape, generator=generator) < 0.5, sizes.codes, codes)
    return logits.to(device), sample.to(device)


def floor_of(logits: torch.Tensor):
    """One softmax and one draw."""
    torch.multinomial(logits.softmax(-1).flatten(0, 1), 1)


def mask_and_replace_ways(sizes: Sizes, device: str) -> dict[str, Callable[[], object]]:
    """Steps of our scheduler, plain and with its options, of diffusers', and the floor."""
    logits, sample = inputs(sizes, device)
    options: dict[str, dict] = {
        "ours": {},
        "truncated": {"truncation_rate": 0.86},
        "purity": {"purity": True},
        "absorbing": {"mask_share": 1.0},
    }
    ways: dict[str, Callable[[], object]] = {}
    for name, chosen in options.items():
        scheduler = MaskAndReplaceScheduler(sizes.codes, num_train_timesteps=100, **chosen)
        scheduler.set_timesteps(25, device=device)
        ways[name] = lambda scheduler=scheduler: scheduler.step(logits, TIME, sample)
    theirs = VQDiffusionScheduler(sizes.codes + 1, num_train_timesteps=100)
    theirs.set_timesteps(100, device=device)
    log_p0 = logits.log_softmax(-1).transpose(1, 2).contiguous()  # as its model gives them: (batch, codes, tokens)
    ways["diffusers"] = lambda: theirs.step(log_p0, TIME, sample)
    ways["floor"] = lambda: floor_of(logits)
    return ways


def mask_and_replace_rows(sizes: Sizes, device: str, repeats: int) -> list[Row]:
    """`MaskAndReplaceScheduler.step` against diffusers' and against the floor."""
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
    """`MaskGITScheduler.step` against diffusers' AmusedScheduler."""
    logits, sample = inputs(sizes, device)
    ours = MaskGITScheduler(sizes.codes, temperature_rule="linear")
    theirs = AmusedScheduler(sizes.codes)
    ours.set_timesteps(STEPS, device=device)
    theirs.set_timesteps(STEPS, device=device)
    timestep = ours.timesteps[STEPS // 2]
    ways = {
        "diffusers": lambda: theirs.step(logits, timestep, sample),
        "ours": lambda: ours.step(logits, timestep, sample),
        "floor": lambda: floor_of(logits),
    }
    times = paired_seconds(ways, repeats, device)
    return [
        ratio_row("MaskGITScheduler.step: diffusers' AmusedScheduler.step / ours", times, "diffusers", "ours")
        + ("1",),
        ratio_row("MaskGITScheduler.step / one softmax and one multinomial", times, "ours", "floor") + ("reported",),
    ]


def ratio_row(what: str, times: dict[str, list[float]], over: str, under: str) -> tuple[str, str]:
    """The name of a row and its ratio, with the medians behind it."""
    medians = [1e3 * statistics.median(times[name]) for name in (over, under)]
    return what, f"{median_ratio(times[over], times[under]):.2f} ({medians[0]:.1f} ms, {medians[1]:.1f} ms)"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="what to measure on; the wanted values are for a CPU")
    parser.add_argument("--repeats", type=int, default=9, help="runs in turn, of which the median counts")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs, the numbers say nothing")
    options = parser.parse_args(arguments)
    sizes = SMALL if options.small else FULL
    with torch.no_grad():
        rows = [
            *mask_and_replace_rows(sizes, options.device, options.repeats),
            *maskgit_rows(sizes, options.device, options.repeats),
        ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; ", end="")
    print(f"logits ({sizes.batch}, {sizes.tokens}, {sizes.codes}); medians of {options.repeats} runs in turn\n")
    print_table(("what", "device", "measured", "wanted"), [(what, options.device, *cells) for what, *cells in rows])


if __name__ == "__main__":
    main()
