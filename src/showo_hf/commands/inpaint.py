"""`showo-hf inpaint`: generate a part of an image again."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import LARGEST_SIDE, integer, quoted, user_name
from .errors import UsageError
from .image_generation import (
    add_editing_options,
    add_generation_options,
    add_save_steps,
    add_strength_options,
    generate_images,
    generation_parser,
    image_file_size,
    read_image,
    size_of,
    unreadable,
)


if TYPE_CHECKING:
    import torch
    from PIL import Image


EXAMPLES = """\
  inpaint the white area of a mask
    showo-hf inpaint scene.png "a red apple to the left of a yellow bell" --mask mask.png -o bell.png

  a rectangle instead of a mask: left, top, right and bottom, in pixels of the image
    showo-hf inpaint scene.png "a red apple to the left of a yellow bell" --box 48,0,96,96 -o bell.png

  a small part of a photograph at its full size; all other pixels stay as they are
    showo-hf inpaint photo.jpg "a red door" --mask mask.png --crop 32 -o painted.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: Any = generation_parser(
        subparsers,
        "inpaint",
        "generate a part of an image again",
        ": the area that a mask marks. All other tokens stay",
        EXAMPLES,
    )
    add_editing_options(parser)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    mask = where.add_argument("--mask", type=user_name, help="the area to inpaint: an image file or URL, white inside")
    area = where.add_argument("--box", type=box, metavar="L,T,R,B", help="the area to inpaint, in pixels of the image")
    parser.arguments += [mask, area]  # a group does not report its arguments
    add_strength_options(parser, "1, the whole area")
    add("--keep-pixels", action="store_true", help="copy the input pixels outside the area into the result")
    add(
        "--crop",
        type=integer(0, LARGEST_SIDE),
        metavar="PIXELS",
        help="work on a crop: the area and this margin around it",
    )
    add_generation_options(parser)
    add_save_steps(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.crop is not None and options.save_steps is not None:
        raise UsageError("`--save-steps` cannot be used with `--crop`, because the steps show only the crop")
    if options.crop is not None and options.num > 1:
        raise UsageError(f"`--num` must be 1 with `--crop`, got {options.num}")
    return generate_images(options, "ShowoInpaintPipeline", arguments_of, check_area)


def check_area(options: argparse.Namespace) -> None:
    """Raise `UsageError` if `--box` exceeds an image file, or `--mask` is a file of another shape. Needs no torch."""
    size = image_file_size("IMAGE", options.image, options.max_pixels)
    if size is None:
        return
    if options.box is not None:
        check_inside(options.box, size)
        return
    mask = image_file_size("--mask", options.mask, options.max_pixels)
    if mask is not None:
        from ..utils.validation import check_same_aspect

        try:
            check_same_aspect("--mask", mask[::-1], size[::-1])
        except ValueError as error:
            raise UsageError(str(error)) from error


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline arguments that only this command has."""
    image = read_image("IMAGE", options.image, options.max_pixels)
    if options.box is not None:
        mask = box_mask(options.box, image.size)
    else:
        mask = read_mask(options.mask, image.size, options.max_pixels)
    return {
        "image": image,
        "mask_image": mask,
        "strength": options.strength,
        "remasking": options.remasking,
        "preserve_pixels": options.keep_pixels,
        "padding_mask_crop": options.crop,
        **size_of(options),
    }


def read_mask(name: str, size: tuple[int, int], max_pixels: int) -> torch.Tensor:
    """
    Read a mask file or URL to a tensor (H, W) in [0, 1].

    Raises:
        UsageError: if the mask cannot be read, or its aspect ratio differs from `size`, (width, height).
    """
    from showo_hf.pipelines.masks import check_aspect, load_mask
    from showo_hf.processing.images import load_grey

    try:
        grey = load_grey(name, "--mask", max_pixels)
    except ValueError as error:
        raise unreadable("--mask", name, error.__cause__ or error) from error
    try:
        mask = load_mask(grey, "--mask")
        check_aspect(mask, size[::-1], "--mask")
        return mask
    except ValueError as error:
        raise UsageError(str(error)) from error


def box(text: str) -> tuple[int, int, int, int]:
    """Parse "24,24,72,72" to left, top, right and bottom."""
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})", text)
    left, top, right, bottom = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (left < right and top < bottom):
        raise argparse.ArgumentTypeError(
            f"must be LEFT,TOP,RIGHT,BOTTOM in pixels, such as 24,24,72,72, got {quoted(text)}"
        )
    return left, top, right, bottom


def box_mask(sides: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """A mask of `size`, (width, height), white inside the box. Raises `UsageError` if the box exceeds the image."""
    from PIL import Image

    check_inside(sides, size)
    mask = Image.new("L", size)
    mask.paste(255, sides)
    return mask


def check_inside(sides: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Raise `UsageError` unless a box lies inside an image of `size`, (width, height)."""
    if sides[2] > size[0] or sides[3] > size[1]:
        raise UsageError(
            f"`--box` must lie inside the image of {size[0]}x{size[1]} pixels, got {','.join(map(str, sides))}"
        )
