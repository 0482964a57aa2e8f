"""
Imports run one way, and files stay short.

The order is: cli, commands, app, training, recipes -> conversion -> pipelines -> processing, models, schedulers ->
configurations -> utils. The tests read the files with `ast` and import none of them.
"""

import ast
import textwrap
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src/showo_hf", "pipelines", "conversion", "recipes")
LONGEST = 500  # lines

BASE = {"configurations", "utils"}
MIDDLE = {"models", "processing", "schedulers", *BASE}
LIBRARY = {"pipelines", "conversion", "training", "package", *MIDDLE}
# What a layer may import besides itself. "package" is `showo_hf/__init__.py`, which imports the pipelines.
ALLOWED = {
    "utils": set(),
    "configurations": {"utils"},
    "schedulers": BASE,
    "models": BASE,
    "processing": BASE,
    "pipelines": MIDDLE,
    "conversion": {"pipelines", *MIDDLE},
    "training": {"pipelines", "conversion", "package", *MIDDLE},
    "package": {"pipelines", "conversion", *MIDDLE},
    "app": LIBRARY - {"training", "conversion"},
    "commands": {"app", *LIBRARY},
    "cli": {"commands", "app", *LIBRARY},
    "recipes": LIBRARY,
}
OURS = ("showo_hf", "recipes", "app", "tests", "benchmarks")


def python_files() -> list[Path]:
    return [ROOT / "app.py", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))]


def module_of(file: Path) -> str:
    """The module's name as it is installed: `pipelines/masks.py` is `showo_hf.pipelines.masks`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "src":
        parts = parts[1:]
    elif parts[0] in ("pipelines", "conversion"):
        parts = ("showo_hf", *parts)
    return ".".join(parts).removesuffix(".__init__")


def layer_of(module: str) -> str:
    """The layer of one of our modules; a name imported from a module counts as the module itself."""
    top, *parts = module.split(".")
    if top != "showo_hf":
        return top
    name = parts[0] if parts else ""
    if parts[-1:] == ["__main__"]:
        return "cli"
    if name == "models" and len(parts) > 1 and parts[1].startswith("configuration_"):
        return "configurations"
    return name if name in ALLOWED else "package"


def imports_of(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each of our modules that a file imports, also inside functions."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [word.value for word in node.args[:1] if isinstance(word, ast.Constant)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in OURS:
                yield node.lineno, name


def complaints_about(source: str, file: str, module: str) -> list[str]:
    layer = layer_of(module)
    found = []
    for line, name in imports_of(source, module, is_package=file.endswith("__init__.py")):
        imported = layer_of(name)
        if imported != layer and imported not in ALLOWED[layer]:
            allowed = ", ".join(sorted(ALLOWED[layer])) or "nothing of ours"
            found.append(f"{file}:{line} imports {name}: {layer} may import {allowed}, not {imported}.")
    return found


def test_imports_run_one_way():
    found = []
    for file in python_files():
        found += complaints_about(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)), module_of(file))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("src/showo_hf/models/tiling.py", "from showo_hf.pipelines import windows", "models may import"),
        ("src/showo_hf/models/tiling.py", "from ..pipelines.windows import plan", "not pipelines"),
        ("src/showo_hf/models/tiling.py", "from .. import pipelines", "not pipelines"),
        ("src/showo_hf/models/__init__.py", "from ..pipelines import windows", "not pipelines"),
        ("src/showo_hf/models/tiling.py", "def f():\n    import showo_hf.conversion.plan", "tiling.py:2 imports"),
        ("src/showo_hf/models/tiling.py", "from showo_hf import ShowoT2IPipeline", "not package"),
        ("src/showo_hf/models/tiling.py", "import_module('showo_hf.pipelines')", "not pipelines"),
        ("src/showo_hf/models/configuration_showo.py", "from .tiling import tile", "not models"),
        ("src/showo_hf/utils/validation.py", "from ..models.configuration_showo import A", "nothing of ours"),
        ("src/showo_hf/training/run.py", "from recipes.world.objects import A", "not recipes"),
        ("pipelines/masks.py", "from .conversion import A", None),
        ("pipelines/masks.py", "from ..conversion import A", "not conversion"),
        ("pipelines/masks.py", "from showo_hf.commands import A", "not commands"),
        ("pipelines/masks.py", "import torch\nfrom ..utils.validation import A\nfrom . import windows", None),
        ("pipelines/__init__.py", "from .masks import A", None),
        ("conversion/plan.py", "from showo_hf.pipelines import A", None),
        ("src/showo_hf/cli.py", "from .commands import ask", None),
        ("src/showo_hf/commands/ask.py", "from showo_hf.cli import main", "not cli"),
    ],
)
def test_an_import_against_the_order_is_found(file, source, complaint):
    found = complaints_about(textwrap.dedent(source), file, module_of(ROOT / file))
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert file in found[0]
        assert complaint in found[0]


def test_every_file_belongs_to_a_layer():
    layers = {layer_of(module_of(file)) for file in python_files()}
    assert layers <= set(ALLOWED)
    assert {"models", "pipelines", "conversion", "commands", "recipes", "app"} <= layers


def test_no_file_has_more_than_500_lines():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    long = [f"{file.relative_to(ROOT)} has {lines} lines" for file, lines in lengths.items() if lines > LONGEST]
    assert not long, f"Split these files (at most {LONGEST} lines each): {'; '.join(long)}."
