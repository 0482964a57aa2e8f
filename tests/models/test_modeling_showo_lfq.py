"""The image tokenizer: parity with MAGVIT-v2, losses against brute force, sizes, saving."""

import itertools
import math

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from showo_hf import ShowoLFQTokenizer
from showo_hf.models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.models.modeling_showo_lfq import (
    binary_entropy_from_logits,
    bit_entropy_loss,
    bits_to_indices,
    cell_contrast,
    code_entropy_loss,
    indices_to_codes,
)


MODEL = tiny.lfq()


def pixels(height=16, width=16, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Parity with the original

sizes = pytest.mark.parametrize("size", [pytest.param(size, marks=pytest.mark.slow) for size in range(3)])


@sizes
@torch.no_grad()
def test_the_full_size_tokenizer_matches_the_original(magvitv2, magvitv2_records, size):
    recorded = {name: magvitv2_records[f"{size}.{name}"] for name in ("z", "indices", "losses", "recon", "pixels")}
    z = recorded["z"]
    output = magvitv2.encode(recorded["pixels"], return_losses=True)
    torch.testing.assert_close(output.latents, z, rtol=0, atol=1e-3)
    certain = (z.abs() > 1e-3).all(1)
    assert certain.float().mean() > 0.9
    expected = recorded["indices"].view(output.image_tokens.shape)
    assert torch.equal(output.image_tokens[certain], expected[certain])
    losses = torch.stack([output.commitment_loss, output.entropy_loss])
    torch.testing.assert_close(losses, recorded["losses"], rtol=1e-4, atol=0)
    # From the recorded tokens, because latents close to zero may round to the other bit.
    codes = indices_to_codes(expected, 13).movedim(-1, 1)
    torch.testing.assert_close(magvitv2.decode_quantized(codes), recorded["recon"], rtol=0, atol=1e-3)
    if certain.all():
        torch.testing.assert_close(magvitv2(recorded["pixels"]).sample, recorded["recon"], rtol=0, atol=1e-3)


@sizes
@torch.no_grad()
def test_decoded_images_match_the_original(magvitv2, magvitv2_records, size):
    height, width = magvitv2_records[f"{size}.z"].shape[2:]
    tokens = magvitv2_records[f"{size}.codes"].view(1, height, width)
    decoded = magvitv2_records[f"{size}.decoded"]
    assert decoded.abs().max() > 1, "the recorded pixels are not clipped"
    torch.testing.assert_close(magvitv2.decode(tokens).sample, decoded.clamp(-1, 1), rtol=0, atol=1e-3)
    codes = indices_to_codes(tokens, 13).movedim(-1, 1)
    torch.testing.assert_close(magvitv2.decode_quantized(codes), decoded, rtol=0, atol=1e-3)


# Bits


@settings(deadline=None)
@given(st.integers(1, 24), st.data())
def test_bits_to_indices_inverts_indices_to_codes(bits, data):
    indices = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=8)))
    codes = indices_to_codes(indices, bits)
    assert codes.shape == (len(indices), bits) and codes.abs().eq(1).all()
    assert torch.equal(bits_to_indices(codes > 0), indices)
    written = [int("".join("1" if bit > 0 else "0" for bit in code), 2) for code in codes]
    assert written == indices.tolist(), "the first bit is the most significant"


@torch.no_grad()
def test_the_bits_of_a_token_are_the_signs_of_its_latent():
    output = MODEL.encode(pixels())
    signs = torch.where(output.latents > 0, 1.0, -1.0)
    torch.testing.assert_close(output.quantized, signs)
    expected = sum((signs[:, bit] > 0).long() * 2 ** (tiny.BITS - 1 - bit) for bit in range(tiny.BITS))
    assert torch.equal(output.image_tokens, expected)


# Losses


def brute_force_entropy_loss(latents, temperature, over):
    """E[H(q(c|z))] - H(E[q(c|z)]) in nats per bit; the second entropy over codebook entries or over single bits."""
    bits = latents.shape[1]
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)  # (codes, bits)
    distances = (latents.double()[:, None] - codes).pow(2).sum(-1)
    q = (-distances / temperature).softmax(-1)  # (positions, codes)
    sample_entropy = -torch.xlogy(q, q).sum(-1).mean()
    mean = q.mean(0)
    if over == "bits":
        # (bits,), how often each bit is 1; rounding may exceed 1
        ones = (mean[:, None] * (codes + 1) / 2).sum(0).clamp(max=1)
        mean = torch.stack([ones, 1 - ones])
    return (sample_entropy + torch.xlogy(mean, mean).sum()) / bits


kinds = pytest.mark.parametrize("over, loss", [("bits", bit_entropy_loss), ("codes", code_entropy_loss)])


@kinds
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.1, 1.0, 3.0]), st.integers(0, 10**6))
@example(bits=2, positions=1, temperature=0.1, seed=715)
def test_the_entropy_loss_equals_brute_force(over, loss, bits, positions, temperature, seed):
    latents = torch.randn(positions, bits, generator=torch.Generator().manual_seed(seed))
    expected = brute_force_entropy_loss(latents, temperature, over).item()
    assert loss(latents, temperature).item() == pytest.approx(expected, abs=1e-4)


