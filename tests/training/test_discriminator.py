import pytest
import torch

from showo_hf.training.discriminator import BlurHalve, PatchDiscriminator
from showo_hf.training.discriminator_shape import DiscriminatorShape


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_there_is_a_logit_for_each_patch(blur, size):
    torch.manual_seed(0)
    model = PatchDiscriminator(DiscriminatorShape(channels=8, max_channels=16, halvings=3, blur=blur))
    judged = model(torch.randn(2, 3, *size))
    assert judged.logits.shape == (2, 1, size[0] // 8, size[1] // 8)
    assert [one.shape[1] for one in judged.features] == [8, 16, 16, 16]
    assert [one.shape[2] for one in judged.features] == [size[0] // 2**level for level in range(4)]


def test_a_logit_sees_its_patch_and_what_is_near_alone():
    torch.manual_seed(0)
    model = PatchDiscriminator(DiscriminatorShape(channels=8, halvings=2, norm="none"))
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    model(pixels).logits[0, 0, 8, 8].backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() <= 8 * 4 and rows.max() >= 8 * 4 + 3
    assert rows.max() - rows.min() < 32


def test_the_blur_keeps_constants_and_removes_what_halving_cannot_show():
    blur = BlurHalve(2)
    torch.testing.assert_close(blur(torch.full((1, 2, 8, 8), 3.0)), torch.full((1, 2, 4, 4), 3.0))
    stripes = torch.ones(1, 2, 8, 8)
    stripes[..., ::2] = -1
    assert blur(stripes)[..., 1:-1].abs().max() < 1e-6
    ramp = torch.arange(8.0).expand(1, 2, 8, 8).contiguous()
    torch.testing.assert_close(blur(ramp)[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]))


def test_the_blurred_discriminator_depends_less_on_the_phase():
    """An image moved by one pixel gets nearly the same features."""
    torch.manual_seed(0)
    pixels = torch.randn(4, 3, 33, 33)
    differences = []
    for blur in (True, False):
        torch.manual_seed(1)
        model = PatchDiscriminator(DiscriminatorShape(channels=16, halvings=2, norm="none", blur=blur))
        one, other = (model(pixels[..., :32, k : 32 + k]).features[-1] for k in (0, 1))
        differences.append(((one - other).square().mean() / one.var()).item())
    assert differences[0] < 0.7 * differences[1]


def test_spectral_norm_limits_each_convolution():
    torch.manual_seed(0)
    model = PatchDiscriminator(DiscriminatorShape(channels=8, halvings=1, norm="spectral")).train()
    for _ in range(50):
        model(torch.randn(1, 3, 16, 16))
    for layer in (model.first, model.levels[0][1], model.last):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
