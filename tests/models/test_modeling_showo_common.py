"""The checks of transformers' common model tests: saving, batches, dtypes, devices, training, adapters."""

import json

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

from showo_hf import ShowoConfig, ShowoForCausalLM, ShowoLFQTokenizer, ShowoProcessor
from showo_hf.models.backbone import PerHeadLayerNorm, add_qk_norm


# A deprecation inside transformers and peft.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")

CONFIG = tiny.showo_config()
PAD, T2I, MMU, EOS = CONFIG.pad_token_id, CONFIG.t2i_token_id, CONFIG.mmu_token_id, CONFIG.eos_token_id


def rows():
    return [
        [T2I, EOS, 5, 7, EOS, *tiny.image(CONFIG, 1)],
        [MMU, *tiny.image(CONFIG, 2), EOS, 9, 8, 11, EOS],
        [EOS, 4, 5, 6, EOS],
    ]


def padded(side="right"):
    longest = max(map(len, rows()))
    pads = [[PAD] * (longest - len(row)) for row in rows()]
    both = zip(rows(), pads, strict=True)
    return torch.tensor([row + pad if side == "right" else pad + row for row, pad in both])


def all_logits(model):
    with torch.no_grad():
        return model(padded()).logits


# Saving and loading


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(tmp_path.glob("*.bin"))
    for loader in (ShowoForCausalLM, AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(loaded) is ShowoForCausalLM and not loaded.training
        assert torch.equal(all_logits(loaded), all_logits(model))
    assert type(AutoConfig.from_pretrained(tmp_path)) is ShowoConfig


def test_save_and_load_in_shards(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(files) > 2 and files == set(index["weight_map"].values())
    assert torch.equal(all_logits(ShowoForCausalLM.from_pretrained(tmp_path)), all_logits(model))


def test_the_image_tokenizer_saves_and_loads_alone(model, tmp_path):
    model.image_tokenizer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ShowoLFQTokenizer
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(pixels).latents, model.image_tokenizer.encode(pixels).latents)


def test_model_and_processor_load_from_one_folder(processor, tmp_path):
    tiny.showo(text_ids=processor.pad_token_id).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is ShowoProcessor
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.mask_token_id == model.config.mask_token_id


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_stay_tied(backbone, tied, tmp_path):
    model = tiny.showo(backbone, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = ShowoForCausalLM.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert (one.lm_head.weight is one.get_input_embeddings().weight) is tied
    assert torch.equal(all_logits(loaded), all_logits(model))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_be_resized(backbone, tied, tmp_path):
    model = tiny.showo(backbone, tie_word_embeddings=tied)
    before, size = all_logits(model), model.config.vocab_size
    model.resize_token_embeddings(size + 5)
    assert model.config.vocab_size == size + 5 and model.lm_head.out_features == size + 5
    torch.testing.assert_close(all_logits(model)[..., :size], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(all_logits(ShowoForCausalLM.from_pretrained(tmp_path)), all_logits(model))


# Variants of one forward pass


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_equals_its_single_rows(model, side):
    batch = padded(side)
    logits = model(batch, position_ids=((batch != PAD).cumsum(-1) - 1).clamp(min=0)).logits
    for together, row, ids in zip(logits, rows(), batch, strict=True):
        alone = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(together[ids != PAD], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_is_close(backbone, dtype, tolerance, tmp_path):
    model = tiny.showo(backbone)
    expected = all_logits(model)
    model.save_pretrained(tmp_path)
    for half in (ShowoForCausalLM.from_pretrained(tmp_path, dtype=dtype), model.to(dtype)):
        logits = all_logits(half)
        assert half.dtype == logits.dtype == dtype
        error = (logits.float() - expected)[padded() != PAD].norm() / expected[padded() != PAD].norm()
        assert error <= tolerance


@pytest.mark.filterwarnings("ignore:_compile flag", "ignore:flex_attention called without")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_can_be_chosen_on_loading_and_later(model, implementation, tmp_path):
    expected = all_logits(model)
    model.save_pretrained(tmp_path)
    loaded = ShowoForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
    model.set_attn_implementation(implementation)
    with torch.compiler.set_stance("force_eager"):
        for one in (loaded, model):
            assert one.model.config._attn_implementation == implementation
            is_id = padded() != PAD
            torch.testing.assert_close(all_logits(one)[is_id], expected[is_id], rtol=1e-4, atol=1e-4)


def test_the_same_input_gives_the_same_output(model):
    assert torch.equal(all_logits(model), all_logits(model))


@pytest.mark.slow
def test_a_compiled_model_computes_the_same(model):
    compiled = torch.compile(model)
    torch.testing.assert_close(all_logits(compiled), all_logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_to_one_graph(model):
    mask = (padded() != PAD).long()
    one_graph = torch.compile(model, fullgraph=True, backend="eager")
    logits = one_graph(padded(), attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], all_logits(model)[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "device_map"),
    [
        ("lfq", "auto"),
        ("lfq", {"": "cpu"}),
        ("lfq", {"model": "cpu", "lm_head": "cpu", "image_tokenizer": "disk"}),
        ("vq", {"model": "cpu", "lm_head": "cpu", "image_tokenizer": "disk"}),
        ("lfq", {"model": "disk", "lm_head": "cpu", "image_tokenizer": "cpu"}),
        ("lfq", {"model": "cpu", "lm_head": "disk", "image_tokenizer": "cpu"}),
    ],
)
def test_a_device_map_changes_nothing(kind, backbone, device_map, tmp_path):
    model = tiny.showo_with(kind, backbone)
    model.save_pretrained(tmp_path / "model")
    placed = ShowoForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    tokens = model.encode_images(pixels)
    assert torch.equal(placed.encode_images(pixels).cpu(), tokens) and len(tokens.unique()) > 3
    assert torch.equal(placed.image_codes(tokens).cpu(), model.image_codes(tokens))
    assert torch.equal(placed.decode_images(tokens).cpu(), model.decode_images(tokens))
    torch.testing.assert_close(all_logits(placed).cpu(), all_logits(model), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        codes = [one(padded(), codebook_only=True).logits.cpu() for one in (placed, model)]
    torch.testing.assert_close(*codes, rtol=1e-4, atol=1e-4)


# Training


def gradients(model):
    ids = padded()
    model.zero_grad()
    model(ids, labels=ids.masked_fill(ids == PAD, -100)).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_gradient_checkpointing_gives_the_same_gradients(model):
    model.train()
    plain = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    checkpointed = gradients(model)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_every_weight_outside_the_image_tokenizer_has_a_gradient(model):
    model.train()
    found = gradients(model)
    assert found and not any(name.startswith("image_tokenizer") for name in found)
    for name, gradient in found.items():
        if "k_proj" not in name or "weight" in name:  # a bias of the keys changes no attention weight
            assert gradient.abs().sum() > 0, name
    assert all(weight.grad is None for weight in model.image_tokenizer.parameters())


def test_the_image_tokenizer_stays_frozen_in_training(model):
    model.train()
    assert model.training and model.model.training
    assert not any(module.training for module in model.image_tokenizer.modules())
    assert not any(weight.requires_grad for weight in model.image_tokenizer.parameters())
    assert not model.eval().model.training


def test_it_learns_one_batch(model):
    model.train()
    ids = padded()
    labels = ids.masked_fill(ids == PAD, -100)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# QK-Norm


def test_llama_gets_a_norm_after_each_query_and_key_projection():
    model = tiny.showo("llama")
    norms = [name for name, module in model.named_modules() if isinstance(module, PerHeadLayerNorm)]
    assert len(norms) == 2 * 2 and all(name.endswith(("q_proj.norm", "k_proj.norm")) for name in norms)
    attention = model.model.layers[0].self_attn
    states = torch.randn(1, 3, 32)
    queries = attention.q_proj(states).unflatten(-1, (4, 8))  # (1, 3, heads, head_dim)
    by_head = nn.functional.layer_norm(attention.q_proj.proj(states).unflatten(-1, (4, 8)), (8,))
    torch.testing.assert_close(queries, by_head)


def test_phi_keeps_its_own_norms():
    attention = tiny.showo("phi").model.layers[0].self_attn
    assert isinstance(attention.q_proj, nn.Linear) and isinstance(attention.q_layernorm, nn.LayerNorm)


def test_qwen3_keeps_its_own_norms():
    sizes = tiny.text_config("llama", CONFIG.vocab_size).to_diff_dict()
    kept = {name: value for name, value in sizes.items() if "size" in name or "num_" in name}
    model = tiny.showo("phi", text_config=Qwen3Config(**kept, head_dim=8))
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.q_proj, nn.Linear) and hasattr(attention, "q_norm")
    assert all_logits(model).isfinite().all()


def test_the_norm_is_optional():
    model = tiny.showo("llama", qk_layernorm=False)
    assert not any(isinstance(module, PerHeadLayerNorm) for module in model.modules())
    assert isinstance(model.config.text_config, LlamaConfig)


# Adapters


@pytest.mark.parametrize(
    "name, targets", [("phi", ["q_proj", "v_proj"]), ("llama", ["q_proj.proj", "v_proj"]), ("llama", "all-linear")]
)
def test_a_lora_adapter_trains_without_changing_the_base(name, targets):
    base = tiny.showo(name)
    expected = all_logits(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=targets, init_lora_weights=True))
    torch.testing.assert_close(all_logits(model), expected)  # a new adapter changes nothing
    frozen = {key: weight.clone() for key, weight in model.named_parameters() if not weight.requires_grad}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    ids = padded()
    model.train()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(weight, frozen[key]) for key, weight in model.named_parameters() if key in frozen)
    assert any("q_proj" in key for key, weight in model.named_parameters() if weight.requires_grad)


@torch.no_grad()
def test_an_adapter_on_the_head_applies_to_image_tokens():
    model = get_peft_model(tiny.showo(), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    plain = tiny.showo()(padded(), codebook_only=True).logits
    first = CONFIG.image_token_offset
    codes = model(input_ids=padded(), codebook_only=True).logits
    torch.testing.assert_close(codes, all_logits(model)[..., first : first + tiny.CODES])
    assert (codes - plain).abs().max() > 1e-3


@pytest.mark.gpu
def test_a_gpu_computes_the_same(model):
    expected = all_logits(model)
    model.to("cuda")
    with torch.no_grad():
        logits = model(padded().to("cuda")).logits
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_the_image_tokenizer_is_frozen_after_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ShowoForCausalLM.from_pretrained(tmp_path).train()
    assert not any(weight.requires_grad for weight in loaded.image_tokenizer.parameters())
    assert loaded.lm_head.weight.requires_grad


def test_beams_keep_the_images_of_a_prompt_together(model):
    """With two images per row, beams give the same ids as with image tokens in the prompt."""
    config = model.config
    block = [config.soi_token_id, *[config.image_token_id] * 16, config.eoi_token_id]
    ids = torch.tensor([[0, *block, 5, *block, 6], [0, *block, 7, *block, 8]])
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.encode_images(images) + config.image_token_offset
    written = ids.masked_scatter(ids == config.image_token_id, tokens)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    out = model.generate(ids, pixel_values=images, **options)
    expected = model.generate(written, **options)
    assert torch.equal(out[:, ids.shape[1] :], expected[:, ids.shape[1] :])


def test_a_backbone_with_fused_projections_is_refused():
    config = GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=4)
    with pytest.raises(ValueError, match="`qk_layernorm` needs a backbone with `q_proj` and `k_proj`"):
        add_qk_norm(AutoModel.from_config(config))
