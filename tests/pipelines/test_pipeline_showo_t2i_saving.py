"""A saved pipeline: what is in the folder, who can load it, and that it arrives on a hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from hub_server import environment_of
from transformers import AutoModelForCausalLM, AutoProcessor

from showo_hf import MaskGITScheduler, ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline


def tokens(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(["owl", "two hearts"], num_inference_steps=4, generator=generator, output_type="latent").images


@pytest.fixture
def folder(processor, tmp_path) -> Path:
    tiny.pipeline(processor, temperature=2.0, masking_schedule="pow2").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def expected(processor):
    return tokens(tiny.pipeline(processor, temperature=2.0, masking_schedule="pow2"))


def test_a_loaded_pipeline_gives_the_same_tokens(folder, expected):
    assert {path.name for path in folder.iterdir()} == {"model_index.json", "model", "processor", "scheduler"}
    loaded = ShowoT2IPipeline.from_pretrained(folder)
    assert torch.equal(tokens(loaded), expected)
    assert loaded.scheduler.config.masking_schedule == "pow2"


def test_a_component_can_be_given_in_loading(folder, expected):
    scheduler = MaskGITScheduler(mask_token_id=tiny.CODES, masking_schedule="pow2", temperature=2.0)
    model = ShowoForCausalLM.from_pretrained(folder / "model")
    loaded = ShowoT2IPipeline.from_pretrained(folder, scheduler=scheduler, model=model)
    assert loaded.scheduler is scheduler and loaded.model is model
    assert torch.equal(tokens(loaded), expected)


def test_shards_and_dtype(processor, tmp_path):
    tiny.pipeline(processor).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.dtype == loaded.image_tokenizer.dtype == torch.bfloat16
    assert torch.equal(tokens(ShowoT2IPipeline.from_pretrained(tmp_path)), tokens(tiny.pipeline(processor)))


def test_the_model_folder_alone_is_what_transformers_loads(folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    assert type(model) is ShowoForCausalLM and type(processor) is ShowoProcessor
    scheduler = MaskGITScheduler.from_pretrained(folder, subfolder="scheduler")
    assert torch.equal(tokens(ShowoT2IPipeline(model, processor, scheduler)), expected)
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
def test_diffusers_loads_it_by_a_custom_pipeline(folder, expected, inside, tmp_path):
    """In a process of its own that never imported this package."""
    home = folder if inside else tmp_path / "code"
    home.mkdir(exist_ok=True)
    (home / "pipeline.py").write_text("from showo_hf import ShowoT2IPipeline\n")
    custom = "pipeline" if inside else str(home)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_WITH_DIFFUSERS, str(folder), custom]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"ShowoT2IPipeline {expected.flatten().tolist()}"


def test_diffusers_does_not_run_a_folder_s_code_unasked(folder):
    (folder / "pipeline.py").write_text("raise SystemExit('must not be run')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")


# push_to_hub, to the small server of hub_server.py

PUSH = """
import sys
from showo_hf import ShowoT2IPipeline

pipe = ShowoT2IPipeline.from_pretrained(sys.argv[1])
pipe.push_to_hub("someone/pushed")
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="someone/saved")
"""


@pytest.mark.slow
def test_a_pushed_pipeline_arrives_whole(hub, folder, expected, tmp_path):
    """In a process of its own, as huggingface_hub reads the address when it is imported."""
    environment = environment_of(hub, tmp_path / "home")
    command = [sys.executable, "-c", PUSH, str(folder), str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(hub.repositories) == {"someone/pushed", "someone/saved"}
    for name, files in hub.repositories.items():
        assert set(files) - {"README.md", ".gitattributes"} == wanted, name
        assert "library_name: diffusers" in files["README.md"].decode()
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        assert torch.equal(tokens(ShowoT2IPipeline.from_pretrained(tmp_path / name)), expected)
