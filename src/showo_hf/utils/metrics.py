"""Image quality metrics. Pure functions on tensors."""

import torch


def psnr(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of each item of a batch, `10 log10(data_range^2 / mse)`, in dB.

    Args:
        prediction, target (`torch.Tensor` of shape `(batch, ...)`): pixels.
        data_range (`float`, defaults to 2.0): the difference between the largest and the smallest possible pixel value:
            2 for pixels in [-1, 1], 1 for pixels in [0, 1].

    Returns:
        `torch.Tensor` of shape `(batch,)`; infinite where prediction and target are equal.
    """
    return psnr_from_mse((prediction - target).square().flatten(1).mean(1), data_range)


def psnr_from_mse(mse: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of any shape; infinite where the error is 0."""
    return 10 * torch.log10(data_range**2 / mse)
