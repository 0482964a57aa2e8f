"""`--overwrite` replaces what this package wrote, as the files say, and nothing of the user."""

import json
import shutil
from pathlib import Path

import pytest
from originals import small_magvitv2, write_original

from showo_hf.conversion import convert_image_tokenizer as module
from showo_hf.conversion import onnx_generate
from showo_hf.conversion.convert_image_tokenizer import convert_image_tokenizer
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.output import check_output
from showo_hf.conversion.remote_code import HEADER


PIPELINE = {
    "model_index.json": '{"_class_name": "ShowoT2IPipeline"}',
    "README.md": "tags: showo-hf",
    "model/config.json": '{"model_type": "showo"}',
    "model/model.safetensors": "",
    "image_decoder/config.json": '{"model_type": "showo_diffusion_decoder"}',
    "processor/tokenizer.json": "{}",
    "scheduler/scheduler_config.json": "{}",
}
CODE = {
    "model_index.json": '{"_class_name": ["pipeline", "ShowoT2IPipeline"]}',
    "pipeline.py": HEADER,
    "model/modeling_showo.py": HEADER,
    "scheduler/scheduling_maskgit.py": HEADER,
}
ORIGINAL = {
    "showo/config.json": '{"_class_name": "Showo"}',
    "showo/pytorch_model.bin": "",
    "magvitv2/config.json": '{"_class_name": "MAGVITv2"}',
    "magvitv2/pytorch_model-00001-of-00002.safetensors": "",
}
ONNX = {
    "onnx_config.json": '{"format": "showo-onnx"}',
    "transformer.onnx": "",
    "transformer.onnx.data": "",
    "tokenizer.json": "{}",
    "generate.py": Path(onnx_generate.__file__).read_text(encoding="utf-8"),
}
TOKENIZER = {"config.json": '{"model_type": "showo_vq"}', "model.safetensors": "", "README.md": "showo-hf"}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("files", [PIPELINE, PIPELINE | CODE, ORIGINAL, ONNX, TOKENIZER])
def test_what_this_package_writes_may_be_replaced(tmp_path, files):
    check_output(write(tmp_path / "out", files), True, [])


@pytest.mark.parametrize(
    "files",
    [
        {"model_index.json": "mine"},
        {"model_index.json": '{"_class_name": "StableDiffusionPipeline"}', "model/model.safetensors": ""},
        {"model_index.json": '{"_class_name": []}'},
        {"config.json": "{}", "generate.py": "mine", "README.md": "mine"},
        {"config.json": "[1]", "vocab.json": "{}"},
        {"config.json": '{"model_type": "llama"}', "model.safetensors": ""},
        {"config.json": '{"model_type": ["showo"]}'},
        {"config.json": '{"_class_name": "Showo"}', "pytorch_model.bin": ""},  # an original: it was not written by us
        {"onnx_config.json": "{}", "transformer.onnx": ""},
        {"showo/config.json": '{"project": "mine"}', "showo/model.safetensors": ""},
    ],
)
def test_folders_of_other_programs_are_kept(tmp_path, files):
    """Their files have the names of ours."""
    with pytest.raises(ConversionError, match="`--overwrite` only replaces models that showo-hf wrote"):
        check_output(write(tmp_path / "out", files), True, [])


@pytest.mark.parametrize(
    "files, name",
    [
        (PIPELINE | {"README.md": "my notes"}, "README.md"),
        (PIPELINE | {"generate.py": "mine"}, "generate.py"),
        (PIPELINE | {"pipeline.py": "mine"}, "pipeline.py"),
        (PIPELINE | {"modeling_mine.py": HEADER}, "modeling_mine.py"),
        (PIPELINE | {"model/modeling_showo.py": "mine"}, "model/modeling_showo.py"),
        (PIPELINE | {"vocab.json": "{}"}, "vocab.json"),
        (PIPELINE | {"processor/model.safetensors": ""}, "processor/model.safetensors"),
        (PIPELINE | {"scheduler/vocab.json": "{}"}, "scheduler/vocab.json"),
        (PIPELINE | {"model/config.json": '{"model_type": "llama"}'}, "model"),
        (PIPELINE | {"showo/config.json": '{"_class_name": "Showo"}'}, "showo"),
        (PIPELINE | {"model/model/x": ""}, "model/model"),
        (PIPELINE | {"model/transformer.onnx": ""}, "model/transformer.onnx"),
        (ORIGINAL | {"magvitv2/config.json": "{}"}, "magvitv2"),
        (ORIGINAL | {"showo/vocab.json": "{}"}, "showo/vocab.json"),
        (ONNX | {"mine.onnx": ""}, "mine.onnx"),
        (ONNX | {"generate.py": "print(1)"}, "generate.py"),
        (ONNX | {"README.md": "showo-hf"}, "README.md"),
    ],
)
def test_files_of_the_user_in_a_folder_of_ours_are_kept(tmp_path, files, name):
    with pytest.raises(ConversionError, match=f"also contains what this package does not write: {name};"):
        check_output(write(tmp_path / "out", files), True, [])


def test_links_in_a_folder_of_ours_are_kept(tmp_path):
    out = write(tmp_path / "out", PIPELINE)
    for name, to in (("scheduler", "scheduler"), ("model/model.safetensors", "model.safetensors")):
        moved = (out / name).rename(tmp_path / Path(to).name)
        (out / name).symlink_to(moved)
        with pytest.raises(ConversionError, match=f"does not write: {name};"):
            check_output(out, True, [])
        (out / name).unlink()
        moved.rename(out / name)
    check_output(out, True, [])


def test_a_linked_folder_in_a_source_is_followed(tmp_path):
    """`showo/unwrapped_model` leads to a folder whose file leads into the output."""
    out, real, source = write(tmp_path / "out", PIPELINE), tmp_path / "real", tmp_path / "showo"
    real.mkdir(), source.mkdir()
    (source / "unwrapped_model").symlink_to(real)
    (source / "circle").symlink_to(source)
    (real / "circle").symlink_to(tmp_path / "showo")
    check_output(out, True, [source])
    (real / "model.safetensors").symlink_to(out / "model" / "model.safetensors")
    with pytest.raises(ConversionError, match="must be a separate folder"):
        check_output(out, True, [source])


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_the_config_beside_a_file_of_weights_is_a_source(tmp_path, name):
    out, source = write(tmp_path / "out", TOKENIZER), write(tmp_path / "x", {"pytorch_model.bin": ""})
    check_output(out, True, [source / "pytorch_model.bin"])
    (source / name).symlink_to(out / "config.json")
    with pytest.raises(ConversionError, match="must be a separate folder"):
        check_output(out, True, [source / "pytorch_model.bin"])


@pytest.mark.parametrize("existing", [True, False])
def test_a_file_that_comes_during_the_conversion_is_kept(tmp_path, monkeypatch, existing):
    source, out = write_original(tmp_path / "in", small_magvitv2(), None), tmp_path / "out"
    if existing:
        convert_image_tokenizer(source, out)

    def write_model(*arguments):
        write(out, {"thesis.txt": "mine"})

    monkeypatch.setattr(module, "write_model", write_model)
    with pytest.raises(ConversionError, match=r"thesis.txt|only replaces models"):
        convert_image_tokenizer(source, out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    if existing:
        assert json.loads((out / "config.json").read_text())["model_type"] == "showo_lfq"
    shutil.rmtree(out)
