"""The typed configs of recipe files; see `recipe_entries` for the files themselves. Imports no torch."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.argument_types import quoted
from .configs import RunConfig
from .kinds import KINDS, config_keys
from .recipe_entries import RecipeError, check_complete, check_names, coerce, given_texts, nearest, recipe_entries
from .trainer_arguments import trainer_arguments


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """
    Read a recipe and return its typed config.

    Args:
        recipe (`str`): the name of a shipped recipe, or the path of a YAML file.
        overrides: `key=value` pairs. The value is YAML; `a.b=value` sets the entry b of the mapping a.

    Raises:
        RecipeError: for a recipe that does not exist, a key that is unknown (with the nearest known one) or given
            under two names, a value of the wrong type or out of its range, and an entry that is missing.
    """
    return build_config(recipe, recipe_entries(recipe, overrides), given_texts(overrides))


def build_config(recipe: str, entries: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> RunConfig:
    """
    The typed config of a recipe's entries.

    Args:
        texts: how the command line wrote its entries, see [`given_texts`].
    """
    texts = texts or {}
    entries = dict(entries)
    kind = entries.pop("kind", None)
    if kind not in KINDS:
        raise RecipeError(f"`kind` must be one of {', '.join(KINDS)}, got {quoted(kind)}{nearest(str(kind), KINDS)}")
    check_names(entries)
    own = config_keys(kind)
    theirs = {name: types for name, types in trainer_arguments().items() if name not in own}
    values: dict[str, Any] = {"recipe": recipe}
    training: dict[str, Any] = {}
    for key, value in entries.items():
        if key in own:
            values[key] = coerce(key, value, allowed_types(own[key].type), texts.get(key))
        elif key in theirs:
            training[key] = coerce(key, value, theirs[key], texts.get(key))
        else:
            raise RecipeError(
                f"There is no key {quoted(key)} in a recipe of the kind {kind!r}{nearest(key, [*own, *theirs])}"
            )
    check_complete(entries)
    try:
        return KINDS[kind](**values, training=training)
    except ValueError as error:
        raise RecipeError(str(error)) from error


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
    return ()
