"""`showo-hf inpaint`: paint a part of an image anew."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import whole_number
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
from .errors import UsageError


if TYPE_CHECKING:
    import torch
    from PIL import Image


EXAMPLES = """\
  paint what is white in the mask
    showo-hf inpaint apple.png "a green apple, flat style" --mask mask.png -o green.png

  a rectangle instead of a mask: left, top, right and bottom, in pixels of the image
    showo-hf inpaint apple.png "a green apple, flat style" --box 24,24,72,72 -o green.png

  a small part of a photograph, at full size, and the rest of its pixels as they are
    showo-hf inpaint photo.jpg "a red door" --mask mask.png --crop 32 -o painted.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = drawing_parser(
        subparsers,
        "inpaint",
        "paint a part of an image anew",
        ": what a mask marks. Everything else keeps its tokens",
        EXAMPLES,
    )
    add_editing_options(parser)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", help="where to paint: an image, white is where; a file or a URL")
    where.add_argument("--box", type=box, metavar="L,T,R,B", help="where to paint, in pixels of the image")
    add_repainting_options(parser, "all that is marked")
    add("--keep-pixels", action="store_true", help="put the original pixels back where nothing was painted")
    add("--crop", type=whole_number, metavar="PIXELS", help="work on what is marked and so much around it alone")
    add_drawing_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.crop is not None and options.save_steps is not None:
        raise UsageError("`--save-steps` must be left out with `--crop`, whose steps are of a part of the image")
    if options.crop is not None and options.num > 1:
        raise UsageError(f"`--num` must be 1 with `--crop`, which makes one image at a time, got {options.num}")
    return draw(options, "ShowoInpaintPipeline", arguments_of)


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments that only this command has."""
    image = read_image("IMAGE", options.image)
    if options.box is not None:
        mask = box_mask(options.box, image.size)
    else:
        mask = read_mask(options.mask, image.size)
    return {
        "image": image,
        "mask_image": mask,
        "strength": options.strength,
        "remasking": options.remasking,
        "preserve_pixels": options.keep_pixels,
        "padding_mask_crop": options.crop,
        **size_of(options),
    }


def read_mask(name: str, size: tuple[int, int]) -> torch.Tensor:
    """
    A mask file or URL, (H, W) in [0, 1]. `UsageError` if it cannot be read, or has not the aspect of the image's size,
    (width, height).
    """
    from showo_hf.pipelines.masks import check_aspect, load_mask

    try:
        mask = load_mask(name, "--mask")
        check_aspect(mask, size[::-1], "--mask")
        return mask
    except ValueError as error:
        raise UsageError(str(error)) from error


def box(text: str) -> tuple[int, int, int, int]:
    """ "24,24,72,72" to left, top, right and bottom."""
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})", text)
    left, top, right, bottom = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (left < right and top < bottom):
        raise argparse.ArgumentTypeError(f"must be LEFT,TOP,RIGHT,BOTTOM in pixels, such as 24,24,72,72, got {text!r}")
    return left, top, right, bottom


def box_mask(sides: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """A mask of an image's size, (width, height), white in a box. `UsageError` if the box is not in the image."""
    from PIL import Image

    if sides[2] > size[0] or sides[3] > size[1]:
        raise UsageError(
            f"`--box` must lie in the image, which is {size[0]}x{size[1]}, got {','.join(map(str, sides))}"
        )
    mask = Image.new("L", size)
    mask.paste(255, sides)
    return mask
