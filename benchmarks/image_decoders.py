"""Do diffusion decoders make images sharper, and are the details right? Prints two tables. Run from the repository root:

    python -m benchmarks.image_decoders --model checkpoints/world-image-tokenizer --decoder checkpoints/world-image-decoder

The images are scenes of the small world that no training has. Those of the first table hold out one combination, such as
two things beside each other, so most of their things were seen alone. Those of the second hold one thing that no training
has in its style, so none of their pixels was seen. They are encoded to tokens, and decoded in several ways.
image_tokenizer_quality.py defines `detail`, `capped`, `PSNR` and `band error`. An unsharp mask and added noise of the same
mean detail stand beside each decoder: detail in the wrong place costs more in the fine band than it gains. `to plain` is the
PSNR minus the plain decoder's, which is the image tokenizer's own; the target is -0.8 dB or more. `right` is the share
of the images in which the judge of benchmarks.world, which was trained on real scenes, finds all things in their colours and
their style on the right background, and nothing else. It is measured with `--detector`. `tokens back` is the share of the
tokens of the original that the image has when it is encoded again.

Times are medians of 7. The size in the wheel is the weights' size in a zip file.
"""

import argparse
import io
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from benchmarks.image_tokenizer_quality import (
    as_detailed,
    band_error,
    detail_ratios,
    encoded,
    noisy,
    tokens_back,
    unsharp,
)
from benchmarks.measuring import print_table
from benchmarks.pictures import generators, to_image
from benchmarks.world_detector import Detector, load_detector
from benchmarks.world_judging import Wish, faults, look
from benchmarks.world_sheets import LINE, font
from benchmarks.world_workbench import OBJECTS, checked_file
from PIL import Image, ImageDraw

from recipes.file_hashes import files_hash
from recipes.image_tokens import as_in_a_file, to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import load_objects
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene
from showo_hf import ShowoDiffusionDecoder
from showo_hf.commands.errors import UsageError
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.training.diffusion_decoder import load_tokenizer
from showo_hf.utils.argument_types import positive_integer
from showo_hf.utils.metrics import psnr


CHANGES = {"unsharp mask": unsharp, "noise": noisy}
#: Images of a style in each contact sheet, and how much they are enlarged.
SHEETS = {"true-size": (9, 1), "enlarged": (3, 3)}


def right_scenes(judge: Detector, images: torch.Tensor, scenes: list[Scene]) -> float:
    """The share of images (images, 3, 96, 96) with the things, colours, style and background of their scenes."""
    right = [not faults(Wish(scene), seen) for scene, seen in zip(scenes, look(judge, images), strict=True)]
    return sum(right) / len(right)


# Decoding


@torch.no_grad()
def decode_all(
    decoder: ShowoDiffusionDecoder, codes: torch.Tensor, plain: torch.Tensor, steps: int, batch_size: int = 27
) -> torch.Tensor:
    """The diffusion decoder's images, (images, 3, H, W). Image i has its own generator with seed i."""
    images = []
    for first in range(0, len(codes), batch_size):
        part = slice(first, first + batch_size)
        seeds = generators(first, len(codes[part]))
        images.append(decoder.decode(codes[part], plain[part], steps, seeds).sample)
    return torch.cat(images)


