"""The benchmark of a LoRA that learns ink from things of the world: its parts, and a miniature of the whole."""

import random

import pytest
import small_world
import torch
from benchmarks import style_lora
from benchmarks import world_lora_style as lora
from benchmarks.ink import train_judge
from perfect_judge import Perfect
from PIL import Image

from recipes.world.held_out import styled
from recipes.world.objects import STYLES
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene


@pytest.fixture(scope="module")
def things(objects):
    return lora.choose_things(objects, 6, 4, 3, 2)


def maker_of(objects):
    return SceneMaker(objects, random.Random(0))


def test_things_are_drawn_once_and_measured_ones_are_known_in_all_styles(things, objects):
    measured = [*things.trained, *things.held_out]
    names = [*measured, *things.judged, *things.checked]
    assert len(set(names)) == len(names) == 15 and len(things.trained) == 6 and len(things.checked) == 2
    assert all(styled(name, style).split == "train" for name in measured for style in STYLES)
    assert set(things.real) == {(name, style) for name in names for style in (*STYLES, "ink")}
    assert lora.choose_things(objects, 6, 4, 3, 2, seed=1).trained != things.trained
    with pytest.raises(
        ValueError, match="`trained` and `held_out` must be at most 114 together.* got 100, 20, 0 and 0"
    ):
        lora.choose_things(objects, 100, 20, 0, 0)
    with pytest.raises(ValueError, match="all numbers at most 134, got 70, 35, 20 and 10"):
        lora.choose_things(objects, 70, 35, 20, 10)


def test_training_scenes_are_flat_on_white_and_show_every_thing(things, objects):
    scenes = lora.scenes_of(things.trained, 30, maker_of(objects))
    assert len(scenes) == 30 and [scene.items[0].thing for scene in scenes[:6]] == things.trained
    assert {(scene.style, scene.background, scene.split) for scene in scenes} == {("flat", "white", "train")}
    assert {thing for scene in scenes for thing in scene.counts} <= set(things.trained)
    assert {len(scene.items) for scene in scenes} == {1, 2, 3, 4} and max(len(one.counts) for one in scenes) == 2
    assert len(lora.scenes_of(things.trained, 4, maker_of(objects))) == 4


def test_own_scenes_have_all_old_styles_and_no_held_out_thing(objects):
    things = lora.choose_things(objects, 30, 60, 10, 10)
    scenes = lora.old_scenes(things.held_out, 60, maker_of(objects))
    assert {scene.style for scene in scenes} == set(STYLES)
    assert not {thing for scene in scenes for thing in scene.counts} & set(things.held_out)


def test_captions_name_the_style_and_the_first_is_the_measured_prompt(things):
    name = things.held_out[0]
    texts = lora.texts_of(Scene((Item(name, None, 4, 4),), "flat"), "ink")
    assert texts[0] == things.prompt(name, "ink") and texts[0].endswith(", ink style")
    assert texts[-1] == "ink style" and all("ink" in text for text in texts)


def test_ink_is_told_by_the_network_and_old_styles_by_the_detector(things):
    names = [*things.trained, *things.held_out]
    shown = {style: things.pictures(names, style) for style in things.words}
    images = torch.cat(list(shown.values()))
    network = train_judge(images, ["ink" if style == "ink" else "old" for style in things.words for _ in names])
    scenes = [Scene((Item(name, None, 4, 4),), style) for style in (*STYLES, "flat") for name in names]
    judge = lora.InkAndOldStyles(network, Perfect(scenes))
    assert judge.judge(images) == [style for style in things.words for _ in names]
    measure = style_lora.Measure(things, judge)
    pictures = torch.cat([shown["noto"]] * 5)
    judge.detector = Perfect([Scene(scene.items, "noto") for scene in scenes])
    assert measure(pictures, names * 5, "noto") == (1.0, 1.0)
    assert measure(pictures, names[::-1] * 5, "noto")[1] == 0.0
    assert lora.most(["flat", "noto", "noto"]) == "noto" and lora.most([]) == "none"


def test_a_wrong_model_is_refused_before_a_judge_is_trained(world_folder, tmp_path, monkeypatch):
    def train(*arguments):
        pytest.fail("a judge is trained")

    monkeypatch.setattr(lora, "trained_file", train)
    arguments = [*small_world.arguments_of(world_folder), "--output", str(tmp_path), "--trained", "2"]
    arguments += ["--held-out", "1", "--judged", "1", "--checked", "1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="model_index.json"):
        lora.main([*arguments, "--model", str(tmp_path / "empty")])


@pytest.mark.slow
def test_it_trains_by_the_command_and_prints_the_tables(capsys, world_folder, tmp_path):
    arguments = [*small_world.arguments_of(world_folder), "--output", str(tmp_path / "made"), "--trained", "2"]
    arguments += ["--held-out", "1", "--judged", "1", "--checked", "1", "--images", "4", "--kept", "3"]
    arguments += ["--old", "2", "--steps", "2"]
    sheet = tmp_path / "sheet.png"
    lora.main([*arguments, "--sheet", str(sheet), "steps=1", "batch_size=2"])
    printed = capsys.readouterr().out
    assert printed.startswith("training: ")
    assert len(list((tmp_path / "made" / "images").glob("*.png"))) == 4
    with Image.open(sheet) as image:
        assert image.width * 11 == image.height  # one thing in eleven rows
    lora.main([*arguments, "--adapter", str(tmp_path / "made" / "adapter")])
    tables = [
        [line for line in text.splitlines() if line.startswith("|")] for text in (printed, capsys.readouterr().out)
    ]
    assert tables[0] == tables[1]
    assert [line.split("|")[1].strip() for line in tables[0][9:16]] == [
        "ink style, held-out names",
        "ink style, training names",
        *(f"{style} style, both" for style in STYLES),
        "old styles, mean",
    ]
