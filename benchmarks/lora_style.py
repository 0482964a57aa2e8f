"""Does a LoRA learn a new style from 100 images? Run from the repository root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.lora_style --data data/emoji --output lora-style

The new style is drawn by program from the flat emoji: blue ink. 100 of them train the embedded model by the command
`showo-hf train lora`. The names of 50 others are held out: the model knows these things in its three styles, and has
never seen them in ink.

- **Style**: a small network judges it, trained on real images of all four styles, but on no held-out name in ink. They
  went through the image tokenizer, as generated images do, so that it cannot judge by blur. Its own accuracy is printed
  on names that it has not seen in any style.
- **Name**: right if the nearest real image among those of all 150 names, in the requested style, shows the requested
  thing. The distance is the mean squared RGB difference at 32x32 pixels.
- **Time**: of making the model's own images and of the training command. Two quiet cores need about half of the CPU
  minutes.

Trained on the new style alone, the model draws the old styles in ink too. So its own images of the old styles are mixed
in (`--kept`), which needs no further data.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from benchmarks.embedded_quality import COMPARED_SIZE, generate, nearest, shrink
from benchmarks.ink import StyleJudge, draw_ink, through, train_judge
from benchmarks.measuring import print_table
from PIL import Image
from safetensors.torch import load_file, save_file

from recipes.emoji.captions import STYLE_ADJECTIVES, with_article
from recipes.emoji.emoji import STYLES, EmojiDataset, load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline


NEW = "ink"
DRAWN_FROM = "twemoji"
STYLE_WORD = {**{style: words[0] for style, words in STYLE_ADJECTIVES.items()}, NEW: "ink"}
#: Generated images by a label and the style.
Images = dict[tuple[str, str], torch.Tensor]
#: Captions of a training image; one is drawn each time. The first is the one of the measured prompts. The last two name
#: the style alone, so that it is learnt apart from the hundred things that it is shown on.
CAPTIONS = (
    "{thing}, {style} style",
    "{thing} in {style} style",
    "{bare}, {style} style",
    "{style} emoji of {thing}",
    "{style} style",
    "emoji in {style} style",
)


@dataclass
class Things:
    """
    The emoji of the measure, by name.

    Args:
        trained: the LoRA is trained on their drawings.
        held_out: neither the LoRA nor the judge is trained on their drawings.
        judged: further names that the judge is trained on.
        checked: names that the judge is checked with.
        real: the pixels of each thing's picture in each style, (3, H, W) in [-1, 1].
    """

    trained: list[str]
    held_out: list[str]
    judged: list[str]
    checked: list[str]
    real: dict[tuple[str, str], torch.Tensor] = field(repr=False)

    def pictures(self, names: list[str], style: str) -> torch.Tensor:
        """The real pictures of things in a style, (N, 3, H, W)."""
        return torch.stack([self.real[name, style] for name in names])


def choose_things(data: EmojiDataset, trained: int, held_out: int, judged: int, checked: int, seed: int = 0) -> Things:
    """Draw the things at random, out of those that the embedded model was trained on in all of its styles."""
    rows: dict[str, dict[str, int]] = {}
    for row, record in enumerate(data.records):
        if record.tone is None and not record.held_out:
            rows.setdefault(record.name, {})[record.style] = row
    known = sorted(name for name, found in rows.items() if len(found) == len(STYLES))
    counts = (trained, held_out, judged, checked)
    if len(known) < sum(counts):
        raise ValueError(f"`data` must have {sum(counts)} emoji that are known in all styles, got {len(known)}.")
    names = random.Random(seed).sample(known, len(known))[: sum(counts)]
    real = {}
    for style in STYLES:
        pixels = to_pixel_values(data.images[[rows[name][style] for name in names]])
        real.update({(name, style): picture for name, picture in zip(names, pixels, strict=True)})
        if style == DRAWN_FROM:
            real.update({(name, NEW): drawn for name, drawn in zip(names, draw_ink(pixels), strict=True)})
    drawn = iter(names)
    return Things(*([next(drawn) for _ in range(count)] for count in counts), real=real)


def prompt(name: str, style: str, form: str = CAPTIONS[0]) -> str:
    """A caption of a thing in a style: "a red apple, ink style"."""
    return form.format(thing=with_article(name), bare=name, style=STYLE_WORD[style])


def to_image(pixels: torch.Tensor) -> Image.Image:
    """The image of pixels (3, H, W) in [-1, 1]."""
    return Image.fromarray(((pixels + 1) * 127.5).round().clamp(0, 255).byte().movedim(0, -1).numpy())


def write_images(folder: Path, names: list[str], styles: list[str], images: torch.Tensor):
    """A folder of images (N, 3, H, W) with `metadata.jsonl`, as a user of `showo-hf train lora` has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, style, pixels) in enumerate(zip(names, styles, images, strict=True)):
        to_image(pixels).save(folder / f"{number:03}.png")
        texts = [prompt(name, style, form) for form in CAPTIONS]
        lines.append(json.dumps({"file_name": f"{number:03}.png", "text": texts}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_own_images(folder: Path, pipe: ShowoT2IPipeline, options: argparse.Namespace, things: Things):
    """
    A folder of the untrained model's own images of its old styles, of names that are not measured.

    Mixed into the training, they keep the old styles without old data, as DreamBooth's prior preservation does
    (arXiv:2208.12242).
    """
    names = (things.judged * options.kept)[: options.kept]
    styles = [STYLES[number % len(STYLES)] for number in range(options.kept)]
    prompts = [prompt(name, style) for name, style in zip(names, styles, strict=True)]
    seed = options.seed + 1000  # other noise than the measured images have
    images = generate(pipe, prompts, seed, options.batch_size, num_inference_steps=options.steps)
    write_images(folder, names, styles, images)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def train(pipe: ShowoT2IPipeline, options: argparse.Namespace, things: Things) -> Path:
    """Train by the command line in a process of its own. Prints the time, in which the model also makes its own images."""
    start, cpu = time.perf_counter(), cpu_seconds()
    new, own, adapter = (options.output / name for name in ("images", "own-images", "adapter"))
    write_images(new, things.trained, [NEW] * len(things.trained), things.pictures(things.trained, NEW))
    sources = [{"path": str(new)}]
    if options.kept:
        write_own_images(own, pipe, options, things)
        sources.append({"path": str(own), "weight": options.kept_weight})
    command = [sys.executable, "-m", "showo_hf.training", "lora", f"data={json.dumps(sources)}", f"output={adapter}"]
    subprocess.run([*command, f"model={options.model}", *options.training], check=True, stdout=subprocess.DEVNULL)
    minutes, cpu_minutes = (time.perf_counter() - start) / 60, (cpu_seconds() - cpu) / 60
    print(f"training: {minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes, {os.cpu_count()} cores\n")
    return adapter


def stored(folder: Path, name: str, options: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A tensor that is made once, and read from `folder` where it was made with the same options."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{name}-{key}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"value": make().contiguous()}, file)
    return load_file(file)["value"]


@dataclass
class Measure:
    """Measures images: the judge, and the real pictures that names are compared with."""

    things: Things
    judge: StyleJudge

    def __post_init__(self):
        names = [*self.things.trained, *self.things.held_out]
        self.candidates = {
            style: shrink(self.things.pictures(names, style), COMPARED_SIZE) for style in (*STYLES, NEW)
        }
        self.names = names

    def __call__(self, images: torch.Tensor, names: list[str], style: str) -> tuple[float, float]:
        """The shares of images (N, 3, H, W) in [-1, 1] that have this style, and that show these things."""
        found = nearest(shrink(images, COMPARED_SIZE), self.candidates[style]).tolist()
        right = [self.names[number] == name for number, name in zip(found, names, strict=True)]
        return float(np.mean([one == style for one in self.judge.judge(images)])), float(np.mean(right))


def make_judge(
    things: Things, pipe: ShowoT2IPipeline, cache: Path, key: object
) -> tuple[StyleJudge, dict[str, float]]:
    """The judge, and its accuracy in each style on things that it has not seen."""
    images, styles, checked = [], [], {}
    for style in (*STYLES, NEW):
        names = [*things.judged, *things.trained, *(things.held_out if style != NEW else [])]
        both = [*names, *things.checked]
        seen = stored(
            cache,
            f"real-{style}",
            [key, both],
            lambda both=both, style=style: through(pipe.image_tokenizer, things.pictures(both, style)),
        )
        images.append(seen[: len(names)])
        styles += [style] * len(names)
        checked[style] = seen[len(names) :]
    judge = train_judge(torch.cat(images), styles)
    return judge, {
        style: float(np.mean([one == style for one in judge.judge(pixels)])) for style, pixels in checked.items()
    }


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def asked_for(things: Things, old: int) -> dict[tuple[str, str], list[str]]:
    """The names of the generated images, by a label and the style. Old styles: held-out and training names alike."""
    half = -(-old // 2)
    mixed = [*things.held_out[:half], *things.trained[: old - half]]
    return {
        ("held-out names", NEW): things.held_out,
        ("training names", NEW): things.trained[: len(things.held_out)],
        **{("both", style): mixed for style in STYLES},
    }


def draw(pipe: ShowoT2IPipeline, options: argparse.Namespace, things: Things, weights: str) -> Images:
    """
    Generate the images that are measured, with the same noise for all weights.

    Args:
        weights: a name for the pipeline's weights. Images that they have made are read from the folder of the run.
    """
    sampling = {"num_inference_steps": options.steps}
    if options.guidance is not None:
        sampling["guidance_scale"] = options.guidance
    return {
        (label, style): stored(
            options.output / "made",
            "generated",
            [str(options.model), weights, options.seed, sampling, names, style],
            lambda names=names, style=style: generate(
                pipe, [prompt(name, style) for name in names], options.seed, options.batch_size, **sampling
            ),
        )
        for (label, style), names in asked_for(things, options.old).items()
    }


def compare(measure: Measure, asked: dict[tuple[str, str], list[str]], before: Images, after: Images):
    """Print the scores of generated images before and after the training."""
    rows, old = [], []
    for (label, style), names in asked.items():
        scores = np.array([measure(images[label, style], names, style) for images in (before, after)])
        if style != NEW:
            old.append(scores)
        rows.append([f"{STYLE_WORD[style]} style, {label}", len(names), *map(percent, scores.T.flatten())])
    count = sum(len(names) for (_, style), names in asked.items() if style != NEW)
    rows.append(["old styles, mean", count, *map(percent, np.mean(old, 0).T.flatten())])
    print_table(["images", "number", "style right, before", "after", "name right, before", "after"], rows)


def show_copies(measure: Measure, pipe: ShowoT2IPipeline, before: Images):
    """Print the scores of real images and of copies, for the held-out names in the new style."""
    things = measure.things
    wanted, given = (things.pictures(names, NEW) for names in (things.held_out, things.trained))
    copied = given[nearest(shrink(wanted, COMPARED_SIZE), shrink(given, COMPARED_SIZE))]
    flat = before["both", DRAWN_FROM]
    own = flat[: min(-(-len(flat) // 2), len(things.held_out))]  # the held-out names come first
    copies = {
        "real drawings": wanted,
        "real flat pictures": things.pictures(things.held_out, DRAWN_FROM),
        "the training drawing nearest to the real one": copied,
        "the untrained model's flat pictures, redrawn in ink by the program": draw_ink(own),
    }
    rows = []
    for name, pixels in copies.items():
        scores = measure(through(pipe.image_tokenizer, pixels), things.held_out[: len(pixels)], NEW)
        rows.append([name, len(pixels), *map(percent, scores)])
    print_table(["copies, through the image tokenizer", "number", "judged as ink", "name right"], rows)


def make_sheet(file: Path, measure: Measure, before: Images, after: Images):
    """Save a PNG: the real drawings, before and after in the new style, before and after in each old style."""
    count = min(8, -(-len(before["both", DRAWN_FROM]) // 2))
    new = "held-out names", NEW
    shown = [measure.things.pictures(measure.things.held_out[:count], NEW), before[new], after[new]]
    shown += [images["both", style] for style in STYLES for images in (before, after)]
    sheet = torch.cat([torch.cat(list(row[:count]), -1) for row in shown], -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    to_image(sheet).quantize(64).save(file, optimize=True)
    print("Columns of the sheet: " + ", ".join(measure.things.held_out[:count]))
    print("Rows: real drawings; ink before, after; " + "; ".join(f"{STYLE_WORD[one]} before, after" for one in STYLES))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--output", type=Path, default=Path("lora-style"), help="folder for all that is made")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--adapter", type=Path, help="measure this adapter instead of training one")
    parser.add_argument("--trained", type=int, default=100, help="number of training images")
    parser.add_argument("--held-out", type=int, default=50, help="number of held-out names")
    parser.add_argument("--judged", type=int, default=350, help="number of further names that the judge is trained on")
    parser.add_argument("--checked", type=int, default=150, help="number of names that the judge is checked with")
    parser.add_argument("--kept", type=int, default=100, help="number of own images of old styles in the training")
    parser.add_argument("--kept-weight", type=float, default=1.0, help="their share of the rows, relative to new ones")
    parser.add_argument("--old", type=int, default=100, help="number of images of each old style")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="save a sheet of samples as a PNG")
    parser.add_argument("training", nargs="*", help="options of the training, such as steps=300")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None):
    options = parse(arguments)
    counts = (options.trained, options.held_out, options.judged, options.checked)
    things = choose_things(load_emoji(options.data), *counts, seed=options.seed)
    pipe = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    adapter = options.adapter if options.adapter is not None else train(pipe, options, things)
    judge, accuracy = make_judge(things, pipe, options.output / "made", str(options.model))
    print_table(
        ["judge of styles, on names it has not seen", "right"],
        [[STYLE_WORD[style], percent(share)] for style, share in accuracy.items()],
    )
    measure = Measure(things, judge)
    before = draw(pipe, options, things, "before")
    pipe.load_lora_weights(adapter)
    checksum = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    after = draw(pipe, options, things, checksum)
    compare(measure, asked_for(things, options.old), before, after)
    show_copies(measure, pipe, before)
    if options.sheet is not None:
        make_sheet(options.sheet, measure, before, after)


if __name__ == "__main__":
    main()
