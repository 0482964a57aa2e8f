"""Names of the original weights, compared with the original's lists and with our models."""

import json
from pathlib import Path

import pytest
import torch

from showo_hf import ShowoConfig, ShowoForCausalLM, ShowoLFQTokenizer, ShowoLFQTokenizerConfig
from showo_hf.conversion.weight_names import MAGVITV2_CONSTANTS, is_attention_kernel, magvitv2_name, showo_name


GOLDEN = Path(__file__).parent.parent / "golden"


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}_manifest.json").read_text())


def shapes(model) -> dict:
    return {name: list(weight.shape) for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["showo", "showo_clip"])
def test_each_original_weight_is_a_weight_of_our_model(reference, kind):
    original = manifest(kind)
    ours = {showo_name(name): shape for name, shape in original.items()}
    assert None not in ours and len(ours) == len(original)
    options = {name: value for name, value in reference.phi.items() if name not in ("rope_theta",)}
    vision = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        config = ShowoConfig(
            text_config={"model_type": "phi", **options}, vision_config=vision if kind == "showo_clip" else None
        )
        model = ShowoForCausalLM(config)
    assert {name: shape for name, shape in shapes(model).items() if "vision_tower" not in name} == ours


def test_each_original_tokenizer_weight_is_a_weight_of_our_tokenizer():
    original = {name: shape for name, (shape, _) in manifest("magvitv2").items() if name not in MAGVITV2_CONSTANTS}
    ours = {magvitv2_name(name): shape[:2] if is_attention_kernel(name) else shape for name, shape in original.items()}
    assert len(ours) == len(original)
    with torch.device("meta"):
        model = ShowoLFQTokenizer(ShowoLFQTokenizerConfig())
    assert shapes(model) == ours


@pytest.mark.parametrize(
    "original, ours",
    [
        ("showo.model.layers.3.self_attn.q_layernorm.weight", "model.layers.3.self_attn.q_layernorm.weight"),
        ("showo.lm_head.bias", "lm_head.bias"),
        ("mm_projector.2.weight", "mm_projector.2.weight"),
        ("vq_model.encoder.conv_in.weight", None),
        ("model.layers.0.mlp.fc1.bias", None),
    ],
)
def test_names_of_transformer_weights(original, ours):
    assert showo_name(original) == ours


def test_the_decoder_s_stages_are_numbered_in_reverse():
    assert magvitv2_name("decoder.up.0.block.1.conv1.weight") == "decoder.up_blocks.4.resnets.1.conv1.weight"
    assert magvitv2_name("decoder.up.0.block.1.conv1.weight", stages=3).startswith("decoder.up_blocks.2.")
    assert magvitv2_name("encoder.down.0.block.1.conv1.weight").startswith("encoder.down_blocks.0.")


def test_only_attention_weights_are_kernels_in_the_original():
    kernels = [name for name, (shape, _) in manifest("magvitv2").items() if is_attention_kernel(name)]
    assert len(kernels) == 8 and all("attn_1" in name for name in kernels)
    assert all(shape[2:] == [1, 1] for name, (shape, _) in manifest("magvitv2").items() if name in kernels)
