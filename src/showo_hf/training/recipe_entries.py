"""
The entries of recipes as plain values: finding recipe files, reading them, and overriding entries with `key=value`.

Imports no torch, so that a command can check entries before it loads the training code. Their types, see `recipe_files`.
"""

import datetime
import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from ..utils.argument_types import quoted, user_name, user_path
from ..utils.messages import one_sentence


#: What a value of each type is called in messages.
TYPE_NAMES = {
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
    type(None): "empty",
}


#: Arguments of `TrainingArguments` that have another name in a recipe, and the name.
OTHER_NAMES = {
    "max_steps": "steps",
    "output_dir": "output",
    "resume_from_checkpoint": "resume",
    "hub_model_id": "push_to_hub",
    "per_device_train_batch_size": "batch_size",
    "data_seed": "seed",
}
#: Arguments of `TrainingArguments` that have no effect here, and why.
REFUSED = {
    "num_train_epochs": "data is streamed, so the length of a run is given in `steps`",
    "auto_find_batch_size": "the rows of a step are part of the recipe; use `gradient_accumulation_steps`",
    "average_tokens_across_devices": "losses are always averaged over the tokens of all devices",
    "batch_eval_metrics": "validation computes losses only",
    "bf16_full_eval": "validation runs in the precision of the training",
    "dataloader_drop_last": "data is streamed, so no batch is the last",
    "dataloader_in_order": "batches always come in the order of the data",
    "dataloader_multiprocessing_context": "the workers start as Python starts processes",
    "dataloader_persistent_workers": "data is streamed, so its workers stay until the run ends",
    "dataloader_pin_memory": "batches are moved to the device as they are used",
    "dataloader_prefetch_factor": "the number of batches that are made ahead is fixed",
    "do_eval": "validation runs where `validation_data` is given",
    "do_predict": "a recipe trains",
    "do_train": "a recipe trains",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint",
    "eval_accumulation_steps": "validation computes losses only",
    "eval_do_concat_batches": "validation computes losses only",
    "eval_use_gather_object": "validation computes losses only",
    "fp16_full_eval": "validation runs in the precision of the training",
    "greater_is_better": "the best weights have the lowest validation loss",
    "hub_always_push": "pushes of one run never overlap",
    "hub_strategy": "a push is the whole result",
    "ignore_data_skip": "the position in the data is part of a checkpoint",
    "include_for_metrics": "validation computes losses only",
    "include_num_input_tokens_seen": "tokens are not counted; `--dry-run` prints the tokens of a step",
    "label_names": "the tasks define the labels",
    "label_smoothing_factor": "the losses are not smoothed",
    "length_column_name": "rows are not grouped by length",
    "liger_kernel_config": "the loss is computed in chunks already",
    "load_best_model_at_end": "use `keep_best`",
    "local_rank": "the launcher sets it",
    "logging_nan_inf_filter": "use `bad_step`",
    "per_device_eval_batch_size": "validation has the rows of `batch_size`",
    "prediction_loss_only": "validation computes losses only",
    "remove_unused_columns": "the tasks define the columns",
    "restore_callback_states_from_checkpoint": "a checkpoint restores all state",
    "save_on_each_node": "checkpoints are written once",
    "save_only_model": "the result is the model alone; a checkpoint is for resuming",
    "save_strategy": "checkpoints are written every `save_steps` and at the end",
    "torch_empty_cache_steps": "the memory of the device is kept for the next step",
    "train_sampling_strategy": "the order of the data is part of the recipe",
    "use_cache": "training needs no cache",
    "use_liger_kernel": "the loss is computed in chunks already",
}
#: The values of `lr_scheduler_type` that follow the validation metric `metric_for_best_model`.
METRIC_SCHEDULES = ("greedy", "reduce_lr_on_plateau")
#: Entries that are paths, or hold some.
PATHS = (
    "output",
    "data",
    "validation_data",
    "model",
    "text_model",
    "image_tokenizer",
    "decoder",
    "teacher",
    "perceptual",
)


class RecipeError(ValueError):
    """A recipe, or an entry of it, is not valid. The message names it and what is allowed."""


def shipped_recipes() -> dict[str, str]:
    """The shipped recipes: the first line of each one's description, by name."""
    folder = resources.files("showo_hf.training") / "recipes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): describe(file.read_text(encoding="utf-8")) for file in files}


def describe(text: str) -> str:
    """The first comment line of a recipe."""
    first = text.split("\n", 1)[0]
    return first.removeprefix("#").strip()


