"""The comparison of image tokenizers, in miniature."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from benchmarks import image_tokenizer_comparison as comparison
from benchmarks import image_tokenizer_quality as quality
from PIL import Image, ImageDraw

from showo_hf.training.recipe_files import load_recipe


SIDE = tiny.SIDE * tiny.FACTOR


def test_there_are_eight():
    assert comparison.names() == [
        "lfq-10", "lfq-10-gan", "lfq-13", "lfq-13-gan", "vq-10", "vq-10-gan", "vq-13", "vq-13-gan"
    ]  # fmt: skip


def config_of(name: str, folder: Path):
    """The config of a recipe of the comparison."""
    file = folder / f"{name}.yaml"
    recipe = comparison.recipe_of(name, Path("data"), Path("output"), steps=2000)
    file.write_text(yaml.safe_dump(comparison.validated(recipe, Path("data"))))
    return load_recipe(str(file), [])


@pytest.mark.parametrize("name", ["lfq-10", "lfq-13", "vq-10", "vq-13"])
def test_the_losses_are_those_of_the_default_recipe_with_and_without_its_discriminator(name, tmp_path):
    entries = ["data=x", "output=y", "steps=1"]
    for own, changes in ((f"{name}-gan", []), (name, ["discriminator=null"])):
        default = load_recipe(f"{name.split('-')[0]}-tokenizer", entries + changes)
        config = config_of(own, tmp_path)
        assert config.loss_weights == default.loss_weights and config.pixel_scales == default.pixel_scales
        assert config.perceptual is default.perceptual is None
        assert config.commitment_weight == default.commitment_weight
        for key in ("codebook_learning", "distance"):
            assert getattr(config, key, None) == getattr(default, key, None), key
        assert (config.discriminator is None) == (own == name)
    with_features = config_of(f"{name}-gan", tmp_path)
    size = {"channels", "max_channels", "start", "learning_rate"}
    default = load_recipe(f"{name.split('-')[0]}-tokenizer", entries)
    for key, value in default.discriminator.items():
        assert key in size or with_features.discriminator[key] == value, key
    assert with_features.discriminator["learning_rate"] == default.training["learning_rate"]
    assert with_features.loss_weights["feature_matching"] == 1.0
    one, other = (comparison.recipe_of(own, Path("d"), Path("o"), 100) for own in (name, f"{name}-gan"))
    assert {key for key in one if one[key] != other[key]} == {"output", "discriminator"}


@pytest.fixture
def small(tmp_path, monkeypatch) -> list[str]:
    """A small network and few images. Returns the arguments for them and for the output, `tmp_path / "runs"`."""
    network = {name: [8, 8] if "channels" in name else [1, 1] for name in comparison.NETWORK if "block" in name}
    monkeypatch.setattr(comparison, "NETWORK", {**network, "mid_block_attention": False, "norm_num_groups": 4})
    monkeypatch.setattr(comparison, "SIZE", SIDE)
    common = {"image_size": SIDE, "logging_steps": 1, "batch_size": 2}
    monkeypatch.setattr(comparison, "COMMON", comparison.COMMON | common)
    monkeypatch.setattr(comparison, "EVALUATIONS", 2)
    monkeypatch.setattr(comparison, "VALIDATION_ROWS", 2)
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            image = Image.new("RGB", (16, 16), "white")
            ImageDraw.Draw(image).ellipse((2, 3, 9 + number, 14), fill=("red", "green", "blue", "black")[number])
            image.save(tmp_path / folder / f"{number}.png")
    (tmp_path / "runs").mkdir()
    return ["--data", str(tmp_path), "--output", str(tmp_path / "runs")]


def cells(shown: str) -> dict[str, list[str]]:
    """The cells of each row of a table by its first one."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
