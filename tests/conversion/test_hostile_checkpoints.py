"""Checkpoints of strangers, and folders of the user: one sentence for each, in little time and memory."""

import io
import json
import pickle
import re
import resource
import struct
import time
import tracemalloc
import zipfile

import cpu_time
import pytest
import tiny
import torch
from huggingface_hub import snapshot_download
from originals import small_magvitv2, small_showo, write_original
from safetensors.torch import save_file
from test_convert_showo import convert

from showo_hf import (
    ShowoConfig,
    ShowoDiffusionDecoderConfig,
    ShowoForCausalLM,
    ShowoLFQTokenizerConfig,
    ShowoT2IPipeline,
    ShowoVQTokenizerConfig,
)
from showo_hf.conversion import convert_magvitv2
from showo_hf.conversion.checkpoint import Checkpoint
from showo_hf.conversion.convert_image_tokenizer import convert_image_tokenizer
from showo_hf.conversion.errors import ConversionError
from showo_hf.utils.messages import LONGEST_NAME, examples, printable


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
    assert cpu_time.within(seconds, SECONDS) and peak < 200e6, (seconds, peak, message)
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


@pytest.mark.slow
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
        (torch.empty(10**6, 10**6, device="meta"), "was refused.*_rebuild_meta_tensor_no_storage"),
        (torch.eye(3).to_sparse(), "was refused.*_rebuild_sparse_tensor"),
        (torch.eye(3).to_sparse_csr(), "was refused.*_rebuild_sparse_tensor"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "was refused.*_rebuild_nested_tensor"),
        (conjugate().imag, "was refused.*_rebuild_tensor_v2 with other values"),
        (conjugate(), "was refused.*ComplexFloatStorage"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "was refused.*_rebuild_qtensor"),
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


HOSTILE_FILE = "\x1b[31mx\nerror: all is well\r\x07\u202e"


