import pytest
import torch
from torch import nn

from showo_hf.training.adversarial import (
    Adversary,
    LogitAverages,
    adaptive_weight,
    feature_matching_loss,
    generator_loss,
    hinge_loss,
    lecam_loss,
)
from showo_hf.training.discriminator_shape import DiscriminatorShape


SHAPE = DiscriminatorShape(channels=8, halvings=2)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert generator_loss(fake).item() == 1.5


def test_lecam_holds_logits_near_the_other_average():
    real, fake = torch.tensor([1.0, -1.0]), torch.tensor([-2.0, 0.5])
    # (1 - (-0.5))^2 / 2 of the real ones, (0.25 + 2)^2 / 2 of the fake ones
    found = lecam_loss(real, fake, torch.tensor(0.25), torch.tensor(-0.5))
    assert found.item() == pytest.approx((1.5**2 + 2.25**2) / 2)


def test_averages_have_no_bias():
    averages = LogitAverages(0.9)
    assert not averages.known
    averages.update(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(averages.means, torch.tensor([2.0, -1.0]))
    averages.update(torch.tensor([4.0, -1.0]))
    expected = (0.9 * 0.1 * 2 + 0.1 * 4) / (0.9 * 0.1 + 0.1)
    torch.testing.assert_close(averages.means, torch.tensor([expected, -1.0]))


def test_feature_matching_does_not_depend_on_the_size_of_features():
    own, other = [noise(0, 2, 4, 3, 3), noise(1, 2, 8, 2, 2)], [noise(2, 2, 4, 3, 3), noise(3, 2, 8, 2, 2)]
    loss = feature_matching_loss(own, other)
    larger = feature_matching_loss([own[0] * 100, own[1]], [other[0] * 100, other[1]])
    torch.testing.assert_close(loss, larger)
    assert feature_matching_loss(own, own) == 0 and loss > 0


def test_the_adaptive_weight_makes_gradients_equal():
    last = nn.Parameter(noise(0, 3, 4))
    output = last @ noise(1, 4, 5)
    reconstruction, generator = output.square().mean(), -0.01 * output.sum()
    weight = adaptive_weight(reconstruction, generator, last)
    sizes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generator)]
    torch.testing.assert_close(weight * (sizes[1] + 1e-4), sizes[0])
    assert not weight.requires_grad and last.grad is None
    assert adaptive_weight(reconstruction * 1e9, generator, last) == 1e4


def test_the_adaptive_weight_of_small_gradients_in_float16_needs_a_scale():
    last = torch.full((4,), 0.5, dtype=torch.float16, requires_grad=True)
    pixels = last.expand(100_000, 4).float()
    # Gradients of 5e-8 and 2.5e-7 for each pixel, where float16 has steps of 6e-8.
    losses = 0.02 * pixels.mean(), 0.1 * pixels.mean()
    expected = 0.01 / (0.05 + 1e-4)
    assert abs(adaptive_weight(*losses, last).item() / expected - 1) > 0.1
    assert adaptive_weight(*losses, last, scale=2.0**10).item() == pytest.approx(expected, rel=0.01)


def test_the_adaptive_weight_lowers_a_scale_that_float16_cannot_hold():
    last = torch.full((4,), 0.5, dtype=torch.float16, requires_grad=True)
    pixels = last.expand(100, 4).float()
    large, small = 300 * pixels.mean(), 0.1 * pixels.mean()
    for losses, expected in (
        ((large, small), 75 / (0.025 + 5e-5)),
        ((small, large), 0.025 / 75),
        ((large, large), 1.0),
    ):
        for scale in (2.0**12, 2.0**30):
            weight = adaptive_weight(*losses, last, scale=scale).item()
            assert weight == pytest.approx(expected, rel=0.01)


