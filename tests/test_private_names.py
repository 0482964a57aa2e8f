"""
The code uses public interfaces of other libraries only.

A name that begins with an underscore may change in any minor release. `src/showo_hf/utils/private_interfaces.py` is the
one file that may use such names; `ALLOWED` lists the names that libraries document as extension points.
"""

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache

import pytest
from test_imports import OURS, ROOT, python_files


EXCEPTED = "src/showo_hf/utils/private_interfaces.py"

# Names that models and pipelines outside of the libraries are meant to define or read, with the reason.
ALLOWED = {
    # transformers: class attributes and methods that each model defines ("Adding a model")
    "_init_weights": "how a model initialises each module",
    "_no_split_modules": "what `device_map` keeps on one device",
    "_skip_keys_device_placement": "what `device_map` leaves where it is",
    "_tied_weights_keys": "which weights are shared",
    "_keep_in_fp32_modules": "what stays in float32",
    "_keep_in_fp32_modules_strict": "what stays in float32",
    "_keys_to_ignore_on_load_missing": "weights that a checkpoint may lack",
    "_keys_to_ignore_on_load_unexpected": "weights that a checkpoint may have too many",
    "_keys_to_ignore_on_save": "weights that are not saved",
    "_supports_sdpa": "attention implementations of a model",
    "_supports_flash_attn": "attention implementations of a model",
    "_supports_flex_attn": "attention implementations of a model",
    "_supports_attention_backend": "attention implementations of a model",
    "_can_compile_fullgraph": "whether a model compiles to one graph",
    "_can_record_outputs": "which modules give hidden states and attentions",
    "_input_embed_layer": "the name of the embedding's attribute",
    "_tp_plan": "tensor parallelism of a model",
    "_pp_plan": "pipeline parallelism of a model",
    "_is_stateful": "a model with a state that generation cannot rewind",
    "_expand_inputs_for_generation": "models of transformers override it, for inputs with another batch dimension",
    # diffusers: what a pipeline, a model or a scheduler defines ("Contribute to diffusers")
    "_execution_device": "the device on which a pipeline computes, with and without offloading",
    "_callback_tensor_inputs": "the tensors that a callback may ask for",
    "_optional_components": "components that may be None",
    "_exclude_from_cpu_offload": "components that are not offloaded",
    "_last_supported_task": "the task of a pipeline",
    "_supports_gradient_checkpointing": "whether a model can save memory in training",
    "_compatibles": "schedulers that can be made from each other's configs",
    "_guidance_scale": "callbacks may change it during a call",
    "_interrupt": "callbacks may set it during a call",
    "_num_timesteps": "how many steps a call makes",
}
# Words that look like private names and are part of a file format.
FORMAT_KEYS = {
    "_class_name": "key of diffusers' config files",
    "_diffusers_version": "key of diffusers' config files",
    "_name_or_path": "key of the config files of transformers and diffusers",
    "__main__": "name of a module that is run",
    "__key__": "key of a sample in a WebDataset tar",
    "__metadata__": "key of a safetensors header",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and name.isidentifier() and name.strip("_") != "" and not name.endswith("__")


@cache
def own_names() -> frozenset[str]:
    """Private functions, methods and attributes that our own files define."""
    return frozenset(name for file in python_files() for name in names_defined(file.read_text(encoding="utf-8")))


def names_defined(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
            if ast.unparse(node.value) in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            yield node.id


def parts_of_names(tree: ast.AST) -> set[int]:
    """Ids of the strings that are a part of a longer word: in f-strings, sums, and `name.endswith(...)`."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.BinOp):
            parts |= {id(one) for one in ast.iter_child_nodes(node)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("endswith", "removesuffix", "replace", "split", "rsplit", "partition", "join"):
                parts |= {id(one) for argument in node.args for one in ast.walk(argument)}
    return parts


def private_names(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, private name, and how it is used: every use of a name that is not defined in our own files."""
    tree = ast.parse(source)
    skipped = parts_of_names(tree)
    known = own_names() | set(names_defined(source)) | set(ALLOWED)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((node.lineno, part, "imports") for part in alias.name.split(".") if is_private(part))
        elif isinstance(node, ast.ImportFrom):
            origin = (node.module or "").split(".")
            if not node.level and origin[0] not in OURS:
                words = [*origin, *(alias.name for alias in node.names)]
                yield from ((node.lineno, word, "imports") for word in words if is_private(word))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in known:
            yield node.lineno, node.attr, f"uses `{ast.unparse(node)}` with"
        elif (
            isinstance(node, ast.keyword)
            and node.arg
            and is_private(node.arg)
            and node.arg not in {*known, *FORMAT_KEYS}
        ):
            yield node.value.lineno, node.arg, "passes the argument"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            word = node.value
            hidden = is_private(word) or (word.startswith("__") and word.endswith("__") and word.isidentifier())
            if hidden and word not in known and word not in FORMAT_KEYS:
                yield node.lineno, word, "names in a string"


def test_no_private_name_of_a_library_is_used():
    found = []
    for file in python_files():
        name = file.relative_to(ROOT).as_posix()
        if name != EXCEPTED:
            uses = private_names(file.read_text(encoding="utf-8"))
            found += [f"{name}:{line} {use} `{word}`, which is private." for line, word, use in uses]
    assert not found, f"\nUse a public interface, or move the use to {EXCEPTED}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch._dynamo", ["_dynamo"]),
        ("from torch._dynamo import config", ["_dynamo"]),
        ("from transformers.utils import _LazyModule", ["_LazyModule"]),
        ("from __future__ import annotations", []),
        ("from .masks import _cut", []),
        ("torch._dynamo.config.limit = 3", ["_dynamo"]),
        ("x._hf_hook.offload", ["_hf_hook"]),
        ("self._get_signature_keys(x)", ["_get_signature_keys"]),
        ("super()._prefill_everything()", ["_prefill_everything"]),
        ("self._own = 1\nprint(self._own, other._own)", []),
        ("def _own():\n    pass\n_own()", []),
        ("device = pipe._execution_device", []),
        ("pipe._interrupt = True", []),
        ("hasattr(x, '_hf_hook')", ["_hf_hook"]),
        ("any(hasattr(x, name) for name in ('a', '__tensor_flatten__'))", ["__tensor_flatten__"]),
        ("config.get('_use_default_values', [])", ["_use_default_values"]),
        ("config['_class_name']", []),
        ("f'{name}_token_id', name + '_size', name.endswith('_id'), '_'", []),
        ("load(path, _commit_hash=None)", ["_commit_hash"]),
    ],
)
def test_a_private_name_is_found(source, names):
    assert [name for _, name, _ in private_names(textwrap.dedent(source))] == names


