"""Low-rank adapters of peft inside a model: their layers and tensors, which of them act, and how strongly."""

import contextlib
import copy
import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn


@dataclass
class AdapterState:
    """
    What a model's adapter layers do not say themselves. Pipelines that share a model share it.

    Args:
        weights (`dict[str, float]`): the weight of each adapter, 1 by default.
        version (`int`): grows with each change, so that a key-value cache can tell that it is out of date.
        active_before_fusing (`list[str]`): the adapters that [`unfuse`] lets act again.
        fused (`list[str]`): the adapters that were fused, also those of weight 0, of which the weights hold nothing.
    """

    weights: dict[str, float] = field(default_factory=dict)
    version: int = 0
    active_before_fusing: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)


def require_peft() -> ModuleType:
    """
    The module `peft`.

    It is imported on first use: it takes seconds, and most pipelines have no adapter.

    Raises:
        ImportError: if peft is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("Adapters need peft, which is not installed: `pip install 'showo-hf[train]'`.") from error


def adapter_state(model: nn.Module) -> AdapterState:
    """The state of a model's adapters. It lies on the model."""
    state = getattr(model, "adapter_state", None)
    if state is None:
        state = AdapterState()
        model.adapter_state = state
    return state


def adapter_version(model: nn.Module) -> int:
    """A number that differs after each change of the model's adapters."""
    state = getattr(model, "adapter_state", None)
    return 0 if state is None else state.version


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in a model."""
    return list(getattr(model, "peft_config", None) or {})


# Layers


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer that peft put around a layer of the model, the outermost ones only."""
    peft = require_peft()
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.AuxiliaryTrainingWrapper)
    outer = None
    for name, module in model.named_modules():
        inside = outer is not None and name.startswith(f"{outer}.")
        if not inside and isinstance(module, kinds):
            outer = name
            yield name, module


def inner_layer(module: nn.Module) -> nn.Module:
    """The layer that holds the adapters' tensors: `module` itself, or what is in it for trained rows."""
    return getattr(module, "token_adapter", module)


def holds_rows(module: nn.Module) -> bool:
    """Whether an adapter layer holds trained rows of an embedding, or of a head that is tied to one."""
    return hasattr(module, "token_adapter")


def base_layer(module: nn.Module) -> nn.Module:
    """The model's own layer inside an adapter layer."""
    return inner_layer(module).get_base_layer()


def adapters_of(module: nn.Module) -> set[str]:
    """Names of the adapters with tensors in an adapter layer."""
    layer = inner_layer(module)
    return {name for container in layer.adapter_layer_names for name in getattr(layer, container, {})}


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, nn.Parameter]:
    """
    The tensors of one adapter, by the names that peft gives them in a file (without `base_model.model.`).

    peft's own `get_peft_model_state_dict` fails for an adapter without trained rows beside one with them.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in adapter_layers(model):
        layer = inner_layer(module)
        if getattr(layer, "tied_adapter", None) is not None:
            continue  # the embedding has these rows
        path = f"{name}.token_adapter" if holds_rows(module) else name
        for container_name in layer.adapter_layer_names:
            container = getattr(layer, container_name, {})
            if adapter_name not in container:
                continue
            entry, key = container[adapter_name], f"{path}.{container_name}"
            if isinstance(entry, nn.Parameter):
                found[key] = entry
            elif container_name == "lora_magnitude_vector":
                found[key] = entry.weight  # the file format is older than the module
            else:
                found |= {f"{key}.{last}": tensor for last, tensor in entry.named_parameters()}
    return found


def trained_rows(model: nn.Module, adapter_name: str) -> dict[str, list[int]]:
    """The token ids whose rows an adapter replaces, by the name of the layer."""
    rows = {name: inner_layer(module).token_indices for name, module in adapter_layers(model) if holds_rows(module)}
    return {name: list(indices[adapter_name]) for name, indices in rows.items() if adapter_name in indices}


# Which adapters act


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that act, or that `set_enabled` would let act."""
    known = adapter_names(model)
    for _, module in adapter_layers(model) if known else ():
        if not holds_rows(module):
            return [name for name in module.active_adapters if name in known]
    return []


def set_active(model: nn.Module, names: list[str]):
    """
    Let exactly these adapters act, without gradients.

    `model.set_adapter` of transformers leaves out the trained rows, and peft takes one adapter with rows at a time.
    """
    for _, module in adapter_layers(model):
        own = adapters_of(module) if holds_rows(module) else names
        module.set_adapter([name for name in names if name in own], inference_mode=True)


def set_weights(model: nn.Module, weights: Mapping[str, float]):
    """Scale the low-rank part of adapters. Trained rows have no scale."""
    for _, module in adapter_layers(model):
        for name, weight in weights.items():
            if hasattr(module, "set_scale"):
                module.set_scale(name, weight)


def is_enabled(model: nn.Module) -> bool:
    """Whether the active adapters act."""
    return all(not inner_layer(module).disable_adapters for _, module in adapter_layers(model))


