"""The benchmark of diffusion decoders: its table, and what it calls right."""

import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from benchmarks import image_decoders
from benchmarks.world_detector import Detector, save_detector
from benchmarks.world_judging import Seen
from benchmarks.world_workbench import OBJECTS
from PIL import Image
from world_objects import drawn_objects

from recipes.file_hashes import files_hash
from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.held_out import styled
from recipes.world.objects import save_objects
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene


@pytest.fixture(scope="module")
def objects():
    return drawn_objects()


def test_a_scene_is_right_if_all_things_are_found_and_nothing_else(monkeypatch):
    dog, banana = Item("dog", "blue", 0, 0), Item("banana", None, 6, 0)
    yellow = Item("banana", "yellow", 6, 0)
    one = Scene((dog, banana), "flat", "white")
    right = [
        ([(banana, "flat"), (dog.moved(1, 1), "flat")], "white"),  # the place does not matter
        ([(yellow, "flat"), (dog, "flat")], "white"),  # its own colour
    ]
    wrong = [
        ([(banana, "flat")], "white"),
        ([(banana, "flat"), (dog, "noto")], "white"),
        ([(banana, "flat"), (dog, "flat"), (dog, "flat")], "white"),
        ([(banana, "flat"), (Item("dog", "red", 0, 0), "flat")], "white"),
        ([(banana, "flat"), (dog, "flat")], "night"),
    ]
    for found, share in ((right, 1.0), (wrong, 0.0), (right + wrong, 2 / 7)):
        seen = [Seen(tuple(things), background) for things, background in found]
        monkeypatch.setattr(image_decoders, "look", lambda judge, images, seen=seen: seen)
        assert image_decoders.right_scenes(None, torch.zeros(len(seen), 3, 96, 96), [one] * len(seen)) == share


