"""The contact sheets of the world."""

import numpy as np
import pytest
import small_world
from benchmarks import world_sheets
from benchmarks.pictures import to_image
from benchmarks.world_prompts import KINDS, draw_prompts, prompts_by_turns
from benchmarks.world_sheets import COLUMNS, GAP, SCALE, SHEET_BYTES, font, jpeg, sheet, wrapped
from benchmarks.world_workbench import real_pixels
from PIL import Image


def test_words_are_wrapped_and_none_is_lost():
    letters = font()
    text = "a purple helicopter to the left of a yellow umbrella on a pink background, flat style"
    lines = wrapped(text, letters, 150)
    assert len(lines) > 2 and " ".join(lines) == text
    assert all(letters.getlength(line) <= 150 for line in lines)
    assert wrapped("incomprehensibilities", letters, 20) == ["incomprehensibilities"]


def test_images_stand_in_rows_unchanged_with_words_below():
    colours = ("red", "green", "blue")
    whole = np.asarray(sheet([Image.new("RGB", (80, 60), one) for one in colours], ["one", "two", "three"], columns=2))
    height = (whole.shape[0] - GAP) // 2 - GAP
    for number, colour in enumerate(colours):
        row, column = divmod(number, 2)
        top, left = GAP + row * (height + GAP), GAP + column * (80 + GAP)
        cell = whole[top : top + height, left : left + 80]
        assert (cell[:60] == np.asarray(Image.new("RGB", (80, 60), colour))).all()
        assert cell[61:].min() < 100, "black letters"
    assert (whole[GAP + height + GAP :, GAP + 80 + 2 :] == 255).all(), "an empty place"


def test_kinds_take_turns(objects):
    prompts = prompts_by_turns(objects, "validation", 8, seed=3)
    assert [prompt.kind for prompt in prompts] == [*KINDS, *KINDS[:2]]
    assert prompts[:2] == [draw_prompts(objects, "validation", kind, 2, seed=3)[0] for kind in KINDS[:2]]


def test_sheets_are_written_and_captions_printed(world_folder, objects, tmp_path, capsys):
    folders = [*small_world.arguments_of(world_folder)[:4], "--output", str(tmp_path / "sheets")]
    samples = tmp_path / "images" / "samples.png"
    world_sheets.main([*folders, "--samples", str(samples), "--count", "9", "--steps", "1", "--kinds", "binding"])
    printed = capsys.readouterr().out.splitlines()
    assert {file.name for file in (tmp_path / "sheets").iterdir()} == {"sheet-binding.jpg", "real.jpg"}
    assert printed[-1].startswith("1. ") and printed[-1].count(" | ") == 7, "eight captions"
    with Image.open(samples) as image:
        assert image.size == (8 * 96, 96), "whole rows alone"
    prompts = prompts_by_turns(objects, "validation", 9)[:2]
    with Image.open(tmp_path / "sheets" / "real.jpg") as image:
        left, side = GAP + SCALE * 96 + GAP, SCALE * 96
        second = np.asarray(image.convert("RGB"))[GAP : GAP + side, left : left + side].astype(int)
    left, there = (np.asarray(to_image(one, SCALE)).astype(int) for one in real_pixels(prompts, objects))
    assert abs(second - there).mean() < 4 < abs(second - left).mean(), "JPEG, and smooth edges"


def test_sheets_are_small_files():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    best, small = jpeg(Image.fromarray(noise)), jpeg(Image.fromarray(noise), most=50_000)
    assert 40_000 < len(small) <= 50_000 < len(best) <= SHEET_BYTES
    assert len(jpeg(Image.fromarray(noise), most=10)) > 10, "the lowest quality, if nothing is small enough"


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_prompts_for_a_sheet(objects, split, kind):
    assert len(draw_prompts(objects, split, kind, COLUMNS**2)) == COLUMNS**2
