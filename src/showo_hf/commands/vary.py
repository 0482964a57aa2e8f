"""`showo-hf vary`: variations of an image."""

from __future__ import annotations

import argparse
from typing import Any

from .image_generation import (
    add_editing_options,
    add_generation_options,
    add_save_steps,
    add_strength_options,
    generate_images,
    generation_parser,
    read_image,
    size_of,
)


EXAMPLES = """\
  four variations
    showo-hf vary scene.png "a red apple to the left of a blue car" --num 4 -o variation.png

  another thing in the same place
    showo-hf vary scene.png "a red apple to the left of a yellow bell" --strength 0.9 -o bell.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = generation_parser(
        subparsers,
        "vary",
        "make variations of an image",
        ": a share of its tokens is generated again, the others stay",
        EXAMPLES,
    )
    add_editing_options(parser)
    add_strength_options(parser, "0.7")
    add_generation_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return generate_images(options, "ShowoImg2ImgPipeline", arguments_of)


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline arguments that only this command has."""
    return {
        "image": read_image("IMAGE", options.image, options.max_pixels),
        "strength": options.strength,
        "remasking": options.remasking,
        **size_of(options),
    }
