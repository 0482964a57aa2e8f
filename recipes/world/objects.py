"""The things of the small world as cut-outs in four drawing styles, and, in the default one, in other colours.

The images come from npm packages with pinned versions, which `npm pack` fetches. Run from the repository root:

    python -m recipes.world.objects --output data/world-objects

The folder holds `cutouts.npy`, the cut-outs, `cutouts.json`, which says what they show, and the licences of the packages
in `licences/`.
"""

import argparse
import io
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.colours import main_colour
from recipes.npm_packages import fetch_package, read_members, write_licences
from recipes.world.held_out import DEFAULT_STYLE
from recipes.world.known_words import known_words
from recipes.world.recolouring import OTHER_COLOURS, PALETTE, main_shade, recoloured
from recipes.world.words import THINGS
from showo_hf.utils.atomic_folder import atomic_folder


#: Style -> (npm package, version, image folder inside the package, file extension).
PACKAGES = {
    "flat": ("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/", ".png"),
    "fluent": ("@lobehub/fluent-emoji-flat", "1.1.0", "package/assets/", ".svg"),
    "noto": ("emoji-datasource-google", "16.0.0", "package/img/google/64/", ".png"),
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/", ".webp"),
}
STYLES = tuple(PACKAGES)
#: The packages whose synonyms recipes.world.words holds. It is fetched for its licence alone.
WORDS_PACKAGE = ("emojibase-data", "16.0.3")

SIDE, EXTENT = 40, 38  # of a cut-out and of what is visible of it in pixels: 5 cells of the token grid, and a margin
MEASURED = 64  # the side of the images whose colours are measured
_DRAWN = 256  # side to which vector images are drawn before they are cut out


@dataclass(frozen=True)
class CutOut:
    """
    What a cut-out shows.

    Args:
        thing: a name in `THINGS`.
        style: "flat", "fluent", "noto" or "3d".
        colour: a name in `PALETTE`, or None for the thing's own colours.
    """

    thing: str
    style: str
    colour: str | None


@dataclass(frozen=True, eq=False, repr=False)
class Objects:
    """
    All cut-outs.

    Args:
        cutouts: what they show.
        images: uint8 RGBA (cut-outs, 40, 40, 4), alpha not premultiplied.
    """

    cutouts: list[CutOut]
    images: np.ndarray

    @cached_property
    def rows(self) -> dict[tuple[str, str, str | None], int]:
        """The row of each (thing, style, colour)."""
        return {(one.thing, one.style, one.colour): row for row, one in enumerate(self.cutouts)}

    @cached_property
    def colours(self) -> dict[str, tuple[str, ...]]:
        """The other colours of each thing that has some."""
        found: dict[str, dict[str, None]] = {}
        for one in self.cutouts:
            if one.colour is not None:
                found.setdefault(one.thing, {})[one.colour] = None
        return {thing: tuple(colours) for thing, colours in found.items()}

    def image(self, thing: str, style: str, colour: str | None) -> np.ndarray:
        """One cut-out, uint8 (40, 40, 4)."""
        return self.images[self.rows[thing, style, colour]]


def open_image(content: bytes, extension: str) -> Image.Image:
    """An image file as RGBA. An SVG file is drawn at 256 x 256 pixels."""
    if extension == ".svg":
        import resvg_py  # of the extra `recipes`

        content = bytes(
            resvg_py.svg_to_bytes(svg_string=content.decode(), width=_DRAWN, height=_DRAWN, skip_system_fonts=True)
        )
    with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as file:
        return file.convert("RGBA")


def cut_out(source: Image.Image, side: int = SIDE, extent: int = EXTENT) -> np.ndarray:
    """
    The visible part of an RGBA image in the middle of a transparent square, uint8 (side, side, 4).

    It is scaled down until its longer side is `extent` pixels, but never up.

    Raises:
        ValueError: if nothing is visible.
    """
    box = source.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    if box is None:
        raise ValueError("`source` must have visible pixels, got a transparent image")
    visible = source.crop(box)
    scale = min(1.0, extent / max(visible.size))
    size = tuple(max(1, round(length * scale)) for length in visible.size)
    # Premultiplied alpha: otherwise the colour of transparent pixels, often black, shows at the edges.
    scaled = visible.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Cut-outs (..., 4) on white, uint8 (..., 3)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def other_colours(own: set[str | None]) -> tuple[str, ...]:
    """The colours that a thing is given, if these are its own colours in the styles: six at most, none of its own."""
    return tuple(colour for colour in PALETTE if colour not in own)[:OTHER_COLOURS]


