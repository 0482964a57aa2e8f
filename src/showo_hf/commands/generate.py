"""`showo-hf generate`: text to image."""

from __future__ import annotations

import argparse
from typing import Any

from ..utils.argument_types import image_size
from .image_generation import (
    add_generation_options,
    add_save_steps,
    generate_images,
    generation_parser,
    size_of,
)


EXAMPLES = """\
  an image that can be made again
    showo-hf generate "a red apple, flat style" --seed 7 -o apple.png

  four images: apple-0.png has seed 7, apple-1.png seed 8, and so on
    showo-hf generate "a red apple, flat style" --seed 7 --num 4 -o apple.png

  closer to the prompt, less varied, and in more steps
    showo-hf generate "3d emoji of a smiling cat" --guidance 8 --steps 24 -o cat.png

  every step as an animation; tokens that are still masked are grey
    showo-hf generate "an owl, noto style" -o owl.png --save-steps owl.gif

  another scheduler; --scheduler help lists all of them
    showo-hf generate "an owl, noto style" --scheduler maskgit --scheduler-option temperature_rule=linear -o owl.png

  another model: a folder, or a name on the Hugging Face Hub
    showo-hf generate "a lighthouse at dusk" --model path/to/folder --size 256x384 -o lighthouse.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = generation_parser(subparsers, "generate", "make images from a text prompt", "", EXAMPLES)
    parser.add_argument("prompt", help="what the image should show, in English")
    parser.add_argument("--size", type=image_size, metavar="HEIGHT[xWIDTH]", help="in pixels (default: the model's)")
    add_generation_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return generate_images(options, "ShowoT2IPipeline", size_of)