def recipe_entries(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Read a recipe, and override its entries. `~` in a path stands for the home folder.

    Args:
        recipe (`str`): the name of a shipped recipe, or the path of a YAML file.
        overrides: `key=value` pairs. The value is YAML; `a.b=value` sets the entry b of the mapping a.

    Raises:
        RecipeError: for a recipe that does not exist or is no mapping, and for an override that is no YAML, is given
            twice, or sets an entry of what is no mapping.
    """
    entries = read_recipe(recipe)
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"Arguments after the recipe must be key=value, got {quoted(override)}.")
        set_entry(given, key, parse_value(key, text))
    entries = merge(entries, given)
    return entries | {key: with_home(entries[key]) for key in PATHS if key in entries}


def with_home(value: Any) -> Any:
    """A value of YAML with the home folder in the place of `~`, in every text that begins with it."""
    if isinstance(value, str):
        return user_name(value)
    if isinstance(value, list):
        return [with_home(one) for one in value]
    return {key: with_home(one) for key, one in value.items()} if isinstance(value, dict) else value


def from_yaml(text: str) -> Any:
    """The value of a YAML text. `ValueError` for any other text."""
    import yaml  # here, so that the command starts fast

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_recipe(recipe: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries of a recipe, on top of those of the recipe that it names as `base`."""
    if recipe in seen:
        raise RecipeError(f"The recipe {quoted(recipe)} is its own `base`.")
    text = recipe_text(recipe)
    try:
        entries = from_yaml(text)
    except ValueError as error:
        raise RecipeError(f"The recipe {quoted(recipe)} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise RecipeError(f"The recipe {quoted(recipe)} must be a mapping of keys to values.")
    base = entries.pop("base", None)
    if base is None:
        return entries
    return merge(read_recipe(str(base), (*seen, recipe)), entries)


def recipe_text(recipe: str) -> str:
    """The text of a recipe file."""
    shipped = shipped_recipes()
    if recipe in shipped:
        return (resources.files("showo_hf.training") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = user_path(recipe)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {quoted(recipe)} cannot be read: {one_sentence(error)}") from error
    raise RecipeError(
        f"There is no recipe {quoted(recipe)}{nearest(recipe, shipped)} Shipped recipes: {', '.join(shipped)}. "
        "Others are the paths of YAML files."
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: a question with the known name that is most like it, or a full stop."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def parse_value(key: str, text: str) -> Any:
    try:
        return from_yaml(text)
    except ValueError as error:
        raise RecipeError(
            f"The value of `{key}` is not YAML; a text with signs may need quotes, got {quoted(text)}."
        ) from error


def given_texts(overrides: Sequence[str]) -> dict[str, str]:
    """The values of `key=value` pairs as they are written: YAML would read 007 as a number, and 2026-01-31 as a date."""
    import yaml  # here, so that the command starts fast

    texts = {}
    for key, _, text in (override.partition("=") for override in overrides):
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(node, yaml.ScalarNode):
            texts[key] = node.value
    return texts


def set_entry(entries: dict[str, Any], key: str, value: Any):
    """Set `a.b` in nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        below = entries.setdefault(parent, {})
        if not isinstance(below, dict):
            raise RecipeError(f"`{key}` sets an entry of `{parent}`, which is {quoted(below)} and no mapping.")
        entries = below
    if last in entries:
        raise RecipeError(f"`{key}` is given twice.")
    entries[last] = value


def merge(entries: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`entries` with `changes`. Mappings are merged, other values replaced."""
    result = dict(entries)
    for key, value in changes.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and "path" not in below and "path" not in value:
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def coerce(key: str, value: Any, allowed: tuple[type, ...], text: str | None = None) -> Any:
    """
    `value` as one of the allowed types. YAML reads 1e-4 as a text, and whole numbers where fractions are meant.

    Args:
        allowed: plain types; none if anything is allowed.
        text: how the command line wrote the value, if it did. It is used where YAML reads a number or a date, and a text
            is meant.

    Raises:
        RecipeError: if the value has another type.
    """
    if value is None and (type(None) in allowed or not allowed):
        return None
    if not allowed or any(
        isinstance(value, one) and not isinstance(value, bool) for one in allowed if one is not bool
    ):
        return value
    if isinstance(value, bool) and bool in allowed:
        return value
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    needs_quotes = str in allowed and isinstance(value, (int, float, datetime.date)) and not isinstance(value, bool)
    if needs_quotes and text is not None:
        return text
    came = quoted(value) if isinstance(value, str) else str(value) if needs_quotes else repr(value)
    end = "; a number or a date needs quotes" if needs_quotes else ""
    raise RecipeError(f"`{key}` must be {' or '.join(TYPE_NAMES[one] for one in allowed)}, got {came}{end}.")


def check_names(entries: Mapping[str, Any]):
    """Raise `RecipeError` for an argument of `TrainingArguments` that has another name in a recipe, or no effect."""
    for key in entries:
        if key in OTHER_NAMES:
            both = ", which is given as well" if OTHER_NAMES[key] in entries else ""
            raise RecipeError(f"`{key}` is called `{OTHER_NAMES[key]}` in a recipe{both}.")
        if key in REFUSED:
            raise RecipeError(f"`{key}` has no effect here: {REFUSED[key]}.")
    if "metric_for_best_model" in entries and entries.get("lr_scheduler_type") not in METRIC_SCHEDULES:
        raise RecipeError(
            "`metric_for_best_model` has no effect here: the best weights have the lowest validation loss. Only an "
            f"`lr_scheduler_type` of {' or '.join(METRIC_SCHEDULES)} follows it."
        )


def check_complete(entries: Mapping[str, Any]):
    """Raise `RecipeError` unless the entries name the folder of the result and the length of the run."""
    missing = [name for name in ("output", "steps") if entries.get(name) is None]
    if missing:
        raise RecipeError(f"`{missing[0]}` is missing: give {missing[0]}=...")