def rows_of(printed: str) -> list[list[str]]:
    """The cells of each row of a printed table, headers too."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]


@pytest.fixture
def small_world(objects, tmp_path) -> list[str]:
    """The arguments for the objects, a tiny tokenizer and two decoders."""
    (tmp_path / "objects").mkdir()
    save_objects(objects, tmp_path / "objects")
    tiny.lfq(stages=4, sample_size=96).save_pretrained(tmp_path / "tokenizer")
    decoders = [str(tmp_path / name) for name in ("plain", "distilled")]
    for seed, folder in enumerate(decoders):
        decoder = tiny.image_decoder(seed, downsampling=8, sample_size=96, num_inference_steps=2 - seed)
        decoder.to(torch.bfloat16 if seed else torch.float32).save_pretrained(folder)
    paths = ["--objects", str(tmp_path / "objects"), "--model", str(tmp_path / "tokenizer")]
    return [*paths, "--decoder", *decoders]


@pytest.mark.slow
def test_the_tables_of_small_models(small_world, tmp_path, capsys):
    origin = {"objects": files_hash(small_world[1], OBJECTS)}
    save_detector(Detector(), tmp_path / "judge.safetensors", origin)
    sheets = tmp_path / "sheets"
    arguments = [*small_world, "--detector", str(tmp_path / "judge.safetensors"), "--images", "4"]
    image_decoders.main([*arguments, "--steps", "1", "2", "--sheets", str(sheets)])
    printed = capsys.readouterr().out
    first, second = printed.split("4 scenes of the validation split: ")[1:]
    assert first.startswith("one combination is unseen") and second.startswith("one thing, unseen in its style")
    for table in (first, second):
        rows = {row[0]: row[1:] for row in rows_of(table)}
        assert rows[""][-5:] == ["PSNR", "to plain", "band error", "tokens back", "right"]
        assert rows["original"][0] == "1.00" and rows["original"][-3:-1] == ["0.000", "100.0%"]
        assert rows["plain decoder"][-4] == "+0.00 dB"
        for folder in ("plain", "distilled"):
            for number in (1, 2):
                assert rows[f"diffusion decoder {folder}, {number} steps"][-1].endswith("%")
        assert "noise as diffusion decoder distilled, 2 steps" in rows
    for folder in (sheets, sheets / "unseen-things"):
        assert {"true-size.png", "enlarged.png"} <= {file.name for file in folder.iterdir()}


def test_a_judge_of_other_things_is_refused(small_world, tmp_path, capsys):
    save_detector(Detector(), tmp_path / "judge.safetensors", {"objects": "others"})
    with pytest.raises(SystemExit):
        image_decoders.main([*small_world, "--detector", str(tmp_path / "judge.safetensors")])
    assert "`--detector` must be a judge with objects" in capsys.readouterr().err


def test_steps_are_each_decoders_own_and_what_is_not_measured_is_named(small_world, tmp_path, capsys):
    image_decoders.main([*small_world, "--images", "2"])
    printed = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in rows_of(printed)}
    assert rows["plain decoder"][-1] == "not measured"
    for name, steps in (("plain", 2), ("distilled", 1)):
        folder = tmp_path / name
        assert f"diffusion decoder {name}, {steps} steps" in rows
        assert f"diffusion decoder {name}, {3 - steps} steps" not in rows
        size = (folder / "model.safetensors").stat().st_size
        assert f"{folder}: " in printed and f" weights, file {size / 1e6:.1f} MB, in the wheel " in printed
        found = image_decoders.sizes(folder)
        assert found[0] == size and 0.5 * size < found[1] < size
        assert f"{folder}: one image, the plain decoding and {steps} steps: " in printed


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/image_decoder"], ["diffusion decoder"]),
        (["a/one", "a/two"], ["diffusion decoder one", "diffusion decoder two"]),
        (["a/one", "b/one"], ["diffusion decoder a/one", "diffusion decoder b/one"]),
    ],
)
def test_names_tell_decoders_apart(folders, names):
    assert image_decoders.names([Path(folder) for folder in folders]) == names


def test_times_are_without_gradients_and_with_the_plain_decoding(monkeypatch, capsys):
    tokenizer = tiny.lfq(stages=4, sample_size=96)
    decoder = tiny.image_decoder(0, downsampling=8, sample_size=96)
    decoded, timed = [], []
    plain = tokenizer.decode

    def decode(tokens):
        decoded.append(torch.is_grad_enabled())
        return plain(tokens)

    def seconds(function):
        function()
        timed.append(len(decoded))
        return 1.0

    monkeypatch.setattr(tokenizer, "decode", decode)
    monkeypatch.setattr(image_decoders, "seconds_for_one", seconds)
    image_decoders.print_times(tokenizer, {Path("it"): decoder}, torch.zeros(1, 12, 12, dtype=torch.int64), [1, 2])
    assert timed == [1, 2, 3], "each way decodes the tokens itself"
    assert not any(decoded) and "plain decoder: one image, " in capsys.readouterr().out


def test_things_of_the_second_table_were_never_seen_in_their_style(objects):
    maker = SceneMaker(objects, random.Random(0))
    for _ in range(30):
        scene = maker.scene("validation", "single")
        assert all(styled(item.thing, scene.style).split == "validation" for item in scene.items)


def test_flat_images_have_no_detail_to_compare(objects):
    originals = to_pixel_values(draw(Scene((Item("dog", None, 3, 3),), "flat", "white"), objects)[None])
    both = torch.cat([torch.ones_like(originals), originals])
    row = image_decoders.quality_row(both, both, both, np.array(["3d", "flat"]))
    assert row[:4] == ["1.00", "nan", "1.00", "1.00"]


def test_the_psnr_is_compared_with_the_plain_decoders(objects):
    originals = to_pixel_values(draw(Scene((Item("dog", None, 3, 3),), "flat", "white"), objects)[None])
    better, worse = 0.9 * originals, 0.8 * originals  # half the error: 6.02 dB
    assert image_decoders.quality_row(better, originals, worse, np.array(["flat"]))[-2] == "+6.02 dB"
    assert image_decoders.quality_row(worse, originals, better, np.array(["flat"]))[-2] == "-6.02 dB"


def test_a_time_is_the_median(monkeypatch):
    clock = iter([0.0, 1.0, 0.0, 9.0, 0.0, 2.0])
    monkeypatch.setattr(image_decoders.time, "perf_counter", lambda: next(clock))
    assert image_decoders.seconds_for_one(lambda: None, repeats=3) == 2.0


def test_sheets_show_the_first_images_of_each_style_under_captions(tmp_path):
    styles = np.array(["noto", "flat", "noto"] + 11 * ["3d"])  # fewer images of a style than a sheet shows
    levels = torch.arange(14).view(14, 1, 1, 1).expand(14, 3, 8, 8) / 255 * 2 - 1  # image i has the colour i
    image_decoders.make_sheets(tmp_path, {"original": levels, "plain decoder": -levels}, styles)
    line = image_decoders.LINE
    for name, rows, scale in (
        ("true-size", {"3d": [*range(3, 12)], "flat": [1], "noto": [0, 2]}, 1),
        ("enlarged", {"3d": [3, 4, 5], "flat": [1], "noto": [0, 2]}, 3),
    ):
        sheet, side = Image.open(tmp_path / f"{name}.png"), 8 * scale
        assert sheet.size == (side * len(rows["3d"]), 6 * (side + line))
        shown = [(images, way) for images in rows.values() for way in (1, -1)]  # a style's rows stand together
        for number, (images, way) in enumerate(shown):
            top = number * (side + line) + line
            levels = [sheet.getpixel((column * side + 4, top + 4))[0] for column in range(len(images))]
            assert levels == [at if way == 1 else 255 - at for at in images]
            caption = sheet.crop((0, top - line, sheet.width, top)).convert("L")
            assert caption.getextrema()[1] == 255 and caption.getextrema()[0] < 100


def test_baselines_are_as_detailed_as_the_decoder(objects):
    scene = Scene((Item("dog", None, 3, 3),), "flat", "white")
    originals = to_pixel_values(draw(scene, objects)[None])
    ways = {"original": originals, "plain decoder": originals * 0.5, "diffusion, 1 steps": originals * 0.8}
    found = image_decoders.with_baselines(ways)
    assert list(found)[3:] == ["unsharp mask as diffusion, 1 steps", "noise as diffusion, 1 steps"]
    for images in list(found.values())[3:]:
        detail = image_decoders.detail_ratios(images, originals).mean().item()
        assert detail == pytest.approx(0.64, abs=0.03)
    assert list(image_decoders.with_baselines({**ways, "diffusion, 1 steps": originals * 0.3})) == list(ways)
