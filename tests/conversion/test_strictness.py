"""Checkpoints that do not match: every fault is listed, and nothing is written."""

import math
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from test_convert_showo import arguments, convert
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_hf import cli
from showo_hf.conversion import convert_magvitv2, convert_showo


@pytest.fixture
def root(tmp_path):
    """A folder for the sources; `write` fills it."""
    return tmp_path


def write(root, change=lambda weights, config: None, form="safetensors"):
    weights, config = small_showo()
    change(weights, config)
    write_original(root / "showo", weights, config, form)
    write_original(root / "magvitv2", small_magvitv2(), None)


def refused(root, capsys, *more, code=1) -> str:
    """The message of a conversion that must fail with an exit code and write nothing."""
    before = sorted(path.name for path in root.iterdir())
    assert convert(root, root / "out", *more) == code
    assert sorted(path.name for path in root.iterdir()) == before
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_all_faults_are_listed_at_once(root, capsys):
    def change(weights, config):
        del weights["showo.model.layers.0.mlp.fc2.bias"], weights["showo.lm_head.bias"]
        weights["showo.model.layers.0.mlp.fc1.bias"] = torch.zeros(3)
        weights["showo.model.layers.0.adapter.weight"], weights["head.weight"] = torch.zeros(3), torch.zeros(3)

    write(root, change)
    message = refused(root, capsys)
    assert "the weights do not match the model (5)" in message
    for line in (
        "missing: model.layers.0.mlp.fc2.bias [8]",
        "missing: lm_head.bias [50322]",
        "unexpected: head.weight",
        "unexpected: showo.model.layers.0.adapter.weight",
        "wrong shape: showo.model.layers.0.mlp.fc1.bias [3], must be [12]",
    ):
        assert line in message


def test_a_missing_layer_and_a_stray_index_are_refused(root, capsys):
    weights, config = small_showo(layers=3)
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    write_original(root / "showo", kept, config)
    write_original(root / "magvitv2", small_magvitv2(), None)
    assert "must count from 0 without a gap, got [0, 2]" in refused(root, capsys)
    write_original(root / "showo", weights | {"showo.model.layers.999999999.x": torch.zeros(1)}, config)
    assert "got [0, 1, 2, 999999999]" in refused(root, capsys)


def test_two_tensors_for_one_name_are_refused(root, capsys):
    write(root)
    weights = small_magvitv2()
    write_original(root / "magvitv2", weights | {"quant_conv.weight": weights["encoder.quant_conv.weight"] + 1}, None)
    assert "unexpected: " in refused(root, capsys)


def test_only_known_tensors_of_the_same_model_may_be_dropped(root, capsys):
    def change(weights, config):
        weights["loss.mine"] = torch.zeros(1)
        weights["text_projection.weight"] = torch.zeros(2)

    write(root, change)
    message = refused(root, capsys)
    assert "unexpected: loss.mine" in message and "unexpected: text_projection.weight" in message


def test_integer_weights_are_refused(root, capsys):
    def change(weights, config):
        weights["showo.lm_head.weight"] = weights["showo.lm_head.weight"].to(torch.int8)

    write(root, change)
    assert "not a floating-point dtype: showo.lm_head.weight torch.int8" in refused(root, capsys)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_tensors_with_nan_or_inf_are_named(root, capsys, number):
    def change(weights, config):
        weights["showo.model.layers.0.mlp.fc1.weight"][3, 2] = number
        weights["showo.model.final_layernorm.bias"][-1] = number

    write(root, change)
    message = refused(root, capsys)
    assert "the weights are damaged (2)" in message
    assert "NaN or Inf in showo.model.layers.0.mlp.fc1.weight" in message
    assert "NaN or Inf in showo.model.final_layernorm.bias" in message


