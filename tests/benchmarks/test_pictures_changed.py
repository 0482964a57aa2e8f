"""The benchmarks of samplers, of changed pictures and of large ones, on a few discs and a tiny model."""

import json

import editing
import large_pictures
import pytest
import samplers
from PIL import Image


# Captions are longer than the tiny processor's texts, and are cut.
pytestmark = pytest.mark.filterwarnings("ignore:A text of .* ids was cut")


def table(capsys) -> list[list[str]]:
    lines = capsys.readouterr().out.strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_each_sampler_is_measured_once_and_drawn(capsys, folder, model, tmp_path):
    results, plot = tmp_path / "results.jsonl", tmp_path / "plot.png"
    arguments = [
        "--data",
        str(folder),
        "--model",
        model,
        "--results",
        str(results),
        "--captions",
        "4",
        "--guidance",
        "2",
    ]
    samplers.main([*arguments, "--samplers", "maskgit", "--steps", "2"])
    first = results.read_text()
    samplers.main([*arguments, "--steps", "2", "4", "--plot", str(plot)])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert results.read_text().startswith(first) and len(rows) == 2 * len(samplers.SETTINGS)
    assert {(row["sampler"], row["steps"]) for row in rows} == {(s, n) for s in samplers.SETTINGS for n in (2, 4)}
    assert all(0 <= row["name"] <= 1 and row["frechet"] >= 0 and row["seconds"] > 0 for row in rows)
    assert all(1 <= row["steps_run"] <= row["steps"] for row in rows)
    assert len(table(capsys)[-1]) == 8
    with Image.open(plot) as picture:
        assert picture.width > picture.height > 300


def test_known_tokens_stay_in_every_picture(capsys, folder, model):
    editing.main(["--data", str(folder), "--model", model, "--pictures", "3", "--steps", "2", "--batch-size", "2"])
    rows = dict(row for row in table(capsys)[2:])
    assert rows["repainting: known tokens unchanged"] == rows["extending: known tokens unchanged"] == "100%"
    # Half of the tokens stay, and a few others come out as they were.
    assert 50 <= int(rows["varied, strength 0.5: tokens as before"].rstrip("%")) < 60
    assert float(rows["extended 3 rounds: gradient across seams / across other borders of tokens"]) > 0


def test_borders_are_where_a_tile_takes_over_from_another():
    marked = large_pictures.near_borders(10, 4, 1)
    assert marked.nonzero().flatten().tolist() == [2, 3, 5, 6]
    assert not large_pictures.near_borders(4, 4, 1).any()


def test_tiles_and_whole_differ_little_far_from_borders(model):
    found = large_pictures.differences(model, side=2, pictures=1)
    assert set(found) == {f"{what}, {where}" for what in ("codes", "pixels") for where in ("borders", "elsewhere")}
    assert 0 <= found["codes, elsewhere"] <= 1 and found["pixels, elsewhere"] > 0


@pytest.mark.slow
def test_memory_of_a_picture_in_tiles_and_whole():
    whole, tiled = (large_pictures.memory(64, way, trained=32) for way in (False, True))
    assert whole["decode"] > tiled["decode"] > 0
