"""Schedulers of discrete diffusion, one class per file."""

from .scheduling_entropy_bound import EntropyBoundScheduler
from .scheduling_halton import HaltonScheduler
from .scheduling_mask_and_replace import MaskAndReplaceScheduler
from .scheduling_maskgit import MaskGITScheduler
from .scheduling_remasking import RemaskingScheduler
from .scheduling_utils import DiscreteSchedulerMixin, TokenSchedulerOutput


#: All schedulers by their names on the command line.
SCHEDULERS: dict[str, type] = {
    "maskgit": MaskGITScheduler,
    "halton": HaltonScheduler,
    "entropy-bound": EntropyBoundScheduler,
    "remasking": RemaskingScheduler,
    "mask-and-replace": MaskAndReplaceScheduler,
}

__all__ = [
    "SCHEDULERS",
    "DiscreteSchedulerMixin",
    "EntropyBoundScheduler",
    "HaltonScheduler",
    "MaskAndReplaceScheduler",
    "MaskGITScheduler",
    "RemaskingScheduler",
    "TokenSchedulerOutput",
]
