"""Schedulers of discrete diffusion, one class a file."""

from .scheduling_entropy_bound import EntropyBoundScheduler
from .scheduling_halton import HaltonScheduler
from .scheduling_mask_and_replace import MaskAndReplaceScheduler
from .scheduling_maskgit import MaskGITScheduler
from .scheduling_remasking import RemaskingScheduler
from .scheduling_utils import TokenSchedulerOutput


#: All schedulers by the names that a command line has for them.
SCHEDULERS: dict[str, type] = {
    "maskgit": MaskGITScheduler,
    "halton": HaltonScheduler,
    "entropy-bound": EntropyBoundScheduler,
    "remasking": RemaskingScheduler,
    "mask-and-replace": MaskAndReplaceScheduler,
}

__all__ = [
    "SCHEDULERS",
    "TokenSchedulerOutput",
    "EntropyBoundScheduler",
    "HaltonScheduler",
    "MaskAndReplaceScheduler",
    "MaskGITScheduler",
    "RemaskingScheduler",
]
