"""Writing a converted model: what may be replaced, the weights, and the config beside them."""

import functools
from pathlib import Path

import torch
from transformers import PreTrainedModel

from showo_hf.utils.atomic_folder import check_target

from .errors import ConversionError
from .plan import ConversionPlan
from .shards import write_shards


# A folder that holds one of these was written by this package, or by a conversion.
MODEL_FILES = ("model_index.json", "config.json", "showo/config.json", "onnx_config.json")


def check_output(output: str | Path, overwrite: bool, sources: list[Path]):
    """
    Make sure that writing `output` destroys nothing that was not meant.

    Raises:
        FileExistsError: if it exists and `overwrite` is False.
        ConversionError: if a source, or the current folder, lies in it; or if it holds something else than a model.
    """
    check_target(output, overwrite)
    folder = Path(output).resolve()
    for path in [*sources, Path.cwd()]:
        if path.resolve().is_relative_to(folder):
            raise ConversionError(f"`--output` must be a folder of its own, but '{path}' lies in '{output}'")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in MODEL_FILES):
        raise ConversionError(
            f"`--overwrite` replaces models alone, and '{output}' holds none of {', '.join(MODEL_FILES)}; delete it first"
        )


def write_model(
    folder: Path,
    model: PreTrainedModel,
    plan: ConversionPlan,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """
    Write the weights by streaming, and the config; `model` is on the meta device.

    Raises:
        ConversionError: if weights hold NaN or Inf.
    """
    layout = plan.layout(dtype)
    write_shards(folder, layout, lambda name: plan.read(name, dtype), max_shard_size)
    plan.check_finite()
    model.config.architectures = [type(model).__name__]
    # What is loaded where the user names no dtype: the one that loses nothing.
    model.config.dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in layout.values()))
    model.config.save_pretrained(folder)
