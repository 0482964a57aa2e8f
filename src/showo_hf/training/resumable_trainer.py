"""
A `transformers.Trainer` whose runs can be stopped at any moment and go on exactly.

It adds what transformers lacks: checkpoints without pickles that hold the position in the data, averaged weights, and a
guard against steps that would spoil the weights.
"""

import errno
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import Trainer, TrainingArguments

from ..utils.atomic_folder import DISK_FULL, put_in_place, recover, temporary_name
from ..utils.private_interfaces import OwnCheckpoints, ShardedByItself
from . import checkpoints, shards
from .errors import TrainingError
from .optimizers import MuonWithAdamW, decays
from .parallel import gradient_norm, together


#: What a run knows of its best weights before the first validation.
NO_BEST = {"loss": None, "step": None, "since": 0, "kept": False}


@dataclass
class Settings:
    """
    What a [`ResumableTrainer`] needs beside `TrainingArguments`.

    Args:
        root: the folder of the checkpoints.
        settings: the options of the run that a checkpoint must have been made with.
        validation: the options that decide the validation loss. With others, a resumed run has no best weights yet.
        shipped: the settings of the shipped recipe, for the card; empty for a recipe of the user.
        muon: train matrices with Muon; see [`MuonWithAdamW`].
        ema_decay: decay of the averaged weights; None averages nothing.
        bad_step, bad_step_norm, bad_step_limit, keep_best, early_stop: see the configs.
    """

    root: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    shipped: Mapping[str, Any] = field(default_factory=dict)
    muon: bool = False
    ema_decay: float | None = None
    bad_step: str = "stop"
    bad_step_norm: float | None = None
    bad_step_limit: int = 10
    keep_best: bool = False
    early_stop: int | None = None