@kinds
def test_the_entropy_loss_of_one_position_is_zero(over, loss):
    assert loss(torch.tensor([[0.3, -1.2]])).item() == pytest.approx(0, abs=1e-5)


@kinds
def test_the_entropy_loss_has_a_gradient_where_codes_are_never_reached(over, loss):
    """With all latents far on one side, the probability of the opposite code is 0 in float32."""
    latents = torch.full((4, 8), 5.0, requires_grad=True)
    loss(latents, 0.5).backward()
    assert latents.grad.isfinite().all()


def test_only_the_loss_over_codes_penalizes_correlated_bits():
    latents = 5 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert bit_entropy_loss(latents).item() == pytest.approx(-math.log(2), abs=1e-3)
    assert code_entropy_loss(latents).item() == pytest.approx(-math.log(2) / 2, abs=1e-3)


@kinds
def test_codes_are_spread_over_the_chosen_positions_alone(over, loss):
    """The certainty of all positions counts, the mean of the chosen ones."""
    generator = torch.Generator().manual_seed(3)
    chosen, other = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    spread = torch.tensor([True] * 5 + [False] * 3)
    certainty = [binary_entropy_from_logits(4 * part).mean() for part in (chosen, other, torch.cat([chosen, other]))]
    expected = loss(chosen) - certainty[0] + certainty[2]
    torch.testing.assert_close(loss(torch.cat([chosen, other]), spread=spread), expected)
    torch.testing.assert_close(loss(chosen, spread=torch.zeros(5, dtype=torch.bool)), loss(chosen))


def test_the_contrast_of_a_cell_is_that_of_the_channel_where_its_pixels_differ_most():
    pixel_values = torch.zeros(1, 3, 4, 8)
    pixel_values[0, 1, 3, 4], pixel_values[0, 1, 0, 7], pixel_values[0, 2, 0, 0] = 0.75, -0.5, 0.25
    assert cell_contrast(pixel_values, 4).tolist() == [[[0.25, 1.25]]]


@torch.no_grad()
def test_plain_cells_take_no_part_in_the_spread_if_the_config_says_so():
    images = pixels()
    images[:, :, : images.shape[2] // 2] = 0.5
    output = tiny.lfq(entropy_least_contrast=0.1).encode(images, return_losses=True)
    flat = output.latents.movedim(1, -1).reshape(len(images), 2, -1, tiny.BITS)
    detailed, everything = flat[:, 1].flatten(0, 1), flat.flatten(0, 2)
    certainty = [binary_entropy_from_logits(4 * part).mean() for part in (detailed, everything)]
    expected = 0.1 * (bit_entropy_loss(detailed) - certainty[0] + certainty[1])
    torch.testing.assert_close(output.entropy_loss, expected)


@pytest.mark.parametrize("value", [-0.1, 2.5])
def test_a_contrast_beyond_that_of_pixels_is_refused(value):
    with pytest.raises(ValueError, match=f"`entropy_least_contrast` must be from 0 to 2, got {value}"):
        ShowoLFQTokenizerConfig(entropy_least_contrast=value)


@pytest.mark.parametrize("over", ["bits", "codes"])
@torch.no_grad()
def test_losses_are_computed_only_on_request(over):
    model = tiny.lfq(entropy_over=over)
    output = model.encode(pixels())
    assert output.commitment_loss is None and output.entropy_loss is None
    output = model.encode(pixels(), return_losses=True)
    codes = torch.where(output.latents > 0, 1.0, -1.0)
    expected = 0.125 * (output.latents - codes).pow(2).mean()
    torch.testing.assert_close(output.commitment_loss, expected)
    flat = output.latents.movedim(1, -1).reshape(-1, tiny.BITS)
    expected = 0.1 * brute_force_entropy_loss(flat, 1.0, over)
    torch.testing.assert_close(output.entropy_loss.double(), expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_the_config_sets_the_weights_of_the_losses():
    plain = tiny.lfq().encode(pixels(), return_losses=True)
    heavy = tiny.lfq(commitment_weight=0.25, entropy_weight=0.0).encode(pixels(), return_losses=True)
    torch.testing.assert_close(heavy.commitment_loss, 2 * plain.commitment_loss)
    assert heavy.entropy_loss == 0


def test_training_computes_losses_and_a_straight_through_gradient():
    model = tiny.lfq().train()
    output = model(pixels())
    assert output.commitment_loss is not None and output.entropy_loss is not None
    output.latents.retain_grad()
    (3 * output.quantized).sum().backward(retain_graph=True)
    assert output.latents.grad.eq(3).all()
    output.sample.pow(2).mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not without


@torch.no_grad()
def test_only_decoded_images_are_clipped():
    model = tiny.lfq()
    model.decoder.conv_out.weight.mul_(100)
    sample = model(pixels()).sample
    assert sample.abs().max() > 1
    decoded = model.decode(model.encode(pixels()).image_tokens).sample
    torch.testing.assert_close(decoded, sample.clamp(-1, 1), rtol=0, atol=1e-3)


# Sizes, batches, dtypes


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([2, 3]))
@torch.no_grad()
def test_every_multiple_of_the_downsampling_is_a_valid_size(rows, columns, stages):
    model = MODEL if stages == 3 else tiny.lfq(stages=2)
    factor = 2 ** (stages - 1)
    assert model.config.downsampling == factor
    tokens = model.encode(pixels(rows * factor, columns * factor)).image_tokens
    assert tokens.shape == (1, rows, columns) and tokens.dtype == torch.int64
    sample = model.decode(tokens).sample
    assert sample.shape == (1, 3, rows * factor, columns * factor)
    assert sample.abs().max() <= 1


@given(st.integers(0, 20), st.integers(0, 20))
def test_other_sizes_are_refused(height, width):
    if height % 4 == 0 and width % 4 == 0 and height and width:
        return
    with pytest.raises(ValueError, match=f"multiples of 4, got {height}x{width}"):
        MODEL.encode(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 16, 16, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(batch, 3, height, width\)"):
        MODEL.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(1, 16, dtype=torch.int64), r"shape \(batch, height, width\)"),
        (torch.zeros(1, 4, 4), "must be integers"),
        (torch.full((1, 4, 4), 64), "from 0 to 63, got 64 to 64"),
        (torch.full((1, 4, 4), -1), "from 0 to 63, got -1 to -1"),
    ],
)
def test_tokens_outside_the_codebook_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        MODEL.decode(tokens)


