"""What the commands that make images share: options, checks, seeds and output files."""

from __future__ import annotations

import argparse
import math
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import (
    fraction,
    image_size,
    integer,
    quoted,
    scale_number,
    seed_number,
    user_name,
    user_path,
)
from ..utils.messages import for_stdout
from .errors import UsageError
from .files import check_numbered, numbered, replace_file
from .image_files import add_max_pixels, is_url, problem_of
from .image_steps import StepRecorder, save_steps, step_images
from .model_loading import add_loading_options, choose_device, load_package, load_pipeline
from .saved_model import read_saved_model
from .scheduler_options import add_scheduler_options, check_model_and_scheduler, check_scheduler_values, set_scheduler
from .texts import check_characters, check_text, exists, with_option_names
from .time_limit import TimeLimit, add_time_limit


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
WEBP_SIDE = 16_383  # pixels; the format has no larger images
STEP_SUFFIXES = (".gif", ".png")
BATCH_SIZE = 8  # images per pipeline call; limits the memory for a large `--num`
MOST_STEPS, MOST_IMAGES, MOST_PIXELS = 10_000, 100_000, 2**26
MOST_DECODER_STEPS = 1000  # as many as a diffusion decoder's noise levels
TILED_PIXELS = 2**22  # larger images are decoded in tiles, because the memory of a decoder grows with the image

NOTES = """\
The names of the image files are printed to stdout, one per line. Everything else goes to stderr.

examples:
{examples}
exit codes: 0 all images are written, 1 the work failed, 2 the arguments are not valid, 130 interrupted
"""


def generation_parser(
    subparsers: Any, name: str, summary: str, details: str, examples: str, notes: str = NOTES
) -> argparse.ArgumentParser:
    """The parser of a command that makes images. The description in `--help` is `summary` followed by `details`."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}{details}.",
        epilog=notes.replace("{examples}", examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_generation_options(
    parser: argparse.ArgumentParser, output: str = f"image file to write ({', '.join(IMAGE_SUFFIXES)})"
) -> None:
    """Add the options of every command that makes images. `output` is the help of `--output`."""
    add = parser.add_argument
    add("-o", "--output", type=user_path, required=True, help=output)
    add("--negative-prompt", metavar="WORDS", help="what the image should not show")
    add("--steps", type=integer(1, MOST_STEPS), metavar="N", help="number of denoising steps (default: {steps})")
    add("--guidance", type=scale_number, metavar="G", help="guidance scale; 1 turns it off (default: {guidance})")
    add("--temperature", type=scale_number, metavar="T", help="sampling temperature (default: {temperature})")
    add_decoder_steps(parser)
    add(
        "--seed",
        type=seed_number,
        metavar="N",
        help="random seed; repeats with one number of CPU threads (default: a new one, printed to stderr)",
    )
    add(
        "--num",
        type=integer(1, MOST_IMAGES),
        default=1,
        metavar="N",
        help="number of images; image i uses seed + i (default: 1)",
    )
    add_scheduler_options(parser)
    add_time_limit(parser)
    add_loading_options(parser)


def add_decoder_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder-steps",
        type=integer(0, MOST_DECODER_STEPS),
        metavar="N",
        help="steps of the model's diffusion decoder, if it has one; 0 turns it off (default: the decoder's)",
    )


def add_save_steps(parser: argparse.ArgumentParser) -> None:
    """Add `--save-steps`. Only for commands whose images keep one size during all steps."""
    help_text = "also save every step, as an animation (.gif) or side by side (.png)"
    parser.add_argument("--save-steps", type=user_path, metavar="PATH", help=help_text)


def add_size(parser: argparse.ArgumentParser, what: str = "in pixels") -> None:
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="HEIGHT[xWIDTH]",
        help=f"{what}, a multiple of {{patch}} (default: {{size}})",
    )


def add_editing_options(parser: argparse.ArgumentParser) -> None:
    """Add the input image, the prompt, and the working size."""
    add = parser.add_argument
    add("image", type=user_name, help="the input image: a file or a URL")
    add("prompt", help="what the image should show, in English")
    add_size(parser, "working size in pixels")
    add_max_pixels(parser)


def add_strength_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add how many tokens are generated again, and which ones. `default` describes the default strength."""
    add = parser.add_argument
    add("--strength", type=fraction, metavar="S", help=f"share of the tokens to generate again (default: {default})")
    add("--remasking", choices=("uncertain", "random"), help="which tokens (default: uncertain)")