def test_two_are_trained_compared_and_not_trained_again(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "lfq-10-seconds.json").write_text("[0.25, 0.25]")
    (tmp_path / "runs" / "vq-10-gan-seconds.json").write_text("[0.25, 0.5]")
    output = tmp_path / "runs" / "0.02-minutes"
    command = [*small, "--minutes", "0.02", "--only", "vq-10-gan", "lfq-10"]
    tiny.vq().save_pretrained(output / "vq-10")
    comparison.main(command)
    shown = capsys.readouterr().out
    rows = cells(shown)
    assert rows["tokenizer"][-2:] == ["steps", "minutes"]
    assert rows["lfq-10"][-2] == "5" and rows["vq-10-gan"][-2] == "3", "1.2 seconds of 0.25, and of 0.4 on average"
    assert all(float(rows[name][-1]) >= 0 for name in ("lfq-10", "vq-10-gan"))
    assert rows["white images"][-2:] == ["", ""]
    minutes, values = comparison.curve(output / "lfq-10-log.jsonl", [0.25, 0.25])
    assert len(values) == 3 and minutes == pytest.approx([0.25 * step / 60 for step in (2, 4, 5)])
    with Image.open(output / "curves.png") as curves, Image.open(output / "sheet.png") as sheet:
        assert curves.width == 880 and sheet.size == (2 * 4 * 16, 2 * 3 * 16)
    shutil.rmtree(output / "lfq-10")
    monkeypatch.setattr(comparison, "train", lambda recipe: pytest.fail("it is trained again"))
    comparison.main(command)
    assert capsys.readouterr().out == shown, "rows, log and images are enough"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"images": 3}, ["--only", "lfq-10"], "--count: must give the held-out images of .*lfq-13.json.* 3, got 512"),
        ({"held_out": "others"}, ["--only", "lfq-10"], "--data: must give .* held_out 'others', got '"),
        ({}, ["--only", "vq-13-gan"], "--only: vq-13-gan is compared with vq-13, but .*vq-13 is not there"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_training(
    small, tmp_path, monkeypatch, capsys, rows, options, message
):
    output = tmp_path / "runs" / "40-minutes"
    output.mkdir()
    measured = comparison.measured_on(tmp_path / "validation", 512)
    (output / "lfq-13.json").write_text(json.dumps({**measured, "rows": [], **rows}))
    monkeypatch.setattr(comparison, "train", lambda recipe: pytest.fail("it is trained"))
    with pytest.raises(SystemExit):
        comparison.main([*small, *options])
    assert re.search(message, capsys.readouterr().err)


def test_a_discriminator_is_compared_with_cheap_detail(small, tmp_path, monkeypatch, capsys):
    output = tmp_path / "runs" / "0.02-minutes"
    for seed, name in enumerate(("vq-10", "vq-10-gan")):
        tiny.vq(seed).save_pretrained(output / name)
        (output / f"{name}-log.jsonl").write_text('{"step": 2, "loss": 1.0, "seconds_per_step": 3.0}\n')
    details = iter([0.5, 0.5, 0.8, 0.8, 0.5])
    monkeypatch.setattr(quality, "detail_ratios", lambda images, originals: torch.full((4,), next(details, 1.0)))
    comparison.measure("vq-10-gan", output, tmp_path / "validation", 4)
    (first, *others) = json.loads((output / "vq-10-gan.json").read_text())["rows"]
    assert first[0] == "vq-10-gan" and [row[0] for row in others] == ["  vq-10 and unsharp mask", "  vq-10 and noise"]


@pytest.mark.slow
def test_steps_are_measured_once_before_and_after_the_discriminator_starts(small, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "TRIAL_STEPS", 20)
    before, after = comparison.seconds_of("lfq-10-gan", tmp_path, tmp_path / "runs")
    assert 0 < before < after
    monkeypatch.setattr(comparison, "train", lambda recipe: pytest.fail("it is measured again"))
    assert comparison.seconds_of("lfq-10-gan", tmp_path, tmp_path / "runs") == [before, after]
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["lfq-10-gan-seconds.json"]


def test_each_has_its_own_steps_and_other_minutes_other_ones(tmp_path, monkeypatch, capsys):
    trained = []

    def train(recipe):
        trained.append((Path(recipe["output"]), recipe["steps"], recipe["eval_steps"]))

    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "measure", lambda *_: None)
    (tmp_path / "lfq-10-seconds.json").write_text("[1.0, 1.0]")
    (tmp_path / "vq-13-gan-seconds.json").write_text("[1.0, 2.0]")
    (tmp_path / "validation").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "validation" / "0.png")
    monkeypatch.setattr(comparison, "check", lambda *_: None)
    monkeypatch.setattr(comparison, "load_images", lambda *_: pytest.fail("after the training"))
    for minutes in ("40", "4.5"):
        with pytest.raises(pytest.fail.Exception, match="after the training"):
            arguments = ["--data", str(tmp_path), "--output", str(tmp_path), "--minutes", minutes]
            comparison.main([*arguments, "--only", "lfq-10", "vq-13-gan"])
    assert trained == [
        (tmp_path / "40-minutes" / "lfq-10", 2400, 300),
        (tmp_path / "40-minutes" / "vq-13-gan", 1500, 187),
        (tmp_path / "4.5-minutes" / "lfq-10", 280, 35),
        (tmp_path / "4.5-minutes" / "vq-13-gan", 160, 20),
    ]
    with pytest.raises(SystemExit):
        comparison.main(["--data", str(tmp_path), "--minutes", "0"])
    assert "--minutes: must be above 0, got 0" in capsys.readouterr().err


def test_minutes_are_those_of_the_steps(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {"step": 20, "loss": 1.0, "seconds_per_step": 3.0},
        {"step": 30, "eval_psnr": 20.0},
        {"step": 40, "loss": 0.5, "seconds_per_step": 6.0},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert comparison.length(log) == ["40", "3.0"]
    minutes, values = comparison.curve(log, [1.0, 2.0])
    assert minutes == pytest.approx([(16 * 1.0 + 14 * 2.0) / 60]), "the discriminator starts after 16 of 40 steps"
    assert values == [20.0]
