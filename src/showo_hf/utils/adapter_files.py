"""Adapter folders in peft's format: `adapter_config.json` and `adapter_model.safetensors`. Pickles are never loaded."""

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .adapters import adapter_layers, adapter_tensors, base_layer, holds_rows, require_peft, trained_rows


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the tensors' names in a file
#: What a config may change. The rest of peft's options change the model's own weights, or its forward pass.
SUPPORTED_OPTIONS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
#: A text that peft runs as a regular expression over the names of all modules. One from a stranger's file may take for ever,
#: so only names, perhaps behind ".*" and with "\d+" for a number, are read, one beside the other: ".*(q_proj|v_proj)".
_NAME = r"\^?(\.\*)?(\\\.)?([\w.-]|\\[.-]|\\d\+?)+\$?"
MODULE_PATTERN = re.compile(rf"\^?(\.\*)?(\\\.)?\(?{_NAME}(\|{_NAME})*\)?\$?")
#: Initial weights that leave the model's own weights unchanged.
PLAIN_INITIAL_WEIGHTS = (True, False, "eva", "gaussian", "orthogonal")


def find_adapter(source: str | os.PathLike, weight_name: str, subfolder: str | None, **options) -> Path:
    """
    The local folder of an adapter. It is downloaded if `source` is the name of a repository on the Hub.

    Args:
        source: a local folder or the name of a repository.
        weight_name (`str`): the file with the weights.
        subfolder (`str`, *optional*): folder inside of `source`.
        options: arguments of `snapshot_download`.

    Raises:
        ValueError: if the folder holds no adapter, or weights as a pickle only.
    """
    if not weight_name.endswith(".safetensors"):
        raise ValueError(
            f"`weight_name` must end with '.safetensors', because pickles are not loaded; got {weight_name!r}."
        )
    root = os.fspath(source)
    if os.path.isfile(root):
        raise ValueError(f"'{root}' must be a folder with '{ADAPTER_CONFIG}' and '{weight_name}', but is a file.")
    names = [f"{subfolder}/{name}" if subfolder else name for name in (ADAPTER_CONFIG, weight_name)]
    if not os.path.isdir(root):
        root = snapshot_download(root, allow_patterns=names, **options)
    folder = Path(root, subfolder or "")
    for name in (ADAPTER_CONFIG, weight_name):
        if not (folder / name).is_file():
            pickles = sorted(file.name for file in folder.glob("*.bin")) if folder.is_dir() else []
            hint = (
                " Weights as a pickle (`.bin`) are not loaded: save them as safetensors."
                if name == weight_name
                else ""
            )
            there = f" There is {pickles}." if pickles else ""
            place = f"'{source}'" if not subfolder else f"'{source}', subfolder '{subfolder}',"
            raise ValueError(f"{place} is not an adapter of peft: it has no '{name}'.{there}{hint}")
    return folder


