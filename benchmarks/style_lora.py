"""
A LoRA that learns a new style, blue ink: its training by the command, its measures and tables.

benchmarks.world_lora_style says which things are drawn, how they are named, and who judges styles.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from benchmarks.ink import draw_ink, through
from benchmarks.measuring import print_table
from benchmarks.pictures import COMPARED_SIZE, generate, nearest, shrink, to_image
from safetensors.torch import load_file, save_file

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline


NEW = "ink"
#: Generated images by a label and the style.
Images = dict[tuple[str, str], torch.Tensor]


class Judge(Protocol):
    """Tells styles."""

    def judge(self, pixels: torch.Tensor) -> list[str]:
        """The style of each image (N, 3, H, W) in [-1, 1]."""


@dataclass
class Things:
    """
    The things of the measure, by name.

    Args:
        trained: the LoRA is trained on their drawings.
        held_out: neither the LoRA nor the judge is trained on their drawings.
        judged: further names that the judge is trained on.
        checked: names that the judge is checked with.
        real: the pixels of each thing's picture in each style, (3, H, W) in [-1, 1].
        words: the word for each style in captions; the old styles first.
        phrases: the words for each thing in captions: "a red apple".
        drawn_from: the old style that the drawings are made from.
    """

    trained: list[str]
    held_out: list[str]
    judged: list[str]
    checked: list[str]
    real: dict[tuple[str, str], torch.Tensor] = field(repr=False)
    words: dict[str, str]
    phrases: dict[str, str] = field(repr=False)
    drawn_from: str

    @property
    def old_styles(self) -> list[str]:
        """The styles that the model knows."""
        return [style for style in self.words if style != NEW]

    def pictures(self, names: list[str], style: str) -> torch.Tensor:
        """The real pictures of things in a style, (N, 3, H, W)."""
        return torch.stack([self.real[name, style] for name in names])

    def prompt(self, name: str, style: str) -> str:
        """The prompt of the measured images: "a red apple, ink style"."""
        return f"{self.phrases[name]}, {self.words[style]} style"


# The training


def write_images(folder: Path, images: torch.Tensor, texts: list[list[str]]):
    """A folder of images (N, 3, H, W) with captions in `metadata.jsonl`, as a user of `showo-hf train lora` has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (pixels, captions) in enumerate(zip(images, texts, strict=True)):
        to_image(pixels).save(folder / f"{number:03}.png")
        lines.append(json.dumps({"file_name": f"{number:03}.png", "text": captions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_own_images(folder: Path, pipe: ShowoT2IPipeline, options: argparse.Namespace, texts: list[list[str]]):
    """
    A folder of the untrained model's own images of its old styles. The first caption of an image is its prompt.

    Mixed into the training, they keep the old styles without old data, as DreamBooth's prior preservation does
    (arXiv:2208.12242).
    """
    prompts = [captions[0] for captions in texts]
    seed = options.seed + 1000  # other noise than the measured images have
    write_images(folder, generate(pipe, prompts, seed, options.batch_size, **own_sampling(pipe, options)), texts)


def own_sampling(pipe: ShowoT2IPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of every call that makes images."""
    steps, guidance = pipe.with_defaults(options.steps, options.guidance)
    return {"num_inference_steps": steps, "guidance_scale": guidance}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def train(
    pipe: ShowoT2IPipeline,
    options: argparse.Namespace,
    drawings: torch.Tensor,
    texts: list[list[str]],
    own_texts: list[list[str]],
) -> Path:
    """
    Train by the command line in a process of its own. Prints the time, in which the model also makes its own images.

    Args:
        pipe: the untrained model.
        options: the options of [`style_parser`].
        drawings: the images of the new style, (N, 3, H, W) in [-1, 1].
        texts: their captions.
        own_texts: the captions of the model's own images; may be empty.
    """
    start, cpu = time.perf_counter(), cpu_seconds()
    new, own, adapter = (options.output / name for name in ("images", "own-images", "adapter"))
    write_images(new, drawings, texts)
    sources = [{"path": str(new)}]
    if own_texts:
        write_own_images(own, pipe, options, own_texts)
        sources.append({"path": str(own), "weight": options.kept_weight})
    command = [sys.executable, "-m", "showo_hf.training", "lora", f"data={json.dumps(sources)}", f"output={adapter}"]
    subprocess.run([*command, f"model={options.model}", *options.training], check=True, stdout=subprocess.DEVNULL)
    minutes, cpu_minutes = (time.perf_counter() - start) / 60, (cpu_seconds() - cpu) / 60
    print(f"training: {minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes, {os.cpu_count()} cores\n")
    return adapter


# The measures


def stored(folder: Path, name: str, options: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A tensor that is made once, and read from `folder` where it was made with the same options."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{name}-{key}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"value": make().contiguous()}, part)
        os.replace(part, file)
    return load_file(file)["value"]


@dataclass
class Measure:
    """Measures images: the judge, and the real pictures that names are compared with."""

    things: Things
    judge: Judge

    def __post_init__(self):
        self.names = [*self.things.trained, *self.things.held_out]
        self.candidates = {
            style: shrink(self.things.pictures(self.names, style), COMPARED_SIZE) for style in self.things.words
        }

    def __call__(self, images: torch.Tensor, names: list[str], style: str) -> tuple[float, float]:
        """The shares of images (N, 3, H, W) in [-1, 1] that have this style, and that show these things."""
        found = nearest(shrink(images, COMPARED_SIZE), self.candidates[style]).tolist()
        right = [self.names[number] == name for number, name in zip(found, names, strict=True)]
        return float(np.mean([one == style for one in self.judge.judge(images)])), float(np.mean(right))


def make_judge(
    things: Things,
    pipe: ShowoT2IPipeline,
    train_on: Callable[[torch.Tensor, list[str]], Judge],
    cache: Path,
    key: object,
) -> tuple[Judge, dict[str, float]]:
    """
    The judge, and its accuracy in each style on things of which `train_on` gets no picture.

    Args:
        things: the things.
        pipe: real pictures go through its image tokenizer.
        train_on: trains a judge on images (N, 3, H, W) and their styles.
        cache: folder for the pictures.
        key: what they depend on besides the things.
    """
    images, styles, checked = [], [], {}
    for style in things.words:
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
    judge = train_on(torch.cat(images), styles)
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
        **{("both", style): mixed for style in things.old_styles},
    }


def draw(pipe: ShowoT2IPipeline, options: argparse.Namespace, things: Things, weights: object) -> Images:
    """
    Generate the images that are measured, with the same noise for all weights.

    Args:
        weights: a name for the pipeline's weights. Images that they have made are read from the folder of the run.
    """
    sampling = own_sampling(pipe, options)
    prompts = {
        key: [things.prompt(name, key[1]) for name in names] for key, names in asked_for(things, options.old).items()
    }
    return {
        (label, style): stored(
            options.output / "made",
            "generated",
            [weights, options.seed, options.batch_size, sampling, texts],
            lambda texts=texts: generate(pipe, texts, options.seed, options.batch_size, **sampling),
        )
        for (label, style), texts in prompts.items()
    }


# The tables and the sheet


def compare(measure: Measure, asked: dict[tuple[str, str], list[str]], before: Images, after: Images):
    """Print the scores of generated images before and after the training."""
    rows, old = [], []
    for (label, style), names in asked.items():
        scores = np.array([measure(images[label, style], names, style) for images in (before, after)])
        if style != NEW:
            old.append(scores)
        name = f"{measure.things.words[style]} style, {label}"
        rows.append([name, len(names), *map(percent, scores.T.flatten())])
    count = sum(len(names) for (_, style), names in asked.items() if style != NEW)
    rows.append(["old styles, mean", count, *map(percent, np.mean(old, 0).T.flatten())])
    print_table(["images", "number", "style right, before", "after", "name right, before", "after"], rows)


def show_copies(measure: Measure, pipe: ShowoT2IPipeline, before: Images):
    """Print the scores of real images and of copies, for the held-out names in the new style."""
    things = measure.things
    wanted, given = (things.pictures(names, NEW) for names in (things.held_out, things.trained))
    copied = given[nearest(shrink(wanted, COMPARED_SIZE), shrink(given, COMPARED_SIZE))]
    flat = before["both", things.drawn_from]
    own = flat[: min(-(-len(flat) // 2), len(things.held_out))]  # the held-out names come first
    copies = {
        "real drawings": wanted,
        "real flat pictures": things.pictures(things.held_out, things.drawn_from),
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
    things = measure.things
    count = min(8, len(things.held_out), -(-len(before["both", things.drawn_from]) // 2))
    new = "held-out names", NEW
    shown = [things.pictures(things.held_out[:count], NEW), before[new], after[new]]
    shown += [images["both", style] for style in things.old_styles for images in (before, after)]
    sheet = torch.cat([torch.cat(list(row[:count]), -1) for row in shown], -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    to_image(sheet).quantize(64).save(file, optimize=True)
    print("Columns of the sheet: " + ", ".join(things.held_out[:count]))
    words = [things.words[style] for style in things.old_styles]
    print("Rows: real drawings; ink before, after; " + "; ".join(f"{word} before, after" for word in words))


# The command


def style_parser(description: str, trained: int, held_out: int, judged: int, checked: int) -> argparse.ArgumentParser:
    """The options of a benchmark of a new style. The numbers are the defaults of how many things there are."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path("lora-style"), help="folder for all that is made")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--adapter", type=Path, help="measure this adapter instead of training one")
    parser.add_argument("--trained", type=int, default=trained, help="number of things that are trained")
    parser.add_argument("--held-out", type=int, default=held_out, help="number of held-out things")
    parser.add_argument("--judged", type=int, default=judged, help="number of further things for training the judge")
    parser.add_argument("--checked", type=int, default=checked, help="number of things that the judge is checked with")
    parser.add_argument("--kept", type=int, default=600, help="number of own images of old styles in the training")
    parser.add_argument("--kept-weight", type=float, default=1.0, help="their share of the rows, relative to new ones")
    parser.add_argument("--old", type=int, default=100, help="number of images of each old style")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the pipeline's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="save a sheet of samples as a PNG")
    parser.add_argument("training", nargs="*", help="options of the training, such as steps=300")
    return parser


def run(
    pipe: ShowoT2IPipeline,
    options: argparse.Namespace,
    things: Things,
    train_on: Callable[[torch.Tensor, list[str]], Judge],
    train_adapter: Callable[[], Path],
    model: str,
):
    """
    Make the judge, draw before and after the training, and print the tables.

    Args:
        pipe: the untrained model. It gets the adapter.
        options: the options of [`style_parser`].
        things: the things.
        train_on: trains a judge of styles, as in [`make_judge`].
        train_adapter: trains the adapter. It is not called if the options name one.
        model: a name for the weights of the model.
    """
    adapter = options.adapter if options.adapter is not None else train_adapter()
    judge, accuracy = make_judge(things, pipe, train_on, options.output / "made", model)
    print_table(
        ["judge of styles, on names whose ink it has not seen", "right"],
        [[things.words[style], percent(share)] for style, share in accuracy.items()],
    )
    measure = Measure(things, judge)
    before = draw(pipe, options, things, [model, "before"])
    pipe.load_lora_weights(adapter)
    checksum = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    after = draw(pipe, options, things, [model, checksum])
    compare(measure, asked_for(things, options.old), before, after)
    show_copies(measure, pipe, before)
    if options.sheet is not None:
        make_sheet(options.sheet, measure, before, after)
