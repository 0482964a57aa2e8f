"""The benchmark of a LoRA that learns a new style: its parts, and a miniature of the whole with a tiny model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import small_emoji
import torch
from benchmarks import lora_style, style_lora
from benchmarks.ink import train_judge
from PIL import Image

from recipes.emoji.emoji import STYLES, load_emoji
from showo_hf.training.data.sources import DataSource, open_source


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Five things that are known in all styles."""
    folder = tmp_path_factory.mktemp("known")
    small_emoji.write(folder)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    (folder / "records.jsonl").write_text("\n".join(json.dumps({**line, "held_out": False}) for line in lines) + "\n")
    return folder


def test_names_are_drawn_once_and_known_in_all_styles(data, folder):
    things = lora_style.choose_things(load_emoji(data), 1, 2, 1, 1)
    names = [*things.trained, *things.held_out, *things.judged, *things.checked]
    assert sorted(names) == sorted(name for name, *_ in small_emoji.THINGS.values())
    assert (len(things.trained), len(things.held_out)) == (1, 2)
    assert lora_style.choose_things(load_emoji(data), 1, 2, 1, 1).trained == things.trained
    assert set(things.real) == {(name, style) for name in names for style in (*STYLES, "ink")}
    with pytest.raises(ValueError, match="known in all styles, got 0"):
        lora_style.choose_things(load_emoji(folder), 2, 2, 1, 1)


def test_the_training_data_is_read_by_the_training_command(data, tmp_path):
    things = lora_style.choose_things(load_emoji(data), 2, 2, 1, 0)
    pictures = things.pictures(things.trained, "ink")
    lora_style.write_images(tmp_path, things.trained, ["ink", "ink"], pictures)
    source = open_source(DataSource(str(tmp_path)), "t2i")
    examples = [source.example(source.table[row], str(row), row) for row in range(source.size)]
    assert len(examples) == 2
    for name, example in zip(things.trained, examples, strict=True):
        assert example.text[0] == lora_style.prompt(name, "ink")
        assert all("ink" in text for text in example.text) and all(name in text for text in example.text[:4])
        difference = np.abs(np.asarray(example.image) / 127.5 - 1 - things.real[name, "ink"].movedim(0, -1).numpy())
        assert difference.max() < 0.005


def test_real_pictures_are_right_and_others_are_not(data):
    things = lora_style.choose_things(load_emoji(data), 2, 2, 1, 0)
    things = dataclasses.replace(
        things, trained=["red apple", "green apple"], held_out=["spouting whale", "newspaper"]
    )
    styles = (*STYLES, "ink")
    pictures = {style: things.pictures([*things.trained, *things.held_out], style) for style in styles}
    shown = torch.cat([pictures["noto"], pictures["ink"]]).repeat_interleave(8, 0)
    judge = train_judge(shown, ["noto"] * 32 + ["ink"] * 32)
    measure = style_lora.Measure(things, judge)
    names = [*things.trained, *things.held_out]
    assert measure(pictures["noto"], names, "noto") == (1.0, 1.0)
    assert measure(pictures["noto"], names[::-1], "noto") == (1.0, 0.0)
    assert measure(pictures["noto"], names, "ink")[0] == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A text of .* ids was cut")
def test_it_trains_by_the_command_and_prints_the_tables(capsys, data, model, tmp_path):
    arguments = ["--data", str(data), "--model", model, "--output", str(tmp_path / "made"), "--trained", "2"]
    arguments += ["--held-out", "1", "--judged", "1", "--checked", "1", "--kept", "3", "--old", "2", "--steps", "2"]
    sheet = tmp_path / "sheet.png"
    lora_style.main([*arguments, "--sheet", str(sheet), "steps=1", "batch_size=2"])
    printed = capsys.readouterr().out
    assert printed.startswith("training: ")
    assert (tmp_path / "made" / "adapter" / "adapter_model.safetensors").is_file()
    with Image.open(sheet) as image:
        assert image.width * 9 == image.height  # one thing in nine rows
    lora_style.main([*arguments, "--adapter", str(tmp_path / "made" / "adapter")])
    tables = [
        [line for line in text.splitlines() if line.startswith("|")] for text in (printed, capsys.readouterr().out)
    ]
    assert tables[0] == tables[1]
    assert [line.split("|")[1].strip() for line in tables[0][8:14]] == [
        "ink style, held-out names",
        "ink style, training names",
        "noto style, both",
        "flat style, both",
        "3d style, both",
        "old styles, mean",
    ]