def fixed_weights(adversary):
    return [parameter.detach().clone() for parameter in adversary.parameters()]


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
@pytest.mark.parametrize("blur", [True, False])
def test_a_discriminator_learns_to_tell_images_apart(norm, blur):
    adversary = Adversary(DiscriminatorShape(8, 64, 2, norm, blur), seed=0, learning_rate=3e-3)
    real, fake = noise(0, 8, 3, 16, 16).clamp(-1, 1), noise(1, 8, 3, 16, 16).clamp(-1, 1).cumsum(-1) / 4
    losses = []
    for _ in range(40):
        found = adversary.learn(real, fake)
        assert torch.isfinite(adversary.gather())
        adversary.step(schedule=1.0)
        losses.append(found["discriminator"].item())
    assert losses[0] == pytest.approx(1.0, abs=0.3) and losses[-1] < 0.4 * losses[0]
    assert found["logits_real"] > 0 > found["logits_fake"] and found["lecam"] > 0


def test_the_generator_gets_a_gradient_and_the_discriminator_none():
    adversary = Adversary(SHAPE, seed=0, learning_rate=1e-3)
    fake = noise(0, 2, 3, 16, 16).requires_grad_()
    losses = adversary.generator_losses(fake, noise(1, 2, 3, 16, 16))
    sum(losses.values()).backward()
    assert set(losses) == {"generator", "feature_matching"} and fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.parameters())
    fake.grad = None
    adversary.learn(noise(1, 2, 3, 16, 16), fake)
    assert fake.grad is None and all(parameter.grad is not None for parameter in adversary.parameters())


def test_shares_of_a_step_add_up():
    real, fake = noise(0, 4, 3, 16, 16), noise(1, 4, 3, 16, 16)
    whole, parts = (Adversary(SHAPE, seed=0, learning_rate=1e-2) for _ in range(2))
    whole.learn(real, fake)
    for part in (slice(2), slice(2, 4)):
        parts.learn(real[part], fake[part], share=0.5)
    torch.testing.assert_close(whole.gather(), parts.gather())
    for adversary in (whole, parts):
        adversary.step(1.0)
    torch.testing.assert_close(whole.averages.means, parts.averages.means)


def test_a_forgotten_step_changes_nothing():
    adversary = Adversary(SHAPE, seed=0, learning_rate=1e-2)
    before = fixed_weights(adversary)
    adversary.learn(noise(0, 2, 3, 16, 16), noise(1, 2, 3, 16, 16))
    adversary.forget()
    adversary.gather()
    adversary.step(1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, fixed_weights(adversary), strict=True))
    assert not adversary.averages.known


def test_the_schedule_scales_the_learning_rate():
    changes = []
    for schedule in (1.0, 0.1):
        adversary = Adversary(SHAPE, seed=0, learning_rate=1e-2)
        before = fixed_weights(adversary)
        adversary.learn(noise(0, 2, 3, 16, 16), noise(1, 2, 3, 16, 16))
        adversary.step(schedule)
        changes.append(max((a - b).abs().max().item() for a, b in zip(before, fixed_weights(adversary), strict=True)))
    assert changes[0] == pytest.approx(10 * changes[1], rel=1e-3)


@pytest.mark.parametrize(("limit", "left"), [(0.0, 1.0), (0.5, 0.5), (2.0, 1.0)])
def test_gradients_are_clipped(limit, left):
    """`limit` and `left` are shares of the whole norm. Adam's first moment after one step is half of the gradient."""
    adversary = Adversary(SHAPE, seed=0, learning_rate=1e-2, betas=(0.5, 0.9))
    adversary.learn(noise(0, 2, 3, 16, 16), noise(1, 2, 3, 16, 16))
    whole = adversary.gather().item()
    adversary.step(1.0, limit * whole)
    moments = torch.cat([state["exp_avg"].flatten() for state in adversary.optimizer.state.values()])
    assert moments.norm().item() == pytest.approx(0.5 * left * whole, rel=1e-4)


def test_the_seed_decides_the_weights_and_no_other_draw():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = Adversary(SHAPE, seed=0, learning_rate=1e-3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    same, other = Adversary(SHAPE, seed=0, learning_rate=1e-3), Adversary(SHAPE, seed=1, learning_rate=1e-3)
    assert torch.equal(one.discriminator.first.weight, same.discriminator.first.weight)
    assert not torch.equal(one.discriminator.first.weight, other.discriminator.first.weight)
