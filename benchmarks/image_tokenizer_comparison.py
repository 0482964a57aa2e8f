"""LFQ and VQ, 10 and 13 bits, with and without a discriminator: which image tokenizer is best? From the repository root:

    python -m recipes.drawings --output data/drawings-128 --size 128
    python -m benchmarks.image_tokenizer_comparison --data data/drawings-128 --output runs/tokenizers --minutes 40

Each of the eight is trained for `--minutes`, on the same images, with the same network and batch. The number of its steps
follows from how long its own steps take on this machine, which a short training measures, once (`NAME-seconds.json`). The
table prints the steps, and the minutes that they took, with validation and checkpoints. If you stop the command, it goes on
where it stopped. `--only NAME ...` trains some of them; with `OMP_NUM_THREADS=1`, two such commands can run side by side.

Results lie in a folder for each number of minutes. image_tokenizer_quality.py makes the table, on images held out of the
training, when a tokenizer is trained; the plot shows their PSNR over the minutes. Table, plot and sheet need `NAME.json`,
`NAME-log.jsonl`, `NAME.png` and `../NAME-seconds.json` alone, so you can move these to another machine, and go on there.
`NAME-gan` is compared with `NAME`, so its training also needs the folder `NAME`. logs/image_tokenizers has the results of
docs/benchmarks.md.

"-gan" is the package's default recipe, `lfq-tokenizer` or `vq-tokenizer`, with all its losses: the discriminator's features
stand in for LPIPS, whose weights are not part of the package. The others are the same with `discriminator=null`, so L1 is
their only loss of images. The eight differ from the default recipes in what a training of minutes on a CPU needs: a small
network, batches of 4, a discriminator of half the width that starts after two fifths of the steps, bf16 where the CPU has
it, and Muon with a learning rate, schedule and average of weights for few steps. LFQ's entropy loss is over codes, and
spreads them over cells that show something: with the default one, 600 steps used 1% of 8,192 codes.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.image_tokenizer_quality import HEADER, decoded, encoded, load_images, load_tokenizer, quality, table
from benchmarks.measuring import print_table
from benchmarks.world_results import write_json
from matplotlib.figure import Figure
from PIL import Image

from recipes.file_hashes import files_hash
from showo_hf.commands.errors import UsageError
from showo_hf.training.logs import RunLog
from showo_hf.utils.argument_types import finite_number, positive_integer
from showo_hf.utils.cpu_features import computes_bfloat16


KINDS, BITS = ("lfq", "vq"), (10, 13)
SIZE = 128
EVALUATIONS, VALIDATION_ROWS = 8, 64  # points of a curve, and images of each
#: What all have in common, beside their default recipes.
COMMON: dict[str, Any] = {
    "image_size": SIZE,
    "batch_size": 4,
    "muon": True,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "warmup_stable_decay",
    "ema_decay": 0.998,
    "bf16": torch.cuda.is_available() or computes_bfloat16(),
    "logging_steps": 20,
    "save_steps": 200,
    "report_to": "none",
}
#: A small network without attention, and without residual blocks at full size, where they take the most time.
NETWORK: dict[str, Any] = {
    "mid_block_attention": False,
    "encoder_block_out_channels": [32, 32, 64, 128],
    "decoder_block_out_channels": [32, 32, 64, 128],
    "encoder_layers_per_block": [0, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 2, 2],
    "norm_num_groups": 16,
}
#: The default recipe has the same learning rate.
DISCRIMINATOR: dict[str, Any] = {"channels": 32, "max_channels": 256, "learning_rate": 1e-4}
DISCRIMINATOR_START = 0.4  # of the steps: the generator must draw something first
TRIAL_STEPS = 25  # of the short training that measures their time
SHEET_IMAGES = 8
WARM_UP = 3  # steps that are left out, before and after the discriminator starts


def names() -> list[str]:
    """ "lfq-10", "lfq-10-gan", ..., "vq-13-gan"."""
    return [f"{kind}-{bits}{end}" for kind in KINDS for bits in BITS for end in ("", "-gan")]


def recipe_of(name: str, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """The recipe of a tokenizer."""
    kind, bits, *rest = name.split("-")
    own: dict[str, Any] = {"base": f"{kind}-tokenizer", **COMMON}
    network = dict(NETWORK)
    if kind == "lfq":
        own |= {"codebook_bits": int(bits), "entropy_over": "codes", "entropy_weight": 0.4}
        network["entropy_least_contrast"] = 0.05
    else:
        own |= {"codebook_size": 2 ** int(bits), "codebook_dim": 16}
        none = [False] * len(network["encoder_block_out_channels"])
        network |= {"latent_channels": 128, "encoder_block_attention": none, "decoder_block_attention": none}
    return own | {
        "data": str(data / "train"),
        "output": str(output / name),
        "architecture": network,
        "steps": steps,
        "lr_scheduler_kwargs": {"num_decay_steps": max(1, steps // 3)},
        "discriminator": {**DISCRIMINATOR, "start": start_of(steps)} if rest else None,
    }


def start_of(steps: int) -> int:
    """The step from which on a discriminator takes part."""
    return round(DISCRIMINATOR_START * steps)


def validated(recipe: dict[str, Any], data: Path) -> dict[str, Any]:
    """The recipe, with the validation that gives the curve."""
    held_out = {"validation_data": str(data / "validation"), "validation_rows": VALIDATION_ROWS}
    return recipe | held_out | {"eval_steps": max(1, recipe["steps"] // EVALUATIONS)}


def seconds_of(name: str, data: Path, output: Path) -> list[float]:
    """The seconds of a step before and after the discriminator starts, measured once and kept in a file."""
    file = seconds_file(name, output)
    if not file.exists():
        trial = output / f"{name}-trial"
        shutil.rmtree(trial, ignore_errors=True)
        train(recipe_of(name, data, trial, TRIAL_STEPS) | {"logging_steps": 1})
        rows = RunLog(trial / f"{name}-log.jsonl").read()
        seconds = [row["seconds_per_step"] for row in rows if "seconds_per_step" in row]
        start = start_of(TRIAL_STEPS)
        write_json(file, [statistics.median(part[WARM_UP:]) for part in (seconds[:start], seconds[start:])])
        shutil.rmtree(trial)
    return json.loads(file.read_text(encoding="utf-8"))


def seconds_file(name: str, output: Path) -> Path:
    """The file that keeps what [`seconds_of`] measured."""
    return output / f"{name}-seconds.json"


def steps_of(seconds: list[float], minutes: float) -> int:
    """How many steps take so many minutes, as a multiple of the steps between rows of the log."""
    before, after = seconds
    mean = DISCRIMINATOR_START * before + (1 - DISCRIMINATOR_START) * after
    rows = round(60 * minutes / mean / COMMON["logging_steps"])
    return max(1, rows) * COMMON["logging_steps"]


def train(recipe: dict[str, Any]) -> None:
    """Train in a process of its own, or go on, unless the result is there."""
    output = Path(recipe["output"])
    if (output / "config.json").exists():
        return
    file = output.with_name(f"{output.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "showo_hf.training", str(file)], check=True)


def curve(log: Path, seconds: list[float]) -> tuple[list[float], list[float]]:
    """
    Minutes of training, and the PSNR of the validation images at them.

    The minutes follow from `seconds`, which the short training measured ([`seconds_of`]). So the curves do not bend if a
    machine becomes faster or slower.
    """
    rows = RunLog(log).read()
    start = start_of(rows[-1]["step"])
    points = [(row["step"], row["eval_psnr"]) for row in rows if "eval_psnr" in row]
    before, after = seconds
    minutes = [(before * min(step, start) + after * max(0, step - start)) / 60 for step, _ in points]
    return minutes, [value for _, value in points]


def length(log: Path) -> list[str]:
    """The steps of a training, and the minutes that they took, with validation and checkpoints."""
    minutes, seconds, last, step = 0.0, 0.0, 0, 0
    for row in RunLog(log).read():
        step = row["step"]
        if "seconds_per_step" in row:
            seconds = row["seconds_per_step"]
            minutes += (step - last) * seconds / 60
            last = step
    return [f"{step:,}", f"{minutes + (step - last) * seconds / 60:.1f}"]


def plot(output: Path, done: list[str]) -> Path:
    """Draw all curves into one PNG file."""
    figure = Figure(figsize=(8.8, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = dict(zip([f"{kind}-{bits}" for kind in KINDS for bits in BITS], ("C0", "C1", "C2", "C3"), strict=True))
    for name in done:
        base = base_of(name)
        seconds = json.loads(seconds_file(name, output.parent).read_text(encoding="utf-8"))
        points = curve(output / f"{name}-log.jsonl", seconds)
        axes.plot(*points, "--" if name != base else "-", color=colours[base], label=name)
    axes.set_xlabel("minutes of training, by the steps' time in the short training")
    axes.set_ylabel("PSNR of held-out images, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output / "curves.png")
    return output / "curves.png"


def measure(name: str, output: Path, images: Path, count: int) -> None:
    """
    Write the rows of a trained tokenizer, and its images for the sheet, beside its folder.

    A tokenizer with a discriminator is compared with the one without: its images, made as detailed in two cheap ways.
    """
    paths = dict.fromkeys(str(output / one) for one in (base_of(name), name))
    rows = table(list(paths), images, SIZE, count)
    at = next(at for at, row in enumerate(rows) if row[0] == str(output / name))
    rows = [[row[0].replace(f"{output}/", ""), *row[1:]] for row in rows[at:]]
    originals, tokenizer = load_images(images, SIZE, SHEET_IMAGES), load_tokenizer(str(output / name))
    in_a_row(decoded(tokenizer, encoded(tokenizer, originals))).save(output / f"{name}.png")
    write_json(rows_file(output, name), {**measured_on(images, count), "rows": rows})


def base_of(name: str) -> str:
    """The name of the same tokenizer without a discriminator."""
    return name.removesuffix("-gan")


def measured_on(images: Path, count: int) -> dict[str, Any]:
    """What the rows of all tokenizers must have in common: the number of held-out images, and a hash of all of them."""
    return {"images": count, "held_out": files_hash(images, ("*.png",))}


def rows_file(output: Path, name: str) -> Path:
    """The file with the rows of a tokenizer. A tokenizer that has one is done."""
    return output / f"{name}.json"


def in_a_row(pixels: torch.Tensor) -> Image.Image:
    """Images (images, 3, H, W) in [-1, 1] beside each other."""
    levels = ((torch.cat(list(pixels), dim=2) + 1) * 127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def sheet(output: Path, done: list[str], images: Path) -> Path:
    """Originals, and what each tokenizer makes of them, in rows, at twice their size."""
    rows = [in_a_row(load_images(images, SIZE, SHEET_IMAGES))]
    rows += [Image.open(output / f"{name}.png") for name in done]
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        whole.paste(row, (0, number * rows[0].height))
    whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST).save(output / "sheet.png")
    return output / "sheet.png"


def check(output: Path, wanted: list[str], measured: dict[str, Any]) -> None:
    """
    Check what would otherwise fail after a training.

    Args:
        output: the folder of the results.
        wanted: the tokenizers that are to be trained, in this order.
        measured: what their rows are measured on, see [`measured_on`].

    Raises:
        UsageError: if rows that are there were measured on other images, or if a tokenizer has nothing to compare with.
    """
    for name in names():
        file = rows_file(output, name)
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else measured
        for key, option in (("images", "--count"), ("held_out", "--data")):
            if found[key] != measured[key]:
                raise UsageError(
                    f"argument {option}: must give the held-out images of {file}, which has {key} {found[key]!r}, got "
                    f"{measured[key]!r}"
                )
    for name in wanted:
        base = base_of(name)
        if base not in wanted and not (output / base / "config.json").exists():
            raise UsageError(f"argument --only: {name} is compared with {base}, but {output / base} is not there")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare image tokenizers after trainings of equal length.")
    parser.add_argument("--data", type=Path, required=True, help="a folder with the folders `train` and `validation`")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/tokenizers"), help="folder for tokenizers and results"
    )
    parser.add_argument("--minutes", type=finite_number, default=40.0, help="how long each of them is trained")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="train only these")
    parser.add_argument("--count", type=positive_integer, default=512, help="held-out images of the table")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"argument --minutes: must be above 0, got {options.minutes:g}")
    output = options.output / f"{options.minutes:g}-minutes"
    held_out = options.data / "validation"
    try:
        wanted = [name for name in names() if name in options.only and not rows_file(output, name).exists()]
        check(output, wanted, measured_on(held_out, options.count))
    except (FileNotFoundError, UsageError) as error:
        parser.error(str(error))
    seconds = {name: seconds_of(name, options.data, options.output) for name in wanted}  # all on one machine
    for name in wanted:
        recipe = recipe_of(name, options.data, output, steps_of(seconds[name], options.minutes))
        train(validated(recipe, options.data))
        measure(name, output, held_out, options.count)
    done = [name for name in names() if rows_file(output, name).exists()]
    rows = []
    for name in done:
        first, *others = json.loads(rows_file(output, name).read_text(encoding="utf-8"))["rows"]
        rows += [first + length(output / f"{name}-log.jsonl"), *([*row, "", ""] for row in others)]
    originals = load_images(held_out, SIZE, options.count)
    rows.append(["white images", *quality(torch.ones_like(originals), originals), "", "", "", "", ""])
    print_table([*HEADER, "steps", "minutes"], rows)
    print(f"{plot(output, done)}, {sheet(output, done, held_out)}")


if __name__ == "__main__":
    main()
