"""Cut-outs and recolouring, on drawn images and on tiny archives with the layout of the real packages."""

import io

import numpy as np
import pytest
from npm_archives import write_archive
from PIL import Image, ImageDraw

from recipes.colours import main_colour
from recipes.world.objects import (
    EXTENT,
    MEASURED,
    PACKAGES,
    SIDE,
    STYLES,
    Objects,
    cut_all,
    cut_out,
    load_objects,
    on_white,
    open_image,
    other_colours,
    read_images,
    save_objects,
)
from recipes.world.recolouring import PALETTE, main_shade, recoloured
from recipes.world.words import THINGS


def emoji(fill, size=64, box=(8, 16, 55, 47)):
    """A disc with a black outline and a white spot on a transparent square."""
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse(box, fill=fill, outline="black", width=2)
    draw.ellipse((28, 22, 34, 28), fill="white")
    return image


@pytest.mark.parametrize("side, extent", [(SIDE, EXTENT), (MEASURED, 48)])
def test_a_cut_out_is_scaled_down_to_fit_and_stands_in_the_middle(side, extent):
    alpha = cut_out(emoji("red"), side, extent)[..., 3] > 128
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    assert alpha.shape == (side, side)
    assert len(columns) == pytest.approx(extent, abs=1)
    assert columns[0] == pytest.approx(side - 1 - columns[-1], abs=1)
    assert rows[0] == pytest.approx(side - 1 - rows[-1], abs=1)


def test_scaling_adds_no_dark_edge():
    bare = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(bare).ellipse((4, 4, 60, 60), fill=(250, 10, 10))
    edge = cut_out(bare).astype(int)
    half = (edge[..., 3] > 40) & (edge[..., 3] < 215)
    assert half.any() and (edge[half][:, 0] > 230).all()


def test_an_invisible_image_is_refused():
    with pytest.raises(ValueError, match="`source` must have visible pixels"):
        cut_out(Image.new("RGBA", (8, 8)))


@pytest.mark.parametrize("colour", PALETTE)
def test_a_new_colour_replaces_the_paint_and_leaves_outline_and_spot(colour):
    cut = cut_out(emoji((90, 150, 60)), MEASURED, MEASURED)
    new = recoloured(cut, main_shade(cut), colour)
    assert main_colour(on_white(new)) == colour
    assert np.array_equal(new[..., 3], cut[..., 3])
    painted = (np.abs(cut[..., :3].astype(int) - (90, 150, 60)).max(-1) < 8) & (cut[..., 3] > 200)
    assert np.abs(new[painted][:, :3].astype(int) - PALETTE[colour]).max() < 12
    outline = (cut[..., :3].max(-1) < 20) & (cut[..., 3] > 200)
    assert outline.any() and (new[outline][:, :3] < 40).all()
    assert (new[24:27, 30:33, :3] > 195).all(), "the white spot stays light"


def test_shading_stays():
    cut = np.zeros((10, 20, 4), dtype=np.uint8)
    cut[:, :12], cut[:, 12:] = (200, 40, 40, 255), (100, 20, 20, 255)
    new = recoloured(cut, main_shade(cut[:, :12]), "blue")[..., :3].astype(int)
    assert np.abs(new[0, 0] - PALETTE["blue"]).max() <= 1
    assert np.abs(2 * new[0, 19] - new[0, 0]).max() <= 3


def test_a_white_thing_with_a_grey_outline_is_white():
    cut = cut_out(Image.new("RGBA", (40, 40), (250, 250, 250, 255))).copy()
    cut[1:4, :, :3] = 120
    assert main_shade(cut).min() > 240
    assert main_colour(on_white(recoloured(cut, main_shade(cut), "green"))) == "green"


def test_an_unknown_colour_is_refused():
    with pytest.raises(ValueError, match="`colour` must be one of red, orange"):
        recoloured(np.zeros((2, 2, 4), dtype=np.uint8), np.zeros(3), "teal")


def test_a_thing_gets_six_colours_and_none_of_its_own():
    assert other_colours({"red"}) == ("orange", "yellow", "green", "blue", "purple", "pink")
    assert len(other_colours({None})) == 6
    assert other_colours({"red", "orange", None}) == ("yellow", "green", "blue", "purple", "pink")


def test_svg_files_are_drawn():
    head = b'<svg width="32" height="32" viewBox="0 0 32 32" xmlns="http://www.w3.org/2000/svg">'
    content = head + b'<path d="M4 4h24v8H4z" fill="#F8312F"/></svg>'
    image = open_image(content, ".svg")
    assert image.size == (256, 256) and image.getpixel((128, 64)) == (248, 49, 47, 255)
    assert image.getpixel((128, 200))[3] == 0


def test_images_are_found_by_code_with_or_without_variation_selector(tmp_path):
    _, _, folder, extension = PACKAGES["flat"]
    file = io.BytesIO()
    emoji("blue").save(file, "PNG")
    codes = [thing.code.lower() + ("-fe0f" if number % 2 else "") for number, thing in enumerate(THINGS.values())]
    files = {f"{folder}{code}{extension}": file.getvalue() for code in [*codes, "1f600"]}
    archive = write_archive(tmp_path / "all.tgz", files)
    assert set(read_images(archive, "flat")) == set(THINGS)
    del files[f"{folder}{codes[0]}{extension}"]
    archive = write_archive(tmp_path / "few.tgz", files)
    with pytest.raises(ValueError, match=f"`archive` few.tgz has no image of {next(iter(THINGS))}"):
        read_images(archive, "flat")


def test_things_are_cut_in_every_style_and_recoloured_in_the_default_one(tmp_path):
    sources = {style: {"car": emoji("red"), "cow": emoji("gray")} for style in STYLES}
    made = cut_all(sources)
    assert made.colours == {"car": other_colours({"red"})}
    suns = cut_all({style: {"sun": emoji("yellow"), "key": emoji("brown")} for style in STYLES}).colours
    assert suns["sun"] == other_colours({"yellow", "orange"}) and "yellow" not in suns["key"]
    assert {(one.thing, one.style, one.colour) for one in made.cutouts} == {
        *(("cow", style, None) for style in STYLES),
        *(("car", style, None) for style in STYLES),
        *(("car", "flat", colour) for colour in other_colours({"red"})),
    }
    save_objects(made, tmp_path)
    again = load_objects(tmp_path)
    assert isinstance(again, Objects) and again.cutouts == made.cutouts
    assert np.array_equal(again.image("car", "flat", "blue"), made.image("car", "flat", "blue"))
    with pytest.raises(FileNotFoundError, match="`folder` must contain cutouts.json"):
        load_objects(tmp_path / "none")
