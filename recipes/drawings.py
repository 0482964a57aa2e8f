"""Whole emoji sets as image files: about fourteen thousand drawings in four styles, to compare image tokenizers with.

The images come from npm packages with pinned versions, which `npm pack` fetches. To draw Fluent flat, which is vector
graphics, install the extra `recipes`. Run from the repository root:

    python -m recipes.drawings --output data/drawings-128 --size 128

The folders `train` and `validation` hold PNG files on white, `licences` those of the packages. One emoji in twenty is in
`validation`: in all styles and with all skin tones, so that nothing in it is a variant of a training image.
"""

import argparse
import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from recipes.npm_packages import fetch_package, read_members, write_licences
from recipes.world.objects import PACKAGES, STYLES, on_white, open_image, plain_code
from showo_hf.utils.argument_types import positive_integer
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.validation import check_count


SPLITS = ("train", "validation")
VALIDATION_ONE_IN = 20
FILLED = 7 / 8  # of the image; the rest is a margin
_SKIN_TONES = {f"1F3F{end}" for end in "BCDEF"}


def split_of(code: str) -> str:
    """
    "train" or "validation", by the crc32 of the emoji without its skin tones.

    Args:
        code: code points such as "1F469-1F3FB-200D-1F52C".
    """
    toneless = [part for part in plain_code(code).split("-") if part not in _SKIN_TONES]
    return SPLITS[zlib.crc32("-".join(toneless).encode()) % VALIDATION_ONE_IN == 0]


def drawing(source: Image.Image, size: int) -> np.ndarray:
    """
    An RGBA image in the middle of a white square, uint8 (size, size, 3).

    Args:
        source: the image. Its longer side becomes 7/8 of the size.
        size: height and width in pixels.
    """
    side = max(1, round(FILLED * size))
    # Premultiplied alpha: otherwise the colour of transparent pixels, often black, shows at the edges.
    scaled = ImageOps.contain(source.convert("RGBa"), (side, side), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return on_white(np.asarray(square))


def write_style(archive: Path, style: str, output: Path, size: int) -> Counter[str]:
    """
    Write the drawings of one style into the folders `train` and `validation` of `output`.

    Args:
        archive: the npm package of the style.
        style: one of [`STYLES`].
        output: the folder.
        size: height and width of the images in pixels.

    Returns:
        the number of images by folder.

    Raises:
        ValueError: if the archive has no images.
    """
    _, _, folder, extension = PACKAGES[style]
    counts: Counter[str] = Counter()
    written: set[str] = set()
    for path, content in read_members(archive, folder, extension):
        code = plain_code(path.removeprefix(folder).removesuffix(extension))
        if code not in written:  # a package may have an emoji with and without variation selector
            written.add(code)
            split = split_of(code)
            Image.fromarray(drawing(open_image(content, extension), size)).save(output / split / f"{style}-{code}.png")
            counts[split] += 1
    if not counts:
        raise ValueError(f"`archive` {archive.name} has no files {folder}*{extension}")
    return counts


def write_drawings(
    output: str | os.PathLike, size: int, styles: tuple[str, ...] = STYLES, cache: str | os.PathLike = "data/npm"
) -> dict[str, Counter[str]]:
    """
    Write the drawings of all emoji to the folder `output`, and replace an existing one.

    Args:
        output: the folder.
        size: height and width of the images in pixels, positive.
        styles: some of [`STYLES`].
        cache: folder for the fetched npm archives.

    Returns:
        the number of images by style and by folder.
    """
    check_count("size", size)
    archives = {style: fetch_package(*PACKAGES[style][:2], cache) for style in styles}
    with atomic_folder(Path(output), overwrite=True) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
        counts = {style: write_style(archive, style, folder, size) for style, archive in archives.items()}
        write_licences(folder / "licences", list(archives.values()))
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write whole emoji sets as PNG files.")
    parser.add_argument("--output", default="data/drawings", help="folder for the files")
    parser.add_argument("--size", type=positive_integer, default=128, help="height and width of the images in pixels")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES, help="the sets (default: all)")
    parser.add_argument("--cache", default="data/npm", help="folder for the fetched npm archives")
    options = parser.parse_args(arguments)
    for style, counts in write_drawings(options.output, options.size, tuple(options.styles), options.cache).items():
        print(f"{style:8} " + ", ".join(f"{counts[split]:5} {split}" for split in SPLITS))


if __name__ == "__main__":
    main()
