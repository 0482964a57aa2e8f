"""Writing .safetensors one tensor at a time, so that a checkpoint of any size passes through little memory."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory


# Names of dtypes in the format, https://github.com/huggingface/safetensors#format.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK = 2**24  # bytes written in one go
ALIGNMENT = 8  # bytes; the header is filled up to it


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], torch.Tensor]):
    """
    Write one file.

    Args:
        specs: what is written; the header is made from it before any tensor is read.
        read: name to tensor, of just that shape and dtype. Called once for each, in the file's order.
    """
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # so that every tensor is aligned
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        spec = specs[name]
        start, end = end, end + spec.num_bytes
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    buffer = np.empty(CHUNK, dtype=np.uint8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            tensor = read(name).contiguous()
            if tuple(tensor.shape) != specs[name].shape or tensor.dtype != specs[name].dtype:
                raise ValueError(f"`{name}` must be {specs[name]}, got {tuple(tensor.shape)}, {tensor.dtype}")
            for chunk in tensor.reshape(-1).view(torch.uint8).split(CHUNK) if tensor.numel() else ():
                # Through a buffer: writing straight from the pages of a mapped file is seven times slower on Linux.
                buffer[: chunk.numel()] = chunk.numpy()
                file.write(buffer[: chunk.numel()].data)


def write_shards(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    max_shard_size: int | str = "5GB",
    stem: str = "model",
) -> list[str]:
    """
    Write `stem`.safetensors, or shards of at most `max_shard_size` with their index. Returns the files' names.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.num_bytes,
        get_storage_id=lambda spec: None,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file_name, names in split.filename_to_tensors.items():
        write_safetensors(folder / file_name, {name: specs[name] for name in names}, read)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return list(split.filename_to_tensors)
