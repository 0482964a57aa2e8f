"""Contact sheets of what a model of the small world draws, none of it chosen. Run from the repository root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world_sheets --output sheets --samples docs/images/samples.png

The folder has a file `sheet-KIND.jpg` for each of the six kinds of benchmarks.world, with the first 64 prompts of a split
and the prompt below each image, and `real.jpg`, real scenes of all kinds. `--samples` is a PNG file without words: captions
of any kind, worded as in the training. They are printed as a Markdown list, row by row.
"""

import argparse
import io
import random
from pathlib import Path

import torch
from benchmarks.pictures import generate, to_image
from benchmarks.world_prompts import KINDS, Prompt, prompts_by_turns
from benchmarks.world_workbench import Workbench, add_workbench_options, real_pixels
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont

from recipes.world.captions import caption
from recipes.world.scene_maker import SceneMaker
from showo_hf import EMBEDDED_MODEL
from showo_hf.utils.argument_types import positive_integer, scale_number


COLUMNS = 8
SCALE = 2  # of the images with captions
SHEET_BYTES = 300_000  # of the file of a sheet, at most
LETTERS, LINE = 11, 13  # size of letters and distance of lines, in pixels
GAP = 8  # pixels between images


def font() -> ImageFont.FreeTypeFont:
    """The font of the captions, which comes with matplotlib."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS)


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, if no word is longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and letters.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def sheet(images: list[Image.Image], texts: list[str], columns: int = COLUMNS) -> Image.Image:
    """Images of one size in rows, each with its text below."""
    width, height = images[0].size
    letters = font()
    captions = [wrapped(text, letters, width) for text in texts]
    below = LINE * max(map(len, captions))
    rows = -(-len(images) // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + below + GAP) + GAP)
    whole = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(whole)
    for number, (image, lines) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + below + GAP)
        whole.paste(image, (left, top))
        pen.rectangle((left - 1, top - 1, left + width, top + height), outline="lightgrey")
        for line, text in enumerate(lines):
            pen.text((left, top + height + line * LINE), text, fill="black", font=letters)
    return whole


def jpeg(image: Image.Image, most: int = SHEET_BYTES) -> bytes:
    """An image as a JPEG file of at most `most` bytes, in the best quality that allows it, or in the lowest."""
    for quality in range(90, 30, -5):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality, optimize=True)
        if content.tell() <= most:
            break
    return content.getvalue()


def save_sheet(file: Path, prompts: list[Prompt], pixels: torch.Tensor) -> None:
    """Write a contact sheet of images (prompts, 3, H, W) in [-1, 1] with their prompts."""
    images = [to_image(one) for one in pixels]
    # Smooth, because a JPEG file of enlarged pixels with hard edges is larger.
    large = [one.resize((SCALE * one.width, SCALE * one.height), Image.Resampling.BICUBIC) for one in images]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(sheet(large, [prompt.text for prompt in prompts])))
    print(file, flush=True)


def make_sheets(bench: Workbench, options: argparse.Namespace) -> None:
    """Write the sheets of the kinds that were asked for, and the one of real scenes."""
    for kind in options.kinds:
        prompts = bench.prompts(options.split, kind)
        save_sheet(
            options.output / f"sheet-{kind}.jpg", prompts, generated(bench, [prompt.text for prompt in prompts])
        )
    prompts = prompts_by_turns(bench.objects, options.split, options.count, options.seed)
    save_sheet(options.output / "real.jpg", prompts, real_pixels(prompts, bench.objects))


def make_samples(bench: Workbench, file: Path, options: argparse.Namespace) -> None:
    """Write images of random captions in a grid without words, and print the captions of each row."""
    maker = SceneMaker(bench.objects, random.Random(f"samples {options.seed}"))
    texts = [caption(maker.scene(options.split), maker.rng) for _ in range(options.count)]
    texts = texts[: len(texts) // COLUMNS * COLUMNS] or texts  # whole rows
    columns = min(COLUMNS, len(texts))
    images = [to_image(pixels) for pixels in generated(bench, texts)]
    file.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(images, len(texts) // columns, columns).save(file, optimize=True)
    print(file)
    for row, first in enumerate(range(0, len(texts), columns), start=1):
        print(f"{row}. {' | '.join(texts[first : first + columns])}")


def generated(bench: Workbench, texts: list[str]) -> torch.Tensor:
    """The model's images for prompts, (prompts, 3, H, W) in [-1, 1]."""
    options = bench.options
    sampling = bench.sampling(options.steps, options.guidance)
    return generate(bench.pipe, texts, options.seed, options.batch_size, **sampling)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw contact sheets of a model of the small world.")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder (default: the embedded model)")
    parser.add_argument("--output", type=Path, default=Path("sheets"), help="folder for the sheets")
    parser.add_argument("--samples", type=Path, help="also write this PNG file without words")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="sheets of these kinds")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="validation", help="combinations")
    parser.add_argument("--steps", type=positive_integer, help="inference steps; the pipeline's default without it")
    parser.add_argument("--guidance", type=scale_number, help="guidance scale; the pipeline's default without it")
    add_workbench_options(parser, count=COLUMNS**2, counted="images in a sheet")
    options = parser.parse_args(arguments)
    bench = Workbench(options, options.output)
    make_sheets(bench, options)
    if options.samples is not None:
        make_samples(bench, options.samples, options)


if __name__ == "__main__":
    main()
