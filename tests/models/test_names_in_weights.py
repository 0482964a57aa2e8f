"""`from_pretrained` of a stranger's folder: names of tensors are shown escaped and short, and many are a count."""

import io
import json
import logging
import shutil
import threading

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import base_model
from transformers import AutoModel, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from showo_hf import ShowoDiffusionDecoder, ShowoForCausalLM, ShowoLFQTokenizer, ShowoT2IPipeline
from showo_hf.utils.messages import LONGEST_NAME


HOSTILE_NAME = "\x1b[2J\x1b[31mx\nerror: all is well\r\x07\u202e" + "y" * 300
MODELS = {ShowoForCausalLM: tiny.showo, ShowoLFQTokenizer: tiny.lfq, ShowoDiffusionDecoder: tiny.image_decoder}


def change(folder, added=(), removed=(), reshaped=()):
    """Change the tensors in a saved folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in removed:
        del tensors[name]
    tensors |= {name: torch.zeros(1) for name in added} | {name: torch.zeros(2, 1) for name in reshaped}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def log():
    """What transformers' loggers say."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    transformers_logging.add_handler(handler)
    yield stream
    transformers_logging.remove_handler(handler)


@pytest.fixture
def shown(log):
    """The lines that transformers' loggers say, none of which is raw."""

    def lines() -> list[str]:
        found = log.getvalue().splitlines()
        assert all(line.isprintable() and len(line) < 20 * LONGEST_NAME for line in found)
        log.truncate(log.seek(0))
        return found

    return lines


@pytest.mark.parametrize("model_class", MODELS)
def test_names_are_escaped_and_short(model_class, tmp_path, shown):
    model = MODELS[model_class]()
    model.save_pretrained(tmp_path)
    lost = sorted(model.state_dict())[0]
    change(tmp_path, [HOSTILE_NAME, *(f"extra.{n}" for n in range(2000))], [lost])
    loaded = model_class.from_pretrained(tmp_path)
    (line,) = shown()
    assert line.startswith(f"`{model_class.__name__}` found other tensors in '{tmp_path}' than the config asks for: ")
    assert r"2,001 unexpected and not used: \x1b[2J\x1b[31mx\nerror: all is well\r\x07\u202eyyy" in line
    assert line.endswith(f"and 1,996 more; 1 missing and newly initialized: {lost}.")
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_a_pipeline_of_a_stranger(tmp_path, processor, shown):
    tiny.pipeline(processor).save_pretrained(tmp_path)
    change(tmp_path / "model", [HOSTILE_NAME])
    ShowoT2IPipeline.from_pretrained(tmp_path)
    (line,) = shown()
    assert r": 1 unexpected and not used: \x1b[2J" in line


def test_weights_of_another_shape_are_refused_by_name(tmp_path, shown):
    tiny.lfq().save_pretrained(tmp_path)
    change(tmp_path, [HOSTILE_NAME, "\x1b[0m MISMATCH | "], reshaped=["quant_conv.weight", "quant_conv.bias"])
    with pytest.raises(ValueError, match="do not fit the config: .*model:torch.Size") as error:
        ShowoLFQTokenizer.from_pretrained(tmp_path)
    assert str(error.value).isprintable() and "quant_conv.weight" in str(error.value)
    assert shown() == []
    ShowoLFQTokenizer.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    (line,) = shown()
    assert line.endswith("; 2 of another shape and newly initialized: quant_conv.bias, quant_conv.weight.")


def test_all_names_are_returned_on_request(tmp_path):
    tiny.lfq().save_pretrained(tmp_path)
    change(tmp_path, [HOSTILE_NAME], ["quant_conv.bias"])
    for loader in (ShowoLFQTokenizer, AutoModel):
        model, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(model) is ShowoLFQTokenizer
        assert report["unexpected_keys"] == {HOSTILE_NAME} and report["missing_keys"] == {"quant_conv.bias"}


def test_an_adapter_does_not_hide_the_report_of_its_base(tmp_path, adapters, shown):
    base_model().save_pretrained(tmp_path / "base")
    change(tmp_path / "base", ["extra\x1b[2J"])
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "base" / name, tmp_path)
    config = json.loads((adapters() / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(adapters() / "adapter_model.safetensors", tmp_path)
    ShowoForCausalLM.from_pretrained(tmp_path)
    (line,) = shown()
    assert line.endswith(r"than the config asks for: extra\x1b[2J | UNEXPECTED | |.")


def test_nothing_is_said_of_weights_that_fit(tmp_path, shown):
    tiny.lfq().save_pretrained(tmp_path)
    assert isinstance(ShowoLFQTokenizer.from_pretrained(tmp_path), ShowoLFQTokenizer)
    assert shown() == []


def test_the_verbosity_of_transformers_counts(tmp_path, shown):
    tiny.lfq().save_pretrained(tmp_path)
    change(tmp_path, [HOSTILE_NAME])
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        ShowoLFQTokenizer.from_pretrained(tmp_path)
    finally:
        transformers_logging.set_verbosity(before)
    assert shown() == []


def test_reports_of_other_models_and_threads_stay(tmp_path, monkeypatch, log):
    """Only the report of the load itself is held back."""
    tiny.lfq().save_pretrained(tmp_path / "ours")
    LlamaForCausalLM(tiny.text_config("llama", 100)).save_pretrained(tmp_path / "theirs")
    change(tmp_path / "theirs", ["extra"])
    build = ShowoLFQTokenizer.__init__

    def build_while_another_thread_loads(self, config):
        other = threading.Thread(target=LlamaForCausalLM.from_pretrained, args=[tmp_path / "theirs"])
        other.start()
        other.join()
        build(self, config)

    monkeypatch.setattr(ShowoLFQTokenizer, "__init__", build_while_another_thread_loads)
    ShowoLFQTokenizer.from_pretrained(tmp_path / "ours")
    assert "LlamaForCausalLM LOAD REPORT" in log.getvalue()
    assert not logging.getLogger("transformers.modeling_utils").filters
