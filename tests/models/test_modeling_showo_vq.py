"""The image tokenizer with a codebook of vectors: parity with diffusers' `VQModel`, gradients, saving, swapping."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from showo_hf import (
    MaskGITScheduler,
    ShowoConfig,
    ShowoForCausalLM,
    ShowoInpaintPipeline,
    ShowoLFQTokenizer,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
    ShowoVQTokenizer,
    ShowoVQTokenizerConfig,
)


MODEL = tiny.vq()
KINDS = {
    "euclidean": {},
    "cosine": {"distance": "cosine"},
    "ema": {"codebook_learning": "ema"},
    "spatial": {
        "norm_type": "spatial",
        "codebook_dim": 4,
        "latent_channels": 4,
        "encoder_block_out_channels": [32, 32, 32],
        "decoder_block_out_channels": [32, 32, 32],
    },
}
kinds = pytest.mark.parametrize("kind", KINDS)


def pixels(height=16, width=16, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Encode and decode


@kinds
@torch.no_grad()
def test_tokens_are_the_nearest_entries(kind):
    model = tiny.vq(**KINDS[kind])
    output = model.encode(pixels(16, 24, batch=2))
    assert output.image_tokens.shape == (2, 4, 6) and output.image_tokens.dtype == torch.int64
    assert output.latents.shape == output.quantized.shape == (2, 4, 4, 6)
    latents, codebook = output.latents.double().movedim(1, -1), model.quantizer.codebook.double()
    if kind == "cosine":
        latents, codebook = (x / x.norm(dim=-1, keepdim=True) for x in (latents, codebook))
    expected = (latents.unsqueeze(-2) - codebook).square().sum(-1).argmin(-1)
    assert torch.equal(output.image_tokens, expected) and len(expected.unique()) > 3
    torch.testing.assert_close(output.quantized.movedim(1, -1), codebook[expected].float())
    decoded = model.decode(output.image_tokens).sample
    assert decoded.shape == (2, 3, 16, 24)
    torch.testing.assert_close(decoded, model(pixels(16, 24, batch=2)).sample.clamp(-1, 1), rtol=0, atol=1e-4)


@kinds
def test_training_computes_losses_and_a_straight_through_gradient(kind):
    model = tiny.vq(**KINDS[kind]).train()
    output = model(pixels())
    assert output.entropy_loss is None
    (output.sample.pow(2).mean() + output.commitment_loss).backward(retain_graph=True)
    assert model.quantizer.codebook.grad is None, "these two do not train the codebook"
    others = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert others == {"quantizer.codebook"}
    if kind == "ema":
        assert output.codebook_loss is None and not model.quantizer.codebook.requires_grad
    else:
        before = model.encoder.conv_in.weight.grad.clone()
        output.codebook_loss.backward(retain_graph=True)
        assert model.quantizer.codebook.grad.abs().sum() > 0
        assert torch.equal(model.encoder.conv_in.weight.grad, before), "this one trains nothing else"
    if kind != "cosine":
        (gradient,) = torch.autograd.grad((3 * output.quantized).sum(), output.latents)
        assert gradient.eq(3).all()


@torch.no_grad()
def test_losses_are_mean_squared_distances():
    model = tiny.vq(commitment_weight=0.5, codebook_weight=2.0)
    output = model.encode(pixels())
    assert output.commitment_loss is None and output.codebook_loss is None
    output = model.encode(pixels(), return_losses=True)
    expected = (output.latents - model.codes_of(output.image_tokens)).pow(2).mean()
    torch.testing.assert_close(output.commitment_loss, 0.5 * expected)
    torch.testing.assert_close(output.codebook_loss, 2.0 * expected)


@pytest.mark.parametrize("options", [{}, {"codebook_learning": "ema"}, {"distance": "cosine"}])
def test_a_short_training_reduces_the_loss_and_uses_the_codebook(options):
    model = tiny.vq(**options).train()
    generator = torch.Generator().manual_seed(0)
    images = pixels(8, 8, batch=8)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        output = model(images)
        loss = (output.sample - images).pow(2).mean()
        total = loss + output.commitment_loss + (output.codebook_loss or 0.0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_codebook(output.latents, output.image_tokens, generator)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_codebook_of_a_loaded_ema_tokenizer_has_no_gradient(tmp_path):
    tiny.vq(codebook_learning="ema").save_pretrained(tmp_path)
    model = ShowoVQTokenizer.from_pretrained(tmp_path)
    assert not model.quantizer.codebook.requires_grad and not model.train().quantizer.codebook.requires_grad
    assert model.decoder.conv_in.weight.requires_grad


@torch.no_grad()
def test_the_base_of_both_kinds_has_an_update_that_does_nothing():
    model = tiny.lfq()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model.encode(pixels())
    assert model.update_codebook(output.latents, output.image_tokens, torch.Generator()) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Errors, sizes, tiles, dtypes


@torch.no_grad()
@pytest.mark.parametrize("tokenizer", [MODEL, tiny.lfq()], ids=["vq", "lfq"])
def test_tokens_of_any_integer_dtype_are_decoded_alike(tokenizer):
    """Stored tokens are often small integers."""
    tokens = torch.arange(12).view(1, 3, 4)
    expected = tokenizer.decode(tokens).sample
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(tokenizer.decode(tokens.to(dtype)).sample, expected), dtype
    with pytest.raises(ValueError, match="must be integers of shape .*, got torch.bool"):
        tokenizer.decode(tokens > 5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"codebook_size": 0}, "`codebook_size` must be an integer of at least 1, got 0"),
        ({"distance": "l1"}, "`distance` must be 'euclidean' or 'cosine', got 'l1'"),
        ({"codebook_learning": "sgd"}, "`codebook_learning` must be 'gradient' or 'ema', got 'sgd'"),
        ({"norm_type": "batch"}, "`norm_type` must be 'group' or 'spatial', got 'batch'"),
        ({"act_fn": "sine"}, "`act_fn` must be .*'silu'.*, got 'sine'"),
        ({"codebook_decay": 1.0}, "`codebook_decay` must be at least 0 and below 1, got 1.0"),
        ({"dead_code_threshold": -1}, "`dead_code_threshold` must be at least 0 and below 1, got -1"),
        ({"encoder_block_attention": [True]}, "equally long"),
        ({"decoder_layers_per_block": [1, 1]}, "equally long"),
        ({"norm_num_groups": 3}, "`norm_num_groups` .3. must divide"),
        ({"norm_type": "spatial"}, "`codebook_dim` equal to `latent_channels`.* got 4 and 8"),
        ({"norm_type": "spatial", "latent_channels": 4}, r"multiples of 32 .*, got \[8, 16\]"),
    ],
)
def test_invalid_configs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny.vq_config(**wrong)


def test_the_errors_are_those_of_the_base():
    with pytest.raises(ValueError, match="multiples of 4, got 10x16"):
        MODEL.encode(torch.zeros(1, 3, 10, 16))
    with pytest.raises(ValueError, match="from 0 to 63, got 64 to 64"):
        MODEL.decode(torch.full((1, 4, 4), 64))
    with pytest.raises(ValueError, match="must be integers"):
        MODEL.decode(torch.zeros(1, 4, 4))


@torch.no_grad()
def test_large_images_are_encoded_and_decoded_in_tiles():
    model = tiny.vq(**KINDS["spatial"])
    sizes = []
    model.decoder.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    model.enable_tiling()
    tokens = model.encode(pixels(40, 28)).image_tokens
    assert tokens.shape == (1, 10, 7)
    assert model.decode(tokens).sample.shape == (1, 3, 40, 28)
    assert set(sizes) == {(16, 16)}


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_is_close(dtype, tolerance):
    model = tiny.vq().to(dtype)
    output = model.encode(pixels())
    assert output.latents.dtype == output.quantized.dtype == dtype
    torch.testing.assert_close(output.latents.float(), MODEL.encode(pixels()).latents, rtol=0, atol=tolerance)
    tokens = MODEL.encode(pixels()).image_tokens
    sample = model.decode(tokens).sample
    assert sample.dtype == dtype
    torch.testing.assert_close(sample.float(), MODEL.decode(tokens).sample, rtol=0, atol=tolerance)


def test_stages_have_the_depth_and_the_attention_of_the_config():
    model = tiny.vq(
        encoder_layers_per_block=[1, 3, 2],
        decoder_layers_per_block=[2, 1, 3],
        encoder_block_attention=[False, True, False],
        decoder_block_attention=[True, False, False],
    )
    encoder, decoder = model.encoder.down_blocks, model.decoder.up_blocks
    assert [len(block.resnets) for block in encoder] == [1, 3, 2]
    assert [len(getattr(block, "attentions", [])) for block in encoder] == [0, 3, 0]
    # diffusers orders the decoder from the smallest stage up.
    assert [len(block.resnets) for block in decoder] == [3, 1, 2]
    assert [len(getattr(block, "attentions", [])) for block in decoder] == [0, 0, 2]


# Saved folders


@kinds
@torch.no_grad()
def test_save_and_load(kind, tmp_path):
    model = tiny.vq(**KINDS[kind])
    model.quantizer.code_usage[3] = 0.25
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert type(AutoConfig.from_pretrained(tmp_path)) is ShowoVQTokenizerConfig
    for loader in (ShowoVQTokenizer, AutoModel):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is ShowoVQTokenizer
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(loaded(pixels()).sample, model(pixels()).sample)
        assert loaded.quantizer.code_usage[3] == 0.25


def test_each_class_refuses_the_other_s_folder(tmp_path):
    tiny.vq().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'ShowoVQTokenizer' model.* Load it with `ShowoVQTokenizer.from_pretrained`"):
        ShowoLFQTokenizer.from_pretrained(tmp_path)


def test_the_config_of_a_model_takes_either(tmp_path):
    for kind, config in (("lfq", tiny.lfq_config()), ("vq", tiny.vq_config())):
        made = tiny.showo_config(image_tokenizer_config=config)
        made.save_pretrained(tmp_path / kind)
        loaded = ShowoConfig.from_pretrained(tmp_path / kind).image_tokenizer_config
        assert type(loaded) is type(config)
        saved, again = config.to_dict(), loaded.to_dict()
        assert {name: again[name] for name in saved} == saved
    with pytest.raises(ValueError, match="`model_type` of showo_lfq, showo_vq, got 'bert'"):
        tiny.showo_config(image_tokenizer_config={"model_type": "bert"})
    with pytest.raises(ValueError, match="must be the codebook size of `image_tokenizer_config` .32."):
        tiny.showo_config(image_tokenizer_config=tiny.vq_config(codebook_size=32))


# Swapping: what works with one kind works with the other


TOKENIZERS = {"lfq": tiny.lfq_config, "vq": tiny.vq_config}


@pytest.fixture(params=TOKENIZERS)
def model(request, processor) -> ShowoForCausalLM:
    return tiny.showo("llama", text_ids=processor.pad_token_id, image_tokenizer_config=TOKENIZERS[request.param]())


def pipeline(cls, model, processor):
    pipe = cls(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded():
    return torch.Generator().manual_seed(0)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), "uint8"))


def test_text_to_image_takes_either(model, processor, tmp_path):
    pipe = pipeline(ShowoT2IPipeline, model, processor)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0}
    image = pipe("a red apple", **options, generator=seeded()).images[0]
    tokens = pipe("a red apple", **options, generator=seeded(), output_type="latent").images
    pixel_values = model.image_tokenizer.decode(tokens).sample
    expected = ((pixel_values[0] / 2 + 0.5).clamp(0, 1) * 255).round().movedim(0, -1)
    assert np.array_equal(np.array(image), expected.detach().byte().numpy())
    pipe.save_pretrained(tmp_path)
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.image_tokenizer) is type(model.image_tokenizer)
    assert loaded("a red apple", **options, generator=seeded()).images[0].tobytes() == image.tobytes()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is ShowoForCausalLM


def test_inpainting_takes_either(model, processor):
    pipe = pipeline(ShowoInpaintPipeline, model, processor)
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    options = {"image": PICTURE, "mask_image": mask, "num_inference_steps": 2}
    found = pipe("an owl", **options, generator=seeded(), output_type="latent").images[0]
    values = torch.from_numpy(np.array(PICTURE)).movedim(-1, 0)[None] / 127.5 - 1
    tokens = model.encode_images(values)[0]
    assert torch.equal(found[mask == 0], tokens[mask == 0])
    image = pipe("an owl", **options, generator=seeded(), preserve_pixels=True).images[0]
    assert np.array_equal(np.array(image)[8:], np.array(PICTURE)[8:])


def test_understanding_takes_either(model, processor):
    pipe = pipeline(ShowoMMUPipeline, model, processor)
    answers = pipe(PICTURE, "what is this?", max_new_tokens=4).texts
    assert len(answers) == 1 and isinstance(answers[0], str)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_continuous_latents_take_either(kind):
    config = TOKENIZERS[kind]()
    model = tiny.showo("llama", image_tokenizer_config=config, continuous_latents=True)
    features = model.get_image_features(pixels()).last_hidden_state
    assert features.shape == (1, 16, config.codebook_channels) == (1, 16, model.config.image_feature_size)


def test_training_keeps_either_frozen(model):
    before = {name: value.clone() for name, value in model.image_tokenizer.state_dict().items()}
    model.train()
    assert not model.image_tokenizer.training
    assert not any(weight.requires_grad for weight in model.image_tokenizer.parameters())
    ids = torch.tensor([[model.config.t2i_token_id, *tiny.image(model.config)]])
    model(ids, labels=ids).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.image_tokenizer.state_dict().items())
