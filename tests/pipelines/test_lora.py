"""Adapters of a pipeline: load, weigh, turn off, fuse, unload, save."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import pytest
import tiny
import torch
from conversations import OPTIONS, PROCESSOR, ForwardCalls, generator, grid, make_chat_pipeline, same_parts, user
from hub_server import environment_of
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pipelines import EDITING_PIPELINES, edit, make_pipeline
from peft import PeftModel
from safetensors.torch import load_file
from tiny_adapters import IDS, KINDS, assert_same, base_model, logits, snapshot, train, trained_adapter
from transformers import TorchAoConfig

from showo_hf import (
    EMBEDDED_MODEL,
    ShowoAnyToAnyPipeline,
    ShowoForCausalLM,
    ShowoImg2ImgPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
)
from showo_hf.training.adapters import adapter_config, add_adapter, merge_adapter, save_adapter
from showo_hf.utils.adapter_files import portable_name
from showo_hf.utils.adapters import without_adapters


PIPELINES = (ShowoT2IPipeline, *EDITING_PIPELINES, ShowoMMUPipeline, ShowoAnyToAnyPipeline)


@pytest.fixture
def pipe() -> ShowoT2IPipeline:
    return make_pipeline(ShowoT2IPipeline, base_model())


def results(kind: type, model: ShowoForCausalLM) -> list[torch.Tensor]:
    """What a pipeline with this model gives, as tensors."""
    pipe = make_pipeline(kind, model)
    if kind is ShowoT2IPipeline:
        options = {"num_inference_steps": 4, "output_type": "latent"}
        return [pipe("a red apple", generator=generator(), **options).images]
    if kind is ShowoMMUPipeline:
        return pipe.score(grid(), ["what is this?"], ["owl", "a red apple"]).log_likelihoods
    if kind is ShowoAnyToAnyPipeline:
        answer = pipe([user("an owl", grid())], **OPTIONS, generator=generator())
        parts = [part[part["type"]] for part in answer.content]
        return [part if isinstance(part, torch.Tensor) else torch.tensor([*part.encode()]) for part in parts]
    return [edit(pipe)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "adapter"), [(kind, ["lora", "dora-rows"][n % 2]) for n, kind in enumerate(PIPELINES)]
)
def test_every_pipeline_gives_the_same_with_an_adapter_and_with_the_merged_model(adapters, kind, adapter):
    merged = base_model()
    loader = make_pipeline(kind, merged)
    loader.load_lora_weights(adapters(adapter))
    loader.fuse_lora()
    loader.unload_lora_weights()
    assert not hasattr(merged, "peft_config")

    model = base_model()
    plain = results(kind, model)
    make_pipeline(kind, model).load_lora_weights(adapters(adapter))
    found = results(kind, model)
    assert close(found, results(kind, merged))
    assert not close(found, plain)
    make_pipeline(kind, model).unload_lora_weights()
    assert close(results(kind, model), plain)


@pytest.mark.parametrize(
    ("kind", "backbone", "tied"),
    [
        *((kind, backbone, False) for kind in KINDS for backbone in ("phi", "llama")),
        *((kind, "llama", True) for kind in KINDS if kind != "head"),  # a tied head has no adapter
    ],
)
def test_an_adapter_is_loaded_disabled_fused_and_unloaded(tmp_path, kind, backbone, tied):
    trained = base_model(backbone, tied)
    folder = trained_adapter(tmp_path / "adapter", trained, **KINDS[kind])
    model = base_model(backbone, tied)
    before, plain = snapshot(model), logits(model)
    assert before["shared"] is tied
    pipe = make_pipeline(ShowoT2IPipeline, model)

    pipe.load_lora_weights(folder)
    loaded = logits(model)
    assert torch.equal(loaded, logits(trained))
    assert (loaded - plain).abs().max() > 0.05
    codes = slice(model.config.image_token_offset, model.config.image_token_offset + tiny.CODES)
    with torch.no_grad():
        assert torch.equal(model(IDS, codebook_only=True).logits, loaded[..., codes])

    pipe.disable_lora()
    assert torch.equal(logits(model), plain) and pipe.get_active_adapters() == ["default_0"]
    pipe.enable_lora()
    assert torch.equal(logits(model), loaded)

    pipe.fuse_lora(safe_fusing=True)
    torch.testing.assert_close(logits(model), loaded, atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(model), loaded, atol=1e-4, rtol=1e-4)
    pipe.unload_lora_weights()
    after = snapshot(model)
    for name, weight in before["weights"].items():
        torch.testing.assert_close(after["weights"][name], weight, atol=1e-5, rtol=1e-5)
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows, before["weights"]["model.embed_tokens.weight"])
    assert_same(after | {"weights": {}}, before | {"weights": {}})


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_without_fusing_unloading_restores_the_model_to_the_bit(adapters, pipe, kind):
    before, state = snapshot(pipe.model), torch.get_rng_state()
    pipe.load_lora_weights(adapters(kind), "a")
    pipe.load_lora_weights(adapters("rows", 1), "b")
    pipe.set_adapters("b", 0.5)
    pipe.disable_lora()
    pipe.enable_lora()
    assert not any(
        weight.requires_grad
        for name, weight in pipe.model.named_parameters()
        if name not in before["weights"] and not name.endswith("base_layer.weight")
    )
    pipe.delete_adapters("a")
    pipe.unload_lora_weights()
    pipe.unload_lora_weights()  # nothing to do
    assert_same(snapshot(pipe.model), before)
    assert torch.equal(torch.get_rng_state(), state)


def low_rank_update(folder: Path, name: str) -> torch.Tensor:
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    a, b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def test_two_weighted_adapters_add_up(adapters, pipe):
    folders = {"a": adapters(), "b": adapters(seed=1)}
    expected = base_model()
    with torch.no_grad():
        for name, module in expected.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
                update = 0.7 * low_rank_update(folders["a"], name) - 0.3 * low_rank_update(folders["b"], name)
                module.weight += update
    for name, folder in folders.items():
        pipe.load_lora_weights(folder, name)
    pipe.set_adapters(["a", "b"], [0.7, -0.3])
    torch.testing.assert_close(logits(pipe.model), logits(expected), atol=1e-4, rtol=1e-4)
    pipe.fuse_lora()
    torch.testing.assert_close(logits(pipe.model), logits(expected), atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(pipe.model), logits(expected), atol=1e-4, rtol=1e-4)
    pipe.set_adapters(["a", "b"], [1.0, None])
    assert (logits(pipe.model) - logits(expected)).abs().max() > 0.05


@settings(max_examples=5, deadline=None)
@given(weight=st.floats(-2, 2), scale=st.floats(-2, 2), kind=st.sampled_from(["lora", "dora"]))
def test_a_fused_scale_multiplies_the_weight_and_ends_with_unfusing(adapters, weight, scale, kind):
    pipe = make_pipeline(ShowoT2IPipeline, base_model())
    pipe.load_lora_weights(adapters(kind), "a")
    pipe.set_adapters("a", weight)
    if not pipe.get_active_adapters():
        return
    before = logits(pipe.model)
    pipe.fuse_lora(lora_scale=scale)
    fused = logits(pipe.model)
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(pipe.model), before, atol=1e-3, rtol=1e-3)
    if weight * scale != 0:
        pipe.set_adapters("a", weight * scale)
        torch.testing.assert_close(logits(pipe.model), fused, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["rows", "dora"])
def test_nothing_of_an_adapter_of_weight_0_is_fused(adapters, pipe, kind):
    """Trained rows and DoRA's magnitudes have no scale."""
    base, names = snapshot(pipe.model)["weights"], ["a", "b"]
    pipe.load_lora_weights(adapters(kind), "a")
    pipe.load_lora_weights(adapters("lora"), "b")
    pipe.set_adapters(names, [0.0, 1.0])
    only = logits(pipe.model)
    pipe.fuse_lora(adapter_names=names)
    torch.testing.assert_close(logits(pipe.model), only, atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    pipe.fuse_lora(lora_scale=0)
    with pytest.raises(ValueError, match="are fused"):
        pipe.set_adapters("a")
    pipe.unload_lora_weights()
    for name, weight in pipe.model.state_dict().items():
        torch.testing.assert_close(weight, base[name], atol=1e-5, rtol=1e-5)
    pipe.load_lora_weights(adapters(kind), "a")  # nothing is fused any more


def test_which_adapters_act(adapters, pipe):
    plain = logits(pipe.model)
    assert pipe.get_list_adapters() == {} and pipe.get_active_adapters() == []
    pipe.load_lora_weights(adapters("rows"))
    first = logits(pipe.model)
    pipe.load_lora_weights(adapters("lora", 1), "other")
    assert pipe.get_list_adapters() == {"model": ["default_0", "other"]}
    assert pipe.get_active_adapters() == ["default_0"] and torch.equal(logits(pipe.model), first)
    pipe.set_adapters("other")
    second = logits(pipe.model)
    assert pipe.get_active_adapters() == ["other"] and not torch.equal(second, first)
    pipe.set_adapters(["default_0", "other"], [0, 1])  # with weight 0, the rows do not act either
    assert pipe.get_active_adapters() == ["other"] and torch.equal(logits(pipe.model), second)
    pipe.set_adapters([])
    assert torch.equal(logits(pipe.model), plain)
    pipe.set_adapters(["other", "default_0"])
    pipe.delete_adapters("other")
    assert pipe.get_list_adapters() == {"model": ["default_0"]} and torch.equal(logits(pipe.model), first)
    pipe.load_lora_weights(adapters("lora", 1), "other")
    pipe.delete_adapters("default_0")
    assert pipe.get_active_adapters() == [] and torch.equal(logits(pipe.model), plain)
    pipe.disable_lora()
    pipe.load_lora_weights(adapters(), "third")
    pipe.set_adapters("third")
    assert torch.equal(logits(pipe.model), plain)
    pipe.delete_adapters(["third", "other"])
    assert not hasattr(pipe.model, "peft_config") and torch.equal(logits(pipe.model), plain)
    pipe.load_lora_weights(adapters("rows"))
    assert torch.equal(logits(pipe.model), first)


def test_trained_rows_of_several_adapters(tmp_path, pipe):
    """peft itself takes one adapter with trained rows at a time."""
    rows = {"a": (30, 31), "b": (33,), "same": (31, 40)}
    for seed, (name, ids) in enumerate(rows.items()):
        trained_adapter(tmp_path / name, seed=seed, trained_tokens=ids, targets=["v_proj"])
        pipe.load_lora_weights(tmp_path / name, name)
    pipe.set_adapters(["a", "b"])
    embed = pipe.model.get_input_embeddings()
    with torch.no_grad():
        found = embed(torch.tensor([29, 30, 31, 33]))
    stored = [
        load_file(tmp_path / name / "adapter_model.safetensors")[
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
        ]
        for name in "ab"
    ]
    plain = base_model().get_input_embeddings().weight[29:30]
    assert torch.equal(found, torch.cat([plain, *stored]))
    both = logits(pipe.model)
    pipe.fuse_lora()
    torch.testing.assert_close(logits(pipe.model), both, atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    with pytest.raises(ValueError, match="'a' and 'same' both train the row of token id 31"):
        pipe.set_adapters(["a", "same"])
    with pytest.raises(ValueError, match="token id 31"):
        pipe.fuse_lora(adapter_names=["a", "same"])
    assert pipe.get_active_adapters() == ["a", "b"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_the_loaded_one(adapters, tmp_path, kind):
    if kind == "head":
        folder = trained_adapter(tmp_path / "head", base_model(tied=False), **KINDS[kind])
        pipe = make_pipeline(ShowoT2IPipeline, base_model(tied=False))
    else:
        folder, pipe = adapters(kind), make_pipeline(ShowoT2IPipeline, base_model())
    pipe.load_lora_weights(folder, "a")
    pipe.set_adapters("a", 0.3)
    pipe.save_lora_weights(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").glob("*.*")} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(FileExistsError):
        pipe.save_lora_weights(tmp_path / "saved")
    pipe.save_lora_weights(tmp_path / "saved", "a", overwrite=True)
    with torch.no_grad():
        model = PeftModel.from_pretrained(base_model(tied=kind != "head"), folder)
        pipe.set_adapters("a")
        assert torch.equal(model(IDS).logits, logits(pipe.model))


def test_a_saved_pipeline_has_the_base_weights_or_the_fused_ones(adapters, pipe, tmp_path):
    plain = logits(pipe.model)
    pipe.load_lora_weights(adapters("dora-rows"))
    pipe.load_lora_weights(adapters("lora", 1), "unused")
    adapted = logits(pipe.model)
    pipe.save_pretrained(tmp_path / "base")
    assert torch.equal(logits(pipe.model), adapted)  # saving changes nothing
    pipe.fuse_lora()
    fused = logits(pipe.model)
    pipe.save_pretrained(tmp_path / "fused")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "unloaded")
    for name, wanted in {"base": plain, "fused": fused, "unloaded": fused}.items():
        loaded = ShowoT2IPipeline.from_pretrained(tmp_path / name).model
        assert torch.equal(logits(loaded), wanted) and not hasattr(loaded, "peft_config")
        assert not (tmp_path / name / "model" / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_merged_model_loads_without_peft(adapters, pipe, tmp_path):
    pipe.load_lora_weights(adapters())
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    program = f"""
import sys
sys.modules["peft"] = None
from showo_hf import ShowoT2IPipeline
pipe = ShowoT2IPipeline.from_pretrained({str(tmp_path / "fused")!r})
try:
    pipe.load_lora_weights({str(adapters())!r})
except ImportError as error:
    print(error)
print(pipe.get_list_adapters(), pipe.get_active_adapters())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Adapters need peft, which is not installed: `pip install 'showo-hf[train]'`.",
        "{} []",
    ]


def test_pipelines_that_share_a_model_share_its_adapters(adapters, pipe):
    other = ShowoImg2ImgPipeline.from_pipe(pipe)
    pipe.load_lora_weights(adapters(), "a")
    assert other.model is pipe.model and other.get_active_adapters() == ["a"]
    other.fuse_lora()
    with pytest.raises(ValueError, match="are fused"):
        pipe.disable_lora()


def test_a_conversation_reads_its_messages_again_with_other_adapters(adapters):
    def second_answer(change: bool, fresh: bool):
        pipe = make_chat_pipeline(base_model())
        pipe.load_lora_weights(adapters(), "a")
        pipe.disable_lora()
        session = pipe.start()
        session.send("an owl", **OPTIONS, generator=generator())
        if change:
            pipe.enable_lora()
        if fresh:
            session = pipe.start(session.messages)
        calls = ForwardCalls(pipe)
        answer = session.send("two hearts", **OPTIONS, generator=generator(1))
        return answer.content, calls[0][1]

    kept, read = second_answer(False, False)
    changed, read_again = second_answer(True, False)
    wanted, _ = second_answer(True, True)
    assert read < read_again  # the whole conversation, not the new message only
    assert same_parts(changed, wanted) and not same_parts(changed, kept)


@pytest.mark.parametrize("name", ["weight", "base_layer", "lora_A", "0", "model", "token_adapter"])
def test_a_name_may_be_one_that_peft_uses(adapters, pipe, tmp_path, name):
    before, folder = snapshot(pipe.model), adapters("dora-rows")
    pipe.load_lora_weights(adapters("lora", 1), "other")
    pipe.load_lora_weights(folder, name)
    pipe.set_adapters(name)
    pipe.save_lora_weights(tmp_path / "saved", name)
    file = "adapter_model.safetensors"
    assert (tmp_path / "saved" / file).read_bytes() == (folder / file).read_bytes()
    pipe.delete_adapters(name)
    assert pipe.get_list_adapters() == {"model": ["other"]}
    pipe.unload_lora_weights()
    assert_same(snapshot(pipe.model), before)


def test_a_quantized_model_takes_adapters_but_is_not_fused(adapters, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    base_model().save_pretrained(tmp_path / "model")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = ShowoForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config, dtype=torch.float32)
    pipe, plain, exact = make_pipeline(ShowoT2IPipeline, model), logits(model), base_model()
    pipe.load_lora_weights(adapters("rows"))
    make_pipeline(ShowoT2IPipeline, exact).load_lora_weights(adapters("rows"))
    error = (logits(model) - logits(exact)).norm()
    assert error < 0.3 * (logits(model) - plain).norm()
    with pytest.raises(ValueError, match="cannot be fused into a quantized model"):
        pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(logits(model), plain)


def test_a_copy_without_adapters_shares_the_weights(adapters, pipe):
    pipe.load_lora_weights(adapters("rows"))
    before = snapshot(pipe.model)
    twin = without_adapters(pipe.model)
    assert torch.equal(logits(twin), logits(base_model()))
    wanted = {weight.data_ptr() for weight in base_weights(pipe.model)}
    assert {weight.data_ptr() for weight in twin.parameters()} == wanted
    assert_same(snapshot(pipe.model), before)


def base_weights(model) -> list[torch.Tensor]:
    adapter = ("lora_", "trainable_tokens")
    return [weight for name, weight in model.named_parameters() if not any(word in name for word in adapter)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("org/base", "org/base"),
        ("base", "base"),
        ("/a/b/base", "base"),
        ("./base/", "base"),
        (EMBEDDED_MODEL, "showo-world"),
    ],
)
def test_names_of_base_models_have_no_folders_of_this_machine(name, wanted):
    assert portable_name(name) == wanted and portable_name(None) is None


@pytest.mark.slow
def test_an_adapter_on_the_hub(hub, adapters, tmp_path):
    base_model().save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    folder = adapters("rows")
    hub.repositories["someone/style"] = {f"deep/{file.name}": file.read_bytes() for file in folder.iterdir()}
    hub.repositories["someone/style"]["adapter_model.bin"] = b"a pickle"
    program = f"""
import sys
sys.path.insert(0, "tests")
import torch
from image_pipelines import make_pipeline
from showo_hf import ShowoForCausalLM, ShowoT2IPipeline
from tiny_adapters import logits
pipe = make_pipeline(ShowoT2IPipeline, ShowoForCausalLM.from_pretrained({str(tmp_path / "model")!r}))
pipe.load_lora_weights("someone/style", subfolder="deep")
torch.save(logits(pipe.model), {str(tmp_path / "logits.pt")!r})
try:
    pipe.load_lora_weights("someone/style")
except ValueError as error:
    print(error)
"""
    environment = environment_of(hub, tmp_path / "home")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'someone/style' is not an adapter of peft: it has no 'adapter_config.json'" in done.stdout
    pipe = make_pipeline(ShowoT2IPipeline, base_model())
    pipe.load_lora_weights(folder)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(pipe.model))
    assert not list((tmp_path / "home").rglob("*.bin"))


def test_the_embedded_model_with_a_trained_concept(tmp_path):
    """The embedded model has tied embeddings. Its adapter is trained on one image for one caption."""
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    model = pipe.model
    before = snapshot(model)
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 1.0}
    plain = pipe("sks", generator=generator(), **options).images
    add_adapter(model, adapter_config(model, rank=4, targets="attention", trained_tokens=[100]))
    assert pipe.get_active_adapters() == ["default"]
    train(model, steps=2)
    save_adapter(model, tmp_path / "concept", EMBEDDED_MODEL)
    assert (
        json.loads((tmp_path / "concept" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "showo-world"
    )
    pipe.unload_lora_weights()
    assert torch.equal(pipe("sks", generator=generator(), **options).images, plain)

    pipe.load_lora_weights(tmp_path / "concept")
    adapted = pipe("sks", generator=generator(), **options).images
    assert not torch.equal(adapted, plain)
    merge_adapter(model, "default_0")
    assert torch.equal(pipe("sks", generator=generator(), **options).images, adapted)
    rmtree(tmp_path / "concept")
    assert snapshot(model)["modules"] == before["modules"]
