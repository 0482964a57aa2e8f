"""Read a checkpoint of any format, one tensor at a time, without running any code in it."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from showo_hf.utils.argument_types import quoted
from showo_hf.utils.messages import examples, printable
from showo_hf.utils.weight_files import PICKLES, SAFETENSORS

from .errors import ConversionError
from .pickles import PickleFile


STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
SUBFOLDERS = ("", "unwrapped_model")  # the second is where the original's training saves its weights
PART = re.compile(r"(.+)-(\d{1,18})-of-(\d{1,18})(\.\w+)")
DDP_PREFIX = "module."

# The names of dtypes in the format, see https://github.com/huggingface/safetensors#format.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """One .safetensors file. Tensors stay on disk until they are read."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = safe_open(path, framework="pt")
            self.names = list(self.file.keys())
        except SafetensorError as error:
            raise ConversionError(
                f"'{printable(path.name)}' is not a complete .safetensors file: {printable(error)}"
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        found = self.file.get_slice(name).get_dtype()
        if found not in DTYPES:
            raise ConversionError(
                f"`{printable(name)}` in '{printable(self.path.name)}' has dtype {found}, which is not supported"
            )
        return DTYPES[found]

    def tensor(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(name)


WeightsFile = SafetensorsFile | PickleFile


class Checkpoint:
    """
    The tensors of a checkpoint by name, read from the files on demand.

    Args:
        path: a folder written by the original's `save_pretrained` or training, or one file of weights.

    Attributes:
        folder (`Path`): the folder that contains the files.
        config (`dict`): the content of `config.json`; empty without one.

    Raises:
        ConversionError: if there are no weights, a file is damaged or unsafe, or an index does not match its files.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if path.is_file():
            self.folder, self.files = path.parent, [open_weights(path)]
        elif path.is_dir():
            self.folder, self.files = find_weights(path)
        else:
            raise ConversionError(f"there is no file or folder {quoted(path, 200)}")
        self.config = read_config(path if path.is_dir() else path.parent, self.folder)
        self.locations: dict[str, tuple[WeightsFile, str]] = {}
        twice = []
        for file in self.files:
            for name in file.names:
                ours = name.removeprefix(DDP_PREFIX)
                if ours in self.locations:
                    twice.append(ours)
                self.locations[ours] = (file, name)
        if twice:
            raise ConversionError(f"several files hold the same tensors: {examples(sorted(twice))}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)

    def __contains__(self, name: object) -> bool:
        return name in self.locations

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        file, key = self.locations[name]
        return file.shape(key)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        file, key = self.locations[name]
        return file.dtype(key)

    def meta(self, name: str) -> torch.Tensor:
        """A meta tensor with the shape and dtype of a tensor, without reading it."""
        return torch.empty(self.shape(name), dtype=self.dtype(name), device="meta")

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in the mapped file. It takes no memory of its own; the system reads its pages on use."""
        file, key = self.locations[name]
        return file.tensor(key)


def open_weights(path: Path) -> WeightsFile:
    """Open a file of weights. Its suffix names the format."""
    if path.suffix in SAFETENSORS:
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path)
    raise ConversionError(
        f"'{printable(path.name)}' must end in one of {', '.join(SAFETENSORS + PICKLES)}, which names the format"
    )


def read_config(*folders: Path) -> dict:
    """`config.json` of the first folder that has one."""
    for folder in folders:
        file = folder / "config.json"
        if file.is_file():
            return read_json_object(file)
    return {}


def read_json_object(file: Path) -> dict:
    """A file's JSON object; `ConversionError` for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"'{file.name}' is not JSON: {printable(error)}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"'{file.name}' must hold a JSON object, got a {type(content).__name__}")
    return content


def find_weights(folder: Path) -> tuple[Path, list[WeightsFile]]:
    """The folder with the weights, `folder` or a subfolder, and the open files. Safetensors files are preferred."""
    for parent in [folder / name for name in SUBFOLDERS]:
        for ending in (*SAFETENSORS, *PICKLES):
            for stem in STEMS:
                if (index := parent / f"{stem}{ending}.index.json").is_file():
                    return parent, indexed_files(index)
                if (single := parent / f"{stem}{ending}").is_file():
                    return parent, [open_weights(single)]
                if parts := parts_without_index(parent, stem, ending):
                    return parent, [open_weights(part) for part in parts]
    names = sorted(path.name for path in folder.iterdir())[:10]
    raise ConversionError(
        f"{quoted(folder, 200)} holds no weights: none of {', '.join(STEMS)} with {', '.join(SAFETENSORS + PICKLES)}, whole "
        f"or in parts; it holds {examples(names, 10) or 'nothing'}"
    )


def indexed_files(index: Path) -> list[WeightsFile]:
    """The open files of an index. They must be in its folder, and hold exactly the tensors that the index names."""
    mapping = read_json_object(index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()) or not mapping:
        raise ConversionError(f"'{index.name}' must have a `weight_map` from tensors to file names")
    names = sorted(set(mapping.values()))
    outside = [name for name in names if not is_plain_file_name(name)]
    if outside:
        raise ConversionError(f"'{index.name}' names files outside the checkpoint's folder: {examples(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"'{index.name}' names files that do not exist: {examples(missing)}")
    files = [open_weights(index.parent / name) for name in names]
    for name, file in zip(names, files, strict=True):
        expected = {tensor for tensor, file_name in mapping.items() if file_name == name}
        found = set(file.names)
        if expected != found:
            lost, extra = (examples(map(repr, sorted(names))) for names in (expected - found, found - expected))
            raise ConversionError(
                f"'{index.name}' does not match '{printable(name)}': missing in the file [{lost}], "
                f"missing in the index [{extra}]"
            )
    return files


def is_plain_file_name(name: str) -> bool:
    """Whether a name is a plain file name, without a path, a drive or a parent folder."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\:\0]", name)


def parts_without_index(folder: Path, stem: str, ending: str) -> list[Path]:
    """The files `stem-00001-of-00003` and so on; `ConversionError` if some of them are missing."""
    found: dict[int, set[int]] = {}
    names: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(f"{stem}-*-of-*{ending}")):
        if (match := PART.fullmatch(path.name)) and match[1] == stem:
            number, count = int(match[2]), int(match[3])
            found.setdefault(count, set()).add(number)
            names[count, number] = path
    if not found:
        return []
    if len(found) > 1:
        raise ConversionError(
            f"'{printable(folder.name)}' holds parts of several checkpoints: of {sorted(found)} parts"
        )
    ((count, numbers),) = found.items()
    first = 0 if 0 in numbers else 1  # some checkpoints count from 0, others from 1
    expected = range(first, first + count)
    if len(numbers) != count or not all(number in expected for number in numbers):
        missing = list(itertools.islice((number for number in expected if number not in numbers), 10))
        raise ConversionError(f"of {count} parts of '{stem}{ending}' these are missing: {missing}")
    return [names[count, number] for number in sorted(numbers)]
