"""Tensors that are in memory, or mapped into it."""

import torch


class HeldTensors:
    """What a source of tensors answers about those that it holds in `tensors`, by name."""

    tensors: dict[str, torch.Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]
