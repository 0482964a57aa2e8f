"""
The Trainer of models that see images alone. A subclass says what the losses are.

With several devices, gradients are averaged over them, whatever number of images each has.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import TrainingArguments

from .data.loader import StepLoader
from .image_batches import Images
from .losses import LossSums
from .resumable_trainer import ResumableTrainer, Settings


TASK = "image"  # of the sums of losses


class ImageTrainer(ResumableTrainer):
    """
    Trains a model on images.

    A subclass defines `losses`, and names in `LOSSES` the losses that are minimised, and in `MEASURES` what else is
    logged.

    Args:
        model, args, settings, callbacks: see [`ResumableTrainer`].
        data: yields this process's next [`Images`], and the position in the data after them.
        validation: images that validation looks at.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ()
    MEASURES: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: Settings,
        data: StepLoader,
        validation: list[Images] | None = None,
        callbacks: list | None = None,
    ):
        super().__init__(model, args, settings, data, validation, callbacks)
        self.sums = LossSums()
        self.sums_before_step = LossSums()
        self.left = 0

    def losses(self, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The losses of a batch by name. They are added to `sums`, with other measures."""
        raise NotImplementedError

    def validation_losses(self, model: nn.Module, images: Images, sums: LossSums):
        """The same of a validation batch."""
        self.losses(model, images, sums)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The accumulated batches of a step."""
        batches = []
        for _ in range(num_batches):
            batch, self.position = next(epoch_iterator)
            batches.append(batch)
        self.left = num_batches
        self.keys = [key for batch in batches for key in batch.keys]
        self.loss_is_finite = True
        self.sums_before_step = self.sums.copy()
        return batches, None

    def training_step(self, model: nn.Module, inputs: Images, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of a batch. Returns its share of the step's loss."""
        model.train()
        with self.compute_loss_context_manager():
            losses = self.losses(model, inputs, self.sums)
        loss = sum(losses.values()) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        self.loss_is_finite = self.loss_is_finite and bool(torch.isfinite(loss))
        self.after_backward()
        self.left -= 1
        if not self.left:
            self.guard(model)
        return loss.detach() if self.loss_is_finite else torch.zeros_like(loss)

    def after_backward(self):
        """What follows the backward pass of each batch."""

    def floating_point_ops(self, inputs: Images) -> int:
        """Not counted."""
        return 0

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The losses of the validation images, with the averaged weights if there are any."""
        sums = LossSums()
        self.model.eval()
        with torch.no_grad(), self.averaged_weights(), self.compute_loss_context_manager():
            for images in self.eval_dataset:
                self.validation_losses(self.model_wrapped, images, sums)
        self.model.train()
        means = self.named(sums.means())
        total = sum(value for name, value in means.items() if name.startswith("loss_"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": total, **means}.items()}
        self.log(dict(metrics))
        self.keep_the_best(total)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def named_losses(self) -> dict[str, float]:
        """The mean losses since the last log by name, over all devices."""
        keys = [(TASK, name) for name in (*self.LOSSES, *self.MEASURES)]
        flat = self.sum_over_devices(self.sums.table(keys))
        self.sums.clear()
        return self.named({key: (flat[i, 0] / flat[i, 1]).item() for i, key in enumerate(keys) if flat[i, 1] > 0})

    def named(self, means: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """The means by the names of the log: losses start with "loss_"."""
        return {f"loss_{name}" if name in self.LOSSES else name: mean for (_, name), mean in means.items()}

    def rates(self, seconds_per_step: float) -> dict[str, Any]:
        """The speed of the run in images, for the log."""
        images = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {"images_per_second": images / seconds_per_step}

    def clear_losses(self):
        """Forget the losses of this step."""
        self.sums = self.sums_before_step
