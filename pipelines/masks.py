"""Masks of an image: which tokens are edited, and which original pixels are kept."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from showo_hf.processing.images import load_grey
from showo_hf.utils.validation import check_same_aspect


MASK_THRESHOLD = 0.5  # a pixel of a soft mask counts from this value on


def load_mask(mask: Any, name: str = "mask_image") -> torch.Tensor:
    """
    Load a mask as floats (H, W) in [0, 1], 1 where the image is edited.

    Args:
        mask: a PIL image (white is edited), an array or tensor (H, W), (H, W, 1) or (1, H, W) of bools, uint8 or floats in
            [0, 1], or a path or URL of an image. In uint8, 255 is edited; 1 is, if no value is larger.
        name (`str`): the argument that errors name.

    Raises:
        ValueError, TypeError: for anything else.
    """
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().float().numpy() if mask.dtype.is_floating_point else mask.detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        mask = np.array(load_grey(mask, name))
    values = mask
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[..., 0] if values.shape[-1] == 1 else values[0]
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"`{name}` as an array must be (H, W), (H, W, 1) or (1, H, W), got shape {tuple(mask.shape)}."
        )
    if values.dtype == np.uint8:
        return torch.from_numpy(values.astype(np.float32)) / (255 if values.max() > 1 else 1)
    if values.dtype != np.bool_ and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"`{name}` as an array must hold bools, uint8 or floats, got {values.dtype}.")
    values = values.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"`{name}` as floats must be in [0, 1], got {values.min():.3g} to {values.max():.3g}.")
    return torch.from_numpy(values)


def check_aspect(mask: torch.Tensor, size: tuple[int, int], name: str = "mask_image"):
    """Raise `ValueError` unless a mask (H, W) has the aspect ratio of an image of `size`, (height, width)."""
    rows, columns = mask.shape
    check_same_aspect(name, (rows, columns), size)


def masked_tokens(mask: torch.Tensor, grid_size: tuple[int, int]) -> torch.BoolTensor:
    """
    Find the tokens (h, w) that a mask touches: any pixel of the token's patch is at least `MASK_THRESHOLD`.

    Args:
        mask (`torch.FloatTensor` of shape `(H, W)`): values in [0, 1], at any resolution.
    """
    return resize_mask(mask, grid_size) >= MASK_THRESHOLD


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a mask (H, W) to `size`, (height, width), by max pooling."""
    return F.adaptive_max_pool2d(mask[None], size)[0]


def crop_mask(mask: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """Crop a mask (H, W) to a box: left, top, right and bottom."""
    left, top, right, bottom = box
    return mask[top:bottom, left:right]


def average_mask(mask: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Average a mask (H, W) over each token's patch, (h, w). The results of a mask and its inverse sum to 1."""
    return F.adaptive_avg_pool2d(mask[None], grid_size)[0]


def choose_masked(candidates: torch.BoolTensor, share: float, order: torch.Tensor) -> torch.BoolTensor:
    """
    Choose a share of each image's candidates, in ascending `order`.

    Args:
        candidates (`torch.BoolTensor` of shape `(batch, tokens)`).
        share (`float`): in [0, 1]. The count is rounded, and is at least one if neither is zero.
        order (`torch.Tensor` of shape `(batch, tokens)`): smaller values are chosen first.
    """
    if share == 1:
        return candidates
    available = candidates.sum(-1, keepdim=True)  # (batch, 1)
    count = (available * share).round().long().clamp(min=1 if share > 0 else 0).minimum(available)
    rank = order.masked_fill(~candidates, torch.inf).argsort(-1).argsort(-1)
    return (rank < count) & candidates


def feather_mask(edited: torch.BoolTensor, patch: int) -> torch.Tensor:
    """
    Compute the weight of the edited image at each pixel, (batch, 1, H, W) in [0, 1].

    It is 1 in edited patches, and falls to 0 over one patch around them, which hides the seam.

    Args:
        edited (`torch.BoolTensor` of shape `(batch, h, w)`): edited tokens.
        patch (`int`): side of a patch in pixels.
    """
    pixels = edited[:, None].float().repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    radius = patch // 2
    size = 2 * radius + 1
    wider = F.max_pool2d(pixels, size, 1, radius)
    # Replicate the border, as if the image continued beyond it.
    return F.avg_pool2d(F.pad(wider, (radius,) * 4, mode="replicate"), size, 1)


def paste_original(decoded: torch.Tensor, original: torch.Tensor, edited: torch.BoolTensor) -> torch.Tensor:
    """
    Keep the original pixels where no token was edited, with a soft seam between.

    Args:
        decoded, original (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels decoded from tokens, and before the edit.
        edited (`torch.BoolTensor` of shape `(batch, h, w)`): edited tokens.
    """
    share = feather_mask(edited, decoded.shape[-1] // edited.shape[-1]).to(decoded)
    return torch.where(share == 0, original, share * decoded + (1 - share) * original)


def mask_to_pil(mask: torch.Tensor) -> Image.Image:
    """Convert a mask (H, W) in [0, 1] to a grey PIL image."""
    return Image.fromarray((mask * 255).round().byte().numpy())
