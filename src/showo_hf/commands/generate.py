"""`showo-hf generate`: images from words."""

from __future__ import annotations

import argparse
from typing import Any

from ..utils.argument_types import image_size
from .drawing import add_drawing_options, add_save_steps, draw, drawing_parser, size_of


EXAMPLES = """\
  an image that can be made again
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
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = drawing_parser(subparsers, "generate", "make images from words", "", EXAMPLES)
    parser.add_argument("prompt", help="what to show, in English")
    parser.add_argument("--size", type=image_size, metavar="HEIGHT[xWIDTH]", help="in pixels (default: the model's)")
    add_drawing_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return draw(options, "ShowoT2IPipeline", size_of)
