"""What the commands that make images share: options, seeds, output files, and the images after each step."""

from __future__ import annotations

import argparse
import math
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import fraction, image_size, non_negative_number, positive_integer, seed_number
from .errors import UsageError
from .files import check_output, numbered, replace_file
from .model_loading import add_loading_options, check_model, choose_device, load_pipeline
from .scheduler_options import add_scheduler_options, check_scheduler, set_scheduler


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..models.image_tokenizer import ShowoImageTokenizer


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STEP_SUFFIXES = (".gif", ".png")
BATCH_SIZE = 8  # images per pipeline call; limits the memory for a large `--num`
STRIP_GAP = 2  # white pixels between the images of a strip
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 200, 2000

NOTES = """\
The names of the image files are printed to stdout, one per line. Everything else goes to stderr.

examples:
{examples}
exit codes: 0 all images are written, 1 the work failed, 2 the arguments are not valid, 130 interrupted
"""


def generation_parser(
    subparsers: Any, name: str, summary: str, details: str, examples: str
) -> argparse.ArgumentParser:
    """The parser of a command that makes images. The description in `--help` is `summary` followed by `details`."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}{details}.",
        epilog=NOTES.format(examples=examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes images."""
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help=f"image file to write ({', '.join(IMAGE_SUFFIXES)})")
    add("--negative-prompt", metavar="WORDS", help="what the image should not show")
    add("--steps", type=positive_integer, metavar="N", help="number of denoising steps (default: 18)")
    add(
        "--guidance",
        type=non_negative_number,
        metavar="G",
        help="guidance scale; 1 turns it off (default: 2.75)",
    )
    add("--temperature", type=non_negative_number, metavar="T", help="sampling temperature (default: the model's)")
    add("--seed", type=seed_number, metavar="N", help="random seed (default: a new one, printed to stderr)")
    add(
        "--num",
        type=positive_integer,
        default=1,
        metavar="N",
        help="number of images; image i uses seed + i (default: 1)",
    )
    add_scheduler_options(parser)
    add_loading_options(parser)


def add_save_steps(parser: argparse.ArgumentParser) -> None:
    """Add `--save-steps`. Only for commands whose images keep one size during all steps."""
    help_text = "also save every step, as an animation (.gif) or side by side (.png)"
    parser.add_argument("--save-steps", type=Path, metavar="PATH", help=help_text)


def add_editing_options(parser: argparse.ArgumentParser) -> None:
    """Add the input image, the prompt, and the working size."""
    add = parser.add_argument
    add("image", help="the input image: a file or a URL")
    add("prompt", help="what the image should show, in English")
    add("--size", type=image_size, metavar="HEIGHT[xWIDTH]", help="working size in pixels (default: the model's)")


def add_strength_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add how many tokens are generated again, and which ones. `default` describes the default strength."""
    add = parser.add_argument
    add("--strength", type=fraction, metavar="S", help=f"share of the tokens to generate again (default: {default})")
    add("--remasking", choices=("uncertain", "random"), help="which tokens (default: uncertain)")


def size_of(options: argparse.Namespace) -> dict[str, int | None]:
    """`--size` as pipeline arguments."""
    height, width = options.size or (None, None)
    return {"height": height, "width": width}


def read_image(option: str, name: str) -> Image.Image:
    """Read an image file or URL. Raises `UsageError` if it cannot be read."""
    from ..processing.images import load_image

    try:
        return load_image(name, option, max_aspect=math.inf)
    except ValueError as error:
        raise UsageError(str(error)) from error


def generate_images(
    options: argparse.Namespace, kind: str, arguments_of: Callable[[argparse.Namespace], dict[str, Any]]
) -> int:
    """
    Make the images, save them, and print their file names.

    Everything that does not need the model is checked before the model is loaded.

    Args:
        options: the parsed options.
        kind: class name of the pipeline.
        arguments_of: maps the options to the pipeline arguments of one command, in addition to those of
            `add_generation_options`. None stands for the pipeline's own default.
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
        images = call_pipeline(pipe, options, seeds, extra, recorder)
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
    """Raise `UsageError` unless `--output` and `--save-steps` are two different writable files."""
    check_output("--output", options.output, IMAGE_SUFFIXES)
    save = getattr(options, "save_steps", None)
    if save is not None:
        check_output("--save-steps", save, STEP_SUFFIXES)
        if save.resolve() == options.output.resolve():
            raise UsageError(f"`--save-steps` and `--output` must be different files, got '{save}' for both")


def call_pipeline(
    pipe: DiffusionPipeline,
    options: argparse.Namespace,
    seeds: range,
    extra: dict[str, Any],
    recorder: StepRecorder | None,
) -> list[Image.Image]:
    """Make one image for each seed. Options that were not given keep the pipeline's defaults."""
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
    # One CPU generator per image: every image can be made again alone, with the same random numbers on any device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    generator = generators if draws_by_image(pipe) else generators[0]
    try:
        return pipe(options.prompt, num_images_per_prompt=len(seeds), generator=generator, **given).images
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def draws_by_image(pipe: DiffusionPipeline) -> bool:
    """Whether the scheduler takes one generator per image. The schedulers of diffusers take one per batch."""
    from showo_hf.pipelines.scheduler_adapter import is_discrete

    return is_discrete(pipe.scheduler)


class StepRecorder:
    """A `callback_on_step_end` that keeps the tokens after every step, (batch, h, w) int64."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        self.steps.append(callback_kwargs["latents"].clone())
        return callback_kwargs


def step_images(
    tokenizer: ShowoImageTokenizer, steps: list[torch.Tensor], finished: list[Image.Image]
) -> list[list[Image.Image]]:
    """
    The images after every step, mid-grey where tokens are masked.

    Args:
        tokenizer: the image tokenizer that decoded `finished`.
        steps: the tokens after each step, (batch, h, w) int64; masked tokens are the codebook size or larger.
        finished: the finished images of the batch.

    Returns:
        for each image of the batch, one image per step; the last one is the finished image itself.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    if not steps:  # no token was masked
        return [[image] for image in finished]
    codebook_size, factor = tokenizer.config.codebook_size, tokenizer.config.downsampling
    # The decoder needs a token in every cell, and neighbouring cells see it. With the final token in the masked cells,
    # the known cells already look as they do in the finished image.
    final = steps[-1].clamp(max=codebook_size - 1)
    frames_by_image: list[list[Image.Image]] = [[] for _ in finished]
    for tokens in steps[:-1]:
        masked = tokens >= codebook_size  # (batch, h, w)
        completed = torch.where(masked, final, tokens)
        with torch.inference_mode():
            pixels = tokenizer.decode(completed.to(tokenizer.device)).sample.float()  # (batch, 3, H, W) in [-1, 1]
        hidden = masked[:, None].repeat_interleave(factor, 2).repeat_interleave(factor, 3).to(pixels.device)
        frames = VaeImageProcessor().postprocess(pixels.masked_fill(hidden, 0.0))  # 0 is mid-grey
        for frames_of_image, frame in zip(frames_by_image, frames, strict=True):
            frames_of_image.append(frame)
    return [[*frames, image] for frames, image in zip(frames_by_image, finished, strict=True)]


def save_steps(frames: list[Image.Image], path: Path) -> None:
    """Write the images of all steps: .gif as an animation that pauses on the last frame, else side by side."""
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
