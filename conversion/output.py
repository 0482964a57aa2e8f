"""Writing a converted model: the check of the output folder, the weights and the config."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from showo_hf.utils.atomic_folder import check_target

from .errors import ConversionError, examples
from .plan import ConversionPlan
from .shards import write_shards


# A folder with one of these files contains a model.
MODEL_FILES = ("model_index.json", "config.json", "showo/config.json", "onnx_config.json")
#: The folders and files that conversions, exports and `save_pretrained` write.
FOLDERS = ("model", "processor", "scheduler", "showo", "magvitv2", "image_tokenizer", "image_decoder")
STEMS = "model|pytorch_model|diffusion_pytorch_model"
JSON_FILES = (
    *("model_index", "config", "generation_config", "onnx_config", "processor_config", "preprocessor_config"),
    *("video_preprocessor_config", "scheduler_config", "tokenizer", "tokenizer_config", "special_tokens_map"),
    *("added_tokens", "vocab", "chat_template", "adapter_config"),
)
FILES = re.compile(
    rf"(?:{STEMS})(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index\.json)?|(?:{'|'.join(JSON_FILES)})\.json"
    r"|merges\.txt|chat_template\.jinja|README\.md|\.gitattributes|\w+\.onnx(?:[._]data)?|generate\.py"
    r"|(?:modeling|configuration|processing|scheduling)_\w+\.py|pipeline\.py"
)


def check_output(output: str | Path, overwrite: bool, sources: list[Path]):
    """
    Check that writing `output` destroys nothing but a model.

    Raises:
        FileExistsError: if it exists and `overwrite` is False.
        ConversionError: if it contains a source, a file that a source links to, or the current folder; or if it exists
            and contains no model, or something that this package does not write.
    """
    check_target(output, overwrite)
    folder = Path(output).resolve()
    for path in [*sources, *(file for source in sources for file in source.rglob("*")), Path.cwd()]:
        if path.resolve().is_relative_to(folder):
            raise ConversionError(f"`--output` must be a separate folder, but '{output}' contains '{path}'")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in MODEL_FILES):
        raise ConversionError(
            f"`--overwrite` only replaces models, and '{output}' contains none of {', '.join(MODEL_FILES)}; delete it first"
        )
    foreign = sorted(foreign_entries(folder)) if folder.is_dir() else []
    if foreign:
        raise ConversionError(
            f"`--overwrite` deletes '{output}', which also contains what this package does not write: {examples(foreign)}; "
            "move it elsewhere first"
        )


def foreign_entries(folder: Path) -> Iterator[str]:
    """The entries of a folder, relative to it, that no conversion, no export and no `save_pretrained` writes."""
    for parent, folders, files in os.walk(folder):
        place = Path(parent)
        links = [name for name in folders if (place / name).is_symlink()]
        strange = [name for name in folders if name not in FOLDERS or name in links]
        folders[:] = [name for name in folders if name not in strange]
        for name in [*strange, *(name for name in files if not FILES.fullmatch(name))]:
            yield str((place / name).relative_to(folder))


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
