"""`showo-hf tokenize`: a folder of images to a folder of stored tokens."""

import io
import json
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

import showo_hf
from showo_hf import cli
from showo_hf.commands import image_generation
from showo_hf.commands.saved_model import SavedModel
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
    assert (
        "max_pixels" not in json.loads(Path("tokens/image_tokens.json").read_text())["source"]
    )  # as earlier versions
    before = {file: file.stat().st_mtime_ns for file in Path("tokens").glob("shard-*")}
    assert cli.main(["tokenize", "images", "-o", "tokens", "--shard-size", "2", "--size", "64", "--quiet"]) == 0
    assert "rows:" not in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in Path("tokens").glob("shard-*")}
    assert cli.main(["tokenize", "images", "-o", "tokens", "--shard-size", "3", "--size", "64", "--quiet"]) == 1
    assert "shard_size was 2, and is now 3" in capsys.readouterr().err


def test_images_become_tokens_of_a_codebook_of_vectors(images, processor):
    model = tiny.showo_with("vq", text_ids=processor.pad_token_id)
    scheduler = showo_hf.MaskGITScheduler(mask_token_id=tiny.CODES)
    showo_hf.ShowoT2IPipeline(model, processor, scheduler).save_pretrained("model")
    assert cli.main(["tokenize", "images", "-o", "tokens", "--model", "model", "--quiet"]) == 0
    stored = StoredTokens("tokens", image_tokenizer_checksum(model))
    side = tiny.SIDE * tiny.FACTOR
    for index, channel in ((0, 0), (1, 2)):  # red and blue
        pixels = torch.zeros(1, 3, side, side) - 1
        pixels[:, channel] = 1
        assert torch.equal(stored[index]["image_tokens"], model.encode_images(pixels))
    assert not torch.equal(stored[0]["image_tokens"], stored[1]["image_tokens"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing", "-o", "tokens"], "`DATA` must be a file, a folder, or a data set on the Hub such as owner/name"),
        (["images", "-o", "tokens", "--text-column", "words"], "must have a column 'words'"),
        (["images", "-o", "images/0.png"], "`--output` must be a folder"),
        (["images", "-o", "tokens", "--dtype", "bfloat16"], "`--dtype` must be float32"),
        (["images", "-o", "tokens", "--model", "images"], "`--model` must be a folder with a model_index.json"),
        (["images", "-o", "tokens", "--num-proc", "0"], "must be an integer from 1 to"),
        (["images", "-o", "tokens", "--size", "63"], "`--size` must be multiples of 8 pixels"),
        (["images", "-o", "tokens", "--size", "999999999"], "must be an integer from 1 to 16384"),
        (["images"], "-o/--output"),
    ],
)
def test_wrong_arguments_are_refused(images, refused, arguments, named):
    refused(["tokenize", *arguments], named)


def test_too_many_broken_images_fail_the_command(images, capsys):
    assert cli.main(["tokenize", "images", "-o", "tokens", "--max-broken", "0", "--size", "64", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "`--max-broken` allows 0" in printed.err
    assert "(1.png)" in printed.err


def test_a_size_that_only_the_loaded_model_refuses(images, refused, monkeypatch):
    """The files of a model on the Hub are not known before it is loaded."""
    monkeypatch.setattr(image_generation, "read_saved_model", lambda model: SavedModel())
    refused(["tokenize", "images", "-o", "tokens", "--size", "63", "--quiet"], "`--size` must be a multiple of 8")


def test_max_pixels_reads_larger_images(images, capsys):
    arguments = ["tokenize", "images", "-o", "tokens", "--size", "64", "--quiet"]
    assert cli.main([*arguments, "--max-pixels", "1199"]) == 1
    assert "has no rows" in capsys.readouterr().err
    assert cli.main([*arguments[:3], "none", *arguments[4:], "--max-pixels", "1199", "--max-broken", "1"]) == 1
    assert "40x30 pixels are more than the 1,199 that are read; `--max-pixels` raises" in capsys.readouterr().err
    assert cli.main([*arguments, "--max-pixels", "1200"]) == 1
    assert "`--output` 'tokens' holds tokens of other options: source was" in capsys.readouterr().err
    assert cli.main([*arguments[:3], "more", *arguments[4:], "--max-pixels", "1200"]) == 0
    assert len(StoredTokens("more")) == 2
    assert json.loads(Path("more/image_tokens.json").read_text())["source"]["max_pixels"] == 1200


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