def size_of(options: argparse.Namespace) -> dict[str, int | None]:
    """`--size` as pipeline arguments."""
    height, width = options.size or (None, None)
    return {"height": height, "width": width}


def read_image(option: str, name: str, max_pixels: int) -> Image.Image:
    """Read an image file or URL. Raises `UsageError` if it cannot be read."""
    from ..processing.images import load_image

    try:
        return load_image(name, option, max_aspect=math.inf, max_pixels=max_pixels)
    except ValueError as error:
        raise unreadable(option, name, error.__cause__ or error) from error


def unreadable(option: str, name: str, error: BaseException) -> UsageError:
    return UsageError(f"`{option}` cannot be read: {quoted(name)} ({problem_of(error)})")


# Checks, of what needs no model


def check_request(options: argparse.Namespace) -> None:
    """Raise `UsageError` for what can be known to be wrong without torch."""
    check_text("prompt", options.prompt)
    for name, option in (("image", "IMAGE"), ("mask", "--mask")):
        if getattr(options, name, None) is not None:
            image_file_size(option, getattr(options, name), options.max_pixels)
    check_settings(options)


def image_file_size(option: str, name: str, max_pixels: int) -> tuple[int, int] | None:
    """The (width, height) of an image file; None for a URL. Raises `UsageError` if it cannot be read. Needs no torch."""
    if is_url(name):
        return None
    if not exists(Path(name)):
        raise UsageError(f"`{option}` must be an image file or a URL, but there is no file {quoted(name)}")
    from ..processing.image_reader import read_image_file

    try:
        return read_image_file(name, max_pixels).size
    except Exception as error:  # Pillow's plugins raise many types
        raise unreadable(option, name, error) from error


def check_settings(options: argparse.Namespace) -> None:
    """Raise `UsageError` for settings of the images, the scheduler or the model that cannot be right."""
    check_characters("--negative-prompt", options.negative_prompt or "")
    if options.seed is not None and options.seed + options.num > 2**63:
        raise UsageError(f"`--seed` and `--num` must stay below 2**63 together, got {options.seed} and {options.num}")
    check_model_and_scheduler(options)
    check_decoder_steps(options)
    if options.size is not None:
        check_size(options.size, options.model)


def check_decoder_steps(options: argparse.Namespace, pipe: DiffusionPipeline | None = None) -> None:
    """
    Raise `UsageError` for `--decoder-steps` of a model without a diffusion decoder.

    Its files tell, or, for a model of the Hub that is not downloaded yet, the loaded pipeline.
    """
    has_decoder = read_saved_model(options.model).has_image_decoder if pipe is None else pipe.image_decoder is not None
    if options.decoder_steps and has_decoder is False:
        raise UsageError(
            f"`--decoder-steps` must be 0 for a model without a diffusion decoder, got {options.decoder_steps}"
        )


def check_size(size: tuple[int, int], model: str | None) -> None:
    """
    Raise `UsageError` unless a `--size`, (height, width), is one that the model makes, as far as its files tell.

    The sides must be multiples of its patch, and an image must not take far more tokens than in training.
    """
    height, width = size
    saved = read_saved_model(model)
    most = min(MOST_PIXELS, saved.most_pixels or MOST_PIXELS)
    if height * width > most:
        raise UsageError(f"`--size` must be at most {most:,} pixels in all, got {height}x{width}")
    if saved.patch is not None and (height % saved.patch or width % saved.patch):
        raise UsageError(f"`--size` must be multiples of {saved.patch} pixels for this model, got {height}x{width}")


