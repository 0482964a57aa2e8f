"""The comparison of image tokenizers, in miniature."""

import pytest
import tiny
from benchmarks import image_tokenizer_comparison as comparison
from PIL import Image, ImageDraw


def test_there_are_eight():
    assert comparison.names() == [
        "lfq-10", "lfq-10-gan", "lfq-13", "lfq-13-gan", "vq-10", "vq-10-gan", "vq-13", "vq-13-gan"
    ]  # fmt: skip


@pytest.mark.slow
def test_two_are_trained_compared_and_not_trained_again(tmp_path, monkeypatch, capsys):
    small = {name: [8, 8] if "channels" in name else [1, 1] for name in comparison.NETWORK if "block" in name}
    monkeypatch.setattr(comparison, "NETWORK", {**small, "mid_block_attention": False, "norm_num_groups": 4})
    monkeypatch.setattr(comparison, "SIZE", tiny.SIDE * tiny.FACTOR)
    common = {"image_size": tiny.SIDE * tiny.FACTOR, "logging_steps": 1, "validation_rows": 2, "batch_size": 2}
    monkeypatch.setattr(comparison, "COMMON", comparison.COMMON | common)
    monkeypatch.setattr(comparison, "EVALUATIONS", 2)
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            image = Image.new("RGB", (16, 16), "white")
            ImageDraw.Draw(image).ellipse((2, 3, 9 + number, 14), fill=("red", "green", "blue", "black")[number])
            image.save(tmp_path / folder / f"{number}.png")
    output = tmp_path / "runs"
    output.mkdir()
    (output / "steps.json").write_text('{"steps": 4}')
    command = ["--data", str(tmp_path), "--output", str(output), "--only", "lfq-10", "vq-10-gan"]
    comparison.main(command)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("lfq-10", "vq-10-gan", "white images"))
    minutes, values = comparison.curve(output / "lfq-10-log.jsonl")
    assert len(minutes) == len(values) == 2 and 0 < minutes[0] < minutes[1]
    assert Image.open(output / "curves.png").width == 880
    assert Image.open(output / "sheet.png").size == (2 * 4 * 16, 2 * 3 * 16)
    made = (output / "lfq-10" / "model.safetensors").stat().st_mtime
    comparison.main(command)
    assert (output / "lfq-10" / "model.safetensors").stat().st_mtime == made
    assert capsys.readouterr().out == shown


def test_steps_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "load_recipe", lambda file, entries: None)
    monkeypatch.setattr(comparison, "plan_of", lambda config: "devices 1\ntime of a step  0.5 s on this machine")
    assert comparison.steps_of(tmp_path, tmp_path / "runs", 40) == 4800
    assert comparison.steps_of(tmp_path, tmp_path / "runs", 1) == 4800
