"""The package's code in a converted folder. People without showo-hf load the folder with `trust_remote_code=True`.

Each file stands alone: it contains a module of the package and, before it, all modules that this one needs. diffusers
fetches one code file for each component from the Hub, and does not follow the imports of the files that it imports.
transformers looks for the code above the subfolder that it loads.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


PACKAGE = __name__.split(".")[0]
MODELING = "modeling_showo"
PROCESSING = "processing_showo"
SCHEDULING = "scheduling_maskgit"
PIPELINE = "pipeline"  # the file name that diffusers expects

MODULES = {
    MODELING: f"{PACKAGE}.models.modeling_showo",
    PROCESSING: f"{PACKAGE}.processing.processing_showo",
    SCHEDULING: f"{PACKAGE}.schedulers.scheduling_maskgit",
    PIPELINE: f"{PACKAGE}.pipelines.pipeline_showo_t2i",
}
#: The code files of each folder of a saved pipeline.
FOLDERS = {
    ".": (PIPELINE, MODELING, PROCESSING),
    "model": (MODELING, PROCESSING),
    "processor": (PROCESSING,),
    "scheduler": (SCHEDULING,),
}
MODEL_INDEX = {
    "_class_name": [PIPELINE, "ShowoT2IPipeline"],
    "model": [MODELING, "ShowoForCausalLM"],
    "processor": [PROCESSING, "ShowoProcessor"],
    "scheduler": [SCHEDULING, "MaskGITScheduler"],
}
PROCESSOR_MAP = {"AutoProcessor": f"{PROCESSING}.ShowoProcessor"}
MODEL_MAP = {
    "AutoConfig": f"{MODELING}.ShowoConfig",
    "AutoModelForCausalLM": f"{MODELING}.ShowoForCausalLM",
    "AutoModelForImageTextToText": f"{MODELING}.ShowoForCausalLM",
    **PROCESSOR_MAP,
}

HEADER = """\
# Written by showo-hf from its own modules, so that this folder works without it. Apache License 2.0.
"""
# diffusers accepts a file with exactly one pipeline class, so the base classes lose their names. It loads the classes of
# the components from other files, so these differ from the annotated ones.
PIPELINE_END = """

for base in ShowoT2IPipeline.__mro__[1:]:
    if base.__module__ == __name__ and issubclass(base, DiffusionPipeline):
        del globals()[base.__name__]
ShowoT2IPipeline.__init__.__annotations__.clear()
"""


def add_code(folder: Path):
    """
    Write the code into a pipeline folder, and name it in the configs.

    Raises:
        ValueError: if the package's modules cannot be joined, see [`standalone`].
    """
    sources = {name: standalone(module) for name, module in MODULES.items()}
    sources[PIPELINE] += PIPELINE_END
    for place, names in FOLDERS.items():
        for name in names:
            (folder / place / f"{name}.py").write_text(sources[name], encoding="utf-8")
    update_json(folder / "model_index.json", MODEL_INDEX)
    update_json(folder / "model" / "config.json", {"auto_map": MODEL_MAP})
    for place in ("model", "processor"):
        update_json(folder / place / "processor_config.json", {"auto_map": PROCESSOR_MAP})


def update_json(path: Path, values: dict[str, Any]):
    """Set entries of the JSON object in a file."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def standalone(module: str) -> str:
    """
    The source of `module`, preceded by all modules of the package that it needs, in the order of their imports.

    Raises:
        ValueError: if two modules define one name differently, or if a module imports from the package under another
            name, as a whole module, or inside a function.
    """
    names = needed_modules(module)
    sources = {name: read_module(name) for name in names}
    check_names({name: ast.parse(source) for name, source in sources.items()})
    parts = [f"# From {name}\n\n{without_internal_imports(name, source)}" for name, source in sources.items()]
    return HEADER + "\n" + "\n\n".join(parts)


def read_module(module: str) -> str:
    """The source of a module, without importing it."""
    return Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")


def needed_modules(module: str) -> list[str]:
    """`module` and the modules of the package that it needs, each once and after its own imports."""
    found: dict[str, None] = {}

    def visit(name: str):
        for _, other in internal_imports(name, ast.parse(read_module(name))):
            visit(other)
        found[name] = None

    visit(module)
    return list(found)


def internal_imports(module: str, tree: ast.Module) -> Iterator[tuple[ast.ImportFrom, str]]:
    """The statements of `module` that import from the package, each with the full name of the imported module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(is_internal(alias.name) for alias in node.names):
            raise ValueError(f"{module}, line {node.lineno}: import the package by `from ... import`.")
        if not isinstance(node, ast.ImportFrom):
            continue
        source = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
        if not is_internal(source):
            continue
        if node not in tree.body or any(alias.asname for alias in node.names):
            raise ValueError(
                f"{module}, line {node.lineno}: import from the package at the top of the module, under the same name."
            )
        for alias in node.names:
            if alias.name == "*" or importlib.util.find_spec(source).submodule_search_locations is not None:
                raise ValueError(f"{module}, line {node.lineno}: import names from the module that defines them.")
        yield node, source


def is_internal(name: str) -> bool:
    """Whether a full module name belongs to this package."""
    return name.split(".")[0] == PACKAGE


def without_internal_imports(module: str, source: str) -> str:
    """The source of `module` without its imports from the package."""
    lines = source.splitlines()
    for node, _ in internal_imports(module, ast.parse(source)):
        lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip() + "\n"


def check_names(trees: dict[str, ast.Module]):
    """Raise `ValueError` if two modules give one top-level name different meanings."""
    meanings: dict[str, str] = {}
    for module, tree in trees.items():
        internal = {id(node) for node, _ in internal_imports(module, tree)}
        for node in tree.body:
            if id(node) in internal:
                continue
            for name, meaning in bound_names(module, node):
                if meanings.setdefault(name, meaning) != meaning:
                    raise ValueError(
                        f"`{name}` is both {meanings[name]} and {meaning}, so the two modules cannot share a file."
                    )


def bound_names(module: str, node: ast.stmt) -> Iterator[tuple[str, str]]:
    """The names that a top-level statement of `module` binds, each with its meaning."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        source = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], f"'{source}import {alias.name}'"
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name, f"defined in {module}"
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                yield ast.unparse(part), f"'{ast.unparse(node)}'"