def set_enabled(model: nn.Module, enabled: bool):
    """Turn all adapters on or off. The active ones stay the same."""
    active = active_adapters(model)
    for _, module in adapter_layers(model):
        module.enable_adapters(enabled)
    set_active(model, active)  # peft turns gradients on with the adapters


def fused_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that are added to the model's own weights, those of weight 0 included."""
    return list(adapter_state(model).fused) if adapter_names(model) else []


def with_weight(model: nn.Module, names: list[str], scale: float = 1.0) -> list[str]:
    """Those of the adapters whose weight times `scale` is not 0. Trained rows and DoRA's magnitudes have no scale."""
    weights = adapter_state(model).weights
    return [name for name in names if scale * weights.get(name, 1.0) != 0]


def fuse(model: nn.Module, names: list[str], scale: float = 1.0, safe: bool = False):
    """Add adapters to the model's own weights, except those of weight 0. After an error, the weights are the old ones."""
    state = adapter_state(model)
    asked, names = names, with_weight(model, names, scale)
    state.active_before_fusing = active_adapters(model)
    try:
        set_active(model, names)
        set_weights(model, {name: scale * state.weights.get(name, 1.0) for name in names})
        for _, module in adapter_layers(model):
            own = [name for name in names if name in adapters_of(module)]
            if own:
                inner_layer(module).merge(safe_merge=safe, adapter_names=own)
        state.fused = list(asked)
    except BaseException:
        unfuse(model)
        raise


def unfuse(model: nn.Module):
    """Subtract fused adapters from the model's own weights, up to rounding; trained rows exactly."""
    for _, module in adapter_layers(model):
        if inner_layer(module).merged:
            inner_layer(module).unmerge()
    state = adapter_state(model)
    state.fused = []
    set_weights(model, {name: state.weights.get(name, 1.0) for name in adapter_names(model)})
    set_active(model, state.active_before_fusing)


# Adding and removing


def insert_adapter(model: nn.Module, config: Any, adapter_name: str, tensors: Mapping[str, torch.Tensor]):
    """
    Add an adapter with these tensors to a model, for inference. The active adapters stay the same.

    The model's own weights keep their gradients, its modules their mode, and torch's random state is unchanged. After an
    error, the model is as it was.

    Args:
        model: the model. The adapter fits, as [`adapter_files.check_fit`] found.
        config (`peft.LoraConfig`): the adapter's config.
        adapter_name (`str`): a new name.
        tensors: named as from [`adapter_tensors`].
    """
    enabled = is_enabled(model) if adapter_names(model) else True
    active = active_adapters(model)
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()]
    base_model = config.base_model_name_or_path
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws initial weights
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            model.add_adapter(config, adapter_name)
        config.base_model_name_or_path = base_model  # transformers puts the model's folder there
        with torch.no_grad():
            for name, weight in adapter_tensors(model, adapter_name).items():
                weight.copy_(tensors[name])
        set_active(model, active)
        set_enabled(model, enabled)
    except BaseException:
        remove_adapters(model, [adapter_name])
        if adapter_names(model):
            set_active(model, active)
            set_enabled(model, enabled)
        raise
    finally:
        for weight, has_gradient in gradients:
            weight.requires_grad_(has_gradient)
        model.train(model.training)  # peft's new layers are in training mode


def remove_adapters(model: nn.Module, names: Iterable[str]):
    """Remove adapters. Without any left, the model has its own layers again. Those that were active stay so."""
    gone = set(names)
    active = [name for name in active_adapters(model) if name not in gone]
    if gone.issuperset(adapter_names(model)):
        take_out_layers(model)
        forget_adapters(model)
    else:
        set_active(model, [])  # or peft would activate another one
        model.delete_adapter(sorted(gone.intersection(adapter_names(model))))
        set_active(model, active)
    for name in gone:
        adapter_state(model).weights.pop(name, None)


def take_out_layers(model: nn.Module):
    """Put the model's own layers back in the place of the adapter layers, with what is fused into their weights."""
    for name, module in list(adapter_layers(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base_layer(module))


def forget_adapters(model: nn.Module):
    """Let transformers know that a model without adapter layers has no adapters."""
    adapter_state(model).fused = []
    if not hasattr(model, "peft_config"):
        model.peft_config = {}
    with contextlib.suppress(ValueError):  # transformers knew of none
        model.delete_adapter(list(model.peft_config))
    if hasattr(model, "peft_config"):
        del model.peft_config


def without_adapters(model: nn.Module) -> nn.Module:
    """
    A copy of the model without adapter layers. It shares all weights with the model, with what is fused into them.

    The model itself is unchanged, so other threads may go on using it.
    """
    memo: dict[int, Any] = {id(one): one for tensors in (model.parameters(), model.buffers()) for one in tensors}
    for _, module in adapter_layers(model):
        memo[id(module)] = base_layer(module)
    twin = copy.deepcopy(model, memo)
    forget_adapters(twin)
    return twin
