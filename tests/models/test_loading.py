"""Converted folders, loaded to several devices or from the Hub, give the same numbers as a plain load."""

import subprocess
import sys

import accelerate
import pytest
import tiny
import torch
from hub_server import environment_of
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from packaging.version import Version

from showo_hf import ShowoForCausalLM, ShowoT2IPipeline
from showo_hf.conversion.convert_showo import convert_showo


LAYERS = ("model.layers.0", "model.layers.1", "model.layers.2")
PARTS = ("model.embed_tokens", *LAYERS, "model.final_layernorm", "model.rotary_emb", "lm_head", "image_tokenizer")
whole_model_on_disk = pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.15"), reason="needs accelerate 1.15 to put a whole model on disk"
)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline folder with several shards. Embedding, layers and head have about 1.6, 0.3 and 1.6 MB."""
    root = tmp_path_factory.mktemp("loading")
    weights, config = small_showo(layers=len(LAYERS), intermediate=4096)
    sources = (
        write_original(root / "showo", weights, config),
        write_original(root / "magvitv2", small_magvitv2(), None),
        TEXT_TOKENIZER,
    )
    convert_showo(*sources, root / "converted", max_shard_size="700KB")
    assert len(list((root / "converted" / "model").glob("*.safetensors"))) > 3
    return root / "converted"


def results(model: ShowoForCausalLM, folder) -> list[torch.Tensor]:
    """Results of each method of a model, and of a pipeline around it."""
    config = model.config
    codes = [config.image_token_offset + code for code in (3, 7)]
    image = [config.soi_token_id, *codes, config.mask_token_id, config.mask_token_id, config.eoi_token_id]
    ids = torch.tensor([[config.t2i_token_id, config.bos_token_id, 5, 6, config.eos_token_id, *image]])
    question = torch.tensor([[config.mmu_token_id, *image, config.bos_token_id, 5, 6]])
    question[:, 2:6] = config.image_token_id
    pipe = ShowoT2IPipeline.from_pretrained(folder, model=model)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    with torch.no_grad():
        return [
            model(ids).logits,
            model(ids, codebook_only=True, logits_to_keep=3).logits,
            model.encode_images(PIXELS),
            model.generate(question, pixel_values=PIXELS[:1], max_new_tokens=3, do_sample=False),
            pipe(["a red apple", "owl"], **options).images,
        ]


@pytest.fixture(scope="module")
def expected(folder):
    return results(ShowoForCausalLM.from_pretrained(folder / "model"), folder)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other)


def test_device_map_auto(folder, expected):
    model = ShowoForCausalLM.from_pretrained(folder / "model", device_map="auto", max_memory={"cpu": "1GB"})
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert_same(results(model, folder), expected)


@pytest.mark.parametrize("memory", [pytest.param("0GB", marks=whole_model_on_disk), "3700KB", "4200KB"])
def test_weights_beyond_the_memory_limit_stay_on_disk(folder, expected, tmp_path, memory):
    model = ShowoForCausalLM.from_pretrained(
        folder / "model", device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path
    )
    wanted = {"disk"} if memory == "0GB" else {"cpu", "disk"}
    assert set(model.hf_device_map.values()) == wanted
    assert model.lm_head.weight.is_meta
    assert_same(results(model, folder), expected)


@pytest.mark.parametrize("on_disk", [PARTS[1:3], PARTS[-2:], PARTS[:1], PARTS[-1:]])
def test_a_device_map_part_by_part(folder, expected, tmp_path, on_disk):
    device_map = {part: "disk" if part in on_disk else "cpu" for part in PARTS}
    model = ShowoForCausalLM.from_pretrained(folder / "model", device_map=device_map, offload_folder=tmp_path)
    for part in PARTS:
        for parameter in model.get_submodule(part).parameters():
            assert parameter.is_meta == (part in on_disk), part
    assert_same(results(model, folder), expected)


@whole_model_on_disk
def test_a_tied_head_on_disk(tmp_path):
    tiny.showo("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    ids = torch.arange(20, 40)[None]
    plain = ShowoForCausalLM.from_pretrained(tmp_path / "model")
    model = ShowoForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "20KB"}, offload_folder=tmp_path / "offloaded"
    )
    assert "disk" in model.hf_device_map.values()
    with torch.no_grad():
        for options in ({}, {"codebook_only": True}):
            assert torch.equal(model(ids, **options).logits, plain(ids, **options).logits)


def test_a_vision_tower_on_disk(tmp_path):
    tiny.clip_showo(tiny.TEXT_IDS).save_pretrained(tmp_path / "model")
    plain = ShowoForCausalLM.from_pretrained(tmp_path / "model")
    kept, on_disk = ("model", "lm_head", "image_tokenizer"), ("vision_tower", "mm_projector")
    device_map = dict.fromkeys(kept, "cpu") | dict.fromkeys(on_disk, "disk")
    model = ShowoForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    config = model.config
    placeholders = [config.image_token_id] * 4
    ids = torch.tensor([[config.mmu_token_id, config.soi_token_id, *placeholders, config.eoi_token_id, 0, 5]])
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(ids, pixel_values=pixels).logits, plain(ids, pixel_values=pixels).logits)


def test_a_codebook_of_vectors_beyond_the_memory_limit(tmp_path):
    plain = tiny.showo_with("vq")
    plain.save_pretrained(tmp_path / "model")
    model = ShowoForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "20KB"}, offload_folder=tmp_path / "offloaded"
    )
    assert model.image_tokenizer.quantizer.codebook.is_meta
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    tokens = plain.encode_images(pixels)
    assert torch.equal(model.encode_images(pixels), tokens) and len(tokens.unique()) > 3
    assert torch.equal(model.image_codes(tokens), plain.image_codes(tokens))
    assert torch.equal(model.decode_images(tokens), plain.decode_images(tokens))
    assert model.image_tokenizer.quantizer.codebook.is_meta


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_a_pipeline_with_a_device_map(folder, expected, device_map):
    """Without an accelerator, diffusers accepts these two. It places whole components."""
    pipe = ShowoT2IPipeline.from_pretrained(folder, device_map=device_map)
    assert_same(results(pipe.model, folder), expected)


FROM_THE_HUB = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from showo_hf import ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline


def images(pipe):
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipe(["a red apple", "owl"], **options).images


found = []
for name in ("someone/plain", "someone/coded"):
    model = AutoModelForCausalLM.from_pretrained(name, subfolder="model")
    processor = AutoProcessor.from_pretrained(name, subfolder="model")
    assert type(model) is ShowoForCausalLM and type(processor) is ShowoProcessor
    # Before the repository's model is in the cache: a given model is not downloaded.
    found.append(images(ShowoT2IPipeline.from_pretrained(name, model=model, cache_dir=sys.argv[2])))
    assert not list(Path(sys.argv[2]).rglob("*.safetensors"))
    found.append(images(ShowoT2IPipeline.from_pretrained(name)))
    found.append(images(ShowoT2IPipeline.from_pretrained(name, local_files_only=True)))
torch.save(found, sys.argv[1])
"""


@pytest.mark.slow
def test_from_the_hub(folder, expected, hub, tmp_path):
    """In a separate process. With this package installed, the code in a folder makes no difference."""
    originals = folder.parent
    sources = (originals / "showo", originals / "magvitv2", TEXT_TOKENIZER)
    convert_showo(*sources, tmp_path / "coded", with_code=True)
    for name, place in (("plain", folder), ("coded", tmp_path / "coded")):
        files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        hub.repositories[f"someone/{name}"] = files
    command = [sys.executable, "-c", FROM_THE_HUB, tmp_path / "found.pt", tmp_path / "other-cache"]
    environment = environment_of(hub, tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 6 and all(torch.equal(images, expected[-1]) for images in found)