def check_outputs(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless `--output` and `--save-steps` are different writable files, also with their numbers."""
    check_numbered("--output", options.output, options.num, IMAGE_SUFFIXES)
    size = getattr(options, "size", None)
    if size and options.output.suffix.lower() == ".webp" and max(size) > WEBP_SIDE:
        raise UsageError(
            f"`--size` must be at most {WEBP_SIDE} pixels a side for a .webp file, got {size[0]}x{size[1]}"
        )
    save = getattr(options, "save_steps", None)
    if save is not None:
        check_numbered("--save-steps", save, options.num, STEP_SUFFIXES)
        if save.resolve() == options.output.resolve():
            raise UsageError(f"`--save-steps` and `--output` must be different files, got {quoted(save)} for both")


# The work


def generate_images(
    options: argparse.Namespace,
    kind: str,
    arguments_of: Callable[[argparse.Namespace], dict[str, Any]],
    check: Callable[[argparse.Namespace], None] | None = None,
) -> int:
    """
    Make the images, save them, and print their file names.

    Everything that does not need the model is checked before the model is loaded, and everything that does not need
    torch before torch is imported.

    Args:
        options: the parsed options.
        kind: class name of the pipeline.
        arguments_of: maps the options to the pipeline arguments of one command, in addition to those of
            `add_generation_options`. None stands for the pipeline's own default.
        check: raises `UsageError` for options of one command that are wrong, without torch.
    """
    check_outputs(options)
    check_request(options)
    if check is not None:
        check(options)
    device = choose_device(options.device, options.dtype, options.quiet)
    load_package(options.quiet)
    check_scheduler_values(options)
    extra = arguments_of(options)
    pipe = ready_pipeline(options, device, kind)
    seed = drawn_seed(options)
    outputs = numbered(options.output, options.num)
    save = getattr(options, "save_steps", None)
    step_outputs = numbered(save, options.num) if save else []
    batch_size = BATCH_SIZE if draws_by_image(pipe) else 1
    limit = TimeLimit(options.yes, math.ceil(options.num / batch_size))
    for start in range(0, options.num, batch_size):
        batch = slice(start, min(start + batch_size, options.num))
        recorder = StepRecorder() if step_outputs else None
        seeds = range(seed + batch.start, seed + batch.stop)
        arguments = {**pipeline_arguments(options), **extra, "num_images_per_prompt": len(seeds)}
        images = call_pipeline(pipe, options.prompt, seeds, arguments, limit.before(recorder))
        if not start:  # what the pipeline refuses has no seed
            tell_seed(options, seed)
        for path, image in zip(outputs[batch], images, strict=True):
            replace_file(path, image.save)
            print(for_stdout(str(path)), flush=True)
        if recorder is not None:
            frames = step_images(pipe.image_tokenizer, recorder.steps, images)
            for path, steps in zip(step_outputs[batch], frames, strict=True):
                replace_file(path, partial(save_steps, steps))
                print(for_stdout(str(path)), flush=True)
    return 0


def ready_pipeline(options: argparse.Namespace, device: str, kind: str) -> DiffusionPipeline:
    """Load the pipeline with the scheduler of the options. Raises `UsageError` if it does not make the wanted size."""
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet, kind)
    set_scheduler(pipe, options)
    check_decoder_steps(options, pipe)
    try:
        pipe.check_size(**size_of(options))
    except ValueError as error:
        raise UsageError(with_option_names(error)) from error
    if options.size is not None and math.prod(options.size) > TILED_PIXELS and pipe.image_tokenizer is not None:
        pipe.image_tokenizer.enable_tiling()
        if pipe.image_decoder is not None:
            pipe.image_decoder.enable_tiling()
    return pipe


def drawn_seed(options: argparse.Namespace) -> int:
    """The seed of the options, or a new one."""
    return secrets.randbelow(2**32) if options.seed is None else options.seed


def tell_seed(options: argparse.Namespace, seed: int):
    """Print a seed that the user did not choose."""
    if options.seed is None:
        print(f"seed {seed}", file=sys.stderr, flush=True)


def pipeline_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline arguments of `add_generation_options`. None stands for the pipeline's own default."""
    return {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "temperature": options.temperature,
        "decoder_steps": options.decoder_steps,
    }


def call_pipeline(
    pipe: DiffusionPipeline,
    prompt: str | list[str],
    seeds: Any,
    arguments: dict[str, Any],
    callback: Callable | None,
) -> list[Image.Image]:
    """Make one image for each seed. Arguments that are None keep the pipeline's defaults."""
    import torch

    given = {
        name: value for name, value in {**arguments, "callback_on_step_end": callback}.items() if value is not None
    }
    # One CPU generator per image: every image can be made again alone, with the same random numbers on any device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    generator = generators if draws_by_image(pipe) else generators[0]
    try:
        return pipe(prompt, generator=generator, **given).images
    except (ValueError, TypeError) as error:
        raise UsageError(with_option_names(error)) from error


def draws_by_image(pipe: DiffusionPipeline) -> bool:
    """Whether the scheduler takes one generator per image. The schedulers of diffusers take one per batch."""
    from showo_hf.pipelines.scheduler_adapter import is_discrete

    return is_discrete(pipe.scheduler)
