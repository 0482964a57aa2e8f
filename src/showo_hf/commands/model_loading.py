"""The model of a command: its options, the device, and the loaded pipeline."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.argument_types import DTYPES
from .errors import CommandError, UsageError


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--dtype`, `--device` and `--quiet`."""
    add = parser.add_argument
    add("--model", help="folder, or name on the Hugging Face Hub (default: the embedded model)")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default: float32)")
    add("--device", help="cpu, cuda, cuda:1, mps ... (default: the accelerator if there is one, else cpu)")
    add("-q", "--quiet", action="store_true", help="no progress bars")


def check_model(model: str) -> None:
    """Raise `UsageError` for a folder without a pipeline, and for a name that is neither a folder nor a Hub name."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UsageError(f"`--model` must be a folder with a model_index.json, but '{model}' has none")
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise UsageError(f"`--model` must be a folder, or a name on the Hub such as owner/name; '{model}' is neither")


def accelerators() -> list[str]:
    """The devices other than the CPU: cuda:0, cuda:1 ..., mps:0 ..."""
    import torch

    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    return [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]


def choose_device(name: str | None) -> str:
    """The named device; for None the first accelerator, else the CPU. Raises `UsageError` for an absent device."""
    found = accelerators()
    if name is None:
        return found[0] if found else "cpu"
    allowed = ["cpu", *(device.split(":")[0] for device in found[:1]), *found]
    if name not in allowed:
        raise UsageError(f"`--device` must be a device of this machine ({', '.join(allowed)}), got '{name}'")
    return name


def load_pipeline(
    model: str | None, dtype: str, device: str, quiet: bool, kind: str = "ShowoT2IPipeline"
) -> DiffusionPipeline:
    """
    Load a pipeline.

    Args:
        model: folder or Hub name; None loads the embedded model.
        dtype: dtype of the weights.
        device: where to put the model.
        quiet: show no progress bars.
        kind: class name of the pipeline. All pipelines of this package have the same components.
    """
    import diffusers
    import torch
    import transformers

    import showo_hf

    if quiet:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    try:
        pipe = getattr(showo_hf, kind).from_pretrained(model or showo_hf.EMBEDDED_MODEL, dtype=getattr(torch, dtype))
    except Exception as error:
        raise CommandError(f"cannot load the model '{model or 'embedded'}': {error}") from error
    pipe.set_progress_bar_config(disable=quiet)
    return pipe.to(device)
