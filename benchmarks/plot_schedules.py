"""Plot the masking schedules for docs/images/schedules.png. Run as

python benchmarks/plot_schedules.py --output docs/images/schedules.png
"""

import argparse

import torch
from matplotlib import pyplot

from showo_hf.schedulers.masking_schedules import get_masking_schedule


CURVES = ("arccos", "cosine", "linear", "sigmoid", "pow2", "pow0.5")  # all named schedules and two powers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    options = parser.parse_args()

    ratio = torch.linspace(0, 1, 401)
    figure, axes = pyplot.subplots(figsize=(6.5, 4), constrained_layout=True)
    for name in CURVES:
        axes.plot(ratio, get_masking_schedule(name)(ratio), label=name)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="share of completed steps",
        ylabel="share of masked tokens",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