def test_dropped_tensors_are_reported(root, capsys):
    def change(weights, config):
        weights["showo.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(1)

    write(root, change)
    assert convert(root, root / "out") == 0
    assert "1 dropped (computed from the config): showo.model.layers.0.self_attn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 58498}, "`vocab_size` is 58498 (weights: 50322)"),
        ({"llm_vocab_size": 40000}, "`llm_vocab_size` is 40000 (weights: 50295)"),
        ({"codebook_size": "16"}, "`codebook_size` in config.json must be a positive integer, got '16'"),
        ({"num_vq_tokens": None}, "`num_vq_tokens` in config.json must be a positive integer, got None"),
        ({"num_vq_tokens": -4}, "got -4"),
        ({"num_vq_tokens": 10**400}, "must be a positive integer"),
        ({"num_vq_tokens": 5}, "must be a square number, got 5"),
        ({"max_text_len": "x"}, "got 'x'"),
        ({"w_clip_vit": True}, "`w_clip_vit` True, but `mm_projector` is missing"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(root, capsys, change, message):
    write(root, lambda weights, config: config.update(change))
    assert message in refused(root, capsys)


def test_other_models_are_refused(root, capsys):
    write(root)
    assert convert_magvitv2.main(["--image-tokenizer", str(root / "showo"), "--output", str(root / "out")]) == 1
    assert "lack `encoder.conv_out.weight`" in capsys.readouterr().err
    arguments = ["--showo", str(root / "magvitv2"), "--image-tokenizer", str(root / "magvitv2")]
    arguments += ["--text-tokenizer", str(TEXT_TOKENIZER), "--output", str(root / "out")]
    assert cli.main(["convert", *arguments]) == 1
    assert "lack `showo.model.embed_tokens.weight`" in capsys.readouterr().err


def test_a_text_tokenizer_with_other_ids_is_refused(root, capsys):
    weights, config = small_showo(text_ids=300)
    write_original(root / "showo", weights, config)
    write_original(root / "magvitv2", small_magvitv2(), None)
    message = refused(root, capsys)
    assert "the text tokenizer does not match the model" in message
    assert "`pad_token_id` is 50295, the model's 300" in message


@pytest.mark.parametrize("option", ["--showo", "--image-tokenizer", "--text-tokenizer", "--clip-vision"])
def test_a_missing_source_is_named(root, capsys, option):
    write(root)
    assert f"`{option}` must be a folder or file" in refused(root, capsys, option, str(root / "absent"), code=2)


def test_a_tower_without_a_projector_is_refused(root, capsys):
    write(root)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(root / "clip")
    assert "has no `mm_projector`" in refused(root, capsys, "--clip-vision", str(root / "clip"))
    assert "`model_type`" in refused(root, capsys, "--clip-vision", str(root / "magvitv2"))


def test_an_existing_output_is_kept(root, capsys):
    write(root)
    (root / "out").mkdir()
    (root / "out" / "mine.txt").write_text("mine")
    assert "exists already" in refused(root, capsys, code=2)
    assert "`--overwrite` only replaces models" in refused(root, capsys, "--overwrite")
    assert (root / "out" / "mine.txt").read_text() == "mine"
    (root / "out" / "mine.txt").rename(root / "out" / "model_index.json")
    assert "`--overwrite` only replaces models" in refused(root, capsys, "--overwrite")
    assert (root / "out" / "model_index.json").read_text() == "mine"


@pytest.mark.parametrize("output", [".", "showo", "magvitv2/../showo", "cwd"])
def test_an_output_that_contains_a_source_or_the_current_folder_is_refused(root, capsys, monkeypatch, output):
    write(root)
    (root / "cwd" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(root / "cwd" / "deeper")
    before = sorted(root.rglob("*"))
    assert convert(root, root / output, "--overwrite") == 1
    assert "`--output` must be a separate folder" in capsys.readouterr().err
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("dtype", [[], ["--dtype", "bfloat16"]])
@pytest.mark.parametrize("parts", [("q_proj", "k_proj"), ("q_layernorm", "k_layernorm")])
def test_verify_finds_a_wrong_conversion(root, capsys, monkeypatch, parts, dtype):
    original = convert_showo.showo_name
    exchange = dict([parts, parts[::-1]])

    def exchanged(name):
        part = next((part for part in exchange if part in name), None)
        return original(name.replace(part, exchange[part])) if part else original(name)

    write(root)
    monkeypatch.setattr(convert_showo, "showo_name", exchanged)
    assert "differs from the source" in refused(root, capsys, "--verify", *dtype)


def entries_in(folder) -> int:
    """The files and folders in a folder that another process may rename meanwhile: `os.walk` skips what is gone."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


@pytest.mark.slow
def test_a_killed_conversion_leaves_the_old_folder_or_a_complete_one(root):
    write(root)
    out = root / "out"
    assert convert(root, out) == 0
    whole = {path.relative_to(out): path.stat().st_size for path in out.rglob("*")}
    command = [sys.executable, "-m", "showo_hf.cli", "convert", *arguments(root, out, "--overwrite")]
    rng = random.Random(0)
    for _ in range(5):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        files = rng.randrange(len(whole))  # the kill comes when so many files of the new folder are begun
        while not any(entries_in(new) >= files for new in root.glob(".out.new-*")):
            assert child.poll() is None, "the conversion ended before the kill"
            time.sleep(0.001)
        child.kill()
        child.wait()
        if out.exists():
            found = {path.relative_to(out): path.stat().st_size for path in out.rglob("*")}
            assert found == whole
    shutil.rmtree(out, ignore_errors=True)
    assert convert(root, out, "--overwrite") == 0
    assert sorted(path.name for path in root.iterdir()) == ["magvitv2", "out", "showo"]
