"""The keys of recipes, read from the source of the classes that define them: importing these would import torch."""

from __future__ import annotations

import ast
import difflib
from importlib.util import find_spec
from pathlib import Path

import yaml

from ..utils.argument_types import quoted
from .errors import UsageError


TRAINING = Path(__file__).parents[1] / "training"
CONFIGS = ("configs.py", "image_configs.py", "decoder_config.py")


def check_entries(entries: list[str]) -> None:
    """Raise `UsageError` for entries that no recipe can have; `load_recipe` checks the rest. Needs no torch."""
    known = {"kind", *recipe_keys()}
    seen = set()
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key:
            raise UsageError(f"Arguments after the recipe must be key=value, got {quoted(entry)}")
        if key in seen:
            raise UsageError(f"`{key}` is given twice")
        seen.add(key)
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(
                f"The value of `{key}` is not YAML; a text with signs may need quotes, got {quoted(text)}"
            ) from error
        first = key.partition(".")[0]
        if first not in known:
            close = difflib.get_close_matches(first, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"There is no key {quoted(first)} in a recipe{hint}")


def recipe_keys() -> set[str]:
    """The fields of all configs of this package and of transformers' `TrainingArguments`."""
    package = find_spec("transformers")  # finds the folder, and imports nothing
    theirs = Path(package.origin).with_name("training_args.py") if package is not None and package.origin else None
    files = [*(TRAINING / name for name in CONFIGS), *([theirs] if theirs is not None and theirs.is_file() else [])]
    return {name for file in files for name in fields_in(file)}


def fields_in(file: Path) -> set[str]:
    """The names that the classes of a file declare with a type, as dataclasses do."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    lines = [line for one in classes for line in one.body if isinstance(line, ast.AnnAssign)]
    return {line.target.id for line in lines if isinstance(line.target, ast.Name)}