def seconds_for_one(function: Callable[[], object], repeats: int = 7) -> float:
    """The median of several times, after a warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


@torch.no_grad()
def print_times(
    tokenizer: ShowoImageTokenizer,
    decoders: dict[Path, ShowoDiffusionDecoder],
    tokens: torch.Tensor,
    steps: list[int] | None,
):
    """
    Print how long the plain decoding of an image takes, and the size of each diffusion decoder and how long it takes.

    Args:
        decoders: by their folders.
        tokens: the tokens of the image, (1, h, w).
        steps: numbers of steps; by default each decoder's own.
    """

    def plain() -> torch.Tensor:
        return tokenizer.decode(tokens).sample.clamp(-1, 1)

    print(f"plain decoder: one image, {torch.get_num_threads()} thread(s): {seconds_for_one(plain):.3f} s")
    for folder, decoder in decoders.items():
        weights = sum(weight.numel() for weight in decoder.parameters())
        file, zipped = sizes(folder)
        print(f"{folder}: {weights:,} weights, file {file / 1e6:.1f} MB, in the wheel {zipped / 1e6:.1f} MB")
        for number in steps_of(decoder, steps):
            took = seconds_for_one(
                lambda decoder=decoder, number=number: decoder.decode(tokenizer.codes_of(tokens), plain(), number)
            )
            print(f"{folder}: one image, the plain decoding and {number} steps: {took:.3f} s")


def make_sheets(folder: Path, ways: dict[str, torch.Tensor], styles: np.ndarray):
    """
    Save `true-size.png`, the first images of each style, and `enlarged.png`, fewer of them.

    Args:
        ways: images by how they were made; each style has a row of each, with both names above.
        styles: the style of each image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (count, scale) in SHEETS.items():
        rows = {
            f"{style}: {way}": [to_image(images[at], scale) for at in np.flatnonzero(styles == style)[:count]]
            for style in sorted(set(styles))
            for way, images in ways.items()
        }
        with_captions(rows).save(folder / f"{name}.png")


