"""A data set of a few discs, in the format of the emoji data set."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from recipes.emoji.emoji import STYLES, EmojiRecord


THINGS = {
    "1F34E": ("red apple", ("apple",), "food-fruit", "red"),
    "1F34F": ("green apple", (), "food-fruit", "green"),
    "1F438": ("frog", (), "animal-amphibian", "green"),
    "1F433": ("spouting whale", ("whale",), "animal-marine", "blue"),
    "1F4F0": ("newspaper", (), "book-paper", None),  # no kind and no colour
}


def make_record(unified, style, tone=None, held_out=False) -> EmojiRecord:
    name, synonyms, subcategory, _ = THINGS[unified]
    return EmojiRecord(unified, unified, style, name, synonyms, tone, "", subcategory, held_out)


RECORDS = [make_record(unified, style, held_out=style == "noto") for unified in THINGS for style in STYLES]


def write(folder: Path):
    """A disc for every thing and style, and an image with a skin tone in each of the two sets."""
    records = [*RECORDS, make_record("1F438", "noto", "dark", True), make_record("1F438", "twemoji", "dark")]
    images = []
    for record in records:
        image = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(image).ellipse((2, 2, 13, 13), fill=THINGS[record.unified][3] or "white")
        images.append(np.asarray(image))
    np.save(folder / "images.npy", np.stack(images))
    lines = [json.dumps(dataclasses.asdict(record)) for record in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
