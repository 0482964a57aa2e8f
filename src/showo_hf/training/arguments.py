"""The arguments of transformers' Trainer, from a recipe."""

import logging
import math
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from ..utils.validation import is_number
from .callbacks import reports
from .configs import RunConfig


logger = logging.getLogger(__name__)


class OneDeviceArguments(TrainingArguments):
    """
    Transformers' arguments for processes with one device each.

    Without a launcher, transformers would split the batches of one process among all devices that it sees
    (`torch.nn.DataParallel`), which the losses here and accelerate's autocast do not allow.
    """

    @property
    def n_gpu(self) -> int:
        """Devices of this process: at most 1."""
        return min(self.visible_devices, 1)

    @property
    def visible_devices(self) -> int:
        """Devices that transformers would use."""
        return super().n_gpu


def training_arguments(config: RunConfig, root: Path) -> TrainingArguments:
    """
    The arguments of transformers' Trainer. What a recipe does in its own way is switched off there.

    Raises:
        ValueError: for a value that `TrainingArguments` refuses, and a tracker that is unknown or not installed.
    """
    check_trackers(config)
    given = dict(config.training)
    if config.validation_data is not None:
        given.setdefault("eval_strategy", "steps")
    given.setdefault("disable_tqdm", True)
    given.setdefault("use_cpu", not torch.accelerator.is_available())  # else `bf16` is refused on a CPU
    given.setdefault("logging_steps", 10)
    given.setdefault("save_total_limit", 2)
    given.setdefault("ddp_timeout", 600)  # seconds until a process that waits for another one gives up
    own = {
        "output_dir": str(root),
        "max_steps": config.steps,
        "seed": config.seed,
        "per_device_train_batch_size": config.rows_per_step,
        "report_to": [name for name in reports(config) if name != "tensorboard"] or "none",
        "save_strategy": "no",
        "ignore_data_skip": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "push_to_hub": False,
    }
    try:
        args = OneDeviceArguments(**{**given, **own})
    except ValueError as error:  # of an enumeration, which tells the value and the allowed ones, but no name
        names = [
            name for name, value in config.training.items() if f"{value} is not a valid" in str(error).replace("'", "")
        ]
        raise ValueError(f"`{names[0]}`: {error}" if names else str(error)) from error
    args.save_steps = whole_steps("save_steps", args.save_steps, config.steps)
    if args.visible_devices > 1:
        logger.warning(
            f"{args.visible_devices} devices are visible, and this run uses one. "
            "`accelerate launch -m showo_hf_command train ...` uses all of them."
        )
    return args


def whole_steps(name: str, value: float, steps: int) -> int:
    """
    A number of steps that may be given as a share of the run's `steps`, as transformers takes it.

    Raises:
        ValueError: unless it is a positive integer or a share below 1.
    """
    if is_number(value) and 0 < value < 1:
        return math.ceil(steps * value)
    if not is_number(value) or value < 1 or value != int(value):
        raise ValueError(
            f"`{name}` must be a positive integer, or a share of the steps between 0 and 1, got {value!r}."
        )
    return int(value)


def check_trackers(config: RunConfig):
    """Raise `ValueError` if `report_to` names a tracker that transformers does not know, or that is not installed."""
    for name in reports(config):
        try:
            get_reporting_integration_callbacks(name)
        except ValueError as error:
            raise ValueError(f"`report_to`: {error}") from error
        if name not in ("all", *get_available_reporting_integrations()):
            raise ValueError(f"`report_to` names {name}, which is not installed: run `pip install {name}`.")
