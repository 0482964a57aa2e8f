"""The arguments of transformers' Trainer, from a recipe."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from .callbacks import reports
from .configs import RunConfig


def training_arguments(config: RunConfig, root: Path) -> TrainingArguments:
    """The arguments of transformers' Trainer. What a recipe does in its own way is switched off there."""
    given = dict(config.training)
    if config.validation_data is not None:
        given.setdefault("eval_strategy", "steps")
    given.setdefault("disable_tqdm", True)
    given.setdefault("use_cpu", not torch.accelerator.is_available())  # else `bf16` is refused on a CPU
    given.setdefault("logging_steps", 10)
    given.setdefault("save_total_limit", 2)
    given.setdefault("ddp_timeout", 600)  # seconds until a process that waits for another one gives up
    return TrainingArguments(
        **{
            **given,
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
    )
