"""The emoji data set: about eleven thousand small images with English names, in three drawing styles.

The images come from npm packages with pinned versions, which `npm pack` fetches. The data set is one array of images
on a white background, and a record for each image that describes it. Run from the repository root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
"""

import argparse
import io
import json
import os
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.emoji.emoji_names import TONES, plain_ascii, readable_name, readable_synonyms, readable_tone
from recipes.npm_packages import fetch_package, read_json, read_members, write_licences
from showo_hf.utils.atomic_folder import atomic_folder


# Style -> (npm package, version, image folder inside the package, file extension).
IMAGE_PACKAGES = {
    "noto": ("emoji-datasource-google", "16.0.0", "package/img/google/64/", ".png"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/", ".png"),
    "fluent3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/", ".webp"),
}
NAME_PACKAGE = ("unicode-emoji-json", "0.8.0")  # the CLDR names, which are more readable than the Unicode names
STYLES = tuple(IMAGE_PACKAGES)

HELD_OUT_ONE_IN = 20
FILLED = 7 / 8  # longer side of an image relative to the canvas; leaves a margin


@dataclass(frozen=True)
class EmojiRecord:
    """The description of one image.

    Args:
        unified: code points of the base emoji in upper case, such as "1F469-200D-1F52C", without skin tones.
        code: code points of this image, including skin tones.
        style: "noto", "twemoji" or "fluent3d".
        name: an English noun phrase in lower case, unique to the base emoji.
        synonyms: other noun phrases for the same thing.
        tone: the skin tone, such as "medium-light" or "light and dark" (two people); None for the base emoji.
        category, subcategory: as in `emoji-datasource`.
        held_out: whether the image is excluded from training.
    """

    unified: str
    code: str
    style: str
    name: str
    synonyms: tuple[str, ...]
    tone: str | None
    category: str
    subcategory: str
    held_out: bool


@dataclass(frozen=True)
class EmojiDataset:
    """The records, and their images in the same order: uint8, (images, size, size, 3)."""

    records: list[EmojiRecord]
    images: np.ndarray

    @property
    def train_indices(self) -> np.ndarray:
        """The rows of the training images, int64."""
        return np.array([i for i, record in enumerate(self.records) if not record.held_out], dtype=np.int64)

    @property
    def held_out_indices(self) -> np.ndarray:
        """The rows of the held-out images, int64."""
        return np.array([i for i, record in enumerate(self.records) if record.held_out], dtype=np.int64)


def is_held_out(unified: str, style: str) -> bool:
    """Whether a base emoji in one style is held out, with all of its skin tones."""
    return zlib.crc32(f"{unified}|{style}".encode()) % HELD_OUT_ONE_IN == 0


def _key(code: str) -> str:
    """Code points without variation selectors, which the packages use inconsistently."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def base_names(entries: list[dict], cldr_names: dict[str, str]) -> dict[str, str]:
    """An English name for every base emoji.

    Args:
        entries: the content of `emoji.json`.
        cldr_names: CLDR names by code points without variation selectors.

    Raises:
        ValueError: if two base emoji get the same name.
    """
    roles = {plain_ascii(name) for name in cldr_names.values()}
    names = {}
    for entry in entries:
        unified, subcategory = entry["unified"], entry["subcategory"]
        if unified in TONES:
            names[unified] = f"{TONES[unified]} skin tone swatch"
        else:
            names[unified] = readable_name(cldr_names.get(_key(unified), entry["name"]), subcategory, roles)
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    if shared:
        raise ValueError(f"`entries` give the same name to several emoji: {', '.join(shared)}")
    return names


def base_synonyms(entries: list[dict], names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The synonyms of every base emoji that do not also fit another one."""
    found = {
        entry["unified"]: readable_synonyms(
            names[entry["unified"]], entry["short_names"], entry["category"], entry["subcategory"]
        )
        for entry in entries
    }
    claims = Counter(text for texts in found.values() for text in texts)
    taken = set(names.values())
    return {
        unified: tuple(text for text in texts if claims[text] == 1 and text not in taken)
        for unified, texts in found.items()
    }


def describe_codes(entries: list[dict], cldr_names: dict[str, str]) -> dict[str, dict]:
    """The fields of an `EmojiRecord` that do not depend on the style, for every image.

    The keys are code points without variation selectors, including skin tones.
    """
    names = base_names(entries, cldr_names)
    synonyms = base_synonyms(entries, names)
    described = {}
    for entry in entries:
        unified = entry["unified"]
        shared = {
            "unified": unified,
            "name": names[unified],
            "synonyms": synonyms[unified],
            "category": entry["category"],
            "subcategory": entry["subcategory"],
        }
        described[_key(unified)] = {"code": unified, "tone": None, **shared}
        for variation, image in entry.get("skin_variations", {}).items():
            fields = {"code": image["unified"], "tone": readable_tone(variation), **shared}
            described[_key(image["unified"])] = fields
    return described


