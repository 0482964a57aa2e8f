"""`showo-hf export`: write a model in the original's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from showo_hf.conversion.command_line import WEIGHT_FORMATS, add_output_arguments, run_conversion, torch_dtype

from ..utils.argument_types import quoted, user_name
from .errors import UsageError
from .files import check_new_folder
from .hub_names import check_repository
from .model_loading import load_package, say_loading
from .saved_model import read_json
from .texts import exists


EXAMPLES = """\
examples:
  showo-hf export show-o --output original
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "export",
        help="a pipeline folder back to the original's format",
        description="Write a model of this package in the format of the original code.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=user_name, help="a pipeline folder, or the model/ in it")
    parser.add_argument(
        "--format", choices=WEIGHT_FORMATS, default="safetensors", help="bin is the format of torch.save"
    )
    add_output_arguments(parser, max_shard_size="100GB")  # the original reads one file
    parser.set_defaults(max_shard_size=None)  # so that a size that is given is known
    return parser


def run(options: argparse.Namespace) -> int:
    """Export. The folder's name goes to stdout, the report to stderr."""
    check_folder_of_model(Path(options.folder))
    check_shards(options)
    check_output_options(options)
    say_loading("the conversion", options.quiet)
    load_package()
    from showo_hf.conversion.export_showo import export_showo

    def export() -> str:
        return export_showo(
            options.folder,
            options.output,
            dtype=torch_dtype(options.dtype),
            max_shard_size=options.max_shard_size,
            overwrite=options.overwrite,
            file_format=options.format,
        )

    return run_conversion(export, options.output, options.push_to_hub, options.private, options.quiet)


def check_folder_of_model(folder: Path) -> None:
    """Raise `UsageError` for a folder without a config of a Show-o. Whether the original knows it comes later."""
    if not exists(folder):
        raise UsageError(f"`FOLDER` must be a pipeline folder, but there is no folder {quoted(folder)}")
    model = folder / "model" if (folder / "model").is_dir() else folder
    if read_json(model / "config.json").get("model_type") != "showo":
        raise UsageError(
            f"`FOLDER` must be a pipeline folder, or the model/ in it, but {quoted(model)} has no config.json of a Show-o"
        )


def check_shards(options: argparse.Namespace) -> None:
    """Raise `UsageError` for a size of shards where the format has none."""
    if options.format == "bin" and options.max_shard_size is not None:
        raise UsageError(
            "`--max-shard-size` needs `--format safetensors`: a file of torch.save is never split, got "
            f"{options.max_shard_size} with `--format bin`"
        )


def check_output_options(options: argparse.Namespace) -> None:
    """Raise `UsageError` for an output that cannot be written, and for a wrong name of a repository."""
    check_new_folder("--output", Path(options.output), options.overwrite)
    if options.push_to_hub is not None:
        check_repository("--push-to-hub", options.push_to_hub)
