"""The result of a run on images alone: a tokenizer, a decoder or a classifier, with its card, and its way to the Hub."""

from pathlib import Path

import torch

from showo_hf import EMBEDDED_MODEL

from ..processing.processing_showo import showo_image_processor
from ..utils.atomic_folder import atomic_folder
from .image_card import write_image_card
from .image_configs import ImageRunConfig
from .image_trainer import ImageTrainer
from .results import log_file, publish_result, run_facts, tidy_config, without_card
from .training_card import RunSummary


def save_image_result(
    config: ImageRunConfig,
    trainer: ImageTrainer,
    kind: str,
    base_model: str | None,
    size: int,
    dtype: torch.dtype = torch.float32,
):
    """
    Write the output folder of a model that trained on images alone, with its card, and push it.

    Args:
        kind: a key of [`~image_card.WHAT`].
        base_model: see [`RunSummary`]; None for none.
        size: width and height of the training images in pixels.
        dtype: of the saved weights.
    """
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model).to(dtype)
    summary = None
    with without_card():
        summary = RunSummary(
            **run_facts(config, trainer, model, trainer.args.world_size),
            kind=kind,
            base_model=EMBEDDED_MODEL if base_model == "embedded" else base_model or "",
        )
    with atomic_folder(Path(config.output), overwrite=True) as folder:
        model.save_pretrained(folder)
        tidy_config(folder / "config.json")
        if kind == "image-classifier":
            showo_image_processor(size).save_pretrained(folder)
        rows, log = trainer.state.log_history, log_file(config)
        with without_card():
            if summary is not None:
                write_image_card(folder, summary, type(model).__name__, size, rows, config.push_to_hub, log)
    publish_result(config, trainer.state.global_step)
