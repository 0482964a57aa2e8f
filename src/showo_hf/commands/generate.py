"""`showo-hf generate`: pictures from words."""

from __future__ import annotations

import argparse
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..argument_types import finite_number, picture_size, positive_integer, seed_number
from .errors import UsageError
from .files import check_output, numbered, replace_file
from .loading import add_loading_options, check_model, choose_device, load_pipeline
from .scheduling import add_scheduler_options, check_scheduler, set_scheduler


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..modeling_showo_lfq import ShowoLFQTokenizer


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STEP_SUFFIXES = (".gif", ".png")
BATCH_SIZE = 8  # pictures made at once; bounds the memory, whatever `--num` is
STRIP_GAP = 2  # white pixels between the pictures of a strip
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 200, 2000

EXAMPLES = """\
The file names of the finished pictures go to stdout, one a line; everything else goes to stderr.

examples:
  a picture that can be made again
    showo-hf generate "a red apple, flat style" --seed 7 -o apple.png

  four of them: apple-0.png has seed 7, apple-1.png seed 8, and so on
    showo-hf generate "a red apple, flat style" --seed 7 --num 4 -o apple.png

  closer to the words, less varied, and with more time
    showo-hf generate "3d emoji of a smiling cat" --guidance 8 --steps 24 -o cat.png

  watch how it came about: grey is what was not yet decided at a step
    showo-hf generate "an owl, noto style" -o owl.png --save-steps owl.gif

  filled in by other rules; --scheduler help lists them
    showo-hf generate "an owl, noto style" --scheduler maskgit --scheduler-option temperature_rule=linear -o owl.png

  another model: a folder, or a name on the Hugging Face Hub
    showo-hf generate "a lighthouse at dusk" --model path/to/folder --size 256x384 -o lighthouse.png

exit codes: 0 all pictures are written, 1 something failed, 2 the command was not understood, 130 interrupted
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "generate",
        help="make pictures from words",
        description="Make pictures from words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", help="what to show, in English")
    add("-o", "--output", type=Path, required=True, help=f"picture to write ({', '.join(PICTURE_SUFFIXES)})")
    add("--negative-prompt", metavar="WORDS", help="what to keep away from")
    add("--steps", type=positive_integer, metavar="N", help="steps from nothing to a picture (default: the model's)")
    add("--guidance", type=finite_number, metavar="G", help="pull of the words; 1 is none (default: the model's)")
    add("--temperature", type=finite_number, metavar="T", help="randomness of the order (default: the model's)")
    add("--seed", type=seed_number, metavar="N", help="makes it repeatable (default: a new one, told on stderr)")
    add("--num", type=positive_integer, default=1, metavar="N", help="number of pictures, from seed on (default: 1)")
    add("--size", type=picture_size, metavar="HEIGHT[xWIDTH]", help="in pixels (default: the model's)")
    add("--save-steps", type=Path, metavar="PATH", help="also every step, as a film (.gif) or side by side (.png)")
    add_scheduler_options(parser)
    add_loading_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Make the pictures and print their names. What can be checked without the model is checked before it is loaded."""
    check_outputs(options)
    check_scheduler(options)
    if options.model is not None:
        check_model(options.model)
    device = choose_device(options.device)
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed}", file=sys.stderr)
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet)
    set_scheduler(pipe, options)
    outputs = numbered(options.output, options.num)
    step_outputs = numbered(options.save_steps, options.num) if options.save_steps else []
    for start in range(0, options.num, BATCH_SIZE):
        batch = slice(start, min(start + BATCH_SIZE, options.num))
        recorder = StepRecorder() if step_outputs else None
        pictures = make_pictures(pipe, options, range(seed + batch.start, seed + batch.stop), recorder)
        for path, picture in zip(outputs[batch], pictures, strict=True):
            replace_file(path, picture.save)
            print(path, flush=True)
        if recorder is not None:
            frames = step_pictures(pipe.image_tokenizer, recorder.steps, pictures)
            for path, steps in zip(step_outputs[batch], frames, strict=True):
                replace_file(path, partial(save_steps, steps))
                print(path, flush=True)
    return 0


def check_outputs(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless `--output` and `--save-steps` are two files that can be written."""
    check_output("--output", options.output, PICTURE_SUFFIXES)
    if options.save_steps is not None:
        check_output("--save-steps", options.save_steps, STEP_SUFFIXES)
        if options.save_steps.resolve() == options.output.resolve():
            raise UsageError(f"`--save-steps` must not be the file of `--output`, got '{options.save_steps}' for both")


def make_pictures(
    pipe: DiffusionPipeline, options: argparse.Namespace, seeds: range, recorder: StepRecorder | None
) -> list[Image.Image]:
    """One picture for each seed. What the user left out is left to the pipeline's own defaults."""
    import torch

    height, width = options.size or (None, None)
    wanted = {
        "negative_prompt": options.negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "temperature": options.temperature,
        "callback_on_step_end": recorder,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    # One generator a picture, always on the CPU: each picture can be made again alone, with the same draws on any device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    try:
        return pipe(options.prompt, num_images_per_prompt=len(seeds), generator=generators, **given).images
    except ValueError as error:
        raise UsageError(str(error)) from error


class StepRecorder:
    """A pipeline's `callback_on_step_end` that keeps the tokens after every step, (batch, h, w) int64."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        self.steps.append(callback_kwargs["latents"].clone())
        return callback_kwargs


def step_pictures(
    tokenizer: ShowoLFQTokenizer, steps: list[torch.Tensor], finished: list[Image.Image]
) -> list[list[Image.Image]]:
    """
    The picture after every step, grey where its tokens were unknown.

    Args:
        tokenizer: the picture tokenizer that made `finished`.
        steps: tokens after each step, (batch, h, w) int64, the codebook's size or more where unknown.
        finished: the finished pictures, one for each of the batch.

    Returns:
        for each finished picture one picture a step; the last one is the finished picture itself.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

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
    return [[*film, picture] for film, picture in zip(films, finished, strict=True)]


def save_steps(frames: list[Image.Image], path: Path) -> None:
    """Write the pictures of the steps: .gif is a film that stays on the last one, else they stand side by side."""
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
