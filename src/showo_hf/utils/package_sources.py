"""The source of installed packages that are not imported, because importing them would import torch."""

import ast
from importlib.util import find_spec
from pathlib import Path


def statements_of(package: str, file: str) -> list[ast.stmt]:
    """
    The statements of a file of an installed package; none if the package is not installed.

    Args:
        package: the package's name, such as "torch".
        file: the name of a file beside the package's `__init__.py`.

    Raises:
        OSError: if there is no such file.
        ValueError, SyntaxError: if it is no Python source.
    """
    found = find_spec(package)  # finds the folder, and imports nothing
    if found is None or found.origin is None:
        return []
    return ast.parse(Path(found.origin).with_name(file).read_text(encoding="utf-8")).body
