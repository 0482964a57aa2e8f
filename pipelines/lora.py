"""Low-rank adapters (LoRA, DoRA) of a pipeline's model, with diffusers' methods."""

import os
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from showo_hf.utils.adapter_files import ADAPTER_WEIGHTS, check_fit, find_adapter, read_adapter, write_adapter
from showo_hf.utils.adapters import (
    active_adapters,
    adapter_names,
    adapter_state,
    adapter_tensors,
    fuse,
    fused_adapters,
    insert_adapter,
    is_enabled,
    remove_adapters,
    require_peft,
    set_active,
    set_enabled,
    set_weights,
    trained_rows,
    unfuse,
    with_weight,
)
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.validation import MAX_SCALE, check_flag, check_list, is_number, shown


def check_scale(name: str, value: Any):
    """Raise `ValueError` unless `value` is a number whose absolute value is at most `MAX_SCALE`."""
    if not is_number(value) or not abs(value) <= MAX_SCALE:
        raise ValueError(f"`{name}` must be a number from -{MAX_SCALE:,g} to {MAX_SCALE:,g}, got {shown(value)}.")


class ShowoLoraMixin:
    """
    Adapters of a pipeline's model: LoRA and DoRA, with rows of the embedding that are trained in full.

    Adapters lie in the model, so pipelines that share it (`from_pipe`) share them. Change them between calls only. A
    [`Conversation`] notices a change, and reads its messages again.
    """

    model: nn.Module

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        *,
        weight_name: str = ADAPTER_WEIGHTS,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ):
        """
        Load an adapter in peft's format. The first one is active at once, further ones after [`set_adapters`].

        Args:
            pretrained_model_name_or_path (`str`): a folder with `adapter_config.json` and `adapter_model.safetensors`, or
                the name of a repository on the Hub.
            adapter_name (`str`, *optional*): its name from here on: letters, digits, `_` and `-`. "default_0",
                "default_1", ... by default.
            weight_name (`str`): another name of the file with the weights. Pickles are not loaded.
            subfolder, revision, token, cache_dir, force_download, local_files_only: where to find it, as in diffusers.

        Raises:
            ImportError: if peft is not installed.
            ValueError: if there is no such adapter, a file is damaged, or the adapter was trained on a model of another
                shape. The pipeline is unchanged.
        """
        require_peft()
        if not isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            got = type(pretrained_model_name_or_path).__name__
            raise TypeError(f"`pretrained_model_name_or_path` must be a folder or a name on the Hub, got a {got}.")
        self.check_not_fused("load an adapter")
        name = self.new_adapter_name(adapter_name)
        if any(weight.is_meta for weight in self.model.parameters()):
            raise ValueError("`model` is offloaded layer by layer or to disk: load adapters before it is offloaded.")
        source = pretrained_model_name_or_path
        folder = find_adapter(
            source,
            weight_name,
            subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        config, tensors = read_adapter(folder, weight_name, source)
        check_fit(self.model, config, tensors, source)
        is_first = not adapter_names(self.model)
        insert_adapter(self.model, config, name, tensors)
        if is_first:
            set_active(self.model, [name])
        adapter_state(self.model).version += 1

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float | None] | None = None
    ):
        """
        Let exactly these adapters act, each with a weight.

        A weight multiplies the low-rank part. Trained rows of the embedding and DoRA's magnitudes have no scale: they are
        used as trained, or with weight 0 not at all.

        Args:
            adapter_names (`str` or `list[str]`): names of loaded adapters; none for an empty list.
            adapter_weights (`float` or `list[float]`, *optional*): one weight for all, or one for each; 1 by default.

        Raises:
            ValueError: for unknown names, another number of weights, and adapters that train the same rows.
        """
        self.check_not_fused("choose other adapters")
        names = self.check_names(adapter_names)
        weights = dict(zip(names, self.check_weights(names, adapter_weights), strict=True))
        active = [name for name in names if weights[name] != 0]
        self.check_rows(active)
        set_weights(self.model, weights)
        set_active(self.model, active)
        state = adapter_state(self.model)
        state.weights |= weights
        state.version += 1

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that act, or that would without `disable_lora`."""
        return active_adapters(self.model)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all loaded adapters by component: `{"model": [...]}`, or an empty dict."""
        names = adapter_names(self.model)
        return {"model": names} if names else {}

    def delete_adapters(self, adapter_names: str | Sequence[str]):
        """
        Remove adapters from the model. The other adapters stay active or inactive as they are.

        Raises:
            ValueError: for unknown names, or if adapters are fused.
        """
        self.check_not_fused("delete adapters")
        remove_adapters(self.model, self.check_names(adapter_names))
        adapter_state(self.model).version += 1

    def enable_lora(self):
        """Let the active adapters act again, after `disable_lora`."""
        self.check_loaded()
        self.check_not_fused("enable adapters")
        set_enabled(self.model, True)
        adapter_state(self.model).version += 1

    def disable_lora(self):
        """Let no adapter act. The results are those of the base model, to the bit."""
        self.check_loaded()
        self.check_not_fused("disable adapters")
        set_enabled(self.model, False)
        adapter_state(self.model).version += 1

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: str | Sequence[str] | None = None
    ):
        """
        Add adapters to the model's own weights: a step then costs no more than without them.

        Then `save_pretrained` writes a model that loads without peft, and `unload_lora_weights` keeps the sum.

        Args:
            lora_scale (`float`): multiplies the weights of `set_adapters`, until `unfuse_lora`. Nothing of an adapter
                whose product is 0 is added, also not its trained rows and DoRA's magnitudes.
            safe_fusing (`bool`): check that the sum has no NaN.
            adapter_names (`list[str]`, *optional*): the adapters to add; the active ones by default. Others do not act
                while these are fused.

        Raises:
            ValueError: if adapters are fused already or disabled, if the base model is quantized, for several adapters with
                a DoRA among them (their magnitudes do not add up), and with `safe_fusing` for NaN.
        """
        self.check_loaded()
        self.check_not_fused("fuse adapters")
        check_scale("lora_scale", lora_scale)
        check_flag("safe_fusing", safe_fusing)
        if not is_enabled(self.model):
            raise ValueError("The adapters are disabled: call `enable_lora()` before `fuse_lora()`.")
        if getattr(self.model, "hf_quantizer", None) is not None:
            raise ValueError(
                "Adapters cannot be fused into a quantized model: load the base model without quantization."
            )
        names = active_adapters(self.model) if adapter_names is None else self.check_names(adapter_names)
        if not names:
            raise ValueError("`adapter_names` must be given, because no adapter is active.")
        acting = with_weight(self.model, names, lora_scale)
        if len(acting) > 1 and any(self.model.peft_config[name].use_dora for name in acting):
            raise ValueError(f"`adapter_names` must be a single adapter if one is a DoRA, got {acting}.")
        self.check_rows(acting)
        fuse(self.model, names, lora_scale, safe_fusing)
        adapter_state(self.model).version += 1

    def unfuse_lora(self):
        """
        Subtract the fused adapters from the model's own weights, up to rounding. What was active before is so again.

        Raises:
            ValueError: if no adapter is fused.
        """
        if not fused_adapters(self.model):
            raise ValueError("No adapter is fused.")
        unfuse(self.model)
        adapter_state(self.model).version += 1

    def unload_lora_weights(self):
        """
        Remove all adapters. The model then has its own layers and weights, to the bit.

        Fused adapters stay in the weights: call `unfuse_lora` before to get the base model (up to rounding).
        """
        if adapter_names(self.model):
            remove_adapters(self.model, adapter_names(self.model))
            adapter_state(self.model).version += 1

    def save_lora_weights(
        self, save_directory: str | os.PathLike, adapter_name: str | None = None, overwrite: bool = False
    ):
        """
        Save an adapter in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

        Args:
            save_directory (`str`): the new folder. It appears complete or not at all.
            adapter_name (`str`, *optional*): which one, if there are several.
            overwrite (`bool`): replace an existing folder and all of its contents.

        Raises:
            ValueError: if there is no such adapter, or `adapter_name` is needed.
            FileExistsError: if the folder exists and `overwrite` is False.
        """
        self.check_loaded()
        names = adapter_names(self.model)
        if adapter_name is None and len(names) > 1:
            raise ValueError(f"`adapter_name` must be one of {names}, because there are several; got None.")
        (name,) = self.check_names(names[0] if adapter_name is None else adapter_name)
        config = self.model.peft_config[name]
        base_model = config.base_model_name_or_path or self.model.config.name_or_path or None
        with atomic_folder(save_directory, overwrite) as folder:
            write_adapter(config, adapter_tensors(self.model, name), folder, base_model)

    # Checks

    def check_loaded(self):
        """Raise `ValueError` if there is no adapter."""
        if not adapter_names(self.model):
            raise ValueError("No adapter is loaded: call `load_lora_weights` first.")

    def check_not_fused(self, action: str):
        """Raise `ValueError` if adapters are fused: their layers would undo or double what is in the weights."""
        fused = fused_adapters(self.model)
        if fused:
            raise ValueError(
                f"Cannot {action} while {fused} are fused: call `unfuse_lora()`, or `unload_lora_weights()` to keep the sum."
            )

    def check_names(self, names: str | Sequence[str]) -> list[str]:
        """The names as a list. Raise an error for other values, a name that is not loaded, or that is there twice."""
        self.check_loaded()
        wanted = [names] if isinstance(names, str) else names
        check_list("adapter_names", wanted)
        known = adapter_names(self.model)
        unknown = [name for name in wanted if not isinstance(name, str) or name not in known]
        if unknown or len(set(wanted)) != len(wanted):
            raise ValueError(f"`adapter_names` must be different names among {known}, got {shown(wanted)}.")
        return list(wanted)

    def check_weights(self, names: list[str], weights: float | Sequence[float | None] | None) -> list[float]:
        """One weight for each name. Raise `ValueError` for another number of them, or what is no number in range."""
        given: list[Any] = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        filled = [1.0 if weight is None else weight for weight in given]
        if len(filled) != len(names):
            raise ValueError(f"`adapter_weights` must be a number, or one for each of {names}, got {shown(weights)}.")
        for one in filled:
            check_scale("adapter_weights", one)
        return filled

    def check_rows(self, names: list[str]):
        """Raise `ValueError` if two of the adapters train the same rows of one layer."""
        owners: dict[tuple[str, int], str] = {}
        for name in names:
            for layer, ids in trained_rows(self.model, name).items():
                for one in ids:
                    other = owners.setdefault((layer, one), name)
                    if other != name:
                        raise ValueError(
                            f"`adapter_names` must train different rows to act together: '{other}' and '{name}' both train "
                            f"the row of token id {one}."
                        )

    def new_adapter_name(self, name: str | None) -> str:
        """A name for a new adapter. Raise `ValueError` for one that is taken or not allowed."""
        known = adapter_names(self.model)
        if name is None:
            return next(free for n in range(len(known) + 1) if (free := f"default_{n}") not in known)
        taken = any(hasattr(container, str(name)) for container in (nn.ModuleDict(), nn.ParameterDict()))
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or taken:
            raise ValueError(
                f"`adapter_name` must be made of letters, digits, '_' and '-', and not be a name of torch; got {name!r}."
            )
        if name in known:
            raise ValueError(f"`adapter_name` must be new, got {name!r}; loaded are {known}.")
        return name
