"""Recipe files: finding them, reading them, and overriding their entries with `key=value`."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from .configs import OTHER_NAMES, REFUSED, RunConfig
from .kinds import KINDS, config_keys


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


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """
    Read a recipe and return its typed config.

    Args:
        recipe (`str`): the name of a shipped recipe, or the path of a YAML file.
        overrides: `key=value` pairs. The value is YAML; `a.b=value` sets the entry b of the mapping a.

    Raises:
        RecipeError: for a recipe that does not exist, a key that is unknown (with the nearest known one) or given
            under two names, and a value of the wrong type.
    """
    entries = read_recipe(recipe)
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"Arguments after the recipe must be key=value, got {override!r}.")
        set_entry(given, key, parse_value(key, text))
    return build_config(recipe, merge(entries, given))


def read_recipe(recipe: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries of a recipe, on top of those of the recipe that it names as `base`."""
    if recipe in seen:
        raise RecipeError(f"The recipe {recipe!r} is its own `base`.")
    text = recipe_text(recipe)
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {recipe!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise RecipeError(f"The recipe {recipe!r} must be a mapping of keys to values.")
    base = entries.pop("base", None)
    if base is None:
        return entries
    return merge(read_recipe(str(base), (*seen, recipe)), entries)


def recipe_text(recipe: str) -> str:
    """The text of a recipe file."""
    shipped = shipped_recipes()
    if recipe in shipped:
        return (resources.files("showo_hf.training") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe '{recipe}' cannot be read: {error}") from error
    raise RecipeError(
        f"There is no recipe {recipe!r}{nearest(recipe, shipped)}. Shipped recipes: {', '.join(shipped)}. "
        "Others are the paths of YAML files."
    )


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A question with the known name that is most like `name`, or an empty text."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def parse_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"The value of `{key}` is not YAML; a text with signs may need quotes, got {text!r}."
        ) from error


def set_entry(entries: dict[str, Any], key: str, value: Any):
    """Set `a.b` in nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        below = entries.setdefault(parent, {})
        if not isinstance(below, dict):
            raise RecipeError(f"`{key}` sets an entry of `{parent}`, which is {below!r} and no mapping.")
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


def build_config(recipe: str, entries: Mapping[str, Any]) -> RunConfig:
    """The typed config of a recipe's entries."""
    entries = dict(entries)
    kind = entries.pop("kind", None)
    if kind not in KINDS:
        raise RecipeError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}{nearest(str(kind), KINDS)}.")
    own = config_keys(kind)
    theirs = {one.name: one for one in dataclasses.fields(TrainingArguments) if one.init}
    theirs = {name: one for name, one in theirs.items() if name not in own}
    values: dict[str, Any] = {"recipe": recipe}
    training: dict[str, Any] = {}
    for key, value in entries.items():
        if key in own:
            values[key] = coerce(key, value, own[key].type)
        elif key in OTHER_NAMES:
            both = ", which is given as well" if OTHER_NAMES[key] in entries else ""
            raise RecipeError(f"`{key}` is called `{OTHER_NAMES[key]}` in a recipe{both}.")
        elif key in REFUSED:
            raise RecipeError(f"`{key}` has no effect here: {REFUSED[key]}.")
        elif key in theirs:
            training[key] = coerce(key, value, theirs[key].type)
        else:
            raise RecipeError(
                f"There is no key `{key}` in a recipe of the kind {kind!r}{nearest(key, [*own, *theirs])}."
            )
    missing = [name for name in ("output", "steps") if values.get(name) is None]
    if missing:
        raise RecipeError(f"`{missing[0]}` is missing: give {missing[0]}=...")
    try:
        return KINDS[kind](**values, training=training)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def coerce(key: str, value: Any, annotation: Any) -> Any:
    """
    `value` as the type of a field. YAML reads 1e-4 as a text, and whole numbers where fractions are meant.

    Raises:
        RecipeError: if the value has another type.
    """
    allowed = allowed_types(annotation)
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
    if str in allowed and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise RecipeError(f"`{key}` must be {' or '.join(TYPE_NAMES[one] for one in allowed)}, got {value!r}.")


def allowed_types(annotation: Any) -> tuple[type, ...]:
    """The plain types of an annotation; none if anything is allowed."""
    if isinstance(annotation, str) or annotation is Any:
        return ()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [allowed_types(one) for one in typing.get_args(annotation)]
        return () if () in parts else tuple(one for part in parts for one in part)
    if origin is typing.Literal:
        return tuple({type(value) for value in typing.get_args(annotation)})
    if isinstance(origin, type):
        return (origin,)
    if isinstance(annotation, type) and annotation in (str, int, float, bool, dict, list, type(None)):
        return (annotation,)
    return ()  # enumerations and classes of transformers, which check their values themselves
