"""`showo-hf vary`: variations of a picture."""

from __future__ import annotations

import argparse
from typing import Any

from .drawing import (
    EXIT_NOTE,
    OUTPUT_NOTE,
    add_drawing_options,
    add_editing_options,
    add_repainting_options,
    add_save_steps,
    check_outputs,
    draw,
    read_picture,
    size_of,
)


EXAMPLES = f"""\
{OUTPUT_NOTE}
examples:
  four variations
    showo-hf vary apple.png "a red apple, flat style" --num 4 -o variation.png

  something else in its shape
    showo-hf vary apple.png "a green apple, flat style" --strength 0.9 -o green.png

{EXIT_NOTE}"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "vary",
        help="make variations of a picture",
        description="Make variations of a picture: a share of its tokens is made anew, the others stay.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_editing_options(parser)
    add_repainting_options(parser, "0.7")
    add_drawing_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    check_outputs(options)
    return draw(
        options,
        "ShowoImg2ImgPipeline",
        options.prompt,
        {
            "image": read_picture("IMAGE", options.image),
            "strength": options.strength,
            "remasking": options.remasking,
            **size_of(options),
        },
    )
