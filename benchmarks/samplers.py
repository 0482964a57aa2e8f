"""Which sampler, how many steps, how much guidance? Prints the table of docs/samplers.md and draws its plot. Run as

    python -m showo_hf.training.emoji --output data/emoji --size 96
    python benchmarks/samplers.py --data data/emoji --results samplers.jsonl --plot docs/images/samplers.png

Each setting makes the same pictures, those of held-out and training captions alike, with the same seeds. What is measured
is told in `embedded_quality.py`. Settings that stand in the file of results already are not measured again.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from embedded_quality import FRECHET_SIZE, frechet_distance, gallery, hits, shrink
from measuring import print_table

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline
from showo_hf.schedulers import SCHEDULERS
from showo_hf.training.captions import canonical_caption
from showo_hf.training.emoji import load_emoji
from showo_hf.training.train_image_tokenizer import to_pixel_values


Result = dict[str, Any]

#: What is measured: name in `SCHEDULERS`, and its settings. The models are trained for masks alone, so no code is replaced.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "maskgit": ("maskgit", {}),
    "halton": ("halton", {}),
    "entropy-bound": ("entropy-bound", {}),
    "remasking": ("remasking", {}),
    "remasking, remdm": ("remasking", {"rule": "remdm"}),
    "mask-and-replace": ("mask-and-replace", {"mask_share": 1.0}),
    "mask-and-replace, purity": ("mask-and-replace", {"mask_share": 1.0, "purity": True}),
}


def make(pipe: ShowoT2IPipeline, captions: list[str], batch_size: int, **options) -> tuple[torch.Tensor, Result]:
    """Pictures (N, 3, H, W) in [-1, 1], with the seconds and the steps that one took."""
    pictures, seconds, steps = [], [], []
    for first in range(0, len(captions), batch_size):
        chunk = captions[first : first + batch_size]
        done: list[int] = []
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(chunk))]
        start = time.perf_counter()
        made = pipe(
            chunk,
            generator=generators,
            output_type="pt",
            callback_on_step_end=lambda its_pipe, step, timestep, tensors, done=done: done.append(step),
            **options,
        )
        seconds.append((time.perf_counter() - start) / len(chunk))
        steps.append(len(done))
        pictures.append(made.images.float() * 2 - 1)
    return torch.cat(pictures), {"seconds": statistics.median(seconds), "steps_run": statistics.mean(steps)}


def plot(results: list[Result], guidance: float, file: Path):
    """Right names against the steps that ran, a line for each sampler, at one guidance scale."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), constrained_layout=True)
    for sampler in dict.fromkeys(row["sampler"] for row in results):
        rows = [row for row in results if row["sampler"] == sampler and row["guidance"] == guidance]
        rows.sort(key=lambda row: row["steps"])
        axes.plot([row["steps_run"] for row in rows], [row["name"] for row in rows], "o-", label=sampler, alpha=0.7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    title = f"Quality against time, guidance {guidance:g}"
    axes.set(xlabel="steps that ran", ylabel="right name", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that showo_hf.training.emoji wrote")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a setting; grows")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--samplers", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 2.75, 5.0])
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=20)
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    rng = random.Random(0)
    halves = (data.train_indices, data.held_out_indices)
    toneless = [[int(row) for row in half if data.records[row].tone is None] for half in halves]
    asked = [row for half in toneless for row in rng.sample(half, min(len(half), options.captions // 2))]
    captions = [canonical_caption(data.records[row]) for row in asked]
    real = gallery(data)
    wanted = shrink(to_pixel_values(data.pictures[asked]), FRECHET_SIZE)
    pipe = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config

    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    results: list[Result] = [json.loads(line) for line in lines]
    known = {(row["sampler"], row["steps"], row["guidance"]) for row in results}
    for sampler in options.samplers:
        name, settings = SETTINGS[sampler]
        pipe.scheduler = SCHEDULERS[name].from_config(config, **settings)
        for steps in options.steps:
            for guidance in options.guidance:
                if (sampler, steps, guidance) in known:
                    continue
                pictures, cost = make(
                    pipe, captions, options.batch_size, num_inference_steps=steps, guidance_scale=guidance
                )
                found = hits(data, real, asked, pictures)
                row = {"sampler": sampler, "steps": steps, "guidance": guidance, "name": found["name"]}
                row |= {"style": found["style"], **cost}
                row["frechet"] = frechet_distance(shrink(pictures, FRECHET_SIZE), wanted)
                results.append(row)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print_table(
        ("sampler", "steps", "guidance", "right name", "right style", "distance", "steps run", "ms a picture"),
        [
            [
                row["sampler"],
                row["steps"],
                f"{row['guidance']:g}",
                f"{row['name']:.0%}",
                f"{row['style']:.0%}",
                f"{row['frechet']:.2f}",
                f"{row['steps_run']:.1f}",
                f"{1000 * row['seconds']:.0f}",
            ]
            for row in results
        ],
    )
    if options.plot is not None:
        plot(results, options.guidance[(len(options.guidance) - 1) // 2], options.plot)


if __name__ == "__main__":
    main()
