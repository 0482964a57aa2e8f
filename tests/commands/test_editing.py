"""`showo-hf inpaint`, `extend` and `vary`, run with the embedded model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showo_hf import cli


PROMPT = "a green pear"
FAST = ("--steps", "4", "--seed", "3", "--device", "cpu", "--quiet")


@pytest.fixture
def disc(empty_folder) -> Path:
    """An image of the trained size: a red disc on white."""
    rows, columns = np.mgrid[:96, :96]
    pixels = np.full((96, 96, 3), 255, np.uint8)
    pixels[(rows - 48) ** 2 + (columns - 48) ** 2 < 36**2] = (200, 20, 30)
    path = Path("disc.png")
    Image.fromarray(pixels).save(path)
    return path


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def run(*arguments) -> int:
    return cli.main([*map(str, arguments), *FAST])


def test_only_the_box_is_inpainted(disc, capsys):
    assert run("inpaint", disc, PROMPT, "--box", "32,32,64,64", "--keep-pixels", "-o", "out.png") == cli.GOOD
    assert capsys.readouterr().out.split() == ["out.png"]
    before, after = pixels(disc), pixels("out.png")
    assert np.array_equal(before[:20], after[:20]) and np.array_equal(before[:, 76:], after[:, 76:])
    assert np.abs(before - after)[36:60, 36:60].mean() > 10


def test_a_mask_file_and_a_box_give_the_same_image(disc):
    mask = Image.new("L", (192, 192))
    mask.paste(255, (64, 64, 128, 128))
    mask.save("mask.png")
    run("inpaint", disc, PROMPT, "--box", "32,32,64,64", "-o", "box.png", "--save-steps", "box.gif")
    run("inpaint", disc, PROMPT, "--mask", "mask.png", "-o", "mask-out.png")
    assert np.array_equal(pixels("box.png"), pixels("mask-out.png"))
    with Image.open("box.gif") as film:
        assert film.n_frames > 1


def test_transparent_areas_of_a_mask_are_not_inpainted(disc):
    mask = Image.new("RGBA", (96, 96))
    mask.paste((255, 255, 255, 255), (32, 32, 64, 64))
    mask.save("mask.png")
    run("inpaint", disc, PROMPT, "--mask", "mask.png", "-o", "mask-out.png")
    run("inpaint", disc, PROMPT, "--box", "32,32,64,64", "-o", "box.png")
    assert np.array_equal(pixels("mask-out.png"), pixels("box.png"))


def test_a_crop_leaves_distant_pixels_unchanged(disc):
    with Image.open(disc) as image:
        image.resize((300, 300)).save("large.png")
    run("inpaint", "large.png", PROMPT, "--box", "10,10,40,40", "--crop", "8", "-o", "out.png")
    before, after = pixels("large.png"), pixels("out.png")
    assert after.shape == before.shape and np.array_equal(before[60:], after[60:])


def test_an_image_is_extended_in_each_direction(disc):
    run("extend", disc, PROMPT, "--direction", "left", "up", "--extent", "24", "--keep-pixels", "-o", "out.png")
    assert pixels("out.png").shape == (120, 120, 3)
    assert np.array_equal(pixels("out.png")[36:, 36:], pixels(disc)[12:, 12:])


def test_variations_follow_strength_and_seed(disc):
    for name, strength in (("same.png", "0"), ("some.png", "0.5"), ("other.png", "1")):
        run("vary", disc, PROMPT, "--strength", strength, "--remasking", "random", "-o", name)
    first, some, other = (pixels(name) for name in ("same.png", "some.png", "other.png"))
    assert np.array_equal(first, pixels(disc))
    assert 0 < np.abs(first - some).mean() < np.abs(first - other).mean()
    run("vary", disc, "a cat", "--num", "2", "--remasking", "random", "-o", "two.png")
    assert not np.array_equal(pixels("two-0.png"), pixels("two-1.png"))


def test_all_steps_of_an_extended_image_have_its_final_size(disc):
    run("extend", disc, PROMPT, "--extent", "24", "--rounds", "2", "-o", "out.png", "--save-steps", "steps.gif")
    with Image.open("steps.gif") as film:
        assert film.n_frames == 8 and film.size == (144, 96)
        first = np.asarray(film.convert("RGB"))
    assert (abs(first[:, 120:].astype(int) - 128) < 3).all(), "the second round is still masked"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["inpaint", "disc.png", PROMPT, "-o", "a.png"], "--mask"),
        (["inpaint", "disc.png", PROMPT, "--box", "1,2,3", "-o", "a.png"], "--box"),
        (["inpaint", "disc.png", PROMPT, "--box", "9,2,3,4", "-o", "a.png"], "--box"),
        (["inpaint", "disc.png", PROMPT, "--box", "0,0,97,96", "-o", "a.png"], "96x96"),
        (["inpaint", "disc.png", PROMPT, "--mask", "missing.png", "-o", "a.png"], "missing.png"),
        (["inpaint", "missing.png", PROMPT, "--box", "0,0,9,9", "-o", "a.png"], "missing.png"),
        (["inpaint", "disc.png", PROMPT, "--box", "0,0,9,9", "--strength", "1.5", "-o", "a.png"], "--strength"),
        (["inpaint", "disc.png", PROMPT, "--box", "0,0,9,9", "--crop", "4", "--save-steps", "a.gif", "-o", "a.png"],
         "--crop"),
        (["inpaint", "disc.png", PROMPT, "--box", "0,0,9,9", "--crop", "4", "--num", "2", "-o", "a.png"], "--num"),
        (["inpaint", "disc.png", PROMPT, "--mask", "wide.png", "-o", "a.png"], "`--mask` must have the aspect"),
        (["vary", "disc.png", PROMPT, "--guidance", "-1", "-o", "a.png"], "--guidance"),
        (["vary", "disc.png", PROMPT, "--temperature", "-1", "-o", "a.png"], "--temperature"),
        (["extend", "disc.png", PROMPT, "--direction", "north", "-o", "a.png"], "north"),
        (["extend", "disc.png", PROMPT, "--extent", "10", "-o", "a.png", "-q"], "10"),
        (["extend", "disc.png", PROMPT, "-o", "a.bmp"], ".png"),
        (["vary", "disc.png", PROMPT, "--remasking", "none", "-o", "a.png"], "--remasking"),
        (["vary", "disc.png", PROMPT, "--scheduler", "none", "-o", "a.png"], "--scheduler"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(arguments, named, disc, refused):
    Image.new("L", (96, 48), 255).save("wide.png")
    refused(arguments, named)
