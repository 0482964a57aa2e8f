"""The arguments of transformers' `TrainingArguments`, read from the source of the class: importing it would import torch."""

import ast
import functools

from ..utils.package_sources import statements_of


#: The types that the values of a recipe can have, by their names in an annotation.
PLAIN_TYPES: dict[str, type] = {
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
    "None": type(None),
}


@functools.cache
def trainer_arguments() -> dict[str, tuple[type, ...]]:
    """
    The plain types of each argument of `TrainingArguments`, by name; none where another type is allowed, whose values
    transformers checks. Empty if transformers is not installed.
    """
    statements = statements_of("transformers", "training_args.py")
    classes = {one.name: one.body for one in statements if isinstance(one, ast.ClassDef)}
    lines = [line for line in classes.get("TrainingArguments", ()) if isinstance(line, ast.AnnAssign)]
    return {
        line.target.id: plain_types(line.annotation)
        for line in lines
        if isinstance(line.target, ast.Name) and is_argument(line.value)
    }


def is_argument(default: ast.expr | None) -> bool:
    """Whether a field of a dataclass is an argument: others have the default `field(init=False, ...)`."""
    words = default.keywords if isinstance(default, ast.Call) else []
    return not any(word.arg == "init" and ast.unparse(word.value) == "False" for word in words)


def plain_types(annotation: ast.expr) -> tuple[type, ...]:
    """The types of an annotation such as `int | None`; none unless all of them are plain."""
    names = [name.partition("[")[0] for name in ast.unparse(annotation).split(" | ")]
    return tuple(PLAIN_TYPES[name] for name in names) if set(names) <= set(PLAIN_TYPES) else ()
