"""Checkpoints of strangers, and folders of the user: one sentence for each, in little time and memory."""

import io
import json
import pickle
import re
import time
import tracemalloc
import zipfile

import pytest
import torch
from originals import small_magvitv2, small_showo, write_original
from safetensors.torch import save_file
from test_convert_showo import convert

from showo_hf import ShowoConfig, ShowoLFQTokenizerConfig, ShowoT2IPipeline, ShowoVQTokenizerConfig
from showo_hf.conversion.checkpoint import Checkpoint
from showo_hf.conversion.convert_image_tokenizer import convert_image_tokenizer
from showo_hf.conversion.errors import LONGEST_NAME, ConversionError, examples, printable


SECONDS = 1.0


@pytest.fixture
def sources(tmp_path):
    """The sources of a conversion in `tmp_path`."""
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    return tmp_path


def refused(call, *arguments, **options) -> str:
    """The message of a refusal: one sentence without control characters, in a second and few megabytes."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ConversionError) as caught:
        call(*arguments, **options)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert seconds < SECONDS and peak < 200e6, (seconds, peak, message)
    assert len(message) < 2000 and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", message)
    return message


# What belongs to the user


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_that_a_source_links_to_are_kept(sources, capsys):
    """The originals lie in the output folder, which is a model, and the source folder has links to them."""
    out = sources / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    for file in (sources / "showo").iterdir():
        file.rename(out / file.name)
        (sources / "showo" / file.name).symlink_to(out / file.name)
    before = tree(out)
    assert convert(sources, out, "--overwrite") == 1
    assert "must be a separate folder" in capsys.readouterr().err
    assert tree(out) == before


@pytest.mark.parametrize(
    "name", ["thesis.txt", "model/notes.md", "data/1.png", "model/data/1", ".hidden", "model.safetensors.bak", "a.py"]
)
def test_a_folder_with_something_else_in_it_is_kept(sources, capsys, name):
    out = sources / "out"
    assert convert(sources, out) == 0
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = tree(out)
    capsys.readouterr()
    assert convert(sources, out, "--overwrite") == 1
    assert name.split("/")[0] in capsys.readouterr().err
    assert tree(out) == before
    (out / name).unlink()
    for parent in ("data", "model/data"):
        if (out / parent).is_dir():
            (out / parent).rmdir()
    assert convert(sources, out, "--overwrite") == 0


def test_what_this_package_writes_can_be_replaced(sources, capsys):
    for more in ([], ["--with-code"], ["--max-shard-size", "200KB"]):
        assert convert(sources, sources / "out", "--overwrite", *more) == 0
    ShowoT2IPipeline.from_pretrained(sources / "out").save_pretrained(sources / "saved")
    assert convert(sources, sources / "saved", "--overwrite") == 0


# Small files that want large work


def repacked(content: bytes, change) -> bytes:
    """A file of `torch.save` whose parts went through `change`, compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, change(part.filename, old.read(part)))
    return packed.getvalue()


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    def inflate(name, data):
        return data + bytes(2**28) if name.endswith("data.pkl") else data

    (tmp_path / "pytorch_model.bin").write_bytes(repacked(saved({"x": torch.zeros(3)}), inflate))
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 2**20
    assert "compressed parts, which torch does not write" in refused(Checkpoint, tmp_path)


def test_a_large_pickle_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([0] * 20_000_000))
    assert "has a pickle of" in refused(Checkpoint, tmp_path)


def conjugate() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.complex64).conj()


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.zeros(1).expand(100_000, 30_000), "takes 12,000,000,000 bytes, and 4 are stored"),
        (torch.zeros(5).as_strided((3, 3), (1, 1)), "takes 36 bytes, and 20 are stored"),
        (torch.empty(10**6, 10**6, device="meta"), "no numbers"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.eye(3).to_sparse_csr(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested|cannot be read|was refused"),
        (conjugate().imag, "another sign|cannot be read|was refused"),
        (conjugate(), "another sign"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "quantized|was refused"),
    ],
)
def test_tensors_that_are_not_what_they_say(tmp_path, tensor, message):
    torch.save({"a.weight": tensor}, tmp_path / "pytorch_model.bin")
    assert re.search(message, refused(Checkpoint, tmp_path))


def test_many_names_for_the_same_numbers_are_refused(tmp_path):
    numbers = torch.zeros(1000, 1000)
    torch.save({f"{index}.weight": numbers for index in range(1000)}, tmp_path / "pytorch_model.bin")
    assert "share their numbers" in refused(Checkpoint, tmp_path)
    torch.save({"head.weight": numbers, "embedding.weight": numbers}, tmp_path / "pytorch_model.bin")
    assert len(Checkpoint(tmp_path)) == 2  # tied weights are usual


