"""`showo-hf extend`: extend an image beyond its edges."""

from __future__ import annotations

import argparse
from typing import Any

from ..utils.argument_types import positive_integer
from .drawing import (
    add_drawing_options,
    add_editing_options,
    add_save_steps,
    draw,
    drawing_parser,
    read_image,
    size_of,
)


EXAMPLES = """\
  to the right by half an image
    showo-hf extend apple.png "a row of red apples" -o apples.png

  a panorama: five rounds to both sides, in turn
    showo-hf extend apple.png "a row of red apples" --direction left right --rounds 5 -o panorama.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = drawing_parser(
        subparsers, "extend", "extend an image beyond its edges", ". Its own tokens stay as they are", EXAMPLES
    )
    add_editing_options(parser)
    add = parser.add_argument
    add("--direction", nargs="+", choices=("left", "right", "up", "down"), help="one or several (default: right)")
    add("--extent", type=positive_integer, metavar="PIXELS", help="what a round adds (default: half an image)")
    add("--rounds", type=positive_integer, metavar="N", help="how often the directions are gone through (default: 1)")
    add("--keep-pixels", action="store_true", help="put the original pixels back")
    add_drawing_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return draw(options, "ShowoExtrapolatePipeline", arguments_of)


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments that only this command has."""
    return {
        "image": read_image("IMAGE", options.image),
        "direction": options.direction,
        "extent": options.extent,
        "rounds": options.rounds,
        "preserve_pixels": options.keep_pixels,
        **size_of(options),
    }
