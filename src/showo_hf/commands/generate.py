"""`showo-hf generate`: text to image."""

from __future__ import annotations

import argparse
from typing import Any

from ..utils.argument_types import user_path
from .errors import UsageError
from .image_generation import (
    IMAGE_SUFFIXES,
    NOTES,
    add_generation_options,
    add_save_steps,
    add_size,
    generate_images,
    generation_parser,
    size_of,
)
from .prompt_files import INDEX, PROMPT_SUFFIXES, SETTINGS, generate_from_prompts


EXAMPLES = """\
  an image that can be made again
    showo-hf generate "a red apple to the left of a blue car" --seed 7 -o scene.png

  four images: scene-0.png has seed 7, scene-1.png seed 8, and so on
    showo-hf generate "a red apple to the left of a blue car" --seed 7 --num 4 -o scene.png

  closer to the prompt, less varied, and in more steps
    showo-hf generate "two cats, 3d style" --guidance 3 --steps 24 -o cats.png

  every step as an animation; tokens that are still masked are grey
    showo-hf generate "an owl, noto style" -o owl.png --save-steps owl.gif

  another scheduler; --scheduler help lists all of them
    showo-hf generate "an owl, noto style" --scheduler maskgit --scheduler-option temperature_rule=linear -o owl.png

  another model: a folder, or a name on the Hugging Face Hub
    showo-hf generate "a lighthouse at dusk" --model path/to/folder --size 256x384 -o lighthouse.png

  thousands of prompts, one per line, in a resumable run
    showo-hf generate --prompts prompts.txt --seed 0 -o images

  the same on all devices of a machine
    accelerate launch -m showo_hf_command generate --prompts prompts.txt --seed 0 -o images
"""

PROMPT_NOTES = f"""
A file of prompts is text with one prompt per line, or JSON lines such as
  {{"prompt": "an owl, noto style", "negative_prompt": "a cat", "seed": 7}}
The folder gets the images 000000.png, 000001.png ..., {INDEX} with the prompt, the seed and every setting of
each image, and {SETTINGS}. Run the same command again to resume after an interruption. With several processes, each
makes its share, and the images are those of one process with as many threads. The number of threads of the first run
is in {SETTINGS}, and all processes and later runs compute with it, on the same kind of device. It is one per
core, or one per process with a launcher, unless OMP_NUM_THREADS says otherwise.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = generation_parser(
        subparsers, "generate", "make images from a text prompt", "", EXAMPLES, NOTES + PROMPT_NOTES
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="what the image should show, in English")
    add("--prompts", type=user_path, metavar="FILE", help=f"a file of prompts ({', '.join(PROMPT_SUFFIXES)})")
    add_size(parser)
    output = f"image file to write ({', '.join(IMAGE_SUFFIXES)}); with --prompts, the folder"
    add_generation_options(parser, output)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.prompts is None:
        if options.prompt is None:
            raise UsageError("a prompt is needed, or a file of prompts with `--prompts`")
        return generate_images(options, "ShowoT2IPipeline", size_of)
    if options.prompt is not None:
        raise UsageError("give either a prompt or `--prompts`, not both")
    if options.save_steps is not None:
        raise UsageError("`--save-steps` cannot be used with `--prompts`")
    return generate_from_prompts(options)
