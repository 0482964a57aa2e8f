"""`from_pretrained` of a folder that holds something else names its content."""

import json
import shutil

import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from tiny_adapters import base_model, logits
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from showo_hf import EMBEDDED_MODEL, ShowoConfig, ShowoForCausalLM, ShowoLFQTokenizer


def save_clip(folder):
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)


def save_llama(folder):
    LlamaForCausalLM(tiny.text_config("llama", 100)).save_pretrained(folder)


def save_vae(folder):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder)


@pytest.mark.parametrize(
    "save, held",
    [
        (save_clip, "holds a 'clip_vision_model' 'CLIPVisionModel' model"),
        (save_llama, "holds a 'llama' 'LlamaForCausalLM' model"),
        (save_vae, "holds a 'AutoencoderKL' model"),
    ],
)
@pytest.mark.parametrize("model_class", [ShowoForCausalLM, ShowoLFQTokenizer])
def test_another_model(model_class, save, held, tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match=held) as error:
        model_class.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and f"{model_class.__name__} loads" in str(error.value)


def test_an_image_tokenizer(tmp_path):
    tiny.lfq().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="'ShowoLFQTokenizer' model.* Load it with `ShowoLFQTokenizer.from_pretrained`"
    ):
        ShowoForCausalLM.from_pretrained(tmp_path)


def test_a_whole_model_for_an_image_tokenizer(tmp_path):
    tiny.showo().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'ShowoForCausalLM' model.* Load it with `ShowoForCausalLM.from_pretrained`"):
        ShowoLFQTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [ShowoForCausalLM, ShowoConfig, ShowoLFQTokenizer])
def test_the_root_of_a_pipeline(loader):
    with pytest.raises(ValueError, match="root folder of a 'ShowoT2IPipeline' pipeline.*subfolder='model'"):
        loader.from_pretrained(EMBEDDED_MODEL)


def test_an_empty_folder_is_reported_by_transformers(tmp_path):
    with pytest.raises(OSError, match="no file named model.safetensors"):
        ShowoForCausalLM.from_pretrained(tmp_path)


def test_a_config_without_a_type_loads(tmp_path):
    tiny.lfq().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["model_type"], config["architectures"]
    path.write_text(json.dumps(config))
    assert ShowoLFQTokenizer.from_pretrained(tmp_path).config.codebook_bits == tiny.BITS


def test_an_adapter_loads_with_the_base_model_that_it_names(adapters, tmp_path):
    base_model().save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    shutil.copytree(adapters("lora"), folder)
    file = folder / "adapter_config.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps({**entries, "base_model_name_or_path": str(tmp_path / "base")}))
    found = ShowoForCausalLM.from_pretrained(folder)
    expected = ShowoForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.allclose(logits(found), logits(expected), atol=0.01)
    expected.load_adapter(str(folder))
    torch.testing.assert_close(logits(found), logits(expected))
    file.write_text(json.dumps({**entries, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="is an adapter that names no base model"):
        ShowoForCausalLM.from_pretrained(folder)
    save_vae(tmp_path / "vae")
    file.write_text(json.dumps({**entries, "base_model_name_or_path": str(tmp_path / "vae")}))
    with pytest.raises(ValueError, match="vae' holds a 'AutoencoderKL' model"):
        ShowoForCausalLM.from_pretrained(folder)
