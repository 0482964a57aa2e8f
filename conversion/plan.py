"""The plan of a conversion, which source tensor becomes which tensor. It is checked before anything is written."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from showo_hf.utils.messages import EXAMPLES, examples, printable

from .checkpoint import Checkpoint
from .errors import ConversionError
from .weight_names import DropRules, why_dropped


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHUNK = 2**24  # numbers checked at a time


@dataclass(frozen=True)
class Source:
    """The source of a tensor: the checkpoint, the name there, and whether a 1x1 kernel becomes a matrix."""

    checkpoint: Checkpoint
    name: str
    squeeze: bool = False

    def meta(self) -> torch.Tensor:
        """A meta tensor with the shape and dtype of [`tensor`]."""
        return self.squeezed(self.checkpoint.meta(self.name))

    def tensor(self) -> torch.Tensor:
        """The tensor in the shape that our model has."""
        return self.squeezed(self.checkpoint.tensor(self.name))

    def squeezed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A 1x1 kernel as a matrix; any other tensor as it is."""
        return tensor[:, :, 0, 0] if self.squeeze and tensor.shape[2:] == (1, 1) else tensor


@dataclass
class ConversionPlan:
    """
    The tensors of a converted model.

    Attributes:
        sources: our name to the source of the tensor.
        dropped: original name to the reason for dropping the tensor.
        extra: original names of tensors that are neither converted nor dropped.
        not_finite: our names of the tensors read so far that contain NaN or Inf.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def add(
        self,
        checkpoint: Checkpoint,
        rename: Callable[[str], str | None],
        droppable: DropRules = (),
        prefix: str = "",
        is_kernel: Callable[[str], bool] = lambda name: False,
    ):
        """Add each tensor of `checkpoint` under `prefix` and the name that `rename` returns."""
        for name in checkpoint:
            ours = rename(name)
            if (reason := why_dropped(name, droppable)) is not None:
                self.dropped[name] = reason
            elif ours is None or prefix + ours in self.sources:  # unknown, or the name is taken
                self.extra.append(name)
            else:
                self.sources[prefix + ours] = Source(checkpoint, name, is_kernel(name))

    def check(self, model: nn.Module):
        """
        Raise `ConversionError` unless the tensors are exactly those of `model`, which may be on the meta device.

        The message counts the tensors that are missing, unexpected, or of another shape, and lists five of each.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(source.meta().shape) for name, source in self.sources.items()}
        problems = [f"missing: {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
        extra = [*self.extra, *(self.sources[name].name for name in found.keys() - expected.keys())]
        problems += [f"unexpected: {printable(name)}" for name in sorted(extra)]
        problems += [
            f"wrong shape: {printable(self.sources[name].name)} {list(found[name])}, must be {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ]
        dtypes = {source.name: source.checkpoint.dtype(source.name) for source in self.sources.values()}
        problems += [
            f"not a floating-point dtype: {printable(name)} {dtype}"
            for name, dtype in dtypes.items()
            if dtype not in FLOATS
        ]
        raise_all("the weights do not match the model", problems)

    def layout(self, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """A meta tensor for each tensor to write. `dtype` None keeps the dtype of each source."""
        return {name: source.meta().to(dtype or source.meta().dtype) for name, source in self.sources.items()}

    def read(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        """Read a tensor in the dtype of the output. Names of tensors with NaN or Inf go to `not_finite`."""
        tensor = self.sources[name].tensor()
        if not all_finite(tensor):
            self.not_finite.append(name)
        return tensor.to(dtype or tensor.dtype)

    def check_finite(self):
        """Raise `ConversionError` if tensors read so far contain NaN or Inf."""
        names = sorted(self.sources[name].name for name in self.not_finite)
        raise_all("the weights are damaged", [f"NaN or Inf in {printable(name)}" for name in names])

    def report(self) -> str:
        """A few lines on which tensors were converted and which were dropped."""
        lines = [f"{len(self.sources)} tensors converted"]
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"{len(names)} dropped ({reason}): {examples(names)}")
        return "\n".join(lines)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or Inf. Checks a chunk at a time, without a copy."""
    for chunk in tensor.reshape(-1).split(CHUNK):
        low, high = chunk.aminmax() if chunk.numel() else (torch.zeros(()), torch.zeros(()))
        if not (math.isfinite(low) and math.isfinite(high)):  # both are NaN if any number is NaN
            return False
    return True


def raise_all(title: str, problems: Iterable[str]):
    """
    Raise one `ConversionError` for all problems, if there are any.

    Of each kind, which is what stands before the first colon, it lists five and counts the others.
    """
    problems = list(problems)
    if not problems:
        return
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.partition(":")[0] if ":" in problem else "", []).append(problem)
    lines = []
    for kind, same in kinds.items():
        lines += same[:EXAMPLES]
        if len(same) > EXAMPLES:
            lines.append(f"{kind}{': ' if kind else ''}{len(same) - EXAMPLES:,} more")
    raise ConversionError(f"{title} ({len(problems):,}):\n  " + "\n  ".join(lines))
