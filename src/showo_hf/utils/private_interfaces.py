"""The only uses of other libraries beyond their documented interfaces. Each entry gives the reason.

`tests/utils/test_private_interfaces.py` fails with a clear sentence when a library changes what an entry relies on.
"""

import re
import threading
from collections.abc import Callable, Mapping
from logging import Filter, LogRecord, getLogger
from typing import Any

import torch


class TextOnlyAssistant:
    """
    An assistant for `generate` that is a plain language model: it gets the ids of the prompt, but no images.

    Reason: transformers passes every model argument of the main model on to the assistant's `generate`, which refuses
    arguments that its `forward` does not know. No public option leaves any of them out. This class relies on
    transformers accepting as `assistant_model` any object with the attributes and the `generate` of a model.

    Args:
        model: the assistant, a model of transformers.
        left_out (`tuple[str, ...]`): names of the arguments that it does not get.
    """

    def __init__(self, model: Any, left_out: tuple[str, ...]):
        self.model = model
        self.left_out = left_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, *args, **kwargs) -> Any:
        """The assistant's own `generate`, without the arguments that are left out."""
        return self.model.generate(
            *args, **{name: value for name, value in kwargs.items() if name not in self.left_out}
        )


def default_config_entries(config: Mapping[str, Any]) -> list[str]:
    """
    Names of the entries of a diffusers config that hold a default because no argument was passed for them.

    Reason: diffusers lists them in the config under a private key. `ConfigMixin.from_config` skips them, so that another
    class uses its own defaults, but no public function returns them.
    """
    return config.get("_use_default_values", [])


def set_recompile_limit(limit: int):
    """
    Let a compiled function be compiled for up to `limit` input shapes.

    Reason: `torch.compile` falls back to eager mode without an error above the limit, and no public function sets it.
    """
    torch._dynamo.config.recompile_limit = limit


def has_offload_hook(module: Any) -> bool:
    """
    Whether accelerate moves the weights of a module for each call: `enable_model_cpu_offload`, `device_map` and the like.

    Reason: accelerate keeps its hook in a private attribute, and no public function returns it.
    """
    return hasattr(module, "_hf_hook")


class HeldLoadReport(Filter):
    """
    Holds back what transformers reports of a load in this thread, within a `with` block.

    Reason: the report has a line for each tensor that is not as the config says, with its name as it stands in the file.
    A stranger's file could write anything to the terminal, and 200,000 lines of it. transformers has no option that
    leaves the report out, or its names. This class relies on the names of transformers' loggers, on the words by which
    it finds the report and its lines, and on the error after a report that names weights which cannot be used.

    Attributes:
        text (`str`): what was held back.
    """

    LOGGERS = ("transformers.modeling_utils", "transformers.integrations.peft")
    TITLE = " LOAD REPORT"
    ERROR = "the above report"
    REFUSED = ("MISMATCH", "CONVERSION")

    def __enter__(self) -> "HeldLoadReport":
        self.text, self.thread = "", threading.get_ident()
        for name in self.LOGGERS:
            getLogger(name).addFilter(self)
        return self

    def __exit__(self, *_):
        for name in self.LOGGERS:
            getLogger(name).removeFilter(self)

    def filter(self, record: LogRecord) -> bool:
        """Whether a logger says it."""
        if record.thread != self.thread or self.TITLE not in record.getMessage():
            return True
        self.text += record.getMessage() + "\n"
        return False

    def lines(self) -> list[str]:
        """The lines of its table, without colours."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.text).splitlines()
        return [" ".join(line.split()) for line in lines if " | " in line]

    def refused(self, error: RuntimeError) -> list[str]:
        """The lines about weights that cannot be used. None if that is not why the load raised `error`."""
        lines = self.lines() if self.ERROR in str(error) else []
        return [line for line in lines if any(f"| {word} " in line for word in self.REFUSED)]


class OwnCheckpoints:
    """
    A mixin for `transformers.Trainer` whose checkpoints the subclass writes and reads itself.

    Reason: the Trainer writes optimizer, schedule and random state as pickles, and offers no public method that does
    it. This class relies on the Trainer calling the methods below, and no others, for what it writes and reads. The
    Trainer calls `_load_from_checkpoint` before the model is wrapped, then `_load_optimizer_and_scheduler` and
    `_load_scaler`, and `_load_rng_state` before the first step.

    A subclass defines `save_checkpoint()`, `load_weights(folder)`, `load_optimizers(folder)` and
    `load_random_state(folder)`.
    """

    save_checkpoint: Callable[[], None]
    load_weights: Callable[[str], None]
    load_optimizers: Callable[[str], None]
    load_random_state: Callable[[str], None]

    def _save_checkpoint(self, model: Any, trial: Any):
        self.save_checkpoint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None):
        self.load_weights(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        if checkpoint is not None:
            self.load_optimizers(checkpoint)

    def _load_scaler(self, checkpoint: str | None):
        """`load_optimizers` loads the gradient scaler as well."""

    def _load_rng_state(self, checkpoint: str | None):
        if checkpoint is not None:
            self.load_random_state(checkpoint)


class ShardedByItself:
    """
    A mixin for `transformers.Trainer` that trains a tensor-parallel model on the CPU as well.

    Reason: for a model with a `tp_size`, the Trainer makes accelerate check a mesh that only GPUs may have. The model is
    divided already, so accelerate has nothing to do with it. This class relies on the Trainer calling
    `_build_accelerator_args` for the arguments of `accelerate.Accelerator`, with the mesh as `parallelism_config`.
    """

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)  # type: ignore[misc]
        if (getattr(self.model, "tp_size", None) or 1) > 1:  # type: ignore[attr-defined]
            arguments.pop("parallelism_config", None)
        return arguments
