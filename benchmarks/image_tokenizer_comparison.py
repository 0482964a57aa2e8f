"""LFQ and VQ, 10 and 13 bits, with and without a discriminator: which image tokenizer is best? From the repository root:

    python -m recipes.drawings --output data/drawings-128 --size 128
    python -m benchmarks.image_tokenizer_comparison --data data/drawings-128 --output runs/tokenizers --minutes 40

Each of the eight is trained on the same images with the same network, batch and number of steps: as many as take
`--minutes` on this machine, measured once. If you stop the command, it goes on where it stopped. `--only NAME ...` trains
some of them. image_tokenizer_quality.py makes the table, on images held out of the training. The plot shows their PSNR
during the training, over the minutes of training steps.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.image_tokenizer_quality import HEADER, load_images, load_tokenizer, quality, table
from benchmarks.measuring import print_table
from matplotlib.figure import Figure
from PIL import Image

from showo_hf.training.dry_run import plan_of
from showo_hf.training.logs import RunLog
from showo_hf.training.recipe_files import load_recipe
from showo_hf.utils.argument_types import positive_integer


KINDS, BITS = ("lfq", "vq"), (10, 13)
SIZE, BATCH = 128, 8
EVALUATIONS = 16  # points of a curve
#: What all have in common.
COMMON: dict[str, Any] = {
    "image_size": SIZE,
    "batch_size": BATCH,
    "commitment_weight": 0.25,
    "loss_weights": {"l1": 1.0, "mse": 4.0, "perceptual": 0.0},
    "muon": True,
    "learning_rate": 3e-3,
    "adam_beta2": 0.98,
    "weight_decay": 0.05,
    "lr_scheduler_type": "warmup_stable_decay",
    "warmup_steps": 100,
    "max_grad_norm": 1.0,
    "ema_decay": 0.998,
    "bf16": True,
    "mirror": True,
    "validation_rows": 128,
    "logging_steps": 20,
    "save_steps": 200,
    "report_to": "none",
}
#: A small network without attention.
NETWORK: dict[str, Any] = {
    "mid_block_attention": False,
    "encoder_block_out_channels": [32, 48, 96, 128],
    "decoder_block_out_channels": [32, 48, 96, 160],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 2, 2],
    "norm_num_groups": 16,
}
DISCRIMINATOR: dict[str, Any] = {"channels": 32, "max_channels": 128, "learning_rate": 3e-4}
DISCRIMINATOR_START = 0.4  # of the steps: the generator must draw something first


def names() -> list[str]:
    """ "lfq-10", "lfq-10-gan", ..., "vq-13-gan"."""
    return [f"{kind}-{bits}{end}" for kind in KINDS for bits in BITS for end in ("", "-gan")]


def recipe_of(name: str, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """The recipe of a tokenizer."""
    kind, bits, *rest = name.split("-")
    own: dict[str, Any] = {"kind": f"{kind}-tokenizer", **COMMON}
    network = dict(NETWORK)
    if kind == "lfq":
        own |= {"codebook_bits": int(bits), "entropy_weight": 0.1, "entropy_over": "bits"}
    else:
        own |= {"codebook_size": 2 ** int(bits), "codebook_dim": 16, "codebook_learning": "ema"}
        none = [False] * len(network["encoder_block_out_channels"])
        network |= {"latent_channels": 128, "encoder_block_attention": none, "decoder_block_attention": none}
    if rest:
        own["discriminator"] = {**DISCRIMINATOR, "start": round(DISCRIMINATOR_START * steps)}
    return own | {
        "data": str(data / "train"),
        "validation_data": str(data / "validation"),
        "output": str(output / name),
        "architecture": network,
        "steps": steps,
        "eval_steps": max(1, steps // EVALUATIONS),
        "lr_scheduler_kwargs": {"num_decay_steps": max(1, steps // 3)},
    }


def write_recipe(name: str, data: Path, output: Path, steps: int) -> Path:
    """The file of a recipe."""
    file = output / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe_of(name, data, output, steps), sort_keys=False), encoding="utf-8")
    return file


def steps_of(data: Path, output: Path, minutes: float) -> int:
    """The number of steps that takes so many minutes with the first tokenizer, measured once and kept in a file."""
    file = output / "steps.json"
    if not file.exists():
        plan = plan_of(load_recipe(str(write_recipe(names()[0], data, output, 1000)), []))
        (line,) = (line for line in plan.splitlines() if line.startswith("time of a step"))
        seconds = float(line.split()[4])
        file.write_text(json.dumps({"steps": max(1, round(60 * minutes / seconds)), "seconds": seconds}))
    return json.loads(file.read_text())["steps"]


def train(recipe: Path) -> None:
    """Train in a process of its own, or go on, unless the result is there."""
    output = Path(yaml.safe_load(recipe.read_text(encoding="utf-8"))["output"])
    if not (output / "config.json").exists():
        subprocess.run([sys.executable, "-m", "showo_hf.training", str(recipe)], check=True)


def curve(log: Path) -> tuple[list[float], list[float]]:
    """Minutes of training steps, and the PSNR of the validation images at them."""
    minutes, seconds, last, points = 0.0, 0.0, 0, []
    for row in RunLog(log).read():
        if "seconds_per_step" in row:
            seconds = row["seconds_per_step"]
            minutes += (row["step"] - last) * seconds / 60
            last = row["step"]
        if "eval_psnr" in row:
            points.append((minutes + (row["step"] - last) * seconds / 60, row["eval_psnr"]))
    return [minute for minute, _ in points], [value for _, value in points]


def plot(output: Path, done: list[str]) -> Path:
    """Draw all curves into one PNG file."""
    figure = Figure(figsize=(8.8, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = dict(zip([f"{kind}-{bits}" for kind in KINDS for bits in BITS], ("C0", "C1", "C2", "C3"), strict=True))
    for name in done:
        base = name.removesuffix("-gan")
        axes.plot(*curve(output / f"{name}-log.jsonl"), "--" if name != base else "-", color=colours[base], label=name)
    axes.set_xlabel("minutes of training steps")
    axes.set_ylabel("PSNR of held-out images, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output / "curves.png")
    return output / "curves.png"


def sheet(output: Path, done: list[str], images: Path, count: int = 8) -> Path:
    """Originals, and what each tokenizer makes of them, in rows, at twice their size."""
    originals = load_images(images, SIZE, count)
    rows = [originals]
    with torch.no_grad():
        for name in done:
            tokenizer = load_tokenizer(str(output / name))
            rows.append(tokenizer.decode(tokenizer.encode(originals).image_tokens).sample.clamp(-1, 1))
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    levels = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(levels)
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(output / "sheet.png")
    return output / "sheet.png"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare image tokenizers after trainings of equal length.")
    parser.add_argument("--data", type=Path, required=True, help="a folder with the folders `train` and `validation`")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/tokenizers"), help="folder for tokenizers and results"
    )
    parser.add_argument("--minutes", type=float, default=40, help="how long each of them is trained")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="train only these")
    parser.add_argument("--count", type=positive_integer, default=512, help="held-out images of the table")
    options = parser.parse_args(arguments)
    steps = steps_of(options.data, options.output, options.minutes)
    for name in options.only:
        train(write_recipe(name, options.data, options.output, steps))
    done = [name for name in names() if (options.output / name / "config.json").exists()]
    held_out = options.data / "validation"
    rows = table([str(options.output / name) for name in done], held_out, SIZE, options.count)
    originals = load_images(held_out, SIZE, options.count)
    rows.append(["white images", *quality(torch.ones_like(originals), originals), "", "", ""])
    print_table(HEADER, [[row[0].replace(f"{options.output}/", ""), *row[1:]] for row in rows])
    print(f"{plot(options.output, done)}, {sheet(options.output, done, held_out)}")


if __name__ == "__main__":
    main()