def with_captions(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of images of one size, each with its caption above."""
    letters = font()
    (width, height), count = next(iter(rows.values()))[0].size, max(map(len, rows.values()))
    whole = Image.new("RGB", (count * width, len(rows) * (height + LINE)), "white")
    pen = ImageDraw.Draw(whole)
    for number, (caption, images) in enumerate(rows.items()):
        top = number * (height + LINE)
        pen.text((1, top), caption, fill="black", font=letters)
        for column, image in enumerate(images):
            whole.paste(image, (column * width, top + LINE))
    return whole


def decoded(
    tokenizer: ShowoImageTokenizer,
    decoders: dict[Path, ShowoDiffusionDecoder],
    originals: torch.Tensor,
    steps: list[int] | None,
) -> dict[str, torch.Tensor]:
    """
    The original images, what the tokenizer's own decoder makes of their tokens, and the images of each diffusion decoder.

    Args:
        decoders: by their folders.
        steps: numbers of steps; by default each decoder's own.
    """
    tokens = encoded(tokenizer, originals)
    with torch.no_grad():
        plain = torch.cat([tokenizer.decode(part).sample for part in tokens.split(32)]).clamp(-1, 1)
        codes = tokenizer.codes_of(tokens)
    ways = {"original": originals, "plain decoder": as_in_a_file(plain)}
    for name, decoder in zip(names(list(decoders)), decoders.values(), strict=True):
        for number in steps_of(decoder, steps):
            ways[f"{name}, {number} steps"] = as_in_a_file(decode_all(decoder, codes, plain, number))
    return ways


def names(folders: list[Path]) -> list[str]:
    """What decoders are called in tables: by the last part of each folder, or by its path if some last parts are equal."""
    if len(folders) == 1:
        return ["diffusion decoder"]
    short = [folder.name for folder in folders]
    told = short if len(set(short)) == len(short) else folders
    return [f"diffusion decoder {name}" for name in told]


def steps_of(decoder: ShowoDiffusionDecoder, steps: list[int] | None) -> list[int]:
    """The numbers of steps that are measured: those given, or the decoder's own."""
    return steps or [decoder.config.num_inference_steps]


def with_baselines(ways: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, and the plain decoder's images sharpened and with noise, as detailed as each way that is more so."""
    originals, plain = ways["original"], ways["plain decoder"]
    changed = {}
    for name in list(ways)[2:]:
        wanted = detail_ratios(ways[name], originals).mean().item()
        if wanted > detail_ratios(plain, originals).mean():
            for change, apply in CHANGES.items():
                changed[f"{change} as {name}"] = as_detailed(apply, plain, originals, wanted)
    return {**ways, **changed}


def quality_row(images: torch.Tensor, originals: torch.Tensor, plain: torch.Tensor, styles: np.ndarray) -> list[str]:
    """Detail of all images and of each style, then the other measures. Images that are flat have no detail to compare."""
    ratios = detail_ratios(images, originals)
    quality, before = (psnr(one, originals).mean().item() for one in (images, plain))
    of_styles = [torch.from_numpy(styles == style) for style in sorted(set(styles))]
    return [
        f"{ratios.mean():.2f}",
        *(f"{detail_ratios(images[chosen], originals[chosen]).mean():.2f}" for chosen in of_styles),
        f"{ratios.clamp(max=1).mean():.2f}",
        f"{quality:.2f} dB",
        f"{quality - before:+.2f} dB",
        f"{band_error(images, originals):.3f}",
    ]


def table(
    shown: dict[str, torch.Tensor],
    scenes: list[Scene],
    styles: np.ndarray,
    judge: Detector | None,
    tokenizer: ShowoImageTokenizer,
) -> list[list[str]]:
    """The rows of the table: the measures of each way to decode, and of the plain decoder's images made as detailed."""
    rows = []
    originals, plain = shown["original"], shown["plain decoder"]
    tokens = encoded(tokenizer, originals)
    for name, images in with_baselines(shown).items():
        right = f"{100 * right_scenes(judge, images, scenes):.1f}%" if judge else "not measured"
        back = tokens_back(tokenizer, images, tokens)
        rows.append([name, *quality_row(images, originals, plain, styles), back, right])
    return rows


def sizes(folder: Path) -> tuple[int, int]:
    """The bytes of the weights in a folder, and what they take in a wheel, which is a zip file."""
    with zipfile.ZipFile(io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in folder.glob("*.safetensors"):
            wheel.write(file)
        parts = wheel.infolist()
    return sum(part.file_size for part in parts), sum(part.compress_size for part in parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure diffusion decoders on scenes of the small world.")
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--decoder", type=Path, required=True, nargs="+", help="folders of a ShowoDiffusionDecoder")
    parser.add_argument("--model", default="embedded", help="an image tokenizer, or a model or pipeline that has one")
    parser.add_argument(
        "--steps", type=positive_integer, nargs="+", help="numbers of steps; by default each decoder's"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="unseen combinations")
    parser.add_argument("--images", type=positive_integer, default=400, help="number of scenes of each table")
    parser.add_argument("--detector", help="file of the judge that benchmarks.world trained")
    parser.add_argument("--sheets", type=Path, help="folder for the contact sheets")
    options = parser.parse_args(arguments)

    objects = load_objects(options.objects)
    judge_file = options.detector and Path(options.detector)
    try:
        judge_file = judge_file and checked_file(judge_file, {"objects": files_hash(options.objects, OBJECTS)})
    except UsageError as error:
        parser.error(str(error))
    tokenizer = load_tokenizer(options.model)
    decoders = {
        folder: ShowoDiffusionDecoder.from_pretrained(folder, dtype=torch.float32).eval() for folder in options.decoder
    }
    judge = load_detector(judge_file) if judge_file else None
    for kind, what, folder in (
        (None, "one combination is unseen", ""),
        ("single", "one thing, unseen in its style", "unseen-things"),
    ):
        maker = SceneMaker(objects, random.Random(f"decoders {options.split}"))
        scenes = [maker.scene(options.split, kind) for _ in range(options.images)]
        styles = np.array([scene.style for scene in scenes])
        originals = to_pixel_values(np.stack([draw(scene, objects) for scene in scenes]))
        shown = decoded(tokenizer, decoders, originals, options.steps)
        print(f"{len(scenes)} scenes of the {options.split} split: {what}\n")
        header = [
            "",
            "detail",
            *sorted(set(styles)),
            "capped",
            "PSNR",
            "to plain",
            "band error",
            "tokens back",
            "right",
        ]
        print_table(header, table(shown, scenes, styles, judge, tokenizer))
        print()
        if options.sheets is not None:
            make_sheets(options.sheets / folder, shown, styles)

    print_times(tokenizer, decoders, tokenizer.encode(originals[:1]).image_tokens, options.steps)


if __name__ == "__main__":
    main()
