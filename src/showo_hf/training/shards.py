"""
Tensors that are spread over processes, in memory and in files.

In memory they are `DTensor`s. In a checkpoint each process writes the parts that it holds to a safetensors file of its
own, with their places in the whole tensors. Any number of processes can read them.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor


def is_sharded(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether any of the tensors is spread over processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, in the same memory and without a gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parts of parameters that this process holds, in the same memory."""
    return [
        nn.Parameter(local(one), requires_grad=one.requires_grad) if isinstance(one, DTensor) else one
        for one in parameters
    ]


def local_part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole or spread tensor that belongs to this process's part of `like`, which has the same shape."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return local(value)
    chunk = create_default_local_save_plan({"": like}, False).items[0].tensor_data.chunk
    return value[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))]


def spread_like(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor that is spread as `like` and of which this process holds `part`."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def write_shards(folder: Path, groups: Mapping[str, Mapping[str, torch.Tensor]]):
    """
    Write groups of tensors, each process its own parts. All processes call it.

    Raises:
        OSError: on all processes, if one of them cannot write.
    """
    state = {
        f"{group}/{name}": tensor.detach() for group, tensors in groups.items() for name, tensor in tensors.items()
    }
    try:
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        known = [cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None]
        if known:
            raise OSError(known[0].errno, known[0].strerror, str(folder)) from error
        raise RuntimeError(f"'{folder}' could not be written: {causes[0]}") from error


def has_shards(folder: Path) -> bool:
    """Whether a folder holds what [`write_shards`] wrote."""
    return any(folder.glob("shard-*.safetensors"))


def read_shards(folder: Path, group: str, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A group of tensors by name. Each process reads only its own parts.

    Args:
        like: tensors of the same shapes that say how to spread those of the same name, or those of names
            `name/entry`. All others are whole.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    state: dict[str, torch.Tensor] = {}
    for key, found in reader.read_metadata().state_dict_metadata.items():
        name = key.removeprefix(f"{group}/")
        if name == key:
            continue
        shape, dtype = tuple(found.size), found.properties.dtype
        own = like.get(name, like.get(name.rpartition("/")[0]))
        if isinstance(own, DTensor) and tuple(own.shape) == shape:
            state[key] = spread_like(torch.empty_like(local(own), dtype=dtype), own)
        else:
            state[key] = torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each process reads for itself
        dcp.load(state, storage_reader=reader, no_dist=True)
    return {key.removeprefix(f"{group}/"): tensor for key, tensor in state.items()}
