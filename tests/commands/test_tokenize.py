"""`showo-hf tokenize`: a folder of images to a folder of stored tokens."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import showo_hf
from showo_hf import cli
from showo_hf.training.data.token_shards import StoredTokens, image_tokenizer_checksum


@pytest.fixture
def images(empty_folder) -> Path:
    """Three images with texts, one of which cannot be read."""
    folder = empty_folder / "images"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no image")
    rows = [{"file_name": f"{number}.png", "text": f"colour {number}"} for number in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_images_become_tokens_of_the_embedded_model(images, capsys):
    assert cli.main(["tokenize", "images", "-o", "tokens", "--shard-size", "2", "--size", "64"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "tokens\n"
    assert "left out: images row 1 (1.png): " in printed.err
    assert printed.err.endswith("rows: 2 stored, 1 left out\n")
    pipe = showo_hf.ShowoT2IPipeline.from_pretrained(showo_hf.EMBEDDED_MODEL)
    stored = StoredTokens("tokens", image_tokenizer_checksum(pipe.model))
    assert [stored[index]["text"] for index in range(2)] == ["colour 0", "colour 2"]
    assert len(stored.shards) == 2
    pixels = torch.zeros(1, 3, 64, 64) - 1
    pixels[:, 2] = 1
    with torch.inference_mode():
        blue = pipe.model.image_tokenizer.encode(pixels).image_tokens
    assert torch.equal(stored[1]["image_tokens"], blue)
    before = {file: file.stat().st_mtime_ns for file in Path("tokens").glob("shard-*")}
    assert cli.main(["tokenize", "images", "-o", "tokens", "--shard-size", "2", "--size", "64", "--quiet"]) == 0
    assert "rows:" not in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in Path("tokens").glob("shard-*")}
    assert cli.main(["tokenize", "images", "-o", "tokens", "--shard-size", "3", "--size", "64", "--quiet"]) == 1
    assert "shard_size was 2, and is now 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing", "-o", "tokens"], "`DATA` must be a file, a folder, or a data set on the Hub such as owner/name"),
        (["images", "-o", "tokens", "--text-column", "words"], "must have a column 'words'"),
        (["images", "-o", "images/0.png"], "`--output` must be a folder"),
        (["images", "-o", "tokens", "--dtype", "bfloat16"], "`--dtype` must be float32"),
        (["images", "-o", "tokens", "--model", "images"], "`--model` must be a folder with a model_index.json"),
        (["images", "-o", "tokens", "--num-proc", "0"], "must be an integer from 1 to"),
        (["images"], "-o/--output"),
    ],
)
def test_wrong_arguments_are_refused(images, refused, arguments, named):
    refused(["tokenize", *arguments], named)


def test_too_many_broken_images_fail_the_command(images, capsys):
    assert cli.main(["tokenize", "images", "-o", "tokens", "--max-broken", "0", "--size", "64", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "`max_broken` allows 0" in printed.err
    assert "(1.png)" in printed.err


def test_a_size_that_the_model_cannot_have_is_refused(images, capsys):
    assert cli.main(["tokenize", "images", "-o", "tokens", "--size", "63", "--quiet"]) == 1
    assert "`size` must be a multiple of" in capsys.readouterr().err
    assert not Path("tokens").exists()


def test_progress_is_shown_on_terminals_only(images, capsys, monkeypatch):
    arguments = ["tokenize", "images", "--size", "64"]
    assert cli.main([*arguments, "-o", "first"]) == 0
    assert "tokenizing" not in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert cli.main([*arguments, "-o", "second"]) == 0
    assert "tokenizing: 100%" in terminal.getvalue()


def test_a_missing_package_is_named(images, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("showo_hf.training.data.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert cli.main(["tokenize", "images", "-o", "tokens"]) == 1
    assert "needs datasets: pip install 'showo-hf[train]'" in capsys.readouterr().err
