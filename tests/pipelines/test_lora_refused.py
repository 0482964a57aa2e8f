"""Adapters that are refused, and errors: the pipeline is as before."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import tiny
import torch
from accelerate import cpu_offload
from conversations import PROCESSOR
from image_pipelines import make_pipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_adapters import assert_same, base_model, logits, snapshot

from showo_hf import ShowoT2IPipeline
from showo_hf.training.adapters import save_adapter
from showo_hf.utils.adapter_files import read_adapter
from showo_hf.utils.adapters import insert_adapter


@pytest.fixture
def pipe() -> ShowoT2IPipeline:
    return make_pipeline(ShowoT2IPipeline, base_model())


def rewrite_config(folder: Path, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rewrite_tensors(folder: Path, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def with_first(tensors: dict, change) -> dict:
    name = sorted(tensors)[0]
    return tensors | {name: change(tensors[name])}


def truncate(folder: Path):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_only(folder: Path):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


TAMPERED = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no 'adapter_config.json'"),
    "a pickle": (
        pickle_only,
        r"has no 'adapter_model.safetensors'. There is \['adapter_model.bin'\]. .* are not loaded",
    ),
    "truncated": (truncate, "'adapter_model.safetensors' of .* is damaged"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "'adapter_config.json' of .* is damaged"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "'adapter_config.json' of .* is damaged"),
    "another method": (lambda f: rewrite_config(f, peft_type="IA3"), "`peft_type` 'LORA'"),
    "whole modules": (lambda f: rewrite_config(f, modules_to_save=["lm_head"]), "uses `modules_to_save`"),
    "biases": (lambda f: rewrite_config(f, bias="all"), "uses `bias`"),
    "PiSSA": (lambda f: rewrite_config(f, init_lora_weights="pissa"), "changes the base model"),
    "a huge rank": (lambda f: rewrite_config(f, r=10**12), "does not fit the model"),
    "a rank of text": (lambda f: rewrite_config(f, r="four"), "does not fit the model"),
    "no module": (lambda f: rewrite_config(f, target_modules=["qkv"]), "does not fit the model"),
    "more modules": (lambda f: rewrite_config(f, target_modules=["q_proj.proj"]), "no place for .* tensors, such as"),
    "a slow pattern": (
        lambda f: rewrite_config(f, target_modules="([a-z0-9_.]+)+X"),
        "has `target_modules` '.*for ever",
    ),
    "a slow exclusion": (lambda f: rewrite_config(f, exclude_modules="(.*)*X"), "has `exclude_modules`"),
    "a slow rank": (lambda f: rewrite_config(f, rank_pattern={"([a-z_.]+)+X": 4}), "has `rank_pattern`"),
    "a slow layer": (
        lambda f: rewrite_config(f, target_modules=["proj"], layers_pattern=["(a+)+"], layers_to_transform=[0]),
        "has `layers_pattern`",
    ),
    "half a pattern": (lambda f: rewrite_config(f, target_modules="(q_proj"), "has `target_modules`"),
    "DoRA": (lambda f: rewrite_config(f, use_dora=True), "the file lacks .* tensors, such as .*lora_magnitude_vector"),
    "rows": (lambda f: rewrite_config(f, trainable_token_indices=[10**6]), "does not fit the model"),
    "NaN": (lambda f: rewrite_tensors(f, lambda t: with_first(t, lambda x: x * torch.nan)), "finite numbers"),
    "integers": (lambda f: rewrite_tensors(f, lambda t: with_first(t, lambda x: x.long())), "finite numbers"),
    "a missing tensor": (
        lambda f: rewrite_tensors(f, lambda t: dict(sorted(t.items())[1:])),
        "the file lacks 1 tensors",
    ),
    "one tensor too many": (
        lambda f: rewrite_tensors(f, lambda t: t | {"model.more": torch.ones(1)}),
        "no place for 1 tensors, such as 'model.more'",
    ),
    "another shape": (
        lambda f: rewrite_tensors(f, lambda t: with_first(t, lambda x: x[..., 1:].contiguous())),
        r"has shape \(4, 63\) instead of \(4, 64\)",
    ),
}


@pytest.mark.parametrize(("name", "others"), [(name, bool(n % 2)) for n, name in enumerate(TAMPERED)])
def test_what_does_not_fit_is_refused_before_anything_changes(adapters, pipe, tmp_path, name, others):
    tamper, message = TAMPERED[name]
    if others:
        pipe.load_lora_weights(adapters("rows"), "there")
    before, wanted = snapshot(pipe.model), logits(pipe.model)
    folder = copytree(adapters(), tmp_path / "adapter")
    tamper(folder)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(folder)
    assert_same(snapshot(pipe.model), before)
    assert torch.equal(logits(pipe.model), wanted)


@pytest.mark.parametrize("pattern", ["{}", "({})$", ".*({})", "no_module|{}"])
def test_patterns_of_names_are_read(adapters, pipe, tmp_path, pattern):
    folder = copytree(adapters(), tmp_path / "adapter")
    own = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    pipe.load_lora_weights(folder)
    wanted = logits(pipe.model)
    pipe.unload_lora_weights()
    rewrite_config(folder, target_modules=pattern.replace("{}", own))
    pipe.load_lora_weights(folder)
    assert torch.equal(logits(pipe.model), wanted)


@pytest.mark.parametrize("ids", [[30, 30], [-1, 3], [30, 400000], [1.5, 2]])
def test_trained_rows_must_be_in_the_vocabulary(adapters, pipe, tmp_path, ids):
    folder = copytree(adapters("rows"), tmp_path / "adapter")
    rewrite_config(folder, trainable_token_indices={"model.embed_tokens": ids})
    with pytest.raises(ValueError, match="does not fit the model"):
        pipe.load_lora_weights(folder)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_adapters_of_other_models_are_refused(adapters, tmp_path):
    small = make_pipeline(
        ShowoT2IPipeline, tiny.showo(text_ids=PROCESSOR.pad_token_id, text_options={"hidden_size": 16})
    )
    for pipe in (make_pipeline(ShowoT2IPipeline, base_model("phi")), small):
        with pytest.raises(ValueError, match="does not fit the model"):
            pipe.load_lora_weights(adapters())
    config = LoraConfig(r=2, target_modules=["v_proj", "lm_head"])
    model = base_model()
    model.add_adapter(config)
    save_adapter(model, tmp_path / "tied", "org/base")
    with pytest.raises(ValueError, match="adapts 'lm_head', whose weight the embedding and the head share"):
        make_pipeline(ShowoT2IPipeline, base_model()).load_lora_weights(tmp_path / "tied")
    # peft would leave out the bias of a head whose rows are trained
    config = LoraConfig(r=2, target_modules=["v_proj"], trainable_token_indices={"lm_head": [3]})
    model = base_model("phi", tied=False)
    model.add_adapter(config)
    save_adapter(model, tmp_path / "head", "org/base")
    with pytest.raises(ValueError, match="peft leaves out its bias"):
        make_pipeline(ShowoT2IPipeline, base_model("phi", tied=False)).load_lora_weights(tmp_path / "head")


def test_an_error_while_loading_leaves_the_model_as_it_was(adapters, pipe):
    config, tensors = read_adapter(adapters("dora-rows"), "adapter_model.safetensors", "test")
    tensors.pop(sorted(tensors)[-1])  # the check of fit would have found it
    before = snapshot(pipe.model)
    with pytest.raises(KeyError):
        insert_adapter(pipe.model, config, "broken", tensors)
    assert_same(snapshot(pipe.model), before)
    pipe.load_lora_weights(adapters(), "there")
    before = snapshot(pipe.model)
    with pytest.raises(KeyError):
        insert_adapter(pipe.model, config, "broken", tensors)
    assert pipe.get_list_adapters() == {"model": ["there"]} and pipe.get_active_adapters() == ["there"]
    after = snapshot(pipe.model)["weights"]  # the embedding keeps a layer for rows, without any
    renamed = {name.replace(".token_adapter.base_layer", ""): weight for name, weight in after.items()}
    assert renamed.keys() == before["weights"].keys()
    assert all(torch.equal(renamed[name], weight) for name, weight in before["weights"].items())


@pytest.mark.parametrize("name", ["", "a.b", "a b", "keys", "copy", 3, "there"])
def test_names_of_adapters_are_checked(adapters, pipe, name):
    pipe.load_lora_weights(adapters(), "there")
    with pytest.raises(ValueError, match="`adapter_name` must be"):
        pipe.load_lora_weights(adapters(), name)


def test_other_arguments_are_checked(adapters, pipe, tmp_path):
    for call in (
        pipe.enable_lora,
        pipe.disable_lora,
        pipe.fuse_lora,
        lambda: pipe.save_lora_weights(tmp_path / "new"),
    ):
        with pytest.raises(ValueError, match="No adapter is loaded"):
            call()
    with pytest.raises(ValueError, match="No adapter is fused"):
        pipe.unfuse_lora()
    with pytest.raises(ValueError, match="must end with '.safetensors'"):
        pipe.load_lora_weights(adapters(), weight_name="adapter_model.bin")
    with pytest.raises(ValueError, match="but is a file"):
        pipe.load_lora_weights(adapters() / "adapter_model.safetensors")
    with pytest.raises(TypeError, match="got a dict"):
        pipe.load_lora_weights({})
    with pytest.raises(ValueError, match="subfolder 'none'"):
        pipe.load_lora_weights(adapters(), subfolder="none")
    pipe.load_lora_weights(adapters().parent, "a", subfolder=adapters().name)
    pipe.load_lora_weights(adapters("dora"), "b")
    for names in ("c", ["a", "a"], ["a", "c"]):
        for call in (pipe.set_adapters, pipe.delete_adapters):
            with pytest.raises(ValueError, match="`adapter_names` must be different names among"):
                call(names)
    for weights in ([1.0], [1.0, float("nan")], "1", [1, 2, 3], float("inf")):
        with pytest.raises(ValueError, match="`adapter_weights` must be"):
            pipe.set_adapters(["a", "b"], weights)
    with pytest.raises(ValueError, match="must be a single adapter if one is a DoRA"):
        pipe.fuse_lora(adapter_names=["a", "b"])
    with pytest.raises(ValueError, match="`lora_scale` must be"):
        pipe.fuse_lora(lora_scale=float("nan"))
    with pytest.raises(ValueError, match=r"`adapter_name` must be one of \['a', 'b'\]"):
        pipe.save_lora_weights(tmp_path / "new")
    pipe.set_adapters([])
    with pytest.raises(ValueError, match="no adapter is active"):
        pipe.fuse_lora()
    pipe.disable_lora()
    with pytest.raises(ValueError, match="call `enable_lora"):
        pipe.fuse_lora(adapter_names="a")
    pipe.enable_lora()
    pipe.set_adapters("b")
    pipe.fuse_lora(adapter_names="a")
    changes = [pipe.fuse_lora, pipe.enable_lora, pipe.disable_lora, lambda: pipe.set_adapters("b")]
    changes += [lambda: pipe.delete_adapters("b"), lambda: pipe.load_lora_weights(adapters(), "c")]
    for change in changes:
        with pytest.raises(ValueError, match=r"while \['a'\] are fused"):
            change()
    pipe.unfuse_lora()
    assert pipe.get_active_adapters() == ["b"]


def test_fusing_what_is_broken_changes_nothing(adapters, pipe):
    pipe.load_lora_weights(adapters(), "a")
    before = logits(pipe.model)
    layer = pipe.model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        layer.lora_B["a"].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaNs detected"):
        pipe.fuse_lora(safe_fusing=True)
    with torch.no_grad():
        layer.lora_B["a"].weight.copy_(
            load_file(adapters() / "adapter_model.safetensors")[
                "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
            ]
        )
    torch.testing.assert_close(logits(pipe.model), before, atol=1e-4, rtol=1e-4)


def test_an_offloaded_model_takes_no_adapter(adapters):
    model = base_model()
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="load adapters before it is offloaded"):
        make_pipeline(ShowoT2IPipeline, model).load_lora_weights(adapters())
