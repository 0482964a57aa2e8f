"""Training of adapters: which layers, what has gradients, saving, merging, and quantized base models."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from conversations import PROCESSOR
from image_pipelines import make_pipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_adapters import ROWS, base_model, logits, snapshot, train, trained_adapter
from transformers import TorchAoConfig

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline
from showo_hf.training.adapters import (
    adapter_config,
    add_adapter,
    check_quantized_training,
    linear_layers,
    merge_adapter,
    save_adapter,
    word_token_ids,
)
from showo_hf.utils.adapters import adapter_layers, adapter_tensors


PHI = {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted_layers(model: ShowoForCausalLM, **options) -> list[str]:
    """Full names of the layers that get an adapter."""
    add_adapter(model, adapter_config(model, rank=2, **options))
    return [name for name, _ in adapter_layers(model)]


def short_names(layers: list[str]) -> set[str]:
    return {name.removesuffix(".proj").rpartition(".")[2] for name in layers}


@pytest.mark.parametrize(("backbone", "names"), [("phi", PHI), ("llama", LLAMA)])
def test_the_default_layers_are_all_of_the_decoder(backbone, names):
    layers = adapted_layers(tiny.showo(backbone))
    assert short_names(layers) == names
    assert len(layers) == 2 * len(names) and all(name.startswith("model.layers.") for name in layers)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("all-linear", LLAMA),
        (["q_proj", "up_proj"], {"q_proj", "up_proj"}),
        (("lm_head",), {"lm_head"}),
        (["model.layers.1.mlp.up_proj"], {"up_proj"}),
    ],
)
def test_other_layers(targets, names):
    assert short_names(adapted_layers(tiny.showo("llama", tie_word_embeddings=False), targets=targets)) == names


@pytest.mark.parametrize("targets", ["default", "attention", "all-linear", ["q_proj", "fc1"]])
def test_the_vision_tower_and_the_image_tokenizer_have_no_adapters(targets):
    """The vision tower has layers of the same names as Phi."""
    layers = adapted_layers(tiny.clip_showo(tiny.TEXT_IDS), targets=targets)
    assert layers and not any(name.startswith(("vision_tower", "image_tokenizer")) for name in layers)
    assert (len([name for name in layers if "mm_projector" in name]) == 2) is (targets == "all-linear")


def test_the_pattern_fits_each_layer_of_a_deep_model_and_no_other():
    model = tiny.showo("llama", text_options={"num_hidden_layers": 11})
    pattern = adapter_config(model, targets="attention").target_modules
    wanted = [name for name in linear_layers(model) if ".self_attn." in name]
    assert [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)] == wanted
    assert len(wanted) == 44


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank`"),
        ({"rank": 2.0}, "`rank`"),
        ({"alpha": 0}, "`alpha`"),
        ({"alpha": float("inf")}, "`alpha`"),
        ({"dropout": 1}, "`dropout`"),
        ({"dropout": -0.1}, "`dropout`"),
        ({"targets": "all"}, "`targets` must be 'default'"),
        ({"targets": []}, "`targets`"),
        ({"targets": ["q_proj", "to_q"]}, r"among .*'q_proj'.*got \['q_proj', 'to_q'\]"),
        ({"targets": ["lm_head"]}, "`targets`"),
        ({"trained_tokens": [3, 3]}, "`trained_tokens`"),
        ({"trained_tokens": [-1]}, "`trained_tokens`"),
        ({"trained_tokens": [10**6]}, "from 0 to "),
        ({"trained_tokens": [True]}, "`trained_tokens`"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adapter_config(base_model(), **options)


def test_rows_of_a_tied_head_with_a_bias_are_refused():
    model = tiny.showo("phi", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="leave out the bias"):
        adapter_config(model, trained_tokens=[3])


@pytest.mark.parametrize("backbone", ["phi", "llama"])
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"trained_tokens": ROWS, "dropout": 0.1}])
def test_a_new_adapter_changes_nothing_until_it_is_trained(backbone, options):
    model, state = base_model(backbone, tied=backbone == "llama"), torch.get_rng_state()
    plain = logits(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_adapter(model, adapter_config(model, rank=4, **options))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(logits(model), plain, atol=1e-5, rtol=1e-5)
    tensors = adapter_tensors(model, "default")
    assert {id(weight) for weight in model.parameters() if weight.requires_grad} == {
        id(one) for one in tensors.values()
    }
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    losses = train(model, steps=6)
    assert losses[-1] < losses[0] and (logits(model) - plain).abs().max() > 0.05
    assert all(not torch.equal(tensors[name], old) for name, old in before.items())
    trained = {
        name.replace(".base_layer", "").replace(".token_adapter", ""): one for name, one in model.state_dict().items()
    }
    assert all(torch.equal(trained[name], weight) for name, weight in weights.items())
    rows = [name for name in tensors if "trainable_tokens" in name]
    assert (rows == ["model.embed_tokens.token_adapter.trainable_tokens_delta"]) is ("trained_tokens" in options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("options", [{}, {"dora": True, "trained_tokens": ROWS}])
def test_training_and_saving_are_deterministic(tmp_path, options):
    one, two = (files_of(trained_adapter(tmp_path / name, **options)) for name in ("one", "two"))
    assert one == two and one.keys() >= {"adapter_config.json", "adapter_model.safetensors"}
    other = files_of(trained_adapter(tmp_path / "other", seed=1, **options))
    assert other["adapter_model.safetensors"] != one["adapter_model.safetensors"]
    assert other["adapter_config.json"] == one["adapter_config.json"]


def test_a_saved_folder_holds_no_pickle_and_no_path_of_this_machine(tmp_path):
    base_model().save_pretrained(tmp_path / "my-base")
    model = ShowoForCausalLM.from_pretrained(tmp_path / "my-base")
    folder = trained_adapter(tmp_path / "adapter", model, base=str(tmp_path / "my-base"))
    files = files_of(folder)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert not any(str(tmp_path).encode() in content for content in files.values())
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "my-base" and config["inference_mode"] is True
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert all(name.startswith("base_model.model.model.layers.") for name in file.keys())
    with pytest.raises(FileExistsError):
        save_adapter(model, folder, "org/base")
    save_adapter(model, folder, "org/base", overwrite=True)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    save_adapter(model, tmp_path / "second-process", "org/base", is_main_process=False)
    assert not (tmp_path / "second-process").exists()


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"trained_tokens": ROWS}])
def test_a_merged_model_is_plain_and_gives_the_same(tmp_path, options):
    model = base_model()
    trained_adapter(tmp_path / "adapter", model, **options)
    adapted = logits(model)
    merge_adapter(model)
    assert type(model.lm_head) is torch.nn.Linear and not hasattr(model, "peft_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), adapted, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "merged")
    merged = logits(model)
    assert torch.equal(logits(ShowoForCausalLM.from_pretrained(tmp_path / "merged")), merged)
    add_adapter(model, adapter_config(model, rank=2))  # and can be trained again
    torch.testing.assert_close(logits(model), merged, atol=1e-5, rtol=1e-5)


def test_wrong_calls_are_refused(tmp_path):
    model = base_model()
    for call in (lambda: merge_adapter(model), lambda: save_adapter(model, tmp_path / "new", "org/base")):
        with pytest.raises(ValueError, match=r"`adapter_name` must be one of \[\], got 'default'"):
            call()
    config = adapter_config(model, rank=2)
    add_adapter(model, config)
    with pytest.raises(ValueError, match="`model` must have no adapters"):
        add_adapter(model, config, adapter_name="second")
    assert not (tmp_path / "new").exists()
    model = base_model("phi", tied=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match="peft leaves out its bias"):
        add_adapter(model, LoraConfig(r=2, target_modules=["v_proj"], trainable_token_indices={"lm_head": [3]}))
    after = snapshot(model)
    assert after["weights"].keys() == before["weights"].keys() and after["modules"] == before["modules"]


def test_an_adapter_of_a_bfloat16_model_is_float32(tmp_path):
    model = base_model().to(torch.bfloat16)
    folder = trained_adapter(tmp_path / "adapter", model, trained_tokens=ROWS)
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16
    pipe = make_pipeline(ShowoT2IPipeline, base_model().to(torch.bfloat16))
    pipe.load_lora_weights(folder)
    adapted, plain = logits(pipe.model), logits(base_model().to(torch.bfloat16))
    assert (adapted - logits(model)).norm() < 0.3 * (adapted - plain).norm()


def test_the_ids_of_a_word():
    tokenizer = PROCESSOR.tokenizer
    ids = word_token_ids(tokenizer, "sks")
    assert ids == word_token_ids(tokenizer, " sks ")
    for text in ("sks", "a red sks"):
        last = tokenizer.encode(text, add_special_tokens=False)[-1]
        assert last in ids and last < PROCESSOR.pad_token_id
    assert adapter_config(base_model(), trained_tokens=ids).trainable_token_indices == {"model.embed_tokens": ids}
    for word in ("", "  ", None, tokenizer.convert_ids_to_tokens(PROCESSOR.soi_token_id)):
        with pytest.raises(ValueError, match="`word` must"):
            word_token_ids(tokenizer, word)


def test_the_ids_of_a_word_of_the_embedded_model():
    processor = ShowoProcessor.from_pretrained(f"{EMBEDDED_MODEL}/model")
    ids = word_token_ids(processor.tokenizer, "sks")
    assert set(processor.tokenizer.encode("a photo of sks", add_special_tokens=False)) & set(ids)
    assert max(ids) < processor.pad_token_id


# Quantized base models


def quantized(folder: Path, name: str, **options) -> ShowoForCausalLM:
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(getattr(quantization, name)(**options))
    return ShowoForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_trains_on_weights_in_8_bits(tmp_path, dora):
    base_model().save_pretrained(tmp_path / "model")
    model, exact = quantized(tmp_path / "model", "Int8WeightOnlyConfig"), base_model()
    check_quantized_training(model)
    for one in (model, exact):
        add_adapter(one, adapter_config(one, rank=4, dora=dora, trained_tokens=ROWS))
    losses, wanted = train(model, steps=6), train(exact, steps=6)
    assert losses[-1] < losses[0] - 0.5 * (wanted[0] - wanted[-1])
    assert losses == pytest.approx(wanted, abs=0.05)
    save_adapter(model, tmp_path / "adapter", "org/base")
    pipe, plain = make_pipeline(ShowoT2IPipeline, base_model()), logits(base_model())
    pipe.load_lora_weights(tmp_path / "adapter")
    change, rounding = (logits(pipe.model) - plain).norm(), (logits(pipe.model) - logits(model)).norm()
    assert rounding < 0.3 * change
    with pytest.raises(ValueError, match="`model` is quantized"):
        merge_adapter(model)


def test_weights_in_4_bits_of_torchao_are_refused(tmp_path):
    base_model().save_pretrained(tmp_path / "model")
    model = quantized(tmp_path / "model", "Int4WeightOnlyConfig")
    before = logits(model)
    with pytest.raises(ValueError, match="quantized by 'Int4WeightOnlyConfig', which cannot be trained through"):
        add_adapter(model, adapter_config(model))
    assert not hasattr(model, "peft_config") and torch.equal(logits(model), before)
    check_quantized_training(base_model())


@pytest.mark.slow
def test_files_do_not_depend_on_the_hash_seed(tmp_path):
    """peft keeps lists of modules as sets, whose order changes from process to process."""
    program = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from peft import LoraConfig
from showo_hf.training.adapters import save_adapter
from tiny_adapters import base_model, trained_adapter
trained_adapter(Path(sys.argv[1]), targets=["v_proj", "o_proj", "up_proj", "down_proj"])
model = base_model()
model.add_adapter(LoraConfig(r=2, target_modules=["v_proj", "o_proj", "up_proj", "down_proj"]))
save_adapter(model, sys.argv[1] + "-set", "org/base")
"""
    root = Path(__file__).resolve().parents[2]
    for seed in "12":
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        done = subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / seed) == files_of(tmp_path / "1")
        config = (tmp_path / f"{seed}-set" / "adapter_config.json").read_bytes()
        assert config == (tmp_path / "1-set" / "adapter_config.json").read_bytes()


