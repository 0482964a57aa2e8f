"""Writing weights in shards: what is read when, and a full disk."""

import json

import pytest
import torch
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from safetensors.torch import load_file

from showo_hf import cli
from showo_hf.conversion.checkpoint import Checkpoint
from showo_hf.conversion.shards import write_shards


WEIGHTS = {f"layer.{number}": torch.full((100,), float(number)) for number in range(5)}
LAYOUT = {name: tensor.to("meta") for name, tensor in WEIGHTS.items()}


def test_shards_hold_all_tensors_and_have_an_index(tmp_path):
    files = write_shards(tmp_path, LAYOUT, WEIGHTS.__getitem__, max_shard_size=800)
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {*files, "model.safetensors.index.json"}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000 and list(index["weight_map"]) == sorted(WEIGHTS)
    checkpoint = Checkpoint(tmp_path)  # refuses an index that does not fit
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in WEIGHTS.items())


def test_a_shard_is_written_before_the_next_one_is_read(tmp_path):
    files_at_read = {}

    def read(name):
        files_at_read[name] = len(list(tmp_path.iterdir()))
        return WEIGHTS[name]

    write_shards(tmp_path, LAYOUT, read, max_shard_size=800)
    assert list(files_at_read.values()) == [0, 0, 1, 1, 2]


def test_one_shard_has_no_index(tmp_path):
    assert write_shards(tmp_path, LAYOUT, WEIGHTS.__getitem__, stem="weights") == ["weights.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_tensors_that_are_not_contiguous_or_share_memory(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"turned": whole.T, "a": whole[:1], "b": whole[1:]}
    write_shards(tmp_path, {name: t.to("meta") for name, t in tensors.items()}, tensors.__getitem__)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_failed_write_is_an_os_error(small_files, tmp_path):
    small_files(1000)
    with pytest.raises(OSError, match="too large.*model.safetensors"):
        write_shards(tmp_path, LAYOUT, WEIGHTS.__getitem__)


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_a_full_disk_leaves_no_output(small_files, tmp_path, capsys, file_format):
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    sources = ["--showo", str(tmp_path / "showo"), "--image-tokenizer", str(tmp_path / "magvitv2")]
    convert = ["convert", *sources, "--text-tokenizer", str(TEXT_TOKENIZER), "--output", str(tmp_path / "ours")]
    assert cli.main(convert) == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    small_files(100_000)
    assert cli.main([*convert, "--overwrite"]) == 1
    assert "the target is unchanged" in capsys.readouterr().err
    export = ["export", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--format", file_format]
    assert cli.main(export) == 1
    assert "the target is unchanged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(Checkpoint(tmp_path / "ours" / "model")) > 0