def draw_image(content: bytes, size: int) -> np.ndarray:
    """Draw a PNG or WebP file on a white canvas, uint8 (size, size, 3), with a margin.

    Images are scaled down until their visible part fits into 7/8 of the canvas. Small images are not enlarged.
    """
    with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as file:
        source = file.convert("RGBA")
    box = source.getchannel("A").getbbox() or (0, 0, *source.size)
    extent = max((box[2] - box[0]) / source.width, (box[3] - box[1]) / source.height)
    side = max(1, round(size * min(1.0, FILLED / extent)))
    # Premultiplied alpha: otherwise the colour of transparent pixels, often black, shows at the edges.
    drawn = np.asarray(source.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), dtype=np.int16)
    on_white = np.clip(drawn[..., :3] + (255 - drawn[..., 3:]), 0, 255)
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    start = (size - side) // 2
    image[start : start + side, start : start + side] = on_white
    return image


def read_style(archive: Path, style: str, described: dict[str, dict]) -> list[tuple[EmojiRecord, bytes]]:
    """The records and image files of one style, sorted by code. Images with unknown codes are skipped."""
    _, _, folder, extension = IMAGE_PACKAGES[style]
    files = {
        path[len(folder) : -len(extension)].upper(): data for path, data in read_members(archive, folder, extension)
    }
    chosen = {}
    # Longest first: if a package has an emoji with and without variation selector, the former is used.
    for code in sorted(files, key=lambda code: (-len(code), code)):
        key = _key(code)
        if key in described and key not in chosen:
            fields = described[key]
            record = EmojiRecord(style=style, held_out=is_held_out(fields["unified"], style), **fields)
            chosen[key] = (record, files[code])
    return sorted(chosen.values(), key=lambda pair: pair[0].code)


def prepare_emoji(output: str | os.PathLike, size: int = 64, cache: str | os.PathLike = "data/npm") -> Path:
    """Write the data set to the folder `output`, and replace an existing one.

    The folder contains `images.npy`, `records.jsonl`, and the licences of the packages in `licences/`.

    Raises:
        ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"`size` must be a positive number of pixels, got {size}")
    output = Path(output)
    archives = {style: fetch_package(name, version, cache) for style, (name, version, _, _) in IMAGE_PACKAGES.items()}
    name_archive = fetch_package(*NAME_PACKAGE, cache)
    by_emoji = read_json(name_archive, "package/data-by-emoji.json")
    cldr_names = {_key("-".join(f"{ord(c):04X}" for c in emoji)): fields["name"] for emoji, fields in by_emoji.items()}
    described = describe_codes(read_json(archives["noto"], "package/emoji.json"), cldr_names)
    pairs = [pair for style in STYLES for pair in read_style(archives[style], style, described)]

    with atomic_folder(output, overwrite=True) as folder:
        _write(folder, pairs, size)
        write_licences(folder / "licences", [*archives.values(), name_archive])
    return output


def _write(folder: Path, pairs: list[tuple[EmojiRecord, bytes]], size: int) -> None:
    shape = (len(pairs), size, size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as lines:
        for row, (record, content) in enumerate(pairs):
            images[row] = draw_image(content, size)
            lines.write(json.dumps(asdict(record)) + "\n")
    images.flush()


def load_emoji(folder: str | os.PathLike) -> EmojiDataset:
    """Open a folder written by `prepare_emoji`. The images are memory-mapped, read-only.

    Raises:
        FileNotFoundError: if `folder` does not contain the data set.
        ValueError: if the numbers of records and images differ.
    """
    folder = Path(folder)
    if not (folder / "images.npy").exists():
        raise FileNotFoundError(f"`folder` must contain images.npy, written by recipes.emoji.emoji, got {folder}")
    images = np.load(folder / "images.npy", mmap_mode="r")
    with open(folder / "records.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    records = [EmojiRecord(**{**row, "synonyms": tuple(row["synonyms"])}) for row in rows]
    if len(records) != len(images):
        raise ValueError(f"`folder` {folder} has {len(records)} records but {len(images)} images")
    return EmojiDataset(records, images)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch and prepare the emoji images.")
    parser.add_argument("--output", default="data/emoji", help="folder for the data set")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images in pixels")
    parser.add_argument("--cache", default="data/npm", help="folder for the fetched npm archives")
    options = parser.parse_args(arguments)
    dataset = load_emoji(prepare_emoji(options.output, options.size, options.cache))
    total = Counter(record.style for record in dataset.records)
    held_out = Counter(record.style for record in dataset.records if record.held_out)
    for style in STYLES:
        print(f"{style:10} {total[style]:6} images, {held_out[style]:5} of them held out")
    print(f"{'all':10} {len(dataset.records):6} images, {sum(held_out.values()):5} of them held out")


if __name__ == "__main__":
    main()
