"""Copies of modules."""

import copy
from typing import Any, TypeVar

from torch import nn


M = TypeVar("M", bound=nn.Module)


def copy_on_cpu(module: M) -> M:
    """A copy of a module on the CPU, because a second one may not fit on the device. Shared weights stay shared."""
    memo: dict[int, Any] = {}
    for one in (*module.parameters(), *module.buffers()):
        copied = one.detach().to("cpu", copy=True)
        memo[id(one)] = nn.Parameter(copied, one.requires_grad) if isinstance(one, nn.Parameter) else copied
    return copy.deepcopy(module, memo)
