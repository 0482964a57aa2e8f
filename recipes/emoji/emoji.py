"""The emoji data set: about eleven thousand small images with English names, in three drawing styles.

The images come from npm packages with pinned versions, fetched by name with `npm pack` and read straight from the
archive. Each is laid on plain white and written to one array; a record for each tells what it shows. Run as

    python -m recipes.emoji.emoji --output data/emoji --size 64
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.emoji.emoji_names import TONES, plain_ascii, readable_name, readable_synonyms, readable_tone
from showo_hf.utils.atomic_folder import atomic_folder


# Style -> (npm package, version, folder of the images inside the package, their extension).
IMAGE_PACKAGES = {
    "noto": ("emoji-datasource-google", "16.0.0", "package/img/google/64/", ".png"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/", ".png"),
    "fluent3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/", ".webp"),
}
NAME_PACKAGE = ("unicode-emoji-json", "0.8.0")  # the CLDR names, which read better than the Unicode ones
STYLES = tuple(IMAGE_PACKAGES)

HELD_OUT_ONE_IN = 20
FILLED = 7 / 8  # the share of the canvas that an image's longer side takes, so that nothing touches the border
_LICENCE_STEMS = ("LICENSE", "LICENCE", "NOTICE", "README")


@dataclass(frozen=True)
class EmojiRecord:
    """What one image shows.

    Args:
        unified: code points of the base emoji in upper case, like "1F469-200D-1F52C", without skin tones.
        code: code points of this image, skin tones included.
        style: "noto", "twemoji" or "fluent3d".
        name: an English noun phrase in lower case; no two base emoji share one.
        synonyms: further noun phrases for the same thing.
        tone: the skin tone, like "medium-light" or "light and dark" (two people); None for the base emoji.
        category, subcategory: as in `emoji-datasource`.
        held_out: whether the image is kept out of training.
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
    """The records and, in the same order, their images: uint8, (images, size, size, 3)."""

    records: list[EmojiRecord]
    images: np.ndarray

    @property
    def train_indices(self) -> np.ndarray:
        """Rows to train on, int64."""
        return np.array([i for i, record in enumerate(self.records) if not record.held_out], dtype=np.int64)

    @property
    def held_out_indices(self) -> np.ndarray:
        """Rows never trained on, int64."""
        return np.array([i for i, record in enumerate(self.records) if record.held_out], dtype=np.int64)


def is_held_out(unified: str, style: str) -> bool:
    """Whether a base emoji in one style is held out. All its skin tones share the answer."""
    return zlib.crc32(f"{unified}|{style}".encode()) % HELD_OUT_ONE_IN == 0


def fetch_package(name: str, version: str, cache: str | os.PathLike) -> Path:
    """The archive of an npm package in the folder `cache`, fetched with `npm pack` unless it is there.

    Raises:
        RuntimeError: if npm is missing or cannot fetch the package.
    """
    cache = Path(cache)
    archive = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    # npm writes into a folder of its own first: a download that breaks off must not look like a cached archive.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [shutil.which("npm") or "npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError(f"fetching {name}@{version} needs the command `npm`, which was not found") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"`{' '.join(command[:3])}` failed: {error.stderr.strip()}") from error
        os.replace(Path(folder) / archive.name, archive)
    return archive