@pytest.mark.slow
def test_a_style_is_learned_by_the_embedded_model():
    """A new word learns to stand for an image: by LoRA alone, and faster with the word's trained rows."""
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    processor = pipe.processor
    tokens = pipe("two dogs", generator=torch.Generator().manual_seed(0), output_type="latent").images

    def losses(rows: bool) -> list[float]:
        model = ShowoForCausalLM.from_pretrained(f"{EMBEDDED_MODEL}/model")
        ids = word_token_ids(processor.tokenizer, "sks") if rows else ()
        add_adapter(model, adapter_config(model, rank=8, trained_tokens=ids))
        inputs = processor.text_to_image_prefix(["sks"])["input_ids"]
        config = model.config
        image = torch.full((1, 144), config.mask_token_id)
        ends = [torch.tensor([[one]]) for one in (config.soi_token_id, config.eoi_token_id)]
        batch = torch.cat([inputs, ends[0], image, ends[1]], 1)
        labels = torch.full_like(batch, -100)
        labels[:, -145:-1] = tokens.flatten(1) + config.image_token_offset
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
        found = []
        model.train()
        for _ in range(12):
            loss = model(batch, labels=labels).loss_t2i
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    plain, with_rows = losses(False), losses(True)
    assert plain[0] == pytest.approx(with_rows[0], abs=1e-4)
    assert plain[-1] < 0.8 * plain[0]
    assert all(faster < slower for faster, slower in zip(with_rows[1:], plain[1:], strict=True))
