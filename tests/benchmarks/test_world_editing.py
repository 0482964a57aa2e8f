"""The benchmark of edited scenes of the world, with a tiny model."""

import pytest
import small_world
import torch
from benchmarks import edits, world_editing
from benchmarks.edits import middle, seam_visibility
from benchmarks.world_editing import judge_of
from benchmarks.world_prompts import prompts_by_turns
from benchmarks.world_workbench import real_pixels
from perfect_judge import Perfect

from showo_hf import ShowoT2IPipeline


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return dict([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])


@pytest.mark.slow
def test_known_tokens_and_pixels_stay_and_nothing_is_measured_twice(world_folder, tmp_path, capsys):
    arguments = [*small_world.arguments_of(world_folder), "--output", str(tmp_path), "--count", "3", "--steps", "2"]
    world_editing.main(arguments)
    first = capsys.readouterr()
    rows = table(first.out)
    assert "Editing 3 scenes in 2 steps (validation)" in first.out
    assert rows["inpainting: known tokens unchanged"] == rows["extending: known tokens unchanged"] == "100%"
    assert rows["kept part with `preserve_pixels`: unchanged images"] == "100%"
    # Half of the tokens are kept, and a few of the others get the same value again.
    assert 50 <= int(rows["varied, strength 0.5: unchanged tokens"].rstrip("%")) < 60
    assert {f"varied to another caption, strength {one}: right things" for one in (0.5, 0.7, 0.9)} < set(rows)
    seams = [value for what, value in rows.items() if "gradient across seams" in what]
    assert len(seams) == 3 and all(float(value.split()[0]) > 0 for value in seams)
    world_editing.main(arguments)
    again = capsys.readouterr()
    assert again.out == first.out and first.err.count("done") == 3 and "done" not in again.err
    world_editing.main([*arguments, "--guidance", "1"])
    assert capsys.readouterr().err.count("done") == 3


def test_the_judge_tells_right_things_from_right_images(objects):
    asked = prompts_by_turns(objects, "validation", 6)
    pixels = real_pixels(asked, objects)
    assert judge_of(Perfect([prompt.scene for prompt in asked]), asked)(pixels) == {"right things": 1.0, "right": 1.0}
    found = judge_of(Perfect([prompt.scene for prompt in asked]), asked)(-pixels)
    assert found["right things"] == 1.0 and found["right"] == 0.0, "another background"
    others = [*asked[1:], asked[0]]
    assert judge_of(Perfect([prompt.scene for prompt in asked]), others)(pixels)["right things"] == 0.0


@pytest.mark.parametrize("name", ["inpainting", "varying", "extending"])
@torch.no_grad()
def test_another_seed_gives_other_images(name, objects, world_folder, monkeypatch):
    parts = ShowoT2IPipeline.from_pretrained(world_folder / "model").components
    asked = prompts_by_turns(objects, "validation", 2)
    made: list[torch.Tensor] = []

    def keep(images, *others):
        made.append(images)
        return {} if name != "extending" else 0.0

    monkeypatch.setattr(edits, "seam_visibility", keep)
    arguments = [parts, real_pixels(asked, objects), [prompt.text for prompt in asked]]
    arguments += [] if name == "extending" else [keep]

    def edited(seed):
        made.clear()
        getattr(edits, name)(*arguments, batch_size=2, seed=seed, num_inference_steps=1, guidance_scale=1.0)
        return torch.cat([images.flatten() for images in made])

    first = edited(7)
    assert torch.equal(edited(7), first) and not torch.equal(edited(8), first)


def test_the_command_passes_its_seed(world_folder, tmp_path, monkeypatch):
    seeds = []
    for name in ("inpainting", "varying", "extending"):
        monkeypatch.setattr(world_editing, name, lambda *inputs, seed, **options: seeds.append(seed) or [("it", "1")])
    arguments = [*small_world.arguments_of(world_folder), "--output", str(tmp_path), "--count", "1"]
    world_editing.main([*arguments, "--seed", "5"])
    assert seeds == [5, 5, 5]


@pytest.mark.parametrize("side, holes", [(12, 8), (4, 2), (3, 1)])
def test_the_hole_is_in_the_middle(side, holes):
    hole = middle(side)
    assert hole.sum() == holes**2 and torch.equal(hole, hole.flip(0)) and torch.equal(hole, hole.T)


def test_seam_visibility_is_a_ratio_of_gradients():
    pixels = torch.zeros(2, 3, 8, 32)
    pixels[..., 16:] = 0.5  # the left border of token column 4
    pixels[..., 20:] = 0.6
    assert seam_visibility(pixels, torch.tensor([4]), 2, 4) == pytest.approx(0.5 / (0.1 / 5))
    assert seam_visibility(pixels, torch.tensor([3]), 2, 4) == 0