def plain_code(code: str) -> str:
    """Code points without variation selectors, which the packages use inconsistently."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_images(archive: Path, style: str) -> dict[str, Image.Image]:
    """
    The image of every thing in one style.

    Raises:
        ValueError: if the archive lacks a thing.
    """
    _, _, folder, extension = PACKAGES[style]
    names = {thing.code: name for name, thing in THINGS.items()}
    found = {}
    for path, content in read_members(archive, folder, extension):
        code = plain_code(path.removeprefix(folder).removesuffix(extension))
        if code in names:
            found[names[code]] = open_image(content, extension)
    missing = [name for name in THINGS if name not in found]
    if missing:
        raise ValueError(f"`archive` {archive.name} has no image of {', '.join(missing)}")
    return found


def cut_all(sources: dict[str, dict[str, Image.Image]]) -> Objects:
    """All cut-outs of the images `sources`, by style and thing."""
    cutouts, images = [], []
    for name in next(iter(sources.values())):
        thing = THINGS[name]
        drawn = {style: cut_out(of_style[name], MEASURED, MEASURED) for style, of_style in sources.items()}
        measured = {main_colour(on_white(image)) for image in drawn.values()}
        own = {thing.own_colour} if thing.own_colour else measured
        colours = other_colours({*own, *thing.near_colours}) if thing.recoloured else ()
        for style, of_style in sources.items():
            image, shade = cut_out(of_style[name]), main_shade(drawn[style])
            given = colours if style == DEFAULT_STYLE else ()
            cutouts += [CutOut(name, style, colour) for colour in (None, *given)]
            images += [image, *(recoloured(image, shade, colour) for colour in given)]
    return Objects(cutouts, np.stack(images))


def prepare_objects(output: str | os.PathLike, cache: str | os.PathLike = "data/npm") -> Path:
    """Write the cut-outs to the folder `output`, and replace an existing one."""
    archives = {style: fetch_package(name, version, cache) for style, (name, version, _, _) in PACKAGES.items()}
    words = fetch_package(*WORDS_PACKAGE, cache)
    objects = cut_all({style: read_images(archive, style) for style, archive in archives.items()})
    with atomic_folder(Path(output), overwrite=True) as folder:
        save_objects(objects, folder)
        write_licences(folder / "licences", [*archives.values(), words])
    return Path(output)


def save_objects(objects: Objects, folder: Path) -> None:
    """Write cut-outs, and the words for them, into an existing folder."""
    np.save(folder / "cutouts.npy", objects.images)
    (folder / "cutouts.json").write_text(json.dumps([asdict(one) for one in objects.cutouts]), encoding="utf-8")
    (folder / "known_words.json").write_text(json.dumps(known_words(), indent=2) + "\n", encoding="utf-8")


def load_objects(folder: str | os.PathLike) -> Objects:
    """
    Read a folder that [`prepare_objects`] wrote.

    Raises:
        FileNotFoundError: if it is not there.
    """
    folder = Path(folder)
    if not (folder / "cutouts.json").exists():
        raise FileNotFoundError(f"`folder` must contain cutouts.json, written by recipes.world.objects, got {folder}")
    cutouts = [CutOut(**one) for one in json.loads((folder / "cutouts.json").read_text(encoding="utf-8"))]
    return Objects(cutouts, np.load(folder / "cutouts.npy"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch the emoji and cut the things of the world out of them.")
    parser.add_argument("--output", default="data/world-objects", help="folder for the cut-outs")
    parser.add_argument("--cache", default="data/npm", help="folder for the fetched npm archives")
    options = parser.parse_args(arguments)
    objects = load_objects(prepare_objects(options.output, options.cache))
    print(f"{len(THINGS)} things, {len(objects.colours)} of them in other colours, {len(objects.cutouts)} cut-outs")
    for style, count in Counter(one.style for one in objects.cutouts).items():
        print(f"{style:8} {count:5} cut-outs")


if __name__ == "__main__":
    main()
