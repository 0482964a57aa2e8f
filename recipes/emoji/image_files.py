"""Write the emoji images as PNG files, for the training of the image tokenizer. Run from the repository root:

    python -m recipes.emoji.image_files --data data/emoji --output data/emoji-images

The folder `train` holds the training images, `held-out` the others.
"""

import argparse
import os
from pathlib import Path

from PIL import Image

from recipes.emoji.emoji import load_emoji
from showo_hf.utils.atomic_folder import atomic_folder


def write_image_files(data: str | os.PathLike, output: str | os.PathLike) -> dict[str, int]:
    """
    Write the images of the data set `data` to the folder `output`, and replace an existing one.

    Returns:
        the number of images in each of the folders `train` and `held-out`.
    """
    emoji = load_emoji(data)
    counts = {"train": 0, "held-out": 0}
    with atomic_folder(Path(output), overwrite=True) as folder:
        for name in counts:
            (folder / name).mkdir()
        for record, image in zip(emoji.records, emoji.images, strict=True):
            name = "held-out" if record.held_out else "train"
            Image.fromarray(image).save(folder / name / f"{record.style}-{record.code}.png")
            counts[name] += 1
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the emoji images as PNG files.")
    parser.add_argument("--data", default="data/emoji", help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--output", default="data/emoji-images", help="folder for the files")
    options = parser.parse_args(arguments)
    for name, count in write_image_files(options.data, options.output).items():
        print(f"{name:10} {count:6} images")


if __name__ == "__main__":
    main()
