"""The folders that this package writes, recognized by what their files say, and what each of them may hold."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from showo_hf import pipelines
from showo_hf.utils.saved_folders import LOADERS

from .remote_code import FOLDERS, HEADER


WEIGHTS = r"(?:model|pytorch_model|diffusion_pytorch_model)(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index\.json)?"
PROCESSOR_FILES = (
    r"(?:(?:video_pre|pre)?processor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template)\.json|merges\.txt|chat_template\.jinja"
)
MODEL_FILES = rf"{WEIGHTS}|{PROCESSOR_FILES}|generation_config\.json|\.gitattributes"
GRAPHS = r"(?:transformer|image_encoder|image_decoder)\.onnx(?:[._]data)?"

LONGEST_MARK = 2**16  # bytes of a file in which its mark must stand
CARD = {"README.md": "showo-hf"}
#: The script beside the graphs starts with these words.
SCRIPT = {"generate.py": '"""Text to image with the ONNX graphs beside this file.'}


@dataclass(frozen=True)
class Kind:
    """
    What a folder of one kind holds.

    Args:
        config: the JSON file that says what the folder is; "" for a folder without one.
        is_ours: whether the content of that file is what this package writes.
        files: a pattern of the names of further files.
        marked: files that a user may have as well, and the words that ours contain.
        folders: the kinds of the folders in it.
    """

    config: str = ""
    is_ours: Callable[[dict[str, Any]], bool] = lambda content: True
    files: str = ""
    marked: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, "Kind"] = field(default_factory=dict)

    def recognizes(self, folder: Path) -> bool:
        """Whether a folder is of this kind."""
        return not self.config or self.is_ours(json_object(folder / self.config))

    def foreign_entries(self, folder: Path) -> Iterator[str]:
        """The entries of a folder of this kind, relative to it, that this package does not write; first by name."""
        for path in sorted(folder.iterdir()):
            kind = self.folders.get(path.name)
            if kind is not None and path.is_dir() and not path.is_symlink():
                if kind.recognizes(path):
                    yield from (f"{path.name}/{name}" for name in kind.foreign_entries(path))
                else:
                    yield path.name
            elif not self.writes(path):
                yield path.name

    def writes(self, path: Path) -> bool:
        """Whether a file in a folder of this kind is one of ours. Links are not: this package writes none."""
        if path.is_symlink() or not path.is_file():
            return False
        if mark := self.marked.get(path.name):
            with open(path, "rb") as file:
                return mark.encode() in file.read(LONGEST_MARK)
        return path.name == self.config or re.fullmatch(self.files, path.name) is not None


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, RecursionError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def names_pipeline(index: dict[str, Any]) -> bool:
    """Whether a `model_index.json` names a pipeline of this package, alone or with the module that the folder brings."""
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    return isinstance(name, str) and name.endswith("Pipeline") and name in pipelines.__all__


def names_model(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is one of a model of this package."""
    return isinstance(config.get("model_type"), str) and config["model_type"] in LOADERS


def code(place: str) -> dict[str, str]:
    """The files of code in a folder of a pipeline that brings its code, and how they start."""
    return {f"{name}.py": HEADER for name in FOLDERS[place]}


MODEL = Kind("config.json", names_model, MODEL_FILES, CARD | code("model"))
ORIGINAL = Kind("config.json", lambda config: config.get("_class_name") in ("Showo", "MAGVITv2"), WEIGHTS)
#: By the file that must be there.
KINDS = {
    "model_index.json": Kind(
        "model_index.json",
        names_pipeline,
        r"\.gitattributes",
        CARD | code("."),
        {
            "model": MODEL,
            "image_decoder": MODEL,
            "processor": Kind(files=PROCESSOR_FILES, marked=code("processor")),
            "scheduler": Kind(files=r"scheduler_config\.json", marked=code("scheduler")),
        },
    ),
    "config.json": MODEL,
    "onnx_config.json": Kind(
        "onnx_config.json",
        lambda config: config.get("format") == "showo-onnx",
        rf"{GRAPHS}|{PROCESSOR_FILES}",
        SCRIPT,
    ),
    "showo/config.json": Kind(folders={"showo": ORIGINAL, "magvitv2": ORIGINAL}),
}


def kind_of(folder: Path) -> Kind | None:
    """The kind of a folder that this package wrote; None for any other folder."""
    for name, kind in KINDS.items():
        if (folder / name).is_file():
            inner = kind.folders.get(Path(name).parent.name, kind)
            return kind if inner.recognizes((folder / name).parent) else None
    return None


def places_of(source: Path) -> Iterator[Path]:
    """
    The files and folders that a source has, is in, or links to, also below linked folders.

    Beside a file of weights, the files that a conversion reads in its folder belong to it.
    """
    yield source
    if not source.is_dir():
        yield from (source.parent / name for name in ("config.json", "preprocessor_config.json"))
        return
    seen = set()
    for parent, folders, files in os.walk(source, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(place)
        yield from (Path(parent, name) for name in [*folders, *files])
