"""
The Trainer of Show-o: batches of several tasks.

transformers does the rest: accumulation, mixed precision, distribution, schedules and logging. It averages the losses of
devices and of accumulated batches, although they have different numbers of labels; `get_batch_samples` and
`training_step` average over labels instead.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..models.losses import LOSS_NAMES
from . import checkpoints
from .losses import LossSums, Objective, backward_by_part, part_losses, step_counts
from .resumable_trainer import ResumableTrainer, Settings
from .rows import Part, RowBuilder


@dataclass
class Batch:
    """
    One accumulated batch: the parts of its tasks, and the number of labels of the whole step on all devices.

    Args:
        parts: the rows of each task.
        counts: labels of each task and loss, over all devices and all accumulated batches.
        last: whether this is the last batch of the step.
    """

    parts: dict[str, Part]
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    last: bool = True


class ShowoTrainer(ResumableTrainer):
    """
    Trains a [`ShowoForCausalLM`] on batches of several tasks.

    Args:
        model, args, settings, callbacks: see [`ResumableTrainer`].
        data: yields the parts of this process's next batch, `{task: Part}`, and the position in the data after it.
        builder: completes parts whose images the model has to encode.
        loss_weights: the weight of each task.
        objective: the loss of the task "t2i" in place of the model's; see [`part_losses`].
        validation: complete parts that validation computes the losses of.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: Settings,
        data: Iterable[tuple[dict[str, Part], Any]],
        builder: RowBuilder,
        loss_weights: Mapping[str, float],
        objective: Objective | None = None,
        validation: list[Part] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.builder, self.loss_weights, self.objective = builder, loss_weights, objective
        self.sums = LossSums()
        self.sums_before_step = LossSums()
        #: The samples of the run, if it makes any.
        self.samples: Any = None

    # Data

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The accumulated batches of a step, with complete rows and the step's numbers of labels."""
        batches = []
        for _ in range(num_batches):
            parts, self.position = next(epoch_iterator)
            batches.append(Batch({task: self.complete(part) for task, part in parts.items()}, last=False))
        counts = step_counts(batch.parts for batch in batches)
        totals = self.sum_over_devices(torch.tensor(list(counts.values()), dtype=torch.float64)).tolist()
        for batch in batches:
            batch.counts = dict(zip(counts, totals, strict=True))
        batches[-1].last = True
        self.keys = [key for batch in batches for part in batch.parts.values() for key in part.keys]
        self.loss_is_finite = True
        self.sums_before_step = self.sums.copy()
        return batches, None

    def complete(self, part: Part) -> Part:
        """A part whose images are tokens."""
        if part.complete:
            return part
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad():
            tokens = model.encode_images(part.pixel_values.to(model.device)).cpu()
        return self.builder.finish(part, tokens)

    # Step

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch=None) -> torch.Tensor:
        """
        Forward and backward of each part in turn; see [`backward_by_part`].

        Returns:
            this device's share of the step's loss, times the number of devices.
        """
        model.train()
        devices = self.args.world_size // self.get_tp_size()
        total = backward_by_part(
            model,
            inputs.parts,
            inputs.counts,
            self.loss_weights,
            self.args.device,
            self.sums,
            objective=self.objective,
            scale=devices,
            forward_context=self.compute_loss_context_manager,
            backward=self.accelerator.backward,
            no_sync=partial(self.accelerator.no_sync, model),
        )
        self.loss_is_finite = self.loss_is_finite and bool(torch.isfinite(total))
        if inputs.last:
            self.guard(model)
        return total if self.loss_is_finite else torch.zeros_like(total)

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 operations for each trained parameter and token, as in transformers."""
        tokens = sum(part.input_ids.numel() for part in inputs.parts.values())
        return 6 * tokens * sum(p.numel() for p in checkpoints.trained_parameters(self.model).values())

    # Validation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The losses of the validation parts, with the averaged weights if there are any. Their noise is fixed."""
        sums = LossSums()
        self.model.eval()
        with torch.no_grad(), self.averaged_weights():
            for part in self.eval_dataset:
                with self.compute_loss_context_manager():
                    losses, _ = part_losses(self.model_wrapped, part, self.args.device, self.objective)
                for name, mean in losses.items():
                    sums.add(part.task, name, mean, part.counts[name])
        self.model.train()
        means = sums.means()
        total = sum(self.loss_weights[task] * mean for (task, _), mean in means.items())
        metrics = {f"{metric_key_prefix}_loss": total}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in named(means).items()}
        self.log(dict(metrics))
        self.keep_the_best(total)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Log

    def named_losses(self) -> dict[str, float]:
        """The mean losses since the last log by name, over all devices."""
        tasks = [(task, loss) for task in self.loss_weights for loss in LOSS_NAMES]
        flat = self.sum_over_devices(self.sums.table(tasks))
        self.sums.clear()
        means = {key: (flat[i, 0] / flat[i, 1]).item() for i, key in enumerate(tasks) if flat[i, 1] > 0}
        return named(means)

    def clear_losses(self):
        """Forget the losses of this step."""
        self.sums = self.sums_before_step


def named(means: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Losses by the names of the log: `loss_t2i`, `loss_lm`, `loss_mmu`, and with the task where it is mixed."""
    return {f"loss_{task}" if task == loss else f"loss_{task}_{loss}": mean for (task, loss), mean in means.items()}
