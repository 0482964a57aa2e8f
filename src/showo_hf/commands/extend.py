"""`showo-hf extend`: outpainting, an image grows beyond its edges."""

from __future__ import annotations

import argparse
from typing import Any

from ..utils.argument_types import LARGEST_SIDE, integer
from .errors import UsageError
from .image_generation import (
    add_editing_options,
    add_generation_options,
    add_save_steps,
    generate_images,
    generation_parser,
    read_image,
    size_of,
)
from .saved_model import read_saved_model


MOST_ROUNDS = 100

EXAMPLES = """\
  to the right by 56 of 96 pixels: what stands on the right is then on the left of the new part
    showo-hf extend trees.png "two palm trees on the grass" --extent 56 -o row.png

  a panorama: five rounds, each to the left and to the right
    showo-hf extend trees.png "two palm trees on the grass" --extent 56 --direction left right --rounds 5 \\
        -o panorama.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = generation_parser(
        subparsers, "extend", "extend an image beyond its edges", ". The tokens of the input image stay", EXAMPLES
    )
    add_editing_options(parser)
    add = parser.add_argument
    add("--direction", nargs="+", choices=("left", "right", "up", "down"), help="one or several (default: right)")
    add(
        "--extent",
        type=integer(1, LARGEST_SIDE),
        metavar="PIXELS",
        help="size of each extension (default: half an image)",
    )
    add(
        "--rounds",
        type=integer(1, MOST_ROUNDS),
        metavar="N",
        help="how often to extend in each direction (default: 1)",
    )
    add("--keep-pixels", action="store_true", help="copy the input pixels into the result")
    add_generation_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    return generate_images(options, "ShowoExtrapolatePipeline", arguments_of, check_extent)


def check_extent(options: argparse.Namespace) -> None:
    """Raise `UsageError` for an `--extent` that is wrong for the model, as far as its files tell. Needs no torch."""
    saved = read_saved_model(options.model)
    if options.extent is None or saved.patch is None or saved.size is None:
        return
    directions = options.direction or ["right"]
    most = min(saved.size[1 if one in ("left", "right") else 0] for one in directions) - saved.patch
    if options.extent % saved.patch or options.extent > most:
        raise UsageError(
            f"`--extent` must be a multiple of {saved.patch} pixels from {saved.patch} to {most}, got {options.extent}"
        )


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline arguments that only this command has."""
    return {
        "image": read_image("IMAGE", options.image, options.max_pixels),
        "direction": options.direction,
        "extent": options.extent,
        "rounds": options.rounds,
        "preserve_pixels": options.keep_pixels,
        **size_of(options),
    }
