"""The model of a command: its options, the device, and the loaded pipeline."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import DTYPES, HUB_NAME, quoted, user_name
from ..utils.embedded_model import EMBEDDED_MODEL
from ..utils.messages import one_sentence
from ..utils.progress_bars import hide_progress_bars
from .devices import device_name, only_cpu
from .errors import CommandError, UsageError
from .hub_names import LONGEST_NAME, check_hub_model
from .texts import exists


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


#: Loggers that report, while libraries are imported, what does not concern who runs a command: torchao names each of its
#: extensions that is built for other hardware.
NOISY_IMPORTS = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--dtype`, `--device` and `--quiet`."""
    add = parser.add_argument
    add("--model", type=user_name, help="folder, or name on the Hugging Face Hub (default: the embedded model)")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default: float32)")
    add(
        "--device",
        type=device_name,
        help="cpu, cuda, cuda:1, mps ... (default: the accelerator if there is one, else cpu)",
    )
    add("-q", "--quiet", action="store_true", help="no progress bars")


def check_model(model: str | None) -> None:
    """
    Raise `UsageError` for a folder without a pipeline, and for a name that is neither a folder nor a model on the Hub.

    This may ask the Hub, so it comes after all other checks that need no torch.
    """
    if model is None:
        return
    folder = Path(model)
    if exists(folder):
        if not folder.is_dir():
            raise UsageError(f"`--model` must be a folder with a model_index.json, but {quoted(model)} is a file")
        if (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"`--model` must be a whole pipeline, but {quoted(model)} is an adapter; train it with merge=true, "
                "or load it in Python with `pipe.load_lora_weights`"
            )
        if not (folder / "model_index.json").is_file():
            raise UsageError(f"`--model` must be a folder with a model_index.json, but {quoted(model)} has none")
    elif not HUB_NAME.fullmatch(model) or len(model) > LONGEST_NAME:
        raise UsageError(
            "`--model` must be a folder, or a name on the Hub such as owner/name; "
            f"there is no folder {quoted(model)}, and it is no such name"
        )
    else:
        check_hub_model(model)


@contextmanager
def only_what_concerns_the_user() -> Iterator[None]:
    """Hide the reports of `NOISY_IMPORTS` within the block. Errors, and all other loggers, stay as they are."""
    loggers = [logging.getLogger(name) for name in NOISY_IMPORTS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_package(quiet: bool = True) -> Any:
    """
    Import `showo_hf` with torch, transformers and diffusers, and return it.

    A command calls this before it imports any module that computes, and after every check that needs none.

    Args:
        quiet: do not say so on a terminal.
    """
    say_libraries(quiet)
    with only_what_concerns_the_user():
        import showo_hf

        _ = showo_hf.ShowoT2IPipeline  # `showo_hf_command` imports the package when its first name is read
        return showo_hf


def load_torch() -> Any:
    """Import torch without the reports of `NOISY_IMPORTS`, and return it."""
    with only_what_concerns_the_user():
        import torch

        return torch


def on_terminal() -> bool:
    """Whether stderr is a terminal: only there do progress bars and messages that come and go make sense."""
    return sys.stderr.isatty()


def say(what: str, quiet: bool = False) -> None:
    """Say on a terminal what takes the next seconds."""
    if on_terminal() and not quiet:
        print(f"{what} ...", file=sys.stderr, flush=True)


def say_loading(what: str, quiet: bool) -> None:
    """Say on a terminal that loading something takes the next seconds."""
    say(f"loading {what}", quiet)


def say_libraries(quiet: bool) -> None:
    """Say on a terminal that torch, and what is built on it, takes the next seconds, unless it is imported already."""
    if "torch" not in sys.modules:
        say_loading("the libraries", quiet)


def accelerators() -> list[str]:
    """The devices other than the CPU: cuda:0, cuda:1 ..., mps:0 ..."""
    torch = load_torch()
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    return [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]


def choose_device(name: str | None, dtype: str = "float32", quiet: bool = True) -> str:
    """
    The device of a command. Imports torch, unless the user named the CPU.

    Args:
        name: the device that the user named; for None, the accelerator of this process, else the CPU.
        dtype: dtype of the weights.
        quiet: do not say on a terminal that torch is imported.

    Raises:
        UsageError: for an absent device, and for float16 on the CPU, for which torch lacks operations.
    """
    if name is None and dtype == "float16" and only_cpu():
        name = "cpu"  # refused below, and without torch
    if name != "cpu":
        say_libraries(quiet)
    found = accelerators() if name != "cpu" else []
    if name is None:
        # Each process of `accelerate launch` or torchrun has an accelerator of its own.
        local = os.environ.get("LOCAL_RANK", "0")
        name = found[int(local) % len(found)] if found and local.isdigit() else "cpu"
    allowed = ["cpu", *(device.split(":")[0] for device in found[:1]), *found]
    if name not in allowed:
        raise UsageError(f"`--device` must be a device of this machine ({', '.join(allowed)}), got {quoted(name)}")
    if name == "cpu" and dtype == "float16":
        raise UsageError("`--dtype float16` needs an accelerator; on the CPU, use float32 or bfloat16")
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
        quiet: show no progress bars. They are shown on terminals only.
        kind: class name of the pipeline. All pipelines of this package have the same components.
    """
    say_loading("the embedded model" if model is None else f"the model {quoted(model)}", quiet)
    torch, showo_hf = load_torch(), load_package()
    hidden = quiet or not on_terminal()
    if hidden:
        hide_progress_bars()
    try:
        pipe = getattr(showo_hf, kind).from_pretrained(model or EMBEDDED_MODEL, dtype=getattr(torch, dtype))
    except Exception as error:
        shown = quoted("embedded" if model is None else model)
        raise CommandError(f"cannot load the model {shown}: {one_sentence(error)}") from error
    pipe.set_progress_bar_config(disable=hidden)
    return pipe.to(device)
