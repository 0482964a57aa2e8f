"""Callbacks of the Trainer: checkpoints, stopping, averaged weights, and the log."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from .configs import RunConfig
from .errors import TrainingError
from .logs import RunLog
from .results import beside_output, log_file


class StepEnd(TrainerCallback):
    """
    What happens at the end of each step: average the weights, ask for a checkpoint, and stop where something asks for
    it.

    Args:
        save_steps (`int`): steps between checkpoints. The last step always has one.
        max_minutes (`float`, *optional*): stop after this time.
        signals: stops the run when the process is asked to end.
    """

    def __init__(self, save_steps: int, max_minutes: float | None = None, signals: "StopSignals | None" = None):
        self.save_steps, self.max_minutes, self.signals = save_steps, max_minutes, signals
        self.started = time.monotonic()
        self.trainer: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)  # of a resumed run, which else logs and validates as before
        self.trainer.start_average()
        self.trainer.start_clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.average()
        self.stop_if_asked(control)
        if control.should_training_stop or state.global_step % self.save_steps == 0:
            control.should_save = True

    def on_evaluate(self, args, state, control, **kwargs):
        if self.stop_if_asked(control):  # asked while validation ran
            control.should_save = True

    def stop_if_asked(self, control) -> bool:
        """Stop the run if the time is over or a signal came, on any device."""
        late = self.max_minutes is not None and time.monotonic() - self.started > self.max_minutes * 60
        asked = self.signals is not None and self.signals.received is not None
        stop = self.trainer.sum_over_devices(torch.tensor([float(late or asked)])).item() > 0
        if stop:
            control.should_training_stop = True
        return stop


class StopSignals:
    """
    A context in which SIGTERM and SIGINT ask the run to save a checkpoint and to end. A second SIGINT interrupts at
    once. Only the main thread can receive signals.
    """

    def __init__(self):
        self.received: int | None = None
        self.process = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: Any):
        if os.getpid() != self.process:
            return  # a worker that loads data, to which the terminal sends Ctrl-C as well
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class WriteLog(TrainerCallback):
    """Writes each row of the log as a JSON line, and prints it."""

    def __init__(self, file: Path):
        self.log = RunLog(file)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or logs is None:
            return
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float)) and name != "epoch"}
        if "train_runtime" in numbers:  # the Trainer's summary of this call, which is no row of a step
            return
        try:
            self.log.append({"step": state.global_step, **numbers})
        except OSError as error:
            raise TrainingError(f"The log '{self.log.file}' could not be written ({error.strerror}).") from error
        rest = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        print(f"step {state.global_step}  {rest}", file=sys.stderr, flush=True)


def reports(config: RunConfig) -> list[str]:
    """The trackers that the run reports to; tensorboard by default."""
    names = config.training.get("report_to", "tensorboard")
    return [name for name in ([names] if isinstance(names, str) else names) if name != "none"]


def step_callbacks(
    config: RunConfig,
    args: TrainingArguments,
    step: int,
    signals: StopSignals,
    first_row: Mapping[str, Any] | None = None,
) -> tuple[list[Any], SummaryWriter | None]:
    """
    The callbacks of all runs: checkpoints and logs.

    Args:
        step: the step that the run continues from; 0 for a new one.
        first_row: is logged at the start of a run.

    Returns:
        the callbacks, and the writer for tensorboard if there is one.
    """
    callbacks: list[Any] = [StepEnd(args.save_steps, config.max_minutes, signals)]
    writer = None
    if args.should_save:
        log = WriteLog(log_file(config))
        if step == 0:  # a log without a checkpoint may be of another run
            log.log.file.unlink(missing_ok=True)
        log.log.truncate_after(step)
        if first_row is not None and not log.log.lines():
            log.log.append({"step": 0, **first_row})
        callbacks.append(log)
        if "tensorboard" in reports(config):
            # `purge_step`: what a killed run logged after its last checkpoint is not shown twice.
            folder = beside_output(config, "-tensorboard")
            writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
            callbacks.append(TensorBoardCallback(writer))
    return callbacks, writer
