"""Conversion from the Hub, and upload to the Hub."""

import io
import json
import subprocess
import sys

import pytest
from hub_server import environment_of
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original

from showo_hf.conversion.command_line import run_conversion
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.sources import weight_patterns


def upload(hub, name, folder):
    hub.repositories[name] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_from_the_hub_to_the_hub(hub, tmp_path):
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "showo", weights, None, "bin")  # a repository with both formats
    (tmp_path / "showo" / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    write_original(tmp_path / "magvitv2", small_magvitv2(), None, "bin")
    upload(hub, "original/show-o", tmp_path / "showo")
    upload(hub, "original/magvitv2", tmp_path / "magvitv2")
    upload(hub, "original/phi", TEXT_TOKENIZER)
    sources = ["--showo", "original/show-o", "--image-tokenizer", "original/magvitv2"]
    command = [sys.executable, "-m", "showo_hf.cli", "convert", *sources, "--text-tokenizer", "original/phi"]
    command += ["--output", str(tmp_path / "out"), "--push-to-hub", "someone/show-o-hf"]
    environment = environment_of(hub, tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n" and "uploaded to someone/show-o-hf" in done.stderr
    downloaded = {path.name for path in (tmp_path / "home").rglob("models--original--show-o/snapshots/*/*")}
    assert "pytorch_model.safetensors" in downloaded and "pytorch_model.bin" not in downloaded
    pushed = hub.repositories["someone/show-o-hf"]
    expected = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(pushed) - {".gitattributes"} == expected
    card = pushed["README.md"].decode()
    assert "license: mit" in card and "pipeline_tag: text-to-image" in card and "library_name: diffusers" in card
    assert "base_model: original/show-o" in card and 'from_pretrained("someone/show-o-hf")' in card
    assert not any(str(tmp_path).encode() in content for content in pushed.values())
    assert json.loads(pushed["model_index.json"])["_class_name"] == "ShowoT2IPipeline"

    command[command.index("original/show-o")] = "original/absent"
    command[command.index(str(tmp_path / "out"))] = str(tmp_path / "other")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not (tmp_path / "other").exists()
    assert "`--showo` must be a folder, or a model on the Hub" in done.stderr and "no such model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_stdout_lacks_is_pushed(tmp_path, hub_here, monkeypatch):
    folder = tmp_path / "größe"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run_conversion(lambda: "converted", str(folder), push_to_hub="someone/new") == 0
    assert stdout.buffer.getvalue().decode("ascii").endswith("gr\\xf6\\xdfe\n")
    assert hub_here.repositories["someone/new"]["config.json"] == b"{}"


def test_safetensors_are_preferred_to_pickles():
    files = ["README.md", "pytorch_model.bin", "pytorch_model.safetensors", "model-1-of-2.safetensors"]
    assert weight_patterns(files) == ["pytorch_model.safetensors", "model-1-of-2.safetensors"]
    others = ["adapter.safetensors", "optimizer.bin", "deep/model.bin"]
    assert weight_patterns(files[:2] + others) == ["pytorch_model.bin"]
    assert weight_patterns(["unwrapped_model/pytorch_model.bin"]) == ["unwrapped_model/pytorch_model.bin"]
    with pytest.raises(ConversionError, match="has no weights, but README.md"):
        weight_patterns(files[:1])
