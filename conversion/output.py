"""Writing a converted model: the check of the output folder, the weights and the config."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from showo_hf.utils.atomic_folder import atomic_folder, check_target
from showo_hf.utils.messages import examples

from .errors import ConversionError
from .own_folders import KINDS, kind_of, places_of
from .plan import ConversionPlan
from .shards import write_shards


def check_output(output: str | Path, overwrite: bool, sources: Iterable[Path]):
    """
    Check that writing `output` destroys nothing but what this package wrote.

    Raises:
        FileExistsError: if it exists and `overwrite` is False.
        ConversionError: if it contains a source, a file that a source links to, or the current folder; or if it exists
            and is no model of this package, or contains something that this package does not write.
    """
    check_target(output, overwrite)
    folder = Path(output).resolve()
    if not folder.is_dir():
        return
    for path in [*(path for source in sources for path in places_of(source)), Path.cwd()]:
        if path.resolve().is_relative_to(folder):
            raise ConversionError(f"`--output` must be a separate folder, but '{output}' contains '{path}'")
    if not any(folder.iterdir()):
        return
    kind = kind_of(folder)
    if kind is None:
        raise ConversionError(
            f"`--overwrite` only replaces models that showo-hf wrote, and '{output}' is none: it needs one of "
            f"{', '.join(KINDS)} that says so; move it elsewhere first"
        )
    if foreign := list(kind.foreign_entries(folder)):
        raise ConversionError(
            f"`--overwrite` deletes '{output}', which also contains what this package does not write: {examples(foreign)}; "
            "move it elsewhere first"
        )


@contextlib.contextmanager
def output_folder(output: str | Path, overwrite: bool, sources: Iterable[Path]) -> Iterator[Path]:
    """
    An [`atomic_folder`] that takes the place of `output` only if [`check_output`] passes then too.

    A conversion takes long: somebody may have put a file into the old folder meanwhile.
    """
    with atomic_folder(output, overwrite, lambda: check_output(output, overwrite, sources)) as folder:
        yield folder


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
