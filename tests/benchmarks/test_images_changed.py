"""The benchmarks of samplers, of edited images and of large images, with a few discs and a tiny model."""

import json
from dataclasses import replace

import large_images
import pytest
from benchmarks import editing, samplers
from PIL import Image
from t2i import SMALL


# Captions are longer than `max_text_length` of the tiny processor, and are truncated.
pytestmark = pytest.mark.filterwarnings("ignore:A text of .* ids was cut")


def table(capsys) -> list[list[str]]:
    lines = capsys.readouterr().out.strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_each_sampler_is_measured_once_and_plotted(capsys, folder, model, tmp_path):
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
    results.write_text(json.dumps({"sampler": "maskgit", "steps": 2, "guidance": 2.0, "names": [True]}) + "\n")
    samplers.main([*arguments, "--samplers", "maskgit", "--steps", "2"])
    first = results.read_text()
    samplers.main([*arguments, "--steps", "2", "4", "--plot", str(plot)])
    _, *rows = [json.loads(line) for line in results.read_text().splitlines()]  # the first has other captions
    assert results.read_text().startswith(first) and len(rows) == 2 * len(samplers.SETTINGS)
    assert {(row["sampler"], row["steps"]) for row in rows} == {(s, n) for s in samplers.SETTINGS for n in (2, 4)}
    assert all(0 <= row["name"] <= 1 and row["frechet"] >= 0 and row["seconds_a_step"] > 0 for row in rows)
    assert all(1 <= row["steps_run"] <= row["steps"] for row in rows)
    printed = capsys.readouterr().out
    assert "| guidance 2 | steps at most |" in printed and all(
        f"| {name} | 4 |" in printed for name in samplers.SETTINGS
    )
    with Image.open(plot) as image:
        assert image.width > image.height > 300


def test_samplers_are_compared_image_by_image():
    one, other = ({"names": names} for names in ([True, True, False, True], [True, False, False, False]))
    more, error = samplers.difference(one, other)
    assert more == 0.5 and error == pytest.approx((1 / 3) ** 0.5 / 2)
    assert samplers.difference(other, one) == (-more, pytest.approx(error))
    assert samplers.difference(one, one) == (0, 0)


def test_known_tokens_stay_in_every_image(capsys, folder, model):
    editing.main(["--data", str(folder), "--model", model, "--images", "3", "--steps", "2", "--batch-size", "2"])
    rows = dict(row for row in table(capsys)[2:])
    assert rows["inpainting: known tokens unchanged"] == rows["extending: known tokens unchanged"] == "100%"
    # Half of the tokens are kept, and a few of the others get the same value again.
    assert 50 <= int(rows["varied, strength 0.5: unchanged tokens"].rstrip("%")) < 60
    seams = [value for what, value in rows.items() if "gradient across seams" in what]
    assert len(seams) == 2 and all(float(value.split()[0]) > 0 for value in seams)


def test_near_borders_marks_tokens_next_to_tile_borders():
    marked = large_images.near_borders(10, 4, 1)
    assert marked.nonzero().flatten().tolist() == [2, 3, 5, 6]
    assert not large_images.near_borders(4, 4, 1).any()


def test_tiling_differences(model):
    found = large_images.differences(model, side=2, images=1)
    assert set(found) == {f"{what}, {where}" for what in ("tokens", "pixels") for where in ("borders", "elsewhere")}
    assert 0 <= found["tokens, elsewhere"] <= 1 and found["pixels, elsewhere"] > 0


@pytest.mark.slow
def test_tiling_saves_memory():
    # Large enough that the activations need more memory than the weights that a convolution packs.
    whole, tiled = (large_images.memory(192, way, trained=32) for way in (False, True))
    assert whole["encode"] > 2 * tiled["encode"] > 0
    assert whole["decode"] > 1.5 * tiled["decode"] > 0


@pytest.mark.slow
def test_a_large_image_with_a_whole_model():
    sizes = replace(SMALL, image_tokens=64)  # an image of 16 pixels
    small, large = (large_images.text_to_image(size, 16, sizes=sizes) for size in (16, 32))
    assert (small["windows"], large["windows"]) == (1, 9) and small["model"] == large["model"] > 0
    assert large["above"] > 0