def own_classes() -> Iterator[type]:
    """All classes of the package and of the recipes; every module is imported for them."""
    for package in (importlib.import_module(name) for name in ("showo_hf", "recipes")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] in ("showo_hf", "recipes"):
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ == name:
                    yield kind


def private_overrides(kind: type) -> Iterator[tuple[str, type, type]]:
    """
    A private name that our code defines and a library too, our class, and the library's.

    All of the MRO counts: a mixin of ours overrides what stands behind it, without being a subclass of it.
    """
    ours = [base for base in kind.__mro__ if base.__module__.split(".")[0] in OURS]
    theirs = [base for base in kind.__mro__ if base not in ours]
    for own in ours:
        for name in filter(is_private, vars(own)):
            for base in theirs:
                if name in vars(base):
                    yield name, own, base
                    break


def test_no_private_method_of_a_library_is_overridden():
    kinds = list(own_classes())
    assert len(kinds) > 50
    found = set()
    for kind in kinds:
        for name, own, base in private_overrides(kind):
            if own.__module__ == "showo_hf.utils.private_interfaces":
                continue
            # Python itself sets _abc_impl, and torch _backward_cls in an autograd function.
            if name not in ALLOWED and name not in ("_abc_impl", "_backward_cls"):
                found.add(
                    f"{own.__module__}.{own.__name__}.{name} overrides {base.__module__}.{base.__name__}.{name}."
                )
    assert not found, "\nUse a public extension point:\n" + "\n".join(sorted(found))


def test_a_private_override_is_found():
    library = type("Library", (), {"_hook": None, "public": None, "__module__": "library"})
    own = type("Own", (library,), {"_hook": None, "_other": None, "public": None, "__module__": "recipes.one"})
    plain = type("Plain", (library,), {"_other": None, "public": None, "__module__": "recipes.two"})
    mixin = type("Mixin", (), {"_hook": None, "__module__": "recipes.three"})
    mixed = type("Mixed", (mixin, library), {"__module__": "recipes.four"})
    assert list(private_overrides(own)) == [("_hook", own, library)]
    assert list(private_overrides(mixed)) == [("_hook", mixin, library)]
    assert list(private_overrides(plain)) == list(private_overrides(mixin)) == []
