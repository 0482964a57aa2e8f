"""What the commands share that make images: their options, the seeds, the files, and the images of the steps."""

from __future__ import annotations

import argparse
import math
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import image_size, number_from_zero, positive_integer, seed_number, share
from .errors import UsageError
from .files import check_output, numbered, replace_file
from .loading import add_loading_options, check_model, choose_device, load_pipeline
from .scheduling import add_scheduler_options, check_scheduler, set_scheduler


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..models.modeling_showo_lfq import ShowoLFQTokenizer


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STEP_SUFFIXES = (".gif", ".png")
BATCH_SIZE = 8  # images made at once; bounds the memory, whatever `--num` is
STRIP_GAP = 2  # white pixels between the images of a strip
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 200, 2000

NOTES = """\
The file names of the finished images go to stdout, one a line; everything else goes to stderr.

examples:
{examples}
exit codes: 0 all images are written, 1 something failed, 2 the command was not understood, 130 interrupted
"""


def drawing_parser(subparsers: Any, name: str, summary: str, more: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command that makes images; its help is the summary, and `more` in `--help`."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}{more}.",
        epilog=NOTES.format(examples=examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has that makes images."""
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help=f"image to write ({', '.join(IMAGE_SUFFIXES)})")
    add("--negative-prompt", metavar="WORDS", help="what to keep away from")
    add("--steps", type=positive_integer, metavar="N", help="steps from nothing to an image (default: the model's)")
    add("--guidance", type=number_from_zero, metavar="G", help="pull of the words; 1 is none (default: the model's)")
    add("--temperature", type=number_from_zero, metavar="T", help="randomness of the order (default: the model's)")
    add("--seed", type=seed_number, metavar="N", help="makes it repeatable (default: a new one, told on stderr)")
    add("--num", type=positive_integer, default=1, metavar="N", help="number of images, from seed on (default: 1)")
    add_scheduler_options(parser)
    add_loading_options(parser)


def add_save_steps(parser: argparse.ArgumentParser) -> None:
    """Add `--save-steps`, for a command whose images have one size from the first step to the last."""
    help_text = "also every step, as a film (.gif) or side by side (.png)"
    parser.add_argument("--save-steps", type=Path, metavar="PATH", help=help_text)


def add_editing_options(parser: argparse.ArgumentParser) -> None:
    """Add the image to begin with, the words, and the size to work at."""
    add = parser.add_argument
    add("image", help="the image to begin with: a file or a URL")
    add("prompt", help="what to show, in English")
    add("--size", type=image_size, metavar="HEIGHT[xWIDTH]", help="to work at, in pixels (default: the model's)")


def add_repainting_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add how much of an image is made anew, and which tokens."""
    add = parser.add_argument
    add("--strength", type=share, metavar="S", help=f"share of the tokens that is made anew (default: {default})")
    add("--remasking", choices=("uncertain", "random"), help="which ones (default: the most uncertain)")


def size_of(options: argparse.Namespace) -> dict[str, int | None]:
    """`--size` as a pipeline's arguments."""
    height, width = options.size or (None, None)
    return {"height": height, "width": width}


def read_image(option: str, name: str) -> Image.Image:
    """An image file or URL. `UsageError` if it cannot be read."""
    from ..processing.images import load_image

    try:
        return load_image(name, option, max_aspect=math.inf)
    except ValueError as error:
        raise UsageError(str(error)) from error


def draw(options: argparse.Namespace, kind: str, arguments_of: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """
    Make the images and print their names. What can be checked without the model is checked before it is loaded.

    Args:
        kind: name of the pipeline's class.
        arguments_of: its arguments beside those of `add_drawing_options`; None where the pipeline's own default is meant.
    """
    check_outputs(options)
    extra = arguments_of(options)
    check_scheduler(options)
    if options.model is not None:
        check_model(options.model)
    device = choose_device(options.device)
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed}", file=sys.stderr)
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet, kind)
    set_scheduler(pipe, options)
    outputs = numbered(options.output, options.num)
    save = getattr(options, "save_steps", None)
    step_outputs = numbered(save, options.num) if save else []
    batch_size = BATCH_SIZE if draws_by_image(pipe) else 1
    for start in range(0, options.num, batch_size):
        batch = slice(start, min(start + batch_size, options.num))
        recorder = StepRecorder() if step_outputs else None
        seeds = range(seed + batch.start, seed + batch.stop)
        images = make_images(pipe, options, seeds, extra, recorder)
        for path, image in zip(outputs[batch], images, strict=True):
            replace_file(path, image.save)
            print(path, flush=True)
        if recorder is not None:
            frames = step_images(pipe.image_tokenizer, recorder.steps, images)
            for path, steps in zip(step_outputs[batch], frames, strict=True):
                replace_file(path, partial(save_steps, steps))
                print(path, flush=True)
    return 0


def check_outputs(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless `--output` and `--save-steps` are two files that can be written."""
    check_output("--output", options.output, IMAGE_SUFFIXES)
    save = getattr(options, "save_steps", None)
    if save is not None:
        check_output("--save-steps", save, STEP_SUFFIXES)
        if save.resolve() == options.output.resolve():
            raise UsageError(f"`--save-steps` must not be the file of `--output`, got '{save}' for both")


def make_images(
    pipe: DiffusionPipeline,
    options: argparse.Namespace,
    seeds: range,
    extra: dict[str, Any],
    recorder: StepRecorder | None,
) -> list[Image.Image]:
    """One image for each seed. What the user left out is left to the pipeline's own defaults."""
    import torch

    wanted = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "temperature": options.temperature,
        "callback_on_step_end": recorder,
        **extra,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    # One generator an image, always on the CPU: each image can be made again alone, with the same draws on any device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    generator = generators if draws_by_image(pipe) else generators[0]
    try:
        return pipe(options.prompt, num_images_per_prompt=len(seeds), generator=generator, **given).images
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def draws_by_image(pipe: DiffusionPipeline) -> bool:
    """Whether the scheduler takes a generator for each image of a batch; diffusers' own take one for all."""
    from ..schedulers.scheduling_utils import DiscreteSchedulerMixin

    return isinstance(pipe.scheduler, DiscreteSchedulerMixin)


class StepRecorder:
    """A pipeline's `callback_on_step_end` that keeps the tokens after every step, (batch, h, w) int64."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        self.steps.append(callback_kwargs["latents"].clone())
        return callback_kwargs


def step_images(
    tokenizer: ShowoLFQTokenizer, steps: list[torch.Tensor], finished: list[Image.Image]
) -> list[list[Image.Image]]:
    """
    The image after every step, grey where its tokens were unknown.

    Args:
        tokenizer: the image tokenizer that made `finished`.
        steps: tokens after each step, (batch, h, w) int64, the codebook's size or more where unknown.
        finished: the finished images, one for each of the batch.

    Returns:
        for each finished image one image a step; the last one is the finished image itself.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    if not steps:  # there was nothing to fill in
        return [[image] for image in finished]
    codebook_size, factor = tokenizer.config.codebook_size, tokenizer.config.downsampling
    # Something must stand in an unknown place when the others are decoded, and it shines through to its neighbours:
    # with the token that will come there, a known place already looks as it will in the end.
    filling = steps[-1].clamp(max=codebook_size - 1)
    films: list[list[Image.Image]] = [[] for _ in finished]
    for tokens in steps[:-1]:
        unknown = tokens >= codebook_size  # (batch, h, w)
        filled = torch.where(unknown, filling, tokens)
        with torch.inference_mode():
            pixels = tokenizer.decode(filled.to(tokenizer.device)).sample.float()  # (batch, 3, H, W) in [-1, 1]
        hidden = unknown[:, None].repeat_interleave(factor, 2).repeat_interleave(factor, 3).to(pixels.device)
        frames = VaeImageProcessor().postprocess(pixels.masked_fill(hidden, 0.0))  # 0 is mid-grey
        for film, frame in zip(films, frames, strict=True):
            film.append(frame)
    return [[*film, image] for film, image in zip(films, finished, strict=True)]


def save_steps(frames: list[Image.Image], path: Path) -> None:
    """Write the images of the steps: .gif is a film that stays on the last one, else they stand side by side."""
    from PIL import Image

    if path.suffix.lower() == ".gif":
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return
    width, height = frames[0].size
    strip = Image.new("RGB", ((width + STRIP_GAP) * len(frames) - STRIP_GAP, height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (width + STRIP_GAP), 0))
    strip.save(path)
