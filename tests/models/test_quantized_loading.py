"""8-bit weights with torchao: the user passes the config, and the model class keeps some modules unquantized."""

import pytest
import tiny
import torch
from diffusers.quantizers import PipelineQuantizationConfig
from transformers import AutoModelForCausalLM

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM, ShowoT2IPipeline
from showo_hf.pipelines.denoising import PromptContext, predict_logits


quantization = pytest.importorskip("torchao.quantization")
TorchAoConfig = pytest.importorskip("transformers").TorchAoConfig

IDS = torch.arange(20, 60)[None]
INT8 = (quantization.Int8WeightOnlyConfig, quantization.Int8DynamicActivationInt8WeightConfig)


def quantized_names(model) -> set[str]:
    return {name for name, weight in model.named_parameters() if hasattr(weight, "__tensor_flatten__")}


def load(folder, config=quantization.Int8WeightOnlyConfig, **options) -> ShowoForCausalLM:
    return ShowoForCausalLM.from_pretrained(
        folder, quantization_config=TorchAoConfig(config(), **options), dtype=torch.float32
    )


@pytest.fixture
def folder(backbone, tmp_path):
    tiny.showo(backbone).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_only_the_linear_layers_of_the_transformer_are_quantized(folder):
    model = load(folder)
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.")
    }
    assert quantized_names(model) == linear and len(linear) >= 12
    assert not model.image_tokenizer.training and not any(p.requires_grad for p in model.image_tokenizer.parameters())


@pytest.mark.parametrize("config", INT8)
@torch.no_grad()
def test_logits_are_close(folder, config):
    plain, model = ShowoForCausalLM.from_pretrained(folder), load(folder, config)
    wanted, found = plain(IDS).logits, model(IDS).logits
    assert 0 < (wanted - found).norm() / wanted.norm() < 0.1
    first = model.config.image_token_offset
    codes = found[..., first : first + model.config.codebook_size]
    assert torch.equal(model(IDS, codebook_only=True).logits, codes)
    assert torch.equal(model.image_tokenizer.post_quant_conv.weight, plain.image_tokenizer.post_quant_conv.weight)


@torch.no_grad()
def test_the_image_tokenizer_is_never_quantized(folder):
    """With other `modules_to_not_convert`, transformers quantizes the head, whose rows cannot be sliced then."""
    model = load(folder, modules_to_not_convert=["model.layers.0"])
    names = quantized_names(model)
    assert "lm_head.weight" in names
    assert not any(name.startswith(("image_tokenizer", "model.layers.0.")) for name in names)
    first = model.config.image_token_offset
    codes = model(IDS).logits[..., first : first + model.config.codebook_size]
    assert torch.equal(model(IDS, codebook_only=True).logits, codes)


@torch.no_grad()
def test_a_vision_tower_and_its_projector_are_quantized_too(tmp_path):
    tiny.clip_showo(tiny.TEXT_IDS).save_pretrained(tmp_path / "model")
    plain, model = ShowoForCausalLM.from_pretrained(tmp_path / "model"), load(tmp_path / "model")
    names = quantized_names(model)
    assert {"mm_projector.0.weight", "mm_projector.2.weight"} < names
    assert sum(name.startswith("vision_tower.") for name in names) == 12
    config = model.config
    image = [config.soi_token_id, *[config.image_token_id] * 4, config.eoi_token_id]
    ids = torch.tensor([[config.mmu_token_id, *image, 0, 5]])
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    wanted, found = (one(ids, pixel_values=pixels).logits for one in (plain, model))
    assert 0 < (wanted - found).norm() / wanted.norm() < 0.1


@torch.no_grad()
def test_a_quantized_model_is_saved_and_loaded(folder, tmp_path):
    model = load(folder)
    model.save_pretrained(tmp_path / "int8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert quantized_names(loaded) == quantized_names(model)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_in_float16_the_image_tokenizer_stays_in_float32(folder):
    model = ShowoForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert model.dtype == model.lm_head.weight.dtype == torch.float16
    assert model.image_tokenizer.dtype == torch.float32
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    ids = model.encode_images(pixels.half())
    assert torch.equal(ids, ShowoForCausalLM.from_pretrained(folder).encode_images(pixels.half()))


@torch.no_grad()
def test_most_tokens_of_the_embedded_model_are_unchanged():
    """Both models predict mostly the same tokens of a half-masked image; the pipeline takes the config."""
    config = PipelineQuantizationConfig(quant_mapping={"model": TorchAoConfig(quantization.Int8WeightOnlyConfig())})
    pipes = [ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL, quantization_config=one) for one in (None, config)]
    assert [bool(quantized_names(pipe.model)) for pipe in pipes] == [False, True]
    half, found = None, []
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        options = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", "latents": half}
        made = pipe("a red apple to the left of a blue car", num_inference_steps=4, **options).images
        if half is None:
            half = made.clone()
            half[:, 1::2] = pipe.scheduler.config.mask_token_id
        tokens = half.flatten(1)
        prompts = pipe.encode_prompt("a red apple to the left of a blue car", None, 1, False)
        context = PromptContext.of(pipe.model, prompts, tokens.shape[1])
        found.append(predict_logits(pipe.model, tokens, context, 1.0).argmax(-1))
    unknown = tokens == pipe.scheduler.config.mask_token_id
    assert (found[0] == found[1])[unknown].float().mean() > 0.9
