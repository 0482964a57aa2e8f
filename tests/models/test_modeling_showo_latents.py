"""Images as the image tokenizer's latents before quantization, the third input form of images."""

import pytest
import tiny
import torch

from showo_hf import ShowoConfig, ShowoForCausalLM


def make() -> ShowoForCausalLM:
    return tiny.showo(continuous_latents=True)


def question(model, count=1):
    """Inputs `mmu soi placeholders eoi sot text`, and images."""
    config = model.config
    block = [config.soi_token_id, *[config.image_token_id] * 16, config.eoi_token_id]
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"input_ids": torch.tensor([[config.mmu_token_id, *block, 0, 5, 6]] * count), "pixel_values": pixels}


@torch.no_grad()
def test_the_features_are_the_latents_row_by_row():
    model = make()
    inputs = question(model)
    features = model.get_image_features(inputs["pixel_values"]).last_hidden_state
    latents = model.image_tokenizer.encode(inputs["pixel_values"]).latents
    assert features.shape == (1, 16, tiny.BITS) and model.config.image_feature_size == tiny.BITS
    assert torch.equal(features[0, 5], latents[0, :, 1, 1])
    ids = inputs["input_ids"]
    by_features = model(ids, image_features=features).logits
    assert torch.equal(by_features, model(**inputs).logits)


@torch.no_grad()
def test_the_model_sees_what_quantization_drops():
    model = make()
    inputs = question(model)
    latents = model.get_image_features(inputs["pixel_values"]).last_hidden_state
    ids = inputs["input_ids"]
    one, other = (
        model(ids, image_features=scale * latents).logits for scale in (1, 2)
    )  # same signs, so same image tokens
    assert not torch.allclose(one, other)


@torch.no_grad()
def test_the_mask_is_the_same_as_for_image_tokens():
    """Positions of an image see each other; text is causal and sees the whole image."""
    model = make()
    inputs = question(model)
    ids = inputs["input_ids"]
    features = model.get_image_features(inputs["pixel_values"]).last_hidden_state
    plain = model(ids, image_features=features).logits
    last = features.clone()
    last[:, -1] += 1
    moved = (model(ids, image_features=last).logits - plain).abs().amax(-1)[0] > 1e-6
    assert moved.all()
    later = ids.clone()
    later[0, -2] = 9
    moved = (model(later, image_features=features).logits - plain).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [ids.shape[1] - 2, ids.shape[1] - 1]


def test_generate_and_training():
    model = make()
    inputs = question(model, 2)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    assert not torch.equal(cached[0], cached[1])
    labels = inputs["input_ids"].clone()
    labels[:, :19] = -100
    model.train()(**inputs, labels=labels).loss.backward()
    assert model.mm_projector[0].weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.image_tokenizer.parameters())


def test_save_and_load(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = ShowoForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.continuous_latents
    inputs = question(model)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"images": False},
            "`continuous_latents` needs an `image_tokenizer_config` and no `vision_config`, got NoneType",
        ),
        ({"image_feature_size": 7}, "must be the width of the image tokenizer's latents .6."),
    ],
)
def test_conflicting_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny.showo_config(continuous_latents=True, **options)
    assert not ShowoConfig().continuous_latents
