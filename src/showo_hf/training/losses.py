"""The losses of a batch's parts, their backward passes, and their sums for the log."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..models.losses import LOSS_NAMES
from .rows import Part


Objective = Callable[[nn.Module, Part, torch.device], torch.Tensor]


@parametrize.cached()  # a weight that is computed, as by `embed_codes`, is computed once in a forward pass
def part_losses(
    model: nn.Module, part: Part, device: torch.device, objective: Objective | None = None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    The mean losses of a part that it has labels of, by "t2i", "lm" and "mmu", and a zero with a gradient.

    Args:
        model: a `ShowoForCausalLM`, or a wrapper of one.
        part: complete rows.
        objective: computes the loss of the task "t2i" in place of the model.
    """
    if not len(part.input_ids):  # all examples were broken; every device must take part in the backward pass
        ids = torch.zeros(1, 2, dtype=torch.long, device=device)
        return {}, model(input_ids=ids, labels=torch.full_like(ids, -100), use_cache=False).loss
    if objective is not None and part.task == "t2i":
        loss = objective(model, part, device)
        return {"t2i": loss}, loss * 0.0
    output: Any = model(input_ids=part.input_ids.to(device), labels=part.labels.to(device), use_cache=False)
    losses = {name: getattr(output, f"loss_{name}") for name in part.counts}
    return losses, output.loss * 0.0 if not losses else torch.zeros((), device=device)


def backward_by_part(
    model: nn.Module,
    parts: Mapping[str, Part],
    counts: Mapping[tuple[str, str], float],
    weights: Mapping[str, float],
    device: torch.device,
    sums: "LossSums",
    objective: Objective | None = None,
    scale: float = 1.0,
    forward_context: Callable[[], AbstractContextManager] = nullcontext,
    backward: Callable[[torch.Tensor], object] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """
    Forward and backward of each part in turn: the rows of a part are padded only to its longest, and only one part's
    activations are held. The gradients add up to those of one batch of all rows.

    Args:
        model: a `ShowoForCausalLM` in training mode, or a wrapper of one.
        parts: complete rows of each task, as in [`part_losses`].
        counts: the number of labels of each task and loss in the whole step, with those of other devices and of other
            accumulated batches. A part's mean loss counts by its share of them.
        weights: the weight of each task.
        sums: gets the losses.
        objective: see [`part_losses`].
        scale: a factor of the loss, such as the number of devices that average their gradients.
        forward_context: entered for each forward pass, such as autocast. Each part has its own, so that the weights'
            copies of autocast live no longer than the part.
        backward: called with each part's loss, as `Accelerator.backward`.
        no_sync: entered for all parts but the last, as `Accelerator.no_sync`.

    Returns:
        the weighted loss times `scale`, detached, of shape `()`.
    """
    total = torch.zeros((), device=device)
    for number, (task, part) in enumerate(parts.items(), start=1):
        with nullcontext() if number == len(parts) else no_sync():
            with forward_context():
                losses, loss = part_losses(model, part, device, objective)
            for name, mean in losses.items():
                share = part.counts[name] / counts[task, name]
                loss = loss + weights[task] * share * scale * mean
                sums.add(task, name, mean, part.counts[name])
            backward(loss)
        total += loss.detach()
    return total


def step_counts(batches: Iterable[Mapping[str, Part]]) -> dict[tuple[str, str], int]:
    """The number of labels of each task and loss in several batches, by the tasks of any of them."""
    counts: dict[tuple[str, str], int] = {}
    for parts in batches:
        for task, part in parts.items():
            for loss in LOSS_NAMES:
                counts[task, loss] = counts.get((task, loss), 0) + part.counts.get(loss, 0)
    return counts


class LossSums:
    """Sums of losses over labels, by task and loss."""

    def __init__(self):
        self.sums: dict[tuple[str, str], list[torch.Tensor | int]] = {}

    def add(self, task: str, loss: str, mean: torch.Tensor, count: int):
        """Add the mean of a loss over `count` labels."""
        known = self.sums.setdefault((task, loss), [0.0, 0])
        mean = mean.detach()
        if mean.device.type == "mps":  # which has no float64
            mean = mean.cpu()
        known[0] = known[0] + mean.double() * count
        known[1] = known[1] + count

    def copy(self) -> "LossSums":
        """These sums; what is added to one of the two later on does not change the other."""
        other = LossSums()
        other.sums = {key: list(known) for key, known in self.sums.items()}
        return other

    def clear(self):
        self.sums = {}

    def table(self, keys: Iterable[tuple[str, str]]) -> torch.Tensor:
        """Sums and counts, float64 (keys, 2); zeros for losses that were not seen."""
        rows = [self.sums.get(key, [0.0, 0]) for key in keys]
        return torch.tensor([[float(total), float(count)] for total, count in rows], dtype=torch.float64)

    def means(self) -> dict[tuple[str, str], float]:
        """The mean of each loss."""
        return {key: float(total) / count for key, (total, count) in self.sums.items()}
