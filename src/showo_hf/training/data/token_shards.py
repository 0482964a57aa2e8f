"""
Image tokens that are computed once and stored in checked shards.

A folder holds `image_tokens.json`, the index, and for each shard

- `shard-00000.safetensors` with `image_tokens`, uint16 or int32 of shape (images, h, w),
- `shard-00000.jsonl` with a row for each sample: `key`, and `text` with `image`, or `messages`. An image is the number of
  its first grid in the shard.

The index has the SHA-256 of all of these files, of the image tokenizer, and the preprocessing of the images.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from ...utils.atomic_folder import sync
from ...utils.validation import is_integer
from .json_table import JsonTable


INDEX = "image_tokens.json"
FORMAT = 1
OPEN_SHARDS = 64  # shards that a reader keeps open


def image_tokenizer_checksum(model: torch.nn.Module) -> str:
    """
    The SHA-256 of an image tokenizer's weights: names, shapes and values in float32, so that a copy in another dtype is
    another tokenizer, as it gives other tokens.

    Args:
        model: a [`ShowoForCausalLM`] with an image tokenizer, or the image tokenizer.

    Raises:
        ValueError: if the model has no image tokenizer.
    """
    if hasattr(model, "image_tokenizer"):
        model = model.image_tokenizer
        if model is None:
            raise ValueError("`model` must have an image tokenizer, got a model whose `image_tokenizer` is None.")
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(weight.shape)}".encode())
        found.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class StoredTokens:
    """
    Random access to a folder of stored tokens, memory-mapped.

    The index, the size of each file and the image tokenizer are checked when the folder is opened. The checksum of a
    shard is checked when its first row is read, in each process; [`StoredTokens.check_all`] checks all shards.

    A row has `key`, and either `text` and `image_tokens`, or `messages` whose images are tokens. Tokens are int64
    (variants, h, w): the image, and what `showo-hf tokenize --flip` stored beside it.

    Args:
        folder: what `showo-hf tokenize` wrote.
        tokenizer_checksum: [`image_tokenizer_checksum`] of the model that will see the tokens. None skips the comparison.

    Raises:
        ValueError: if the folder is not complete, a file is missing or has another size, or the tokens are of another image
            tokenizer. While reading: if a shard is damaged. The shard is named.
    """

    def __init__(self, folder: str | Path, tokenizer_checksum: str | None = None):
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        if "shards" not in self.index:
            raise ValueError(f"`{self.folder}` is not complete. Run the `showo-hf tokenize` that wrote it again.")
        check_index(self.folder / INDEX, self.index)
        if tokenizer_checksum is not None and tokenizer_checksum != self.index["image_tokenizer"]:
            raise ValueError(
                f"`{self.folder}` holds tokens of another image tokenizer than the model's "
                f"({self.index['image_tokenizer'][:12]}, not {tokenizer_checksum[:12]}). Run `showo-hf tokenize` with "
                "this model."
            )
        self.shards = self.index["shards"]
        for shard in self.shards:
            for name, expected in shard["files"].items():
                file = self.folder / name
                if not file.is_file() or file.stat().st_size != expected["bytes"]:
                    raise damaged(file, "it is missing or not of the size that the index has")
        self.ends = np.cumsum([shard["rows"] for shard in self.shards])
        if not self.shards or not self.ends[-1]:
            raise ValueError(f"`{self.folder}` has no rows.")
        self.opened: OrderedDict[int, tuple[Any, JsonTable]] = OrderedDict()
        self.checked: set[int] = set()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the grids."""
        height, width = self.index["grid"]
        return height, width

    @property
    def columns(self) -> list[str]:
        return ["key", *self.index["columns"]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": OrderedDict()}  # open files are not sent to workers

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be from 0 to {len(self) - 1}, got {index}.")
        number = int(np.searchsorted(self.ends, index, side="right"))
        tensors, rows = self.open_shard(number)
        row = rows[index - (int(self.ends[number - 1]) if number else 0)]
        if "messages" in row:
            for part in image_parts(row["messages"]):
                part["image"] = self.grids(tensors, part["image"])
        elif "image" in row:
            row["image_tokens"] = self.grids(tensors, row.pop("image"))
        return row

    def grids(self, tensors: Any, first: int) -> torch.LongTensor:
        """The grids of an image, int64 (variants, h, w)."""
        if not is_integer(first) or first < 0:
            raise damaged(self.folder, f"{first!r:.80} is no number of an image")
        found = tensors.get_slice("image_tokens")[first : first + self.index["variants"]].to(torch.int64)
        if tuple(found.shape) != (self.index["variants"], *self.grid_size):
            raise damaged(self.folder, f"image {first} is of shape {tuple(found.shape)}")
        return found

    def open_shard(self, number: int) -> tuple[Any, JsonTable]:
        """The tensors and rows of a shard, checked if this is the first time."""
        if number in self.opened:
            self.opened.move_to_end(number)
            return self.opened[number]
        if number not in self.checked:
            self.check_shard(number)
        tensors, rows = (
            self.folder / f"{self.shards[number]['name']}{suffix}" for suffix in (".safetensors", ".jsonl")
        )
        table = JsonTable(rows)
        if len(table) != self.shards[number]["rows"]:
            raise damaged(rows, f"it has {len(table)} rows instead of {self.shards[number]['rows']}")
        self.opened[number] = (safe_open(tensors, framework="pt"), table)
        if len(self.opened) > OPEN_SHARDS:
            self.opened.popitem(last=False)
        return self.opened[number]

    def check_shard(self, number: int) -> None:
        """Raise `ValueError` unless the files of a shard have the checksums of the index."""
        for name, expected in self.shards[number]["files"].items():
            if file_checksum(self.folder / name) != expected["sha256"]:
                raise damaged(self.folder / name, "its checksum differs from the index")
        self.checked.add(number)

    def check_all(self) -> None:
        """Check all shards. Raises as [`StoredTokens.check_shard`]."""
        for number in range(len(self.shards)):
            self.check_shard(number)


def damaged(file: Path, reason: str) -> ValueError:
    return ValueError(f"`{file}` is damaged: {reason}. Run the `showo-hf tokenize` that wrote it again.")


def image_parts(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The image parts of messages."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return [part for content in contents for part in content if part["type"] == "image"]


def file_checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of stored tokens. `ValueError` if it is not one."""
    file = folder / INDEX
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"`{file}` must be the index of a folder of stored tokens: {error}") from error
    body = {name: value for name, value in index.items() if name != "sha256"} if isinstance(index, dict) else {}
    if body.get("format") != FORMAT:
        raise ValueError(f"`{file}` must have format {FORMAT}, got {body.get('format')!r}.")
    if index.get("sha256") != checksum_of(body):
        raise damaged(file, "its content does not fit its own checksum")
    return body


def check_index(file: Path, index: dict[str, Any]) -> None:
    """
    Raise `ValueError` unless a complete index has the form of those that are written here.

    Checksums find accidents. An index of someone else, with a sum that fits, must not name files of other folders.
    """
    grid, shards = index.get("grid"), index.get("shards")
    good = isinstance(grid, list) and len(grid) == 2 and isinstance(shards, list)
    good = good and all(is_integer(one) and one > 0 for one in [*grid, index.get("variants")])
    good = good and isinstance(index.get("image_tokenizer"), str)
    good = good and index.get("columns") in (["messages"], ["text", "image_tokens"])
    if not good or not all(isinstance(shard, dict) and is_shard(shard) for shard in shards):
        raise damaged(file, "it has not the form of an index")


def is_shard(shard: dict[str, Any]) -> bool:
    """Whether the record of a shard has the form of those that are written here."""
    name, files = str(shard.get("name")), shard.get("files")
    return (
        re.fullmatch(r"shard-\d+", name) is not None
        and is_integer(shard.get("rows"))
        and shard["rows"] >= 0
        and isinstance(files, dict)
        and set(files) == {f"{name}.safetensors", f"{name}.jsonl"}
        and all(isinstance(one, dict) and {"bytes", "sha256"} <= set(one) for one in files.values())
    )


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write the index with its own checksum, atomically."""
    content = json.dumps(index | {"sha256": checksum_of(index)}, indent=1)
    write_file(folder / INDEX, content.encode())


def checksum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_file(file: Path, content: bytes) -> None:
    """Write a file atomically, and sync it to disk."""
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def delete_leftovers(folder: Path) -> None:
    """Delete the files that killed processes left half written. The folder must be locked."""
    leftover = re.compile(rf"\.(shard-\d+\.(safetensors|jsonl|json)|{re.escape(INDEX)})-\d+")
    for file in list(folder.iterdir()):
        if leftover.fullmatch(file.name):
            file.unlink(missing_ok=True)


def shard_record(folder: Path, name: str, options: str) -> dict[str, Any] | None:
    """The record of a shard that is complete, undamaged and of these `options` (a checksum), or None."""
    try:
        record = json.loads((folder / f"{name}.json").read_bytes())
        whole = all(file_checksum(folder / file) == one["sha256"] for file, one in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and record.get("options") == options else None


def write_shard(
    folder: Path,
    name: str,
    index: dict[str, Any],
    grids: list[torch.Tensor],
    rows: list[dict[str, Any]],
    broken: dict[str, str],
) -> dict[str, Any]:
    """
    Write a shard: its tensors and rows, then its record. A shard without a record is not complete.

    Args:
        folder: the folder of stored tokens.
        name: name of the shard.
        index: the index of the folder, without shards.
        grids: the image tokens, each (h, w).
        rows: the rows. Their images are indices into `grids`.
        broken: what could not be read, with the reasons.

    Returns:
        the record: number of rows, files with their sizes and checksums, and `broken`.
    """
    tokens = torch.stack(grids) if grids else torch.zeros(0, *index["grid"], dtype=torch.int64)
    tensors = save({"image_tokens": tokens.to(getattr(torch, index["dtype"]))})
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {}
    for suffix, content in ((".safetensors", tensors), (".jsonl", lines)):
        write_file(folder / f"{name}{suffix}", content)
        files[f"{name}{suffix}"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = {"name": name, "rows": len(rows), "files": files, "broken": broken, "options": checksum_of(index)}
    write_file(folder / f"{name}.json", json.dumps(record).encode())
    return record
