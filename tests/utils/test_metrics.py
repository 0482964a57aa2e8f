import math

import pytest
import torch

from showo_hf.utils.metrics import psnr, psnr_from_mse


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
