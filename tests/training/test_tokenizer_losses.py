import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf.models.image_tokenizer import ShowoImageTokenizerOutput
from showo_hf.training.adversarial import Adversary, adaptive_weight
from showo_hf.training.discriminator_shape import DiscriminatorShape
from showo_hf.training.tokenizer_losses import TokenizerLosses, log_cosh_loss, pixel_loss, token_cycle_loss


def images(seed=0, batch=2, size=16):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(st.floats(-3, 3))
@settings(deadline=None)
def test_log_cosh_is_what_its_name_says(difference):
    found = log_cosh_loss(torch.full((4,), difference, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(math.cosh(difference)), abs=1e-12)


def test_log_cosh_does_not_overflow():
    assert log_cosh_loss(torch.tensor([1e4]), torch.zeros(1)).item() == pytest.approx(1e4 - math.log(2))


def test_pixel_losses_of_equal_images_are_zero():
    one = images()
    weights = {"l1": 1.0, "mse": 4.0, "log_cosh": 2.0, "perceptual": 9.0}
    assert pixel_loss(one, one, weights, scales=3).abs() < 1e-6
    # 0.5 everywhere, at each resolution
    expected = 0.5 + 4 * 0.25 + 2 * math.log(math.cosh(0.5))
    assert pixel_loss(one + 0.5, one, weights, scales=3).item() == pytest.approx(expected, rel=1e-5)


def test_more_scales_see_less_of_fine_differences():
    one = torch.zeros(1, 3, 8, 8)
    stripes = one.clone()
    stripes[..., ::2], stripes[..., 1::2] = 0.5, -0.5
    assert pixel_loss(stripes, one, {"l1": 1.0}, 1).item() == pytest.approx(0.5)
    assert pixel_loss(stripes, one, {"l1": 1.0}, 2).item() == pytest.approx(0.25)


@pytest.mark.parametrize("make", [tiny.lfq, tiny.vq, lambda: tiny.vq(distance="cosine")])
def test_the_token_cycle_is_the_distance_to_the_codes(make):
    model = make()
    sample = images() * 1.5
    tokens = model.encode(images(1)).image_tokens
    loss, share = token_cycle_loss(model, sample, tokens)
    again = model.encode(sample.clamp(-1, 1))
    expected = (model.compared(again.latents) - model.codes_of(tokens)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert share.item() == pytest.approx((again.image_tokens == tokens).float().mean().item())


def test_the_token_cycle_computes_no_losses_of_the_quantizer(monkeypatch):
    model = tiny.lfq().train()
    tokens = model.encode(images(1)).image_tokens
    monkeypatch.setattr(model, "quantizer_losses", None)
    assert token_cycle_loss(model, images(), tokens)[0].isfinite()


def test_the_psnr_of_an_image_that_comes_back_exactly_is_finite():
    white = torch.ones(2, 3, 16, 16)

    class Same(torch.nn.Module):
        def forward(self, pixels, return_losses):
            return ShowoImageTokenizerOutput(sample=pixels)

    assert TokenizerLosses({"l1": 1.0, "perceptual": 0.0}).of(Same(), white).measures["psnr"] == 100


def test_the_token_cycle_teaches_tokens_to_come_back():
    model = tiny.lfq().train()
    pixels = images(batch=4)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    shares = []
    for _ in range(40):
        output = model(pixels)
        loss, share = token_cycle_loss(model, output.sample, output.image_tokens)
        optimizer.zero_grad()
        (loss + output.commitment_loss).backward()
        optimizer.step()
        shares.append(share.item())
    assert max(shares[:3]) < 0.5 and min(shares[-3:]) > 0.9


def test_losses_are_weighted():
    class Distance(torch.nn.Module):
        def forward(self, one, other):
            return (one - other).abs().max()

    model, pixels = tiny.vq(codebook_learning="gradient"), images()
    weights = {"l1": 0.5, "mse": 2.0, "log_cosh": 0.0, "perceptual": 3.0, "token_cycle": 4.0}
    objective = TokenizerLosses(weights, perceptual=Distance())
    made = objective.of(model, pixels)
    objective.add_token_cycle(model, made)
    sample = model(pixels, return_losses=True).sample
    difference = sample - pixels
    assert set(made.losses) == {"reconstruction", "perceptual", "commitment", "codebook", "token_cycle"}
    expected = 0.5 * difference.abs().mean() + 2 * difference.square().mean()
    torch.testing.assert_close(made.losses["reconstruction"], expected)
    torch.testing.assert_close(made.losses["perceptual"], 3 * difference.abs().max())
    cycle, share = token_cycle_loss(model, sample, made.output.image_tokens)
    torch.testing.assert_close(made.losses["token_cycle"], 4 * cycle)
    assert made.measures["tokens_back"] == share


@pytest.mark.parametrize("match", [0.0, 0.7])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_discriminators_losses_are_weighted(adaptive, match):
    model, pixels = tiny.lfq().train(), images(size=16)
    adversary = Adversary(DiscriminatorShape(channels=8, halvings=2), seed=0, learning_rate=1e-3)
    weights = {"l1": 1.0, "mse": 0.0, "log_cosh": 0.0, "perceptual": 0.0, "generator": 0.3, "feature_matching": match}
    objective = TokenizerLosses(weights, adversary=adversary, adaptive=adaptive)
    made = objective.of(model, pixels)
    last = model.decoder.conv_out.weight
    expected = adversary.generator_losses(made.sample, pixels)
    factor = adaptive_weight(made.losses["reconstruction"], expected["generator"], last) if adaptive else 1.0
    objective.add_adversarial(made, pixels, last)

    torch.testing.assert_close(made.losses["generator"], 0.3 * factor * expected["generator"])
    assert ("generator_weight" in made.measures) == adaptive and ("feature_matching" in made.losses) == bool(match)
    if match:
        torch.testing.assert_close(made.losses["feature_matching"], match * expected["feature_matching"])
    if adaptive:  # at the last layer, the two gradients are as large as the weight says
        torch.testing.assert_close(made.measures["generator_weight"], 0.3 * factor)
        sizes = [
            torch.autograd.grad(made.losses[name], last, retain_graph=True)[0].norm().item()
            for name in ("generator", "reconstruction")
        ]
        assert sizes[0] == pytest.approx(0.3 * sizes[1], rel=0.02)
        assert abs(factor.item() - 1) > 0.1
