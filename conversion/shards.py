"""Writing weights as .safetensors shards, with one shard in memory at a time."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_shards(
    folder: Path,
    layout: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    max_shard_size: int | str = "5GB",
    stem: str = "model",
) -> list[str]:
    """
    Write `stem`.safetensors, or shards of at most `max_shard_size` with their index.

    Args:
        layout: a meta tensor for each name. The sizes decide which tensors share a shard.
        read: name to tensor. Called once for each name, and the tensors of one shard are held at a time.

    Returns:
        The names of the files.

    Raises:
        OSError: if a file cannot be written, for example to a full disk.
    """
    split = split_torch_state_dict_into_shards(
        dict(layout), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file_name, names in split.filename_to_tensors.items():
        save_shard(folder / file_name, {name: read(name).contiguous() for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return list(split.filename_to_tensors)


def save_shard(path: Path, tensors: dict[str, torch.Tensor]):
    """Write one file. safetensors' own error for a failed write becomes an `OSError` with its number."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