@pytest.mark.parametrize("name", ["decoder.up.{}.block.0.conv1.weight", "encoder.down.{}.block.0.conv1.weight"])
def test_a_layer_with_a_number_of_5000_digits(tmp_path, name):
    write_original(tmp_path / "in", small_magvitv2() | {name.format("9" * 5000): torch.zeros(1)}, None)
    assert "digits" in refused(convert_image_tokenizer, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["[]", '{"_class_name": []}', '{"_class_name": "Nothing", "model": [[], []]}', "1"]
)
def test_a_strange_model_index(tmp_path, content):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises((ValueError, OSError)) as caught:
        ShowoT2IPipeline.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 1000


# Names out of files


HOSTILE_NAME = "\x1b[2J\x1b[31mx\nerror: all is well\r\x07\u202e" + "y" * 300


def test_names_are_printed_escaped_and_short(tmp_path):
    shown = printable(HOSTILE_NAME)
    assert shown.isprintable() and len(shown) < 2 * LONGEST_NAME and r"\x1b[2J" in shown and r"\nerror" in shown
    assert examples(range(200_000)) == "0, 1, 2, 3, 4 and 199,995 more"
    write_original(tmp_path / "in", small_magvitv2() | {HOSTILE_NAME: torch.zeros(1)}, None)
    message = refused(convert_image_tokenizer, tmp_path / "in", tmp_path / "out")
    assert r"unexpected: \x1b[2J" in message and "\nerror" not in message


@pytest.mark.parametrize("content", [{HOSTILE_NAME: "text"}, {HOSTILE_NAME: torch.zeros(1, device="meta")}])
def test_names_in_pickles_are_printed_escaped(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "\n" not in refused(Checkpoint, tmp_path)


def test_names_in_an_index_are_printed_escaped(tmp_path):
    for name in (HOSTILE_NAME, f"../{HOSTILE_NAME}"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        assert "\n" not in refused(Checkpoint, tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HOSTILE_NAME: "a.safetensors"}}))
    assert "\n" not in refused(Checkpoint, tmp_path)


def test_many_unknown_tensors_are_a_count_and_five_examples(tmp_path):
    many = {f"unknown.{index:06}": torch.zeros(0) for index in range(20_000)}
    write_original(tmp_path / "in", small_magvitv2() | many, None)
    with pytest.raises(ConversionError) as caught:
        convert_image_tokenizer(tmp_path / "in", tmp_path / "out")
    message = str(caught.value)
    assert "unexpected: 19,995 more" in message and message.count("\n") < 10 and len(message) < 1000


# Absurd sizes


@pytest.mark.parametrize(
    "kind, options, name",
    [
        (ShowoConfig, {"num_image_tokens": 10**8}, "num_image_tokens"),
        (ShowoConfig, {"max_text_length": 10**8}, "max_text_length"),
        (ShowoConfig, {"text_config": {"num_hidden_layers": 10**5}}, "num_hidden_layers"),
        (ShowoConfig, {"text_config": {"hidden_size": 10**7}}, "hidden_size"),
        (ShowoConfig, {"text_config": {"intermediate_size": 10**9}}, "intermediate_size"),
        (ShowoConfig, {"text_config": {"vocab_size": 10**10}}, "vocab_size"),
        (ShowoConfig, {"text_config": {"max_position_embeddings": 10**12}}, "max_position_embeddings"),
        (ShowoConfig, {"vision_config": {"num_hidden_layers": 10**5}}, "num_hidden_layers"),
        (ShowoLFQTokenizerConfig, {"sample_size": 10**9}, "sample_size"),
        (ShowoLFQTokenizerConfig, {"in_channels": 10**9}, "in_channels"),
        (ShowoLFQTokenizerConfig, {"encoder_layers_per_block": [10**6] * 5}, "encoder_layers_per_block"),
        (ShowoLFQTokenizerConfig, {"decoder_block_out_channels": [2**30] * 5}, "decoder_block_out_channels"),
        (ShowoVQTokenizerConfig, {"codebook_size": 10**12}, "codebook_size"),
        (ShowoVQTokenizerConfig, {"codebook_dim": 10**9}, "codebook_dim"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(kind, options, name):
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=name):
        kind(**options)
    assert time.process_time() - start < SECONDS and tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_config_in_a_folder_that_asks_for_absurd_sizes_is_refused(tmp_path):
    ShowoConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["num_hidden_layers"] = 10**5
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ShowoConfig.from_pretrained(tmp_path)
