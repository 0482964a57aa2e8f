"""Image quality metrics. Pure functions on tensors."""

import torch
from torch.nn import functional as F


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


def ssim(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """
    Structural similarity of each image (Wang et al. 2004, "Image quality assessment", eq. 13), averaged over channels.

    The window is the paper's: 11 x 11 pixels, Gaussian with a standard deviation of 1.5, without padding.

    Args:
        prediction, target (`torch.Tensor` of shape `(batch, channels, H, W)`): pixels, at least 11 x 11.
        data_range (`float`, defaults to 2.0): see [`psnr`].

    Returns:
        `torch.Tensor` of shape `(batch,)`; 1 where prediction and target are equal.
    """
    places = torch.arange(11, dtype=prediction.dtype, device=prediction.device) - 5
    row = torch.exp(-places.square() / (2 * 1.5**2))
    row = row / row.sum()
    channels = prediction.shape[1]

    def smooth(values: torch.Tensor) -> torch.Tensor:
        kernel = row.expand(channels, 1, 1, 11)
        values = F.conv2d(values, kernel, groups=channels)
        return F.conv2d(values, kernel.transpose(2, 3), groups=channels)

    mean, other_mean = smooth(prediction), smooth(target)
    variance = smooth(prediction.square()) - mean.square()
    other_variance = smooth(target.square()) - other_mean.square()
    covariance = smooth(prediction * target) - mean * other_mean
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similar = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    similar = similar / ((mean.square() + other_mean.square() + c1) * (variance + other_variance + c2))
    return similar.flatten(1).mean(1)


def laplacian_variance(images: torch.Tensor) -> torch.Tensor:
    """
    The variance of the Laplacian of the grey image: how much fine detail there is.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels, at least 3 x 3. Grey is their mean.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    grey = images.mean(1, keepdim=True)
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(grey, kernel).flatten(1).var(1, correction=0)
