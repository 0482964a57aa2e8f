"""Schedulers of discrete diffusion, one class a file."""

from .scheduling_maskgit import MaskGITScheduler
from .scheduling_utils import DiscreteSchedulerOutput


__all__ = ["DiscreteSchedulerOutput", "MaskGITScheduler"]
