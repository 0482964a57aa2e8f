"""The benchmark of diffusion decoders: its table, and what it calls right."""

import pytest
import tiny
import torch
from benchmarks import image_decoders
from benchmarks.world_detector import Detector, save_detector
from world_objects import drawn_objects

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import save_objects
from recipes.world.scenes import Item, Scene


def test_a_scene_is_right_if_all_things_are_found_and_nothing_else(monkeypatch):
    dog, cat = Item("dog", "blue", 0, 0), Item("cat", None, 6, 0)
    scenes = [Scene((dog, cat), "flat", "white")] * 4
    found = [
        [(cat, "flat"), (dog.moved(1, 1), "flat")],  # the place does not matter
        [(cat, "flat")],
        [(cat, "flat"), (dog, "noto")],
        [(cat, "flat"), (dog, "flat"), (dog, "flat")],
    ]
    monkeypatch.setattr(image_decoders, "detect", lambda judge, images: found)
    assert image_decoders.right_scenes(None, torch.zeros(4, 3, 96, 96), scenes) == 0.25


def test_the_table_of_a_small_model(tmp_path, capsys):
    objects = drawn_objects()
    (tmp_path / "objects").mkdir()
    save_objects(objects, tmp_path / "objects")
    tiny.lfq(stages=4, sample_size=96).save_pretrained(tmp_path / "tokenizer")
    tiny.image_decoder(downsampling=8, sample_size=96).save_pretrained(tmp_path / "decoder")
    save_detector(Detector(), tmp_path / "judge.safetensors")
    paths = {"objects": "objects", "model": "tokenizer", "decoder": "decoder", "detector": "judge.safetensors"}
    arguments = [word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path))]
    sheets = tmp_path / "sheets"
    image_decoders.main([*arguments, "--steps", "1", "2", "--images", "4", "--sheets", str(sheets)])
    printed = capsys.readouterr().out
    for name in ("original", "plain decoder", "diffusion, 1 steps", "noise as diffusion, 2 steps"):
        assert f"| {name} |" in printed
    original = next(line for line in printed.splitlines() if "| original |" in line)
    assert original.count("| 1.00") >= 2 and "| 0.000 |" in original and "MB in bfloat16" in printed
    assert {file.name for file in sheets.iterdir()} == {"true-size.png", "enlarged.png"}


def test_baselines_are_as_detailed_as_the_decoder():
    scene = Scene((Item("dog", None, 3, 3),), "flat", "white")
    originals = to_pixel_values(draw(scene, drawn_objects())[None])
    ways = {"original": originals, "plain decoder": originals * 0.5, "diffusion, 1 steps": originals * 0.8}
    found = image_decoders.with_baselines(ways)
    assert list(found)[3:] == ["unsharp mask as diffusion, 1 steps", "noise as diffusion, 1 steps"]
    for images in list(found.values())[3:]:
        detail = image_decoders.detail_ratios(images, originals).mean().item()
        assert detail == pytest.approx(0.64, abs=0.03)
    assert list(image_decoders.with_baselines({**ways, "diffusion, 1 steps": originals * 0.3})) == list(ways)
