"""Wrong values for every own field of the configs; see `hostile.try_all`. The other fields are transformers' own."""

import json
from typing import Any

import pytest
import tiny
from conversations import PROCESSOR
from hostile import ITSELF, NO_OTHERS, Plain, assert_complete, parameters_of, same, try_all
from transformers import PreTrainedConfig

from showo_hf import ShowoConfig, ShowoDiffusionDecoderConfig, ShowoLFQTokenizerConfig, ShowoVQTokenizerConfig


OWN_FIELDS = {*ShowoConfig.__annotations__} & parameters_of(ShowoConfig.__init__)
CONFIGS: dict[type[PreTrainedConfig], dict[str, Any]] = {
    kind: {name: getattr(config, name) for name in names}
    for kind, config, names in (
        (ShowoConfig, tiny.showo_config(text_ids=PROCESSOR.pad_token_id), OWN_FIELDS),
        (ShowoLFQTokenizerConfig, tiny.lfq_config(), parameters_of(ShowoLFQTokenizerConfig.__init__)),
        (ShowoVQTokenizerConfig, tiny.vq_config(), parameters_of(ShowoVQTokenizerConfig.__init__)),
        (
            ShowoDiffusionDecoderConfig,
            tiny.image_decoder().config,
            parameters_of(ShowoDiffusionDecoderConfig.__init__),
        ),
    )
}
GRID = [(kind, name) for kind, valid in CONFIGS.items() for name in sorted(valid)]

FLAG: Plain = {"true": ITSELF}
WEIGHT: Plain = {"zero": 0.0, "fraction": ITSELF}
POSITIVE: Plain = {"fraction": ITSELF}
ID: Plain = {"zero": ITSELF}
PLAIN: dict[str, Plain] = {
    **dict.fromkeys(("mid_block_attention", "encoder_context"), FLAG),
    **dict.fromkeys(("qk_layernorm", "continuous_latents", "tie_word_embeddings"), FLAG),
    **dict.fromkeys(("commitment_weight", "codebook_weight", "entropy_weight", "initializer_range"), WEIGHT),
    **dict.fromkeys(("loss_weight_t2i", "loss_weight_lm", "loss_weight_mmu", "image_guidance_scale"), WEIGHT),
    "entropy_least_contrast": WEIGHT,
    **dict.fromkeys(("codebook_decay", "dead_code_threshold"), {"zero": 0.0}),
    **dict.fromkeys(("entropy_temperature", "residual_scale"), POSITIVE),
    "low_band_sigma": {"none": ITSELF, **POSITIVE},
    "scheduler": {"none": {"_class_name": "FlowMatchEulerDiscreteScheduler"}},
    **dict.fromkeys((name for name in OWN_FIELDS if name.endswith("_token_id")), ID),
    "image_token_offset": ID,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), {"none": ITSELF, **ID}),
    "image_token_id": {"none": tiny.showo_config(text_ids=PROCESSOR.pad_token_id).sov_token_id, **ID},
    "lm_head_bias": {"none": True, **FLAG},  # of Phi
    "image_feature_size": {"none": ITSELF},
    "text_config": {"none": {"vocab_size": 58498, "qk_layernorm": True}, "empty dict": {"model_type": "phi"}},
    "vision_config": {"none": ITSELF, "empty dict": {"hidden_size": 768}},
    "image_tokenizer_config": {"none": ITSELF},
}


@pytest.mark.parametrize(("kind", "name"), GRID, ids=lambda value: getattr(value, "__name__", value))
def test_configs(kind, name):
    def loads_again(found: dict[str, Any]) -> bool:
        return same(kind.from_dict(json.loads(json.dumps(found))).to_dict(), found)

    def build(**fields) -> dict[str, Any]:
        return kind(**fields).to_dict()

    try_all(build, CONFIGS[kind], name, loads_again, PLAIN.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_unknown_entry_is_kept(kind):
    """As in every config of transformers: a newer version may have written it."""
    config = kind(**CONFIGS[kind], entry_of_a_newer_version=[1, {"a": None}])
    assert kind.from_dict(config.to_dict()).entry_of_a_newer_version == [1, {"a": None}]


TRIED = {kind: {"__init__": valid} for kind, valid in CONFIGS.items()}
TRIED[ShowoConfig] = {"__init__": OWN_FIELDS | parameters_of(PreTrainedConfig.__init__)}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
