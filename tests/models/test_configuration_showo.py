"""Both configurations: defaults, round trips, and invalid values."""

import pytest
import tiny
from transformers import AutoConfig, LlamaConfig, PhiConfig

from showo_hf import ShowoConfig, ShowoLFQTokenizerConfig


def fields(config) -> dict:
    """All fields except the folder that the config was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def test_the_defaults_are_the_published_layout(reference):
    config = ShowoConfig()
    assert isinstance(config.text_config, PhiConfig) and config.text_config.qk_layernorm
    assert config.vocab_size == 58498 and config.hidden_size == config.text_config.hidden_size
    assert (config.codebook_size, config.image_token_offset, config.mask_token_id) == (8192, 50305, 58497)
    for token, value in reference.special_ids.items():
        if token not in ("<|sot|>", "<|eot|>"):
            assert getattr(config, f"{token[2:5]}_token_id") == value
    assert config.bos_token_id == config.eos_token_id == reference.special_ids["<|sot|>"]
    assert config.image_token_id == config.sov_token_id
    assert config.vision_config is None and config.image_tokenizer_config is None


@pytest.mark.parametrize("bias, backbone", [(True, "phi"), (False, "llama")])
def test_only_the_head_of_phi_has_a_bias(bias, backbone):
    assert tiny.showo_config(backbone).lm_head_bias is bias
    assert tiny.showo_config(backbone, lm_head_bias=not bias).lm_head_bias is not bias


def test_save_and_load(tmp_path, backbone):
    config = tiny.showo_config(backbone, loss_weight_lm=0.25, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    for loaded in (ShowoConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ShowoConfig
        assert fields(loaded) == fields(config)
        assert type(loaded.text_config) is type(config.text_config)
        assert type(loaded.image_tokenizer_config) is ShowoLFQTokenizerConfig


def test_sub_configurations_may_be_dicts():
    config = tiny.showo_config("llama")
    again = ShowoConfig(**config.to_dict())
    assert isinstance(again.text_config, LlamaConfig)
    assert again.text_config.to_dict() == config.text_config.to_dict()


def test_get_text_config_is_the_config_of_the_backbone():
    config = tiny.showo_config("llama")
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize("tied", [True, False])
def test_one_flag_ties_the_whole_model(tied):
    config = tiny.showo_config("llama", tie_word_embeddings=tied)
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"codebook_size": 128, "image_tokenizer_config": None}, "`codebook_size` .128."),
        ({"image_token_offset": -1}, "`image_token_offset` must be an integer of at least 0, got -1"),
        ({"soi_token_id": 80}, "`soi_token_id` must be an id below 135 and outside the image tokens 70..133, got 80"),
        ({"pad_token_id": 135}, "`pad_token_id` must be an id below 135"),
        ({"mask_token_id": 133}, "`mask_token_id`"),
        (
            {"image_tokenizer_config": tiny.lfq_config(codebook_bits=5)},
            "must be the codebook size of `image_tokenizer_config` .32.",
        ),
    ],
)
def test_ids_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny.showo_config(**wrong)


def test_the_defaults_of_the_image_tokenizer_are_the_published_ones():
    config = ShowoLFQTokenizerConfig()
    assert (config.codebook_size, config.downsampling, config.sample_size) == (8192, 16, 256)


def test_save_and_load_the_config_of_an_image_tokenizer(tmp_path):
    config = tiny.lfq_config(entropy_weight=0.5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ShowoLFQTokenizerConfig
    assert fields(loaded) == fields(config)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"codebook_bits": 0}, "`codebook_bits` must be from 1 to 24, got 0"),
        ({"codebook_bits": 25}, "`codebook_bits` must be from 1 to 24, got 25"),
        ({"encoder_layers_per_block": [1, 1]}, "equally long"),
        ({"entropy_over": "pixels"}, "`entropy_over` must be 'bits' or 'codes', got 'pixels'"),
        ({"norm_num_groups": 3}, "`norm_num_groups` .3. must divide"),
    ],
)
def test_invalid_image_tokenizer_configs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny.lfq_config(**wrong)


def test_special_tokens_with_equal_ids_are_refused():
    with pytest.raises(ValueError, match="must have different ids"):
        ShowoConfig(soi_token_id=50296, eoi_token_id=50296)


def test_a_placeholder_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="`image_token_id` must be an id below 58498"):
        ShowoConfig(image_token_id=99999)
