"""`showo-hf vary`: variations of an image."""

from __future__ import annotations

import argparse
from typing import Any

from .drawing import (
    add_drawing_options,
    add_editing_options,
    add_repainting_options,
    add_save_steps,
    draw,
    drawing_parser,
    read_image,
    size_of,
)


EXAMPLES = """\
  four variations
    showo-hf vary apple.png "a red apple, flat style" --num 4 -o variation.png

  something else in its shape
    showo-hf vary apple.png "a green apple, flat style" --strength 0.9 -o green.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = drawing_parser(
        subparsers,
        "vary",
        "make variations of an image",
        ": a share of its tokens is made anew, the others stay",
        EXAMPLES,
    )
    add_editing_options(parser)
    add_repainting_options(parser, "0.7")
    add_drawing_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return draw(options, "ShowoImg2ImgPipeline", arguments_of)


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments that only this command has."""
    return {
        "image": read_image("IMAGE", options.image),
        "strength": options.strength,
        "remasking": options.remasking,
        **size_of(options),
    }