@torch.no_grad()
def test_a_batch_equals_its_single_images():
    batch = pixels(batch=3)
    together = MODEL.encode(batch)
    samples = MODEL.decode(together.image_tokens).sample
    for i in range(3):
        alone = MODEL.encode(batch[i : i + 1])
        torch.testing.assert_close(together.latents[i : i + 1], alone.latents, rtol=1e-4, atol=1e-5)
        assert torch.equal(together.image_tokens[i : i + 1], alone.image_tokens)
        alone = MODEL.decode(together.image_tokens[i : i + 1]).sample
        torch.testing.assert_close(samples[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_is_close(dtype, tolerance):
    model = tiny.lfq().to(dtype)
    output = model.encode(pixels())
    assert output.latents.dtype == output.quantized.dtype == dtype
    expected = MODEL.encode(pixels())
    torch.testing.assert_close(output.latents.float(), expected.latents, rtol=0, atol=tolerance)
    sample = model.decode(expected.image_tokens).sample
    assert sample.dtype == dtype
    torch.testing.assert_close(sample.float(), MODEL.decode(expected.image_tokens).sample, rtol=0, atol=tolerance)


@torch.no_grad()
def test_save_and_load(tmp_path):
    MODEL.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = ShowoLFQTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixels()).sample, MODEL(pixels()).sample)


@torch.no_grad()
def test_a_tuple_instead_of_an_output():
    output, as_tuple = MODEL(pixels()), MODEL(pixels(), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4
    for one, other in zip(as_tuple, output.to_tuple(), strict=True):
        assert torch.equal(one, other)


def test_misspelt_arguments_are_refused():
    with pytest.raises(TypeError, match="return_loses"):
        MODEL(pixels(), return_loses=True)


def test_stages_are_as_deep_as_the_config_says():
    model = tiny.lfq(encoder_layers_per_block=[1, 3, 2], decoder_layers_per_block=[2, 1, 3])
    assert [len(block.resnets) for block in model.encoder.down_blocks] == [1, 3, 2]
    # diffusers orders the decoder from the smallest stage up.
    assert [len(block.resnets) for block in model.decoder.up_blocks] == [3, 1, 2]


@torch.no_grad()
def test_only_a_stage_that_keeps_the_channels_may_have_no_blocks():
    empty = {"encoder_layers_per_block": [0, 0, 1], "decoder_layers_per_block": [1, 0, 0]}
    sizes = {"encoder_block_out_channels": [8, 8, 16], "decoder_block_out_channels": [8, 16, 16]}
    assert tiny.lfq(**empty, **sizes)(pixels()).sample.shape == (1, 3, 16, 16)
    for part, (layers, before, after) in {"encoder": ([1, 1, 0], 8, 16), "decoder": ([0, 1, 1], 16, 8)}.items():
        with pytest.raises(
            ValueError, match=f"`{part}_layers_per_block` must be at least 1 .* from {before} to {after}"
        ):
            tiny.lfq_config(**{**empty, **sizes, f"{part}_layers_per_block": layers})


def test_mid_block_attention_is_optional():
    without = tiny.lfq(mid_block_attention=False)
    assert not any("attentions" in name for name, _ in without.named_parameters())
    assert any("attentions" in name for name, _ in MODEL.named_parameters())


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_tokenizer_gives_the_same():
    compiled = torch.compile(tiny.lfq())
    torch.testing.assert_close(compiled(pixels()).sample, MODEL(pixels()).sample, rtol=1e-4, atol=1e-4)
