import math

import pytest
import torch

from showo_hf.utils.metrics import laplacian_variance, psnr, psnr_from_mse, ssim


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_psnr_follows_its_formula(data_range):
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([target[0] + data_range / 10, target[1] + data_range / 100])
    torch.testing.assert_close(psnr(prediction, target, data_range), torch.tensor([20.0, 40.0]))


def test_psnr_takes_items_of_any_shape():
    one, other = torch.zeros(3, 5), torch.full((3, 5), 0.2)
    torch.testing.assert_close(psnr(one, other), torch.full((3,), 20.0))
    torch.testing.assert_close(psnr_from_mse(torch.tensor(0.04)), torch.tensor(20.0))


def test_psnr_of_equal_images_is_infinite():
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == math.inf


def test_ssim_follows_its_formula():
    """Against the paper's formula, written with loops over windows."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, 2, 13, 12, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    places = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(2):
        for top in range(3):
            for left in range(2):
                x, y = (image[0, channel, top : top + 11, left : left + 11] for image in (one, other))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                c1, c2 = 0.02**2, 0.06**2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    torch.testing.assert_close(ssim(one, other)[0], torch.stack(values).mean())
    torch.testing.assert_close(ssim(one, one), torch.ones(1, dtype=torch.float64))
    assert ssim(one, other) < ssim(one, one * 0.9) < 1


def test_the_laplacian_sees_fine_detail_alone():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    dot = torch.zeros(1, 3, 9, 9)
    dot[..., 4, 4] = 1.0
    values = torch.tensor([-4.0, 1, 1, 1, 1] + [0] * 44)
    torch.testing.assert_close(laplacian_variance(ramp), torch.zeros(1))
    torch.testing.assert_close(laplacian_variance(dot), values.var(correction=0)[None])
    torch.testing.assert_close(laplacian_variance(3 * dot), 9 * laplacian_variance(dot))