class ResumableTrainer(OwnCheckpoints, ShardedByItself, Trainer):
    """
    Trains a model on data without an end.

    A subclass sets `position`, the position in the data after the current step, and `keys`, the names of the step's
    examples, in `get_batch_samples`. It calls `guard` after the backward pass of a step, and may return the losses
    since the last log from `named_losses`.

    Args:
        model: the model; parameters with `requires_grad` are trained.
        args: the arguments of transformers. `save_strategy` must be "no": [`callbacks.StepEnd`] asks for checkpoints.
        settings: see [`Settings`].
        data: yields `(batch, position)` for ever: this process's next batch, and the position in the data after it. A
            checkpoint stores the positions of all processes.
        validation, callbacks: `eval_dataset` and `callbacks` of transformers.
    """

    # Of transformers, whose annotations mypy does not read.
    optimizer: Any
    control: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: Settings,
        data: Iterable[tuple[Any, Any]],
        validation: Any = None,
        callbacks: list | None = None,
    ):
        super().__init__(model=model, args=args, eval_dataset=validation, callbacks=callbacks)
        self.settings, self.data = settings, data
        self.position: Any = None
        self.ema: EMAModel | None = None
        self.best: dict[str, Any] = dict(NO_BEST)
        self.bad_steps = {"total": 0, "in_a_row": 0}
        self.keys: list[str] = []
        self.loss_is_finite, self.not_finite = True, "loss"  # the second is what a message names
        self.start_clock()
        self.started, self.seconds_before = time.monotonic(), 0.0
        if not self.is_fsdp_enabled:  # accelerate replaces the parameters when the training begins
            self.start_average()

    def get_train_dataloader(self) -> Iterable:
        """The data of this process. It is divided among processes already, so accelerate must not divide it again."""
        return self.data

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Same as in transformers, or Muon and AdamW."""
        if not self.settings.muon or self.optimizer is not None:
            return super().create_optimizer(model)
        args = self.args
        self.optimizer = MuonWithAdamW(
            self.model if model is None else model,
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
        return self.optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters with weight decay; see [`decays`]."""
        return [name for name, parameter in model.named_parameters() if decays(name, parameter)]

    def sum_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the devices that see different data."""
        if self.args.world_size == 1:
            return values
        device = self.args.device
        values = values.to(device if device.type != "mps" else "cpu")
        return self.accelerator.reduce(values, "sum").cpu() / self.get_tp_size()

    @property
    def seconds(self) -> float:
        """The time of the run, with the time before it was resumed."""
        return self.seconds_before + time.monotonic() - self.started

    # Bad steps

    def guard(self, model: nn.Module):
        """
        Skip a step, or end the run, if the loss or the gradient is not finite or the gradient is too large.

        A gradient scaler, which is used with `fp16`, skips a step whose scaled gradient is not finite, and halves its scale.
        Such a step is not bad while the loss is finite and the scale above 1: it belongs to the search for a scale.
        """
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm = gradient_norm(model.parameters()) / scale
        limit = self.settings.bad_step_norm
        if bool(torch.isfinite(norm)):
            bad = not self.loss_is_finite or (limit is not None and norm.item() > limit)
        else:
            bad = not self.loss_is_finite or scale <= 1
            if scaler is not None:
                spoil_gradients(model)  # on all devices, though those of a device alone may be finite
        if self.sum_over_devices(torch.tensor([float(bad)])).item() == 0:
            self.bad_steps["in_a_row"] = 0
            return
        self.bad_steps = {name: count + 1 for name, count in self.bad_steps.items()}
        keys = gather_object(self.keys) if self.args.world_size > 1 else self.keys
        what = f"step {self.state.global_step + 1}: gradient norm {norm.item():.4g}"
        what += "" if self.loss_is_finite else f", {self.not_finite} not finite"
        what += f"; samples: {', '.join(dict.fromkeys(keys))}"
        if self.settings.bad_step == "stop":
            raise TrainingError(f"The run stopped at {what}. The weights are those before this step.")
        if self.bad_steps["in_a_row"] >= self.settings.bad_step_limit:
            raise TrainingError(
                f"The run stopped after {self.bad_steps['in_a_row']} skipped steps in a row, at {what}."
            )
        if self.is_world_process_zero():
            print(f"skipped {what}", file=sys.stderr, flush=True)
        self.clear_losses()
        self.loss_is_finite = False
        if scaler is None:
            model.zero_grad(set_to_none=True)  # the optimizer leaves parameters without a gradient as they are
        else:
            spoil_gradients(model)  # a scaler refuses a step without gradients

    def named_losses(self) -> dict[str, float]:
        """The mean losses since the last log by name, over all devices."""
        return {}

    def clear_losses(self):
        """Forget the losses of this step."""

    def rates(self, seconds_per_step: float) -> dict[str, Any]:
        """Other speeds for the log."""
        return {}

    # Validation

    def keep_the_best(self, loss: float):
        """Remember the lowest validation loss and its weights, and stop early."""
        if math.isfinite(loss) and (self.best["loss"] is None or loss < self.best["loss"]):
            kept = self.settings.keep_best
            self.best = {"loss": loss, "step": self.state.global_step, "since": 0, "kept": kept}
            if kept:
                self.write_folder(self.settings.root / "best", {"model": self.result_weights()}, {"best": self.best})
        else:
            self.best = {**self.best, "since": self.best["since"] + 1}
            if self.settings.early_stop is not None and self.best["since"] >= self.settings.early_stop:
                self.control.should_training_stop = self.control.should_save = True

    # Log

    def start_clock(self):
        """Begin to measure the time of steps, after the last one that was done."""
        self.last_logged = (time.monotonic(), self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Same as in transformers, with the loss of each task."""
        if "loss" in logs:
            now, before = time.monotonic(), self.last_logged
            steps = max(1, self.state.global_step - before[1])
            seconds = (now - before[0]) / steps
            logs |= self.named_losses() | {"seconds_per_step": seconds} | self.rates(seconds)
            if self.bad_steps["total"]:
                logs["skipped_steps"] = self.bad_steps["total"]
            self.start_clock()
        super().log(logs, start_time)

    # Averaged weights

    def local_weights(self) -> list[nn.Parameter]:
        """The parts of the trained weights that this process holds."""
        return shards.local_parameters(checkpoints.trained_parameters(self.model).values())

    def start_average(self):
        """Begin to average the weights, from what they are now. A second call does nothing."""
        if self.settings.ema_decay is not None and self.ema is None:
            self.ema = EMAModel(self.local_weights(), decay=self.settings.ema_decay, foreach=True)

    def average(self):
        """Update the averaged weights."""
        if self.ema is not None:
            self.ema.step(self.local_weights())

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights, spread over processes as the trained ones."""
        parameters = checkpoints.trained_parameters(self.model)
        pairs = zip(parameters.items(), self.ema.shadow_params, strict=True)
        return {name: shards.spread_like(average, parameter) for (name, parameter), average in pairs}

    def averaged_weights(self):
        """A context in which the model has the averaged weights."""
        return AveragedWeights(self.ema, self.local_weights())

    def changing_tensors(self) -> dict[str, torch.Tensor]:
        """What the training changes in the model: the trained weights. A subclass adds what it changes by itself."""
        return dict(checkpoints.trained_parameters(self.model))

    def result_weights(self) -> dict[str, torch.Tensor]:
        """The changing tensors that are the result so far: weights are averaged, if there is an average."""
        values = {name: tensor.detach() for name, tensor in self.changing_tensors().items()}
        return values if self.ema is None else values | self.averaged()

    @property
    def best_is_result(self) -> bool:
        """Whether the best weights are the result, and not the last ones."""
        return self.settings.keep_best and self.best["kept"]

    @property
    def result_step(self) -> int:
        """The step whose weights are the result."""
        return self.best["step"] if self.best_is_result else self.state.global_step

    @torch.no_grad()
    def finish(self):
        """Give the model its final weights: the best, or the averaged, or the last."""
        if self.best_is_result:
            self.load_best()
        else:
            checkpoints.load_parameters(self.changing_tensors(), self.result_weights(), "The result")
        self.model.eval()

    @torch.no_grad()
    def load_best(self):
        """Give the model the best weights so far."""
        parameters, folder = self.changing_tensors(), self.settings.root / "best"
        self.check_best()
        with checkpoints.loading(folder / "model.safetensors"):
            values = checkpoints.read_group(folder, "model", parameters)
            checkpoints.load_parameters(parameters, values, "The best model")

    def check_best(self):
        """Raise `DamagedCheckpointError` unless the best weights are as they were written."""
        try:
            checkpoints.verify(self.settings.root / "best")
        except checkpoints.DamagedCheckpointError as error:
            raise checkpoints.DamagedCheckpointError(
                f"The best weights so far are damaged: {error} `keep_best=false` goes on without them."
            ) from error

    def best_is_there(self) -> bool:
        """
        Whether the best weights in their folder are those that the run knows of. A run that was killed may have written
        later ones after its last checkpoint.
        """
        self.check_best()
        file = self.settings.root / "best" / "best.json"
        written = checkpoints.read_json(file)
        with checkpoints.loading(file):
            return all(written[name] == self.best[name] for name in ("loss", "step"))

    # Checkpoints

    def save_checkpoint(self):
        """Write the state of the run, and delete checkpoints that are too old. With DeepSpeed there is none."""
        if self.is_deepspeed_enabled:
            return
        model = self.accelerator.unwrap_model(self.model)
        names = checkpoints.parameter_names(self.optimizer, model)
        optimizer, optimizer_document = checkpoints.optimizer_tensors(self.optimizer, names)
        more_tensors, more_documents = self.more_state()
        tensors = {"model": self.changing_tensors(), "optimizer": optimizer, **more_tensors}
        documents = {
            "optimizer": optimizer_document,
            "schedule": self.lr_scheduler.state_dict(),
            "trainer": {
                "best": self.best,
                "bad_steps": self.bad_steps,
                "seconds": self.seconds,
                "validation": dict(self.settings.validation),
            },
            "settings": dict(self.settings.settings),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            **more_documents,
        }
        if self.ema is not None:
            tensors["ema"] = self.averaged()
            documents["ema"] = {name: v for name, v in self.ema.state_dict().items() if name != "shadow_params"}
        positions = [self.position]
        if self.args.world_size > 1:
            positions = gather_object(positions)
        documents["position"] = positions
        step = self.state.global_step
        self.write_folder(self.settings.root / f"checkpoint-{step}", tensors, documents, random=True, state=True)
        if self.is_world_process_zero():
            checkpoints.delete_old(self.settings.root, self.args.save_total_limit, step)

    def more_state(self) -> tuple[Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, Any]]:
        """Other state of a run for a checkpoint: groups of tensors, and JSON documents, by the names of their files."""
        return {}, {}

    def load_more_state(self, folder: Path):
        """Load what `more_state` gave. `DamagedCheckpointError` if it is missing or does not fit."""

    def write_folder(
        self,
        target: Path,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        documents: Mapping[str, Any],
        random: bool = False,
        state: bool = False,
    ):
        """
        Write a checked folder. All processes call it. Each writes its own random state, and its own parts of weights
        that are spread over processes; the first one writes the rest.
        """
        main = self.is_world_process_zero()
        if main:
            target.parent.mkdir(parents=True, exist_ok=True)
            recover(target)
        (fresh,) = broadcast_object_list([temporary_name(target)])
        spread = shards.is_sharded(tensors["model"].values())
        try:
            with together():
                fresh.mkdir(exist_ok=True)
                if random:
                    rank = self.args.process_index
                    state_tensors, state_document = checkpoints.random_state()
                    checkpoints.write_tensors(fresh / f"random-{rank}.safetensors", state_tensors)
                    checkpoints.write_json(fresh / f"random-{rank}.json", state_document)
                if main:
                    for name, values in ({} if spread else tensors).items():
                        checkpoints.write_tensors(fresh / f"{name}.safetensors", values)
                    for name, document in documents.items():
                        checkpoints.write_json(fresh / f"{name}.json", document)
                    if state:
                        self.state.save_to_json(str(fresh / "trainer_state.json"))
            if spread:
                shards.write_shards(fresh, tensors)
            with together():
                if main:
                    checkpoints.seal(fresh)
                    put_in_place(fresh, target)
        except OSError as error:
            if error.errno in (*DISK_FULL, errno.EACCES, errno.EROFS):
                raise TrainingError(
                    f"The checkpoint '{target.name}' could not be written ({error.strerror}); the one before it stays."
                ) from error
            raise
        finally:
            if main:
                shutil.rmtree(fresh, ignore_errors=True)  # nothing, unless something went wrong

    def load_weights(self, folder: str):
        """Load the trained weights, and the averaged ones."""
        where = Path(folder)
        changing, parameters = self.changing_tensors(), checkpoints.trained_parameters(self.model)
        with checkpoints.loading(where / "model.safetensors"):
            values = checkpoints.read_group(where, "model", changing)
            checkpoints.load_parameters(changing, values, "The checkpoint")
        self.start_average()
        if self.ema is not None:
            with checkpoints.loading(where / "ema.safetensors"):
                values = checkpoints.read_group(where, "ema", parameters)
                checkpoints.load_parameters(self.averaged(), values, "The average")
            with checkpoints.loading(where / "ema.json"):
                own = {name: value for name, value in self.ema.state_dict().items() if name != "shadow_params"}
                document = checkpoints.read_json(where / "ema.json")
                checkpoints.check_like("ema", document, own)
                self.ema.load_state_dict({**document, "shadow_params": self.ema.shadow_params})
        with checkpoints.loading(where / "trainer.json"):
            self.load_progress(checkpoints.read_json(where / "trainer.json"))
        if self.settings.keep_best and not (self.best["kept"] and self.best_is_there()):
            self.best |= {"loss": None, "step": None, "kept": False}  # the next is the best so far

    def load_progress(self, progress: Any):
        """Load what the run knew about itself."""
        progress = dict(progress)
        same_validation = progress.pop("validation", self.settings.validation) == self.settings.validation
        best, own = progress["best"], {"best": self.best, "bad_steps": self.bad_steps, "seconds": 0.0}
        if isinstance(best, dict) and best.get("loss") is not None:
            own["best"] = {"loss": 0.0, "step": 0, "since": 0, "kept": False}
        checkpoints.check_like("trainer", progress, own)
        self.best = best if same_validation else dict(NO_BEST)
        self.bad_steps, self.seconds_before = progress["bad_steps"], progress["seconds"]

    def load_optimizers(self, folder: str):
        """Load optimizer, schedule and gradient scaler."""
        where = Path(folder)
        model = self.accelerator.unwrap_model(self.model)
        names = checkpoints.parameter_names(self.optimizer, model)
        with checkpoints.loading(where / "optimizer.safetensors", where / "optimizer.json"):
            tensors = checkpoints.read_group(where, "optimizer", dict(model.named_parameters()))
            document = checkpoints.read_json(where / "optimizer.json")
            # The wrapper of accelerate hides the class of the optimizer.
            checkpoints.load_optimizer(getattr(self.optimizer, "optimizer", self.optimizer), names, tensors, document)
        with checkpoints.loading(where / "schedule.json"):
            document = checkpoints.read_json(where / "schedule.json")
            checkpoints.check_like("schedule", document, self.lr_scheduler.state_dict())
            self.lr_scheduler.load_state_dict(document)
        with checkpoints.loading(where / "scaler.json"):
            scaler = checkpoints.read_json(where / "scaler.json")
            if self.accelerator.scaler is not None and scaler is not None:
                checkpoints.check_like("scaler", scaler, self.accelerator.scaler.state_dict())
                self.accelerator.scaler.load_state_dict(scaler)
        self.load_more_state(where)

    def load_random_state(self, folder: str):
        """Restore the random state of this process, or of the first process if the checkpoint has none for this one."""
        where, rank = Path(folder), self.args.process_index
        if not (where / f"random-{rank}.json").exists():
            rank = 0
        if (where / f"random-{rank}.json").exists():
            with checkpoints.loading(where / f"random-{rank}.json", where / f"random-{rank}.safetensors"):
                checkpoints.load_random_state(
                    checkpoints.read_tensors(where / f"random-{rank}.safetensors"),
                    checkpoints.read_json(where / f"random-{rank}.json"),
                )


def spoil_gradients(model: nn.Module):
    """Make gradients NaN, so that a gradient scaler skips their step."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(math.nan)


class AveragedWeights:
    """A context in which parameters have their averaged values. Without an average it changes nothing."""

    def __init__(self, ema: EMAModel | None, parameters: list[nn.Parameter]):
        self.ema, self.parameters = ema, parameters

    def __enter__(self):
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)

    def __exit__(self, *error):
        if self.ema is not None:
            self.ema.restore(self.parameters)
