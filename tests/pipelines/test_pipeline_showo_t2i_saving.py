"""Saving pipelines: the contents of a folder, loading with diffusers and transformers, and pushing to a hub."""

import fnmatch
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from hub_server import environment_of
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoProcessor

import showo_hf
from showo_hf import MaskGITScheduler, ShowoDiffusionDecoder, ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline
from showo_hf.pipelines.hub import COMPONENT_MODULES, weight_patterns, with_installed_classes
from showo_hf.schedulers import SCHEDULERS


def sample_tokens(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(["owl", "two hearts"], num_inference_steps=4, generator=generator, output_type="latent").images


@pytest.fixture
def folder(processor, tmp_path) -> Path:
    tiny.pipeline(processor, temperature=2.0, masking_schedule="pow2").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def expected(processor):
    return sample_tokens(tiny.pipeline(processor, temperature=2.0, masking_schedule="pow2"))


def test_a_loaded_pipeline_gives_the_same_tokens(folder, expected):
    assert {path.name for path in folder.iterdir()} == {"model_index.json", "model", "processor", "scheduler"}
    loaded = ShowoT2IPipeline.from_pretrained(folder)
    assert torch.equal(sample_tokens(loaded), expected)
    assert loaded.scheduler.config.masking_schedule == "pow2"


def test_from_pretrained_accepts_components(folder, expected):
    scheduler = MaskGITScheduler(mask_token_id=tiny.CODES, masking_schedule="pow2", temperature=2.0)
    model = ShowoForCausalLM.from_pretrained(folder / "model")
    loaded = ShowoT2IPipeline.from_pretrained(folder, scheduler=scheduler, model=model)
    assert loaded.scheduler is scheduler and loaded.model is model
    assert torch.equal(sample_tokens(loaded), expected)


def test_sharded_weights_load_in_the_requested_dtype(processor, tmp_path):
    tiny.pipeline(processor).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.dtype == loaded.image_tokenizer.dtype == torch.bfloat16
    assert torch.equal(
        sample_tokens(ShowoT2IPipeline.from_pretrained(tmp_path)), sample_tokens(tiny.pipeline(processor))
    )


def test_transformers_loads_the_model_folder(folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    assert type(model) is ShowoForCausalLM and type(processor) is ShowoProcessor
    scheduler = MaskGITScheduler.from_pretrained(folder, subfolder="scheduler")
    assert torch.equal(sample_tokens(ShowoT2IPipeline(model, processor, scheduler)), expected)
    in_subfolder = AutoModelForCausalLM.from_pretrained(folder, subfolder="model")
    assert torch.equal(in_subfolder.lm_head.weight, model.lm_head.weight)


LOAD_WITH_DIFFUSERS = """
import sys
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True)
generator = torch.Generator().manual_seed(0)
grid = pipe(["owl", "two hearts"], num_inference_steps=4, generator=generator, output_type="latent").images
print(type(pipe).__name__, grid.flatten().tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_diffusers_loads_a_custom_pipeline(folder, expected, inside, tmp_path):
    """Load in a new process that has not imported this package."""
    home = folder if inside else tmp_path / "code"
    home.mkdir(exist_ok=True)
    (home / "pipeline.py").write_text("from showo_hf import ShowoT2IPipeline\n")
    custom = "pipeline" if inside else str(home)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_WITH_DIFFUSERS, str(folder), custom]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == f"ShowoT2IPipeline {expected.flatten().tolist()}"


def test_diffusers_does_not_run_code_without_trust_remote_code(folder):
    (folder / "pipeline.py").write_text("raise SystemExit('must not be run')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")


# Class names in a folder, and downloads


def test_the_map_names_the_module_of_each_component_class():
    classes = [ShowoForCausalLM, ShowoDiffusionDecoder, ShowoProcessor, *SCHEDULERS.values()]
    assert COMPONENT_MODULES == {
        component_class.__name__: component_class.__module__.removeprefix("showo_hf.") for component_class in classes
    }
    for name, module in COMPONENT_MODULES.items():
        assert hasattr(importlib.import_module(f"showo_hf.{module}"), name) and hasattr(showo_hf, name)


def test_installed_classes_replace_the_modules_of_a_folder():
    index = {
        "_class_name": ["pipeline", "ShowoT2IPipeline"],
        "model": ["modeling_showo", "ShowoForCausalLM"],
        "scheduler": ["diffusers", "AmusedScheduler"],
        "image_decoder": [None, None],
    }
    assert with_installed_classes(index, "showo_hf") == index | {
        "_class_name": "ShowoT2IPipeline",
        "model": ["showo_hf.models.modeling_showo", "ShowoForCausalLM"],
    }


def test_a_folder_with_its_own_modules_loads_with_installed_classes(folder, expected):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["_class_name"] = ["pipeline", "ShowoT2IPipeline"]
    for name, module in (("model", "modeling_showo"), ("processor", "old"), ("scheduler", "scheduling_maskgit")):
        index[name][0] = module
    path.write_text(json.dumps(index))
    (folder / "pipeline.py").write_text("raise SystemExit('must not be run')\n")
    assert torch.equal(sample_tokens(ShowoT2IPipeline.from_pretrained(folder)), expected)


FILES = ("model.safetensors", "model-00001-of-00002.safetensors", "diffusion_pytorch_model.safetensors")
VARIANTS = ("model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "optimizer.bin", "training_args.bin")


@pytest.mark.parametrize(
    "arguments, wanted",
    [((), FILES), ((None, True), FILES), (("fp16",), VARIANTS), ((None, False), PICKLES[:2])],
)
def test_weight_patterns_match_the_requested_weights(arguments, wanted):
    patterns = weight_patterns(*arguments)
    found = [name for name in (*FILES, *VARIANTS, *PICKLES) if any(fnmatch.fnmatch(name, one) for one in patterns)]
    assert found == list(wanted)


def test_a_variant_can_be_loaded(processor, tmp_path):
    tiny.pipeline(processor).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model" / "model.fp16.safetensors").is_file()
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(sample_tokens(loaded), sample_tokens(tiny.pipeline(processor)))
    with pytest.raises(ValueError, match="variant=bf16"):
        ShowoT2IPipeline.from_pretrained(tmp_path, variant="bf16")


def test_proxies_are_refused(folder):
    with pytest.raises(ValueError, match="`proxies` must be None, .*HTTPS_PROXY"):
        ShowoT2IPipeline.from_pretrained(folder, proxies={"https": "localhost:1"})


VARIANT_FROM_THE_HUB = """
import sys
from showo_hf import ShowoT2IPipeline

pipe = ShowoT2IPipeline.from_pretrained("someone/both", variant="fp16", cache_dir=sys.argv[1])
print(pipe.config._name_or_path)
"""


@pytest.mark.slow
def test_only_the_requested_variant_is_downloaded(hub, processor, tmp_path):
    pipe = tiny.pipeline(processor)
    for variant in (None, "fp16"):
        pipe.save_pretrained(tmp_path / "both", variant=variant)
    files = {
        str(path.relative_to(tmp_path / "both")): path for path in (tmp_path / "both").rglob("*") if path.is_file()
    }
    hub.repositories["someone/both"] = {name: path.read_bytes() for name, path in files.items()}
    assert {"model/model.safetensors", "model/model.fp16.safetensors"} <= files.keys()
    environment = environment_of(hub, tmp_path / "home")
    command = [sys.executable, "-c", VARIANT_FROM_THE_HUB, str(tmp_path / "cache")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "someone/both"
    assert {path.name for path in (tmp_path / "cache").rglob("*.safetensors")} == {"model.fp16.safetensors"}


# `push_to_hub` to the local server of hub_server.py

PUSH = """
import sys
from showo_hf import ShowoT2IPipeline

pipe = ShowoT2IPipeline.from_pretrained(sys.argv[1])
pipe.push_to_hub("someone/pushed")
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="someone/saved")
"""


def test_nothing_is_written_if_the_hub_cannot_be_reached(folder, tmp_path, monkeypatch):
    pipe = ShowoT2IPipeline.from_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        pipe.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="someone/saved")
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_pushed_pipeline_is_complete(hub, folder, expected, tmp_path):
    """Push in a new process, because huggingface_hub reads the server's address when it is imported."""
    environment = environment_of(hub, tmp_path / "home")
    command = [sys.executable, "-c", PUSH, str(folder), str(tmp_path / "again")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    wanted = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(hub.repositories) == {"someone/pushed", "someone/saved"}
    for name, files in hub.repositories.items():
        assert set(files) - {"README.md", ".gitattributes"} == wanted, name
        assert "library_name: diffusers" in files["README.md"].decode()
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        assert torch.equal(sample_tokens(ShowoT2IPipeline.from_pretrained(tmp_path / name)), expected)
