"""`showo-hf info`."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from showo_hf import EMBEDDED_MODEL, cli
from showo_hf.commands import info
from showo_hf.commands.info import count_parameters, free_bytes, model_facts


def test_info_as_json_and_as_text(capsys):
    assert cli.main(["info", "--json"]) == cli.GOOD
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == version("torch")
    assert facts["versions"]["showo-hf"] == version("showo-hf")
    assert facts["devices"][0]["name"] == "cpu"
    assert "float32" in facts["devices"][0]["dtypes"]
    model = facts["embedded_model"]
    assert Path(model["folder"]) == Path(EMBEDDED_MODEL)
    assert all(value is not None for value in model.values()), model
    assert model["megabytes"] < 45

    assert Path(facts["cache"]["folder"]).name == "hub" and facts["cache"]["offline"] in (True, False)
    assert all(size > 0 for size in facts["free_disk"].values()) and len(facts["free_disk"]) == 3
    assert "image" not in facts

    assert cli.main(["info"]) == cli.GOOD
    text = capsys.readouterr().out
    assert version("torch") in text
    assert f"{model['parameters']:,}" in text


@pytest.mark.slow
def test_check_makes_an_image_on_every_device(monkeypatch, capsys):
    assert cli.main(["info", "--check", "--json"]) == cli.GOOD
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["image"]) == [device["name"] for device in facts["devices"]]
    assert all(0 < seconds < 600 for seconds in facts["image"].values())

    def broken(*arguments, **options):
        raise RuntimeError("no driver\n  at all")

    monkeypatch.setattr(info, "load_pipeline", broken)
    assert cli.main(["info", "--check"]) == cli.FAILED
    assert "an image\n  cpu              no driver at all\n" in capsys.readouterr().out


def test_free_space_of_a_folder_that_is_not_made_yet():
    assert free_bytes(Path("a/b/c")) == free_bytes(Path())


def test_model_facts_of_an_empty_folder():
    assert model_facts(Path()) is None


def test_known_words_are_listed(tmp_path, monkeypatch, capsys):
    processor = tiny.processor(known_words={"things": ["owl", *(f"thing{number}" for number in range(40))]})
    tiny.pipeline(processor).save_pretrained(tmp_path)
    monkeypatch.setattr("showo_hf.EMBEDDED_MODEL", str(tmp_path))
    assert cli.main(["info", "--json"]) == cli.GOOD
    assert json.loads(capsys.readouterr().out)["embedded_model"]["known_words"]["things"][0] == "owl"
    assert cli.main(["info"]) == cli.GOOD
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  things: owl, thing0, thing1") for line in lines)
    assert max(map(len, lines[-6:])) <= 100 and lines[-1].endswith("thing39")


def test_count_parameters():
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7), "c": torch.tensor(1.0)}, "weights.safetensors")
    assert count_parameters(Path("weights.safetensors")) == 23
