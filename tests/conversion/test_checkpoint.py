"""Reading checkpoints: what is refused, and that no code in them is run."""

import json
import os
import pickle

import pytest
import torch
from originals import small_showo, write_original
from safetensors.torch import save_file

from showo_hf.conversion.checkpoint import Checkpoint, is_plain_file_name
from showo_hf.conversion.errors import ConversionError


WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("protocol", ["torch", "old torch", "plain"])
def test_a_pickle_that_calls_code_is_refused_and_does_not_run(tmp_path, protocol):
    trace, file = tmp_path / "was-run", tmp_path / "pytorch_model.bin"
    content = {**WEIGHTS, "extra": Payload(trace)}
    if protocol == "plain":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(ConversionError, match=r"'pytorch_model.bin' (was refused|cannot be read)"):
        Checkpoint(tmp_path)
    assert not trace.exists()
    torch.load(file, weights_only=False) if protocol != "plain" else pickle.loads(file.read_bytes())
    assert trace.exists(), "the payload works"


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "sub/x.bin", "..", "", "C:x.bin", "a\\b.bin", "a\0b"])
def test_an_index_may_not_point_outside(tmp_path, name):
    assert not is_plain_file_name(name)
    torch.save(WEIGHTS, tmp_path.parent / "x.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConversionError, match="outside the checkpoint's folder"):
        Checkpoint(tmp_path)


def test_an_index_must_match_its_files(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    save_file(WEIGHTS, tmp_path / "one.safetensors")
    for weight_map, message in [
        ({"a": "one.safetensors", "b": "two.safetensors"}, "do not exist: two.safetensors"),
        (
            {"a": "one.safetensors", "c": "one.safetensors"},
            r"missing in the file \['c'\], missing in the index \['b'\]",
        ),
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"a": 3}, "weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ConversionError, match=message):
            Checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ConversionError, match="not JSON"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, ending, share):
    weights, config = small_showo(codes=4)
    write_original(tmp_path, weights, config, ending)
    file = tmp_path / f"pytorch_model.{ending}"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConversionError, match=f"'pytorch_model.{ending}'"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.ones(2), "must hold tensors by name, got a Tensor"),
        ({"a": 3}, r"also holds 'a' \(int\)"),
        ({}, "also holds nothing"),
        ({"a": torch.ones(2), "epoch": 3}, r"also holds 'epoch' \(int\)"),
        ({0: torch.ones(2)}, r"also holds 0 \(Tensor\)"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(ConversionError, match=message):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_tensors_inside_a_wrapper_are_found(tmp_path, wrapper):
    torch.save({wrapper: WEIGHTS, "epoch": 3}, tmp_path / "weights.pth")
    assert list(Checkpoint(tmp_path / "weights.pth")) == ["a", "b"]


def test_missing_and_mixed_parts_are_refused(tmp_path):
    save_file(WEIGHTS, tmp_path / "model-00001-of-00003.safetensors")
    with pytest.raises(ConversionError, match=r"of 3 parts of .* missing: \[2, 3\]"):
        Checkpoint(tmp_path)
    save_file(WEIGHTS, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ConversionError, match=r"several checkpoints: of \[2, 3\] parts"):
        Checkpoint(tmp_path)


def test_a_huge_number_of_parts_is_refused_at_once(tmp_path):
    save_file(WEIGHTS, tmp_path / "model-00001-of-99999999999.safetensors")
    with pytest.raises(ConversionError, match="of 99999999999 parts"):
        Checkpoint(tmp_path)


def test_parameters_are_accepted(tmp_path):
    torch.save(dict(torch.nn.Linear(2, 2).named_parameters()), tmp_path / "model.bin")
    checkpoint = Checkpoint(tmp_path)
    assert not checkpoint.tensor("weight").requires_grad


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    for number in (1, 2):
        save_file(WEIGHTS, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(ConversionError, match="same tensors: a, b"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_and_a_path_without_a_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConversionError, match="holds no weights.*it holds notes.txt"):
        Checkpoint(tmp_path)
    with pytest.raises(ConversionError, match="no file or folder"):
        Checkpoint(tmp_path / "absent")
    with pytest.raises(ConversionError, match="must end in one of"):
        Checkpoint(tmp_path / "notes.txt")


def test_tensors_are_read_from_the_mapped_file(tmp_path):
    """Opening a large tensor takes no memory."""
    large = torch.zeros(2**24)
    for ending, save in (("bin", torch.save), ("safetensors", save_file)):
        save({"large": large}, tmp_path / f"model.{ending}")
        before = anonymous_kilobytes()
        tensor = Checkpoint(tmp_path / f"model.{ending}").tensor("large")
        assert tensor.shape == large.shape and tensor.sum() == 0
        assert anonymous_kilobytes() - before < 2**14


def anonymous_kilobytes() -> int:
    try:
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("RssAnon")).split()[1])
    except (OSError, StopIteration):
        pytest.skip("needs Linux's /proc")