def read_members(archive: Path, prefix: str, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """The plain files of a .tgz whose path starts with `prefix` and ends with `suffix`: (path, content)."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix) and member.name.endswith(suffix):
                yield member.name, tar.extractfile(member).read()


def read_json(archive: Path, path: str):
    """One JSON file of a .tgz.

    Raises:
        ValueError: if the archive has no such file.
    """
    for name, content in read_members(archive, path):
        if name == path:
            return json.loads(content)
    raise ValueError(f"`archive` {archive.name} holds no file {path}")


def _key(code: str) -> str:
    """A code without variation selectors, which the packages do not write consistently."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def base_names(entries: list[dict], cldr_names: dict[str, str]) -> dict[str, str]:
    """An English name for every base emoji.

    Args:
        entries: the content of `emoji.json`.
        cldr_names: CLDR name by code without variation selectors.

    Raises:
        ValueError: if two base emoji come out with one name.
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
        raise ValueError(f"`entries` give one name to several emoji: {', '.join(shared)}")
    return names


def base_synonyms(entries: list[dict], names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Synonyms of every base emoji, without those that would also fit another one."""
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
    """What every code shows, skin tones included: the fields of an `EmojiRecord` that do not depend on the style.

    The keys are codes without variation selectors.
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
    """A PNG or WebP file as uint8 (size, size, 3) on plain white, with a margin.

    The longer side of what is visible takes 7/8 of the canvas; what is smaller in the source stays smaller.
    """
    with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as file:
        source = file.convert("RGBA")
    box = source.getchannel("A").getbbox() or (0, 0, *source.size)
    extent = max((box[2] - box[0]) / source.width, (box[3] - box[1]) / source.height)
    side = max(1, round(size * min(1.0, FILLED / extent)))
    # Premultiplied, so that the colour of invisible pixels (often black) does not bleed into the rim.
    drawn = np.asarray(source.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), dtype=np.int16)
    on_white = np.clip(drawn[..., :3] + (255 - drawn[..., 3:]), 0, 255)
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    start = (size - side) // 2
    image[start : start + side, start : start + side] = on_white
    return image


def read_style(archive: Path, style: str, described: dict[str, dict]) -> list[tuple[EmojiRecord, bytes]]:
    """Records and image files of one style, sorted by code. Images with an unknown code are dropped."""
    _, _, folder, extension = IMAGE_PACKAGES[style]
    files = {
        path[len(folder) : -len(extension)].upper(): data for path, data in read_members(archive, folder, extension)
    }
    chosen = {}
    # Longest first: where a package has one emoji both with and without the variation selector, the full form wins.
    for code in sorted(files, key=lambda code: (-len(code), code)):
        key = _key(code)
        if key in described and key not in chosen:
            fields = described[key]
            record = EmojiRecord(style=style, held_out=is_held_out(fields["unified"], style), **fields)
            chosen[key] = (record, files[code])
    return sorted(chosen.values(), key=lambda pair: pair[0].code)


def prepare_emoji(output: str | os.PathLike, size: int = 64, cache: str | os.PathLike = "data/npm") -> Path:
    """Write the data set into the folder `output`, replacing what was there.

    It gets `images.npy`, `records.jsonl`, and in `licences/` the packages' licence texts.

    Raises:
        ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"`size` must be a positive number of pixels, but is {size}")
    output = Path(output)
    archives = {style: fetch_package(name, version, cache) for style, (name, version, _, _) in IMAGE_PACKAGES.items()}
    name_archive = fetch_package(*NAME_PACKAGE, cache)
    by_emoji = read_json(name_archive, "package/data-by-emoji.json")
    cldr_names = {_key("-".join(f"{ord(c):04X}" for c in emoji)): fields["name"] for emoji, fields in by_emoji.items()}
    described = describe_codes(read_json(archives["noto"], "package/emoji.json"), cldr_names)
    pairs = [pair for style in STYLES for pair in read_style(archives[style], style, described)]

    with atomic_folder(output, overwrite=True) as folder:
        _write(folder, pairs, size)
        _write_licences(folder / "licences", [*archives.values(), name_archive])
    return output


def _write(folder: Path, pairs: list[tuple[EmojiRecord, bytes]], size: int) -> None:
    shape = (len(pairs), size, size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as lines:
        for row, (record, content) in enumerate(pairs):
            images[row] = draw_image(content, size)
            lines.write(json.dumps(asdict(record)) + "\n")
    images.flush()


def _write_licences(folder: Path, archives: list[Path]) -> None:
    for archive in archives:
        for path, content in read_members(archive, "package/"):
            name = path.removeprefix("package/")
            if "/" not in name and name.upper().startswith(_LICENCE_STEMS):
                target = folder / archive.stem / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def load_emoji(folder: str | os.PathLike) -> EmojiDataset:
    """Open a folder written by `prepare_emoji`. The images stay on disk (memory-mapped, read-only).

    Raises:
        FileNotFoundError: if `folder` does not hold the data set.
        ValueError: if records and images do not match in number.
    """
    folder = Path(folder)
    if not (folder / "images.npy").exists():
        raise FileNotFoundError(f"`folder` must hold images.npy, written by recipes.emoji.emoji, but is {folder}")
    images = np.load(folder / "images.npy", mmap_mode="r")
    with open(folder / "records.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    records = [EmojiRecord(**{**row, "synonyms": tuple(row["synonyms"])}) for row in rows]
    if len(records) != len(images):
        raise ValueError(f"`folder` {folder} holds {len(records)} records but {len(images)} images")
    return EmojiDataset(records, images)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch and prepare the emoji images.")
    parser.add_argument("--output", default="data/emoji", help="folder for the data set")
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels")
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
