"""Writing a converted model: the check of the output folder, the weights and the config."""

import functools
from pathlib import Path

import torch
from transformers import PreTrainedModel

from showo_hf.utils.atomic_folder import check_target

from .errors import ConversionError
from .plan import ConversionPlan
from .shards import write_shards


# A folder with one of these files contains a model.
MODEL_FILES = ("model_index.json", "config.json", "showo/config.json", "onnx_config.json")


def check_output(output: str | Path, overwrite: bool, sources: list[Path]):
    """
    Check that writing `output` destroys nothing but a model.

    Raises:
        FileExistsError: if it exists and `overwrite` is False.
        ConversionError: if it contains a source or the current folder, or if it exists and contains no model.
    """
    check_target(output, overwrite)
    folder = Path(output).resolve()
    for path in [*sources, Path.cwd()]:
        if path.resolve().is_relative_to(folder):
            raise ConversionError(f"`--output` must be a separate folder, but '{output}' contains '{path}'")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in MODEL_FILES):
        raise ConversionError(
            f"`--overwrite` only replaces models, and '{output}' contains none of {', '.join(MODEL_FILES)}; delete it first"
        )


def write_model(
    folder: Path,
    model: PreTrainedModel,
    plan: ConversionPlan,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """
    Write the weights shard by shard, and the config; `model` is on the meta device.

    Raises:
        ConversionError: if weights contain NaN or Inf.
    """
    layout = plan.layout(dtype)
    write_shards(folder, layout, lambda name: plan.read(name, dtype), max_shard_size)
    plan.check_finite()
    model.config.architectures = [type(model).__name__]
    # The dtype that `from_pretrained` uses by default: the one that loses nothing.
    model.config.dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in layout.values()))
    model.config.save_pretrained(folder)
