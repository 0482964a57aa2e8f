"""Masks: which tokens of an image are to be painted, which of them anew, and which pixels come back."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from showo_hf.processing.images import load_grey


MASK_THRESHOLD = 0.5  # from here on a pixel of a soft mask counts as marked
ASPECT_TOLERANCE = 0.02  # a mask's aspect may differ by rounding to whole pixels


def load_mask(mask: Any, name: str = "mask_image") -> torch.Tensor:
    """
    A mask as floats (H, W) in [0, 1], 1 where to paint.

    Args:
        mask: a PIL image (white is where to paint), an array or tensor (H, W), (H, W, 1) or (1, H, W) of bools, uint8 or
            floats in [0, 1], or a path or URL of an image. Of 8 bits 255 is where to paint; or 1, where nothing is above.
        name: the argument that errors name.

    Raises:
        ValueError, TypeError: if it is none of these.
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
    """Raise `ValueError` unless a mask (H, W) has the aspect of an image of `size`, (height, width)."""
    (height, width), (rows, columns) = size, mask.shape
    # One pixel of the coarser of both is what rounding can make.
    slack = max(ASPECT_TOLERANCE, 1 / min(height, width, rows, columns))
    ratio = (columns / rows) / (width / height)
    if not 1 / (1 + slack) <= ratio <= 1 + slack:
        raise ValueError(
            f"`{name}` must have the aspect of its image, which is {width}x{height} (width x height), "
            f"got {columns}x{rows}."
        )


def touched_tokens(mask: torch.Tensor, grid_size: tuple[int, int]) -> torch.BoolTensor:
    """
    The tokens whose patch a mask touches, (h, w): those with any pixel of at least `MASK_THRESHOLD` in it.

    Args:
        mask (`torch.FloatTensor` of shape `(H, W)`): in [0, 1], at any resolution.
    """
    return fit_mask(mask, grid_size) >= MASK_THRESHOLD


def fit_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask (H, W) at another size, (height, width), where each value is the largest of those in its place."""
    return F.adaptive_max_pool2d(mask[None], size)[0]


def cut(mask: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """The part of a mask (H, W) in a box: left, top, right and bottom."""
    left, top, right, bottom = box
    return mask[top:bottom, left:right]


def token_shares(mask: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """The mean of a mask (H, W) over each token's patch, (h, w): those of a mask and of its opposite sum to 1."""
    return F.adaptive_avg_pool2d(mask[None], grid_size)[0]


def remasked(candidates: torch.BoolTensor, share: float, order: torch.Tensor) -> torch.BoolTensor:
    """
    A share of the candidates of each image, those first that come first in an order.

    Args:
        candidates (`torch.BoolTensor` of shape `(batch, tokens)`).
        share: in [0, 1]; the count is rounded, and is at least one where share and candidates are there.
        order (`torch.Tensor` of shape `(batch, tokens)`): smaller comes first.
    """
    if share == 1:
        return candidates
    available = candidates.sum(-1, keepdim=True)  # (batch, 1)
    count = (available * share).round().long().clamp(min=1 if share > 0 else 0).minimum(available)
    rank = order.masked_fill(~candidates, torch.inf).argsort(-1).argsort(-1)
    return (rank < count) & candidates


def feathered(unknown: torch.BoolTensor, patch: int) -> torch.Tensor:
    """
    How much of each pixel comes from the painted image, (batch, 1, H, W) in [0, 1].

    It is 1 in the painted patches, and falls to 0 over one patch around them, so that no edge is seen.

    Args:
        unknown (`torch.BoolTensor` of shape `(batch, h, w)`): the painted tokens.
        patch: pixels of a token's side.
    """
    pixels = unknown[:, None].float().repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    radius = patch // 2
    size = 2 * radius + 1
    wider = F.max_pool2d(pixels, size, 1, radius)
    # As if the image went on at its edges.
    return F.avg_pool2d(F.pad(wider, (radius,) * 4, mode="replicate"), size, 1)


def paste(painted: torch.Tensor, original: torch.Tensor, unknown: torch.BoolTensor) -> torch.Tensor:
    """
    The painted pixels where tokens were painted, the original ones elsewhere, and a soft seam between.

    Args:
        painted, original (`torch.Tensor` of shape `(batch, 3, H, W)`).
        unknown (`torch.BoolTensor` of shape `(batch, h, w)`).
    """
    share = feathered(unknown, painted.shape[-1] // unknown.shape[-1]).to(painted)
    return torch.where(share == 0, original, share * painted + (1 - share) * original)


def mask_to_pil(mask: torch.Tensor) -> Image.Image:
    """A mask (H, W) in [0, 1] as a grey image."""
    return Image.fromarray((mask * 255).round().byte().numpy())
