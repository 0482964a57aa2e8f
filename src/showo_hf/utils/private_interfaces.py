"""The only uses of other libraries beyond their documented interfaces. Each entry gives the reason.

`tests/utils/test_private_interfaces.py` fails with a clear sentence when a library changes what an entry relies on.
"""

from collections.abc import Callable, Mapping
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