def bad_header() -> bytes:
    """A .safetensors file whose header names a tensor that does not begin where the numbers begin."""
    header = json.dumps({HOSTILE_NAME: {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize("content", [b"", b"junk", bad_header()], ids=["empty", "junk", "bad header"])
def test_names_of_safetensors_files_and_their_tensors_are_printed_escaped(tmp_path, capsys, content):
    for file in (tmp_path / f"{HOSTILE_FILE}.safetensors", tmp_path / "model.safetensors"):
        file.write_bytes(content)
        message = refused(Checkpoint, file)
        assert message.isprintable() and len(message) < 400 and "not a complete .safetensors file" in message
    source = tmp_path / f"{HOSTILE_FILE}.safetensors"
    command = ["--image-tokenizer", str(source), "--output", str(tmp_path / "out")]
    assert convert_magvitv2.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and line.startswith("error: ")


def test_names_of_other_files_and_folders_are_printed_escaped(tmp_path):
    folder = tmp_path / HOSTILE_FILE
    folder.mkdir()
    assert refused(Checkpoint, folder / "absent").isprintable()
    assert refused(Checkpoint, folder).isprintable()
    (folder / f"{HOSTILE_FILE}.doc").touch()
    assert refused(Checkpoint, folder / f"{HOSTILE_FILE}.doc").isprintable()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a"}, "\x1b": }')
    assert refused(Checkpoint, folder).isprintable()
    (folder / "model.safetensors.index.json").unlink()
    for name in ("model-1-of-3.safetensors", "model-1-of-2.safetensors"):
        (folder / name).touch()
    assert refused(Checkpoint, folder).isprintable()


def test_many_unknown_tensors_are_a_count_and_five_examples(tmp_path):
    many = {f"unknown.{index:06}": torch.zeros(0) for index in range(20_000)}
    write_original(tmp_path / "in", small_magvitv2() | many, None)
    with pytest.raises(ConversionError) as caught:
        convert_image_tokenizer(tmp_path / "in", tmp_path / "out")
    message = str(caught.value)
    assert "unexpected: 19,995 more" in message and message.count("\n") < 10 and len(message) < 1000


# Absurd sizes


#: The lists of an image tokenizer's config, with an entry for each stage.
STAGES = [f"{part}_{name}" for name in ("block_out_channels", "layers_per_block") for part in ("encoder", "decoder")]
WIDE = {"num_hidden_layers": 1000, "hidden_size": 2**17, "intermediate_size": 2**19}
DPM = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


def ddim(**entries):
    return {"prediction_type": "epsilon", "scheduler": {"_class_name": "DDIMScheduler", **entries}}


@pytest.fixture
def little_memory():
    """An attack that gets through ends in a `MemoryError`, not in the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="utf-8") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


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
        (ShowoConfig, {"text_config": {"model_type": "qwen2", "num_hidden_layers": 10**9}}, "num_hidden_layers"),
        (ShowoConfig, {"text_config": {"model_type": "gpt2", "n_layer": 10**9}}, "n_layer"),
        (ShowoConfig, {"text_config": {"model_type": "llama", "head_dim": 10**9}}, "head_dim"),
        (ShowoConfig, {"text_config": {"model_type": "llama", "num_key_value_heads": 10**9}}, "num_key_value_heads"),
        (ShowoConfig, {"text_config": {"model_type": "mixtral", "num_local_experts": 10**9}}, "num_local_experts"),
        (ShowoConfig, {"text_config": {"model_type": "qwen3_moe", "num_experts": 10**9}}, "num_experts"),
        (ShowoConfig, {"text_config": {"partial_rotary_factor": 1e9}}, "partial_rotary_factor"),
        (ShowoConfig, {"text_config": {"rope_parameters": {"partial_rotary_factor": 1e9}}}, "partial_rotary_factor"),
        (ShowoConfig, {"text_config": {"num_hidden_layers": 1000, "hidden_size": 2**17}}, "parameters"),
        (ShowoConfig, {"text_config": {"model_type": "mixtral", "num_local_experts": 4096}}, "parameters"),
        (ShowoConfig, {"vision_config": {"num_hidden_layers": 10**5}}, "num_hidden_layers"),
        (ShowoConfig, {"vision_config": {"image_size": 4096, "patch_size": 1, "hidden_size": 12288}}, "parameters"),
        (ShowoLFQTokenizerConfig, {"sample_size": 10**9}, "sample_size"),
        (ShowoLFQTokenizerConfig, {"in_channels": 10**9}, "in_channels"),
        (ShowoLFQTokenizerConfig, {"encoder_layers_per_block": [10**6] * 5}, "encoder_layers_per_block"),
        (ShowoLFQTokenizerConfig, {"decoder_block_out_channels": [2**30] * 5}, "decoder_block_out_channels"),
        (ShowoLFQTokenizerConfig, dict.fromkeys(STAGES, [32] * 10**5), "at most 16 stages"),
        (ShowoLFQTokenizerConfig, dict.fromkeys(STAGES[:2], [2**14] * 5), "parameters"),
        (ShowoVQTokenizerConfig, dict.fromkeys(STAGES, [32] * 10**5), "at most 16 stages"),
        (ShowoVQTokenizerConfig, {"encoder_block_attention": [True] * 10**5}, "at most 16 stages"),
        (ShowoVQTokenizerConfig, {"codebook_size": 2**24, "codebook_dim": 2**14}, "parameters"),
        (ShowoDiffusionDecoderConfig, ddim(num_train_timesteps=10**10), "scheduler.num_train_timesteps"),
        (ShowoDiffusionDecoderConfig, {"scheduler": DPM | {"solver_order": 10**10}}, "scheduler.solver_order"),
        (ShowoDiffusionDecoderConfig, {"scheduler": [1]}, "`scheduler` must be a dict"),
        (ShowoDiffusionDecoderConfig, {"layers_per_block": 10**9}, "layers_per_block"),
        (ShowoDiffusionDecoderConfig, {"block_out_channels": [2**30, 2**30]}, "block_out_channels"),
        (ShowoDiffusionDecoderConfig, {"block_out_channels": [16] * 10**5}, "16 stages"),
        (ShowoDiffusionDecoderConfig, {"block_out_channels": [2**14], "layers_per_block": 32}, "parameters"),
        (
            ShowoDiffusionDecoderConfig,
            {"in_channels": 1024, "patch_size": 256, **dict.fromkeys(("downsampling", "sample_size"), 512)},
            "parameters",
        ),
        (ShowoDiffusionDecoderConfig, {"sample_size": 2**30}, "sample_size"),
        (ShowoDiffusionDecoderConfig, {"num_inference_steps": 10**9}, "num_inference_steps"),
        (ShowoVQTokenizerConfig, {"codebook_size": 10**12}, "codebook_size"),
        (ShowoVQTokenizerConfig, {"codebook_dim": 10**9}, "codebook_dim"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_absurd_sizes_are_refused_before_memory_is_taken(kind, options, name):
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=name):
        kind(**options)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cpu_time.within(seconds, SECONDS) and peak < 50e6


def save_changed(processor, output, folder, change):
    """Save a pipeline, with other entries in the config of a part."""
    pipe = tiny.pipeline(processor)
    pipe.register_modules(image_decoder=tiny.image_decoder())
    pipe.save_pretrained(output)
    ShowoT2IPipeline.from_pretrained(output)  # what is imported late is imported now
    file = output / folder / "config.json"
    content = json.loads(file.read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_config_in_a_folder_that_asks_for_absurd_sizes_is_refused(tmp_path):
    ShowoConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["num_hidden_layers"] = 10**5
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ShowoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "folder, change, name",
    [
        ("model", {"text_config": dict.fromkeys(("hidden_size", "intermediate_size"), 2**20)}, "hidden_size"),
        ("model", {"text_config": WIDE}, "parameters"),
        ("model", {"image_tokenizer_config": dict.fromkeys(STAGES, [32] * 10**5)}, "at most 16 stages"),
        ("image_decoder", ddim(num_train_timesteps=10**10), "num_train_timesteps"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_a_pipeline_folder_that_asks_for_absurd_sizes_is_refused(processor, tmp_path, folder, change, name):
    save_changed(processor, tmp_path, folder, change)
    start = time.process_time()
    with pytest.raises(ValueError, match=name):
        ShowoT2IPipeline.from_pretrained(tmp_path)
    assert cpu_time.within(time.process_time() - start, SECONDS)


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("model", {"text_config": {"num_hidden_layers": 900, "intermediate_size": 2**20}}),
        ("model", {"image_tokenizer_config": {"decoder_block_out_channels": [2**13] * 3}}),
        ("image_decoder", {"block_out_channels": [2**13], "layers_per_block": 1}),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_weights_that_are_too_small_for_their_config_are_refused(processor, tmp_path, folder, change):
    """Each config is allowed, and asks for more memory than the machine has."""
    save_changed(processor, tmp_path, folder, change)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"holds weights of [\d,]+ bytes, and its config asks for [\d,]+ parameters"):
        ShowoT2IPipeline.from_pretrained(tmp_path)
    assert cpu_time.within(time.process_time() - start, SECONDS)


@pytest.mark.usefixtures("little_memory")
def test_weights_on_the_hub_that_are_too_small_for_their_config_are_refused(processor, tmp_path, hub_here):
    """Before they are downloaded, and also those that were downloaded before."""
    folder = tmp_path / "pipeline"
    save_changed(processor, folder, "model", {"text_config": {"num_hidden_layers": 900, "intermediate_size": 2**20}})
    hub_here.repositories["owner/large"] = contents(folder)
    message = r"'owner/large' holds weights of [\d,]+ bytes, and its config asks for [\d,]+ parameters"
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        ShowoForCausalLM.from_pretrained("owner/large", subfolder="model")
    assert cpu_time.within(time.process_time() - start, SECONDS)
    assert not any("safetensors" in request for request in hub_here.requests)
    snapshot_download("owner/large")
    with pytest.raises(ValueError, match=message):
        ShowoForCausalLM.from_pretrained("owner/large", subfolder="model", local_files_only=True)


def test_the_hub_is_not_asked_for_the_weights_of_a_small_model(processor, tmp_path, hub_here):
    folder = tmp_path / "pipeline"
    save_changed(processor, folder, "model", {})
    hub_here.repositories["owner/small"] = contents(folder)
    model = ShowoForCausalLM.from_pretrained("owner/small", subfolder="model")
    assert model.num_parameters() > 0
    assert "GET /api/models/owner/small" not in hub_here.requests
