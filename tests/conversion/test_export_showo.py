"""Export to the original's format, bit for bit."""

import json

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from safetensors.torch import load_file, save_file

from showo_hf import ShowoForCausalLM, ShowoT2IPipeline, cli
from showo_hf.conversion.convert_showo import convert_showo
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.export_showo import export_showo as export


LAST = tiny.showo_config("phi").mask_token_id  # the last id of a model with the original's layout


def load(folder, file_format):
    if file_format == "bin":
        return torch.load(folder / "pytorch_model.bin", weights_only=True)
    return load_file(folder / "pytorch_model.safetensors")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.integers(1, 2),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8]),
    intermediate=st.integers(1, 9),
    bits=st.integers(1, 5),
    stages=st.integers(1, 3),
    feature_size=st.none() | st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    forms=st.tuples(st.sampled_from(["safetensors", "bin", "sharded bin"]), st.sampled_from(["safetensors", "bin"])),
    keys=st.dictionaries(
        st.text("abc_", min_size=1, max_size=6),
        # Absolute paths are cut to their last part.
        st.integers() | st.booleans() | st.none() | st.text().filter(lambda text: not text.startswith("/")),
    ),
)
def test_conversion_and_export_restore_the_original(
    tmp_path_factory, layers, heads, head_dim, intermediate, bits, stages, feature_size, dtype, forms, keys
):
    root = tmp_path_factory.mktemp("round-trip")
    weights, config = small_showo(layers, heads, head_dim, intermediate, 2**bits, feature_size)
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    config = keys | config
    tokenizer = small_magvitv2((32,) * stages, bits)
    tokenizer_config = {"_class_name": "MAGVITv2", "extra": 3}
    sources = (
        write_original(root / "showo", weights, config, forms[0]),
        write_original(root / "magvitv2", tokenizer, tokenizer_config, forms[0]),
        TEXT_TOKENIZER,
    )
    convert_showo(*sources, root / "ours")
    export(root / "ours", root / "back", file_format=forms[1])
    assert_same(load(root / "back" / "showo", forms[1]), weights)
    assert_same(load(root / "back" / "magvitv2", forms[1]), tokenizer)
    assert json.loads((root / "back" / "showo" / "config.json").read_text()) == config
    assert json.loads((root / "back" / "magvitv2" / "config.json").read_text()) == tokenizer_config


def test_a_model_saved_after_training_is_exported(tmp_path, capsys):
    """Also the original's config is restored."""
    weights, config = small_showo()
    sources = (
        write_original(tmp_path / "showo", weights, config),
        write_original(tmp_path / "magvitv2", small_magvitv2(), None),
        TEXT_TOKENIZER,
    )
    convert_showo(*sources, tmp_path / "ours")
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        pipe.model.lm_head.bias.add_(1)
    pipe.save_pretrained(tmp_path / "tuned")
    arguments = [str(tmp_path / "tuned"), "--output", str(tmp_path / "back"), "--dtype", "bfloat16"]
    assert cli.main(["export", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "back") and "image_decoder" not in printed.err
    weights["showo.lm_head.bias"] += 1
    found = load(tmp_path / "back" / "showo", "safetensors")
    assert_same(found, {name: tensor.bfloat16() for name, tensor in weights.items()})
    assert json.loads((tmp_path / "back" / "showo" / "config.json").read_text()) == config
    constants = load(tmp_path / "back" / "magvitv2", "safetensors")
    assert constants["quantize.power_vals"].dtype == torch.int64


def test_a_diffusion_decoder_is_left_out_and_named(processor, tmp_path):
    pipe = tiny.pipeline(processor, "phi")
    pipe.register_modules(image_decoder=tiny.image_decoder())
    pipe.save_pretrained(tmp_path / "ours")
    report = export(tmp_path / "ours", tmp_path / "back")
    assert report.splitlines()[-1] == "image_decoder/ left out: the original has no diffusion decoder"
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["magvitv2", "showo"]


def test_a_model_without_an_original_gets_the_config_keys_of_one(tmp_path):
    tiny.showo("phi").save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "showo" / "config.json").read_text())
    assert config["_class_name"] == "Showo" and config["codebook_size"] == tiny.CODES
    assert config["llm_vocab_size"] == tiny.TEXT_IDS


def test_an_image_tokenizer_that_the_original_computes_differently_is_refused_or_named(tmp_path):
    tokenizer = tiny.lfq_config(encoder_context=False)
    tiny.showo("phi", image_tokenizer_config=tokenizer).save_pretrained(tmp_path / "cells")
    with pytest.raises(ConversionError, match="`encoder_context` False"):
        export(tmp_path / "cells", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    tiny.showo("phi").save_pretrained(tmp_path / "ours")
    assert "norm_num_groups is 4: the original" in export(tmp_path / "ours", tmp_path / "back")


def test_weights_of_another_model_are_refused(tmp_path):
    tiny.showo("phi").save_pretrained(tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights | {"adapter.weight": torch.zeros(2), "image_tokenizer.x": torch.zeros(2)}, file)
    with pytest.raises(ConversionError) as caught:
        export(tmp_path / "ours", tmp_path / "back")
    for line in ("missing: lm_head.weight", "unexpected: adapter.weight", "unexpected: image_tokenizer.x"):
        assert line in str(caught.value)
    (tmp_path / "ours" / "config.json").write_text("{")
    with pytest.raises(ConversionError, match="'config.json' is not JSON"):
        export(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_model_that_the_original_does_not_support_is_refused(tmp_path):
    tiny.showo("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(ConversionError, match="a Phi backbone.*got llama"):
        export(tmp_path / "llama", tmp_path / "back")
    other = tiny.showo("phi", mask_token_id=tiny.TEXT_IDS - 1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConversionError, match="`mask_token_id` is 59, must be"):
        export(tmp_path / "other", tmp_path / "back")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="saved by this package"):
        export(tmp_path / "empty", tmp_path / "back")
    with pytest.raises(ValueError, match="`file_format` must be one of safetensors, bin, got 'gguf'"):
        export(tmp_path / "llama", tmp_path / "back", file_format="gguf")
    with pytest.raises(
        ValueError, match="`max_shard_size` needs the `file_format` 'safetensors'.*got '2GB' and 'bin'"
    ):
        export(tmp_path / "llama", tmp_path / "back", max_shard_size="2GB", file_format="bin")
    assert not (tmp_path / "back").exists()
    assert isinstance(ShowoForCausalLM.from_pretrained(tmp_path / "llama"), ShowoForCausalLM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # An id more between the image tokens and the mask.
        (
            {"mask_token_id": LAST + 1, "text_config": tiny.text_config("phi", LAST + 2)},
            "`mask_token_id` is 135, must be",
        ),
        # An id more after the mask.
        ({"text_config": tiny.text_config("phi", LAST + 2)}, "`vocab_size` is 136, must be 135"),
        ({"pad_token_id": None}, "needs a padding id after the ids of text, got `pad_token_id` None"),
    ],
)
def test_a_layout_of_ids_that_the_original_does_not_have_is_refused(tmp_path, changes, message):
    tiny.showo("phi", **changes).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match=message):
        export(tmp_path / "ours", tmp_path / "back")
