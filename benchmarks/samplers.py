"""Which sampler, how many steps, which guidance scale? Prints the table and the plot of docs/samplers.md. Run from the root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.samplers --data data/emoji --results samplers.jsonl --plot docs/images/samplers.png

Every setting uses the same captions, half of them held out, and the same seeds. `embedded_quality.py` defines the
measures. Settings that are already in the results file are not measured again.

The steps of an image are the steps it needs alone. In a batch it waits for the slowest image.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.embedded_quality import FRECHET_SIZE, each_hit, frechet_distance, gallery
from benchmarks.measuring import print_table
from benchmarks.pictures import shrink
from benchmarks.sampling import REFERENCE, SETTINGS, make, plot, scheduler_of

from recipes.emoji.captions import canonical_caption
from recipes.emoji.emoji import load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline


Result = dict[str, Any]


def difference(one: Result, other: Result) -> tuple[float, float]:
    """The difference in the share of right names, and its standard error over the pairs of images."""
    pairs = np.subtract(one["names"], other["names"], dtype=float)
    return float(pairs.mean()), float(pairs.std(ddof=1) / len(pairs) ** 0.5)


def table(results: list[Result], guidance: float) -> tuple[tuple[str, ...], list[list[Any]]]:
    """The header and rows for one guidance scale."""
    reference = next((row for row in results if (row["sampler"], row["steps"]) == REFERENCE), None)
    rows = []
    for row in results:
        against = "-"
        if reference is not None and row is not reference:
            more, error = difference(row, reference)
            against = f"{100 * more:+.1f} ± {100 * error:.1f}"
        shares = f"{row['name']:.0%}", against, f"{row['style']:.0%}", f"{row['frechet']:.2f}"
        rows.append([row["sampler"], row["steps"], f"{row['steps_run']:.1f}", *shares])
    against = "points against {} {}".format(*REFERENCE)
    head = ("steps at most", "steps run", "right name", against, "right style", "distance")
    return (f"guidance {guidance:g}", *head), rows


def times(results: list[Result]) -> str:
    """Milliseconds per image and step of each sampler, the median over its settings."""
    found: dict[str, list[float]] = {}
    for row in results:
        found.setdefault(row["sampler"], []).append(1000 * row["seconds_a_step"])
    return ", ".join(f"{sampler} {statistics.median(values):.0f}" for sampler, values in found.items())


def plot_names(results: list[Result], guidance: float, file: Path):
    """Plot right names against steps, one line per sampler, for one guidance scale."""
    rows = [
        {**row, "share": row["name"], "error": (row["name"] * (1 - row["name"]) / len(row["names"])) ** 0.5}
        for row in results
        if row["guidance"] == guidance
    ]
    plot(rows, file, "right name", f"Quality against time, guidance {guidance:g}")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON lines file, one line per setting; new results are appended"
    )
    parser.add_argument("--plot", type=Path, help="image file for the plot")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--samplers", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.75, 5.0])
    parser.add_argument("--captions", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=20)
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    rng = random.Random(0)
    halves = (data.train_indices, data.held_out_indices)
    toneless = [[int(row) for row in half if data.records[row].tone is None] for half in halves]
    asked = [row for half in toneless for row in rng.sample(half, min(len(half), options.captions // 2))]
    captions = [canonical_caption(data.records[row]) for row in asked]
    real = gallery(data)
    wanted = shrink(to_pixel_values(data.images[asked]), FRECHET_SIZE)
    pipe = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config

    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    rows = [json.loads(line) for line in lines]
    # Skip results with another number of captions: they cannot be compared image by image.
    results: list[Result] = [row for row in rows if len(row.get("names", ())) == len(captions)]
    known = {(row["sampler"], row["steps"], row["guidance"]) for row in results}
    for sampler in options.samplers:
        pipe.scheduler = scheduler_of(sampler, config)
        for steps in options.steps:
            for guidance in options.guidance:
                if (sampler, steps, guidance) in known:
                    continue
                images, cost = make(
                    pipe, captions, options.batch_size, num_inference_steps=steps, guidance_scale=guidance
                )
                found = each_hit(data, real, asked, images)
                row = {"sampler": sampler, "steps": steps, "guidance": guidance, "names": found["name"]}
                row |= {"name": statistics.mean(found["name"]), "style": statistics.mean(found["style"]), **cost}
                row["frechet"] = frechet_distance(shrink(images, FRECHET_SIZE), wanted)
                results.append(row)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    for guidance in options.guidance:
        print_table(*table([row for row in results if row["guidance"] == guidance], guidance))
    print(f"Milliseconds per image and step: {times(results)}")
    if options.plot is not None:
        plot_names(results, options.guidance[(len(options.guidance) - 1) // 2], options.plot)


if __name__ == "__main__":
    main()