def read_adapter(folder: Path, weight_name: str, source: object) -> tuple[Any, dict[str, torch.Tensor]]:
    """
    Read the config and the tensors of an adapter.

    Raises:
        ValueError: if a file is damaged, holds NaN or infinity, or uses an option of peft that is not supported.
    """
    peft = require_peft()
    try:
        raw = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = raw.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"'{ADAPTER_CONFIG}' of '{source}' is damaged: {error}") from error
    if kind != "LORA":
        raise ValueError(f"'{source}' must be an adapter of `peft_type` 'LORA' (LoRA or DoRA), got {kind!r}.")
    try:
        config = peft.LoraConfig.from_pretrained(folder)
        check_options(config, source)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"'{ADAPTER_CONFIG}' of '{source}' is damaged: {error}") from error
    try:
        tensors = load_file(folder / weight_name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{weight_name}' of '{source}' is damaged: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"'{weight_name}' of '{source}' is damaged: '{name}' is not made of finite numbers.")
    config.init_lora_weights = True  # the tensors replace the initial weights
    config.inference_mode = True
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def check_options(config: Any, source: object):
    """Raise `ValueError` for options of peft that change more than low-rank layers and trained rows."""
    default = type(config)()
    for name in vars(default):
        value = getattr(config, name)
        if name not in SUPPORTED_OPTIONS and value != getattr(default, name) and value:
            raise ValueError(f"'{source}' uses `{name}` of peft, {value!r}, which is not supported.")
    patterns = {name: getattr(config, name) for name in ("target_modules", "exclude_modules", "layers_pattern")}
    patterns |= {name: list(getattr(config, name) or ()) for name in ("rank_pattern", "alpha_pattern")}
    for name, given in patterns.items():
        is_list = isinstance(given, (list, tuple, set))
        for text in given if is_list else [given]:
            if text is not None and not (isinstance(text, str) and MODULE_PATTERN.fullmatch(text) and is_regex(text)):
                raise ValueError(
                    f"'{source}' has `{name}` {repr(text):.80}: only names of modules, or such as '.*(q_proj|v_proj)', are "
                    "read, because other regular expressions may take for ever."
                )
    if config.init_lora_weights not in PLAIN_INITIAL_WEIGHTS:
        raise ValueError(
            f"'{source}' uses `init_lora_weights` {config.init_lora_weights!r}, which changes the base model. Save it as a "
            "plain LoRA, see peft's `path_initial_model_for_weight_conversion`."
        )


def is_regex(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def check_fit(model: nn.Module, config: Any, tensors: Mapping[str, torch.Tensor], source: object):
    """
    Raise `ValueError` unless an adapter fits a model. The model is unchanged.

    The adapter is built for a model of the same config without memory ("meta" device), and its tensors are compared.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            scratch = type(model)(copy.deepcopy(model.config))
            scratch.add_adapter(copy.deepcopy(config), "checked")
        wanted = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(scratch, "checked").items()}
        rows = trained_rows(scratch, "checked")
    except Exception as error:
        # peft and torch raise many kinds of errors for a config that does not fit.
        raise ValueError(f"The adapter '{source}' does not fit the model: {error}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing, unknown = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
    wrong = [name for name in found if name in wanted and wanted[name] != found[name]]
    problems = [f"the file lacks {len(missing)} tensors, such as '{missing[0]}'"] if missing else []
    problems += [f"the model has no place for {len(unknown)} tensors, such as '{unknown[0]}'"] if unknown else []
    problems += [f"'{name}' has shape {found[name]} instead of {wanted[name]}" for name in wrong[:1]]
    if not wanted:
        problems.append("none of its modules is in the model")
    if problems:
        raise ValueError(f"The adapter '{source}' does not fit the model: {'; '.join(problems)}.")
    vocabulary = model.config.get_text_config().vocab_size
    for name, ids in rows.items():
        if len(set(ids)) != len(ids) or not all(isinstance(one, int) and 0 <= one < vocabulary for one in ids):
            raise ValueError(
                f"The adapter '{source}' does not fit the model: the trained rows of '{name}' must be different ids "
                f"below {vocabulary}, got {str(ids):.80}."
            )
    check_heads(scratch, source)


def check_heads(model: nn.Module, source: object):
    """Raise `ValueError` if peft would compute another head than the one that fusing gives."""
    for name, module in adapter_layers(model):
        if holds_rows(module) and getattr(base_layer(module), "bias", None) is not None:
            raise ValueError(
                f"'{source}' trains rows of '{name}', and peft leaves out its bias: train the embedding only."
            )
        if not holds_rows(module) and model.config.tie_word_embeddings and name.endswith(("embed_tokens", "lm_head")):
            raise ValueError(
                f"'{source}' adapts '{name}', whose weight the embedding and the head share. Train rows of it instead."
            )


def write_adapter(config: Any, tensors: Mapping[str, torch.Tensor], folder: Path, base_model: str):
    """
    Write an adapter into a folder. Equal adapters give equal files.

    Args:
        config (`peft.LoraConfig`): the adapter's config; not changed.
        tensors: named as from [`adapters.adapter_tensors`].
        folder: an existing folder.
        base_model (`str`): name of the base model on the Hub, or a path, of which the last part is written.
    """
    saved = copy.deepcopy(config)
    saved.base_model_name_or_path = portable_name(base_model)
    saved.inference_mode = True
    for name in ("target_modules", "exclude_modules"):
        if isinstance(getattr(saved, name), set):
            setattr(saved, name, sorted(getattr(saved, name)))  # peft writes sets in a random order
    saved.save_pretrained(folder)
    stored = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def portable_name(base_model: str | os.PathLike | None) -> str | None:
    """The name of a base model without the folders of this machine. Names on the Hub stay as they are."""
    if base_model is None:
        return None
    name = os.fspath(base_model)
    if os.path.isabs(name) or os.path.exists(name) or name.count("/") > 1 or name.startswith("."):
        return Path(os.path.abspath(name)).name
    return name
