"""Whole emoji sets as image files, from tiny archives with the layout of the real packages."""

import io

import numpy as np
import pytest
from npm_archives import write_archive
from PIL import Image, ImageDraw

from recipes.drawings import SPLITS, VALIDATION_ONE_IN, drawing, main, split_of, write_drawings, write_style
from recipes.world.objects import PACKAGES, STYLES


CODES = ("1f34e", "1f300", "270c-fe0f", "270c-1f3fb", "1f469-1f3ff-200d-1f52c")
SVG = b'<svg width="32" height="32" viewBox="0 0 32 32" xmlns="http://www.w3.org/2000/svg"><path d="M4 4h24v24H4z"/></svg>'


def disc(colour, side=64):
    """A disc on a transparent square whose hidden colour is black."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((0, 0, side - 1, side - 1), fill=colour)
    return image


def file_of(image, extension):
    file = io.BytesIO()
    image.save(file, extension.removeprefix(".").upper(), **({"lossless": True} if extension == ".webp" else {}))
    return file.getvalue()


def write_packages(cache, codes=CODES):
    """An archive of each package: discs, or squares where the images are vectors; and a licence."""
    for name, version, folder, extension in PACKAGES.values():
        content = SVG if extension == ".svg" else file_of(disc("red"), extension)
        files = {f"{folder}{code}{extension}": content for code in codes}
        stem = f"{name.removeprefix('@').replace('/', '-')}-{version}"
        write_archive(cache / f"{stem}.tgz", {**files, "package/LICENSE": b"free", "package/package.json": b"{}"})
    return cache


def test_one_emoji_in_twenty_is_validation_with_all_its_variants():
    codes = [f"{code:04X}" for code in range(0x1F300, 0x1F300 + 2000)]
    share = sum(split_of(code) == "validation" for code in codes) / len(codes)
    assert share == pytest.approx(1 / VALIDATION_ONE_IN, rel=0.3)
    for code in codes[:200]:
        variants = (f"{code}-1F3FB", f"{code}-fe0f", f"{code}-1f3ff-fe0f", code.lower())
        assert {split_of(one) for one in variants} == {split_of(code)}
    assert split_of("1F469-1F3FB-200D-1F52C") == split_of("1F469-200D-1F52C")
    fixed = {"1F34E": "train", "1F436": "train", "1F300": "validation", "1F9AC": "train"}
    assert {code: split_of(code) for code in fixed} == fixed


@pytest.mark.parametrize("side", [32, 64, 256])
def test_a_drawing_fills_its_square_but_for_a_margin(side):
    image = drawing(disc((250, 10, 10), side), 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    seen = (image < 200).any(-1)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert rows[[0, -1]] == pytest.approx([4, 59], abs=1) and columns[[0, -1]] == pytest.approx([4, 59], abs=1)
    assert (image[0] == 255).all() and tuple(image[32, 32]) == (250, 10, 10)
    assert image[..., 0].min() > 240, "no dark edge"


def test_an_image_that_is_not_square_is_not_squeezed():
    seen = (drawing(Image.new("RGBA", (64, 32), "blue"), 64) < 200).any(-1)
    assert (seen.any(1).sum(), seen.any(0).sum()) == (28, 56)


def test_every_style_is_written_with_its_licence(tmp_path, capsys):
    output, cache = tmp_path / "drawings", write_packages(tmp_path / "npm")
    main(["--output", str(output), "--size", "32", "--cache", str(cache)])
    files = {split: sorted(file.name for file in (output / split).iterdir()) for split in SPLITS}
    names = {"1F34E", "1F300", "270C", "270C-1F3FB", "1F469-1F3FF-200D-1F52C"}
    assert {name for some in files.values() for name in some} == {
        f"{one}-{code}.png" for one in STYLES for code in names
    }
    assert files["validation"] == sorted(f"{one}-1F300.png" for one in STYLES)
    for style in STYLES:
        with Image.open(output / "train" / f"{style}-1F34E.png") as image:
            assert image.size == (32, 32) and image.mode == "RGB"
            middle = (0, 0, 0) if style == "fluent" else (255, 0, 0)
            assert image.getpixel((16, 16)) == middle and image.getpixel((0, 0)) == (255, 255, 255)
    assert len(list((output / "licences").rglob("LICENSE"))) == len(STYLES)
    assert capsys.readouterr().out.split()[0] == "flat"


def test_an_existing_folder_is_replaced_and_a_style_can_be_left_out(tmp_path):
    output, cache = tmp_path / "drawings", write_packages(tmp_path / "npm", (*CODES, "270c"))
    output.mkdir()
    (output / "old.txt").write_text("old")
    counts = write_drawings(output, 16, ("flat",), cache)
    assert sorted(file.name for file in output.iterdir()) == ["licences", "train", "validation"]
    assert set(counts) == {"flat"} and counts["flat"].total() == len(CODES), "270C comes once"


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="`size` must be an integer of at least 1, got 0"):
        write_drawings(tmp_path / "drawings", 0)
    archive = write_archive(tmp_path / "none.tgz", {"package/LICENSE": b"free"})
    with pytest.raises(ValueError, match=r"`archive` none.tgz has no files package/img/twitter/64/\*.png"):
        write_style(archive, "flat", tmp_path, 16)
