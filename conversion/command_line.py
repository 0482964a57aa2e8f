"""The options that the conversion commands share, and how these commands end. Imports no torch."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from showo_hf.utils.argument_types import DTYPES, shard_size, user_path
from showo_hf.utils.messages import for_stdout, one_sentence
from showo_hf.utils.progress_bars import hide_progress_bars

from .errors import ConversionError, UploadError


WEIGHT_FORMATS = ("safetensors", "bin")  # of an export
SOURCE: dict[str, Any] = {"required": True, "metavar": "PATH_OR_HUB_ID"}


def add_image_tokenizer_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--image-tokenizer",
        **SOURCE,
        help="the image tokenizer: showlab/magvitv2, a VQModel of diffusers, or a VQGAN of taming-transformers",
    )


def add_verify_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--verify", action="store_true", help="run the converted model and compare it with the source's weights"
    )


def add_output_arguments(parser: argparse.ArgumentParser, max_shard_size: str = "5GB"):
    """Add the options of every command that writes weights."""
    add = parser.add_argument
    add(
        "-o",
        "--output",
        required=True,
        type=lambda text: str(user_path(text)),
        metavar="FOLDER",
        help="output folder, written atomically",
    )
    add("--dtype", choices=DTYPES, help="dtype of the saved weights (default: the dtype of the source)")
    add(
        "--max-shard-size",
        default=max_shard_size,
        type=shard_size,
        metavar="SIZE",
        help=f"size of the largest file, for example 2GB (default: {max_shard_size})",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--push-to-hub", metavar="ORG/NAME", help="upload the finished folder to this repository")
    add("--private", action="store_true", help="make that repository private, if it is new")
    add("-q", "--quiet", action="store_true", help="no report")


def torch_dtype(name: str | None):
    """The `torch.dtype` that `--dtype` names; None for None."""
    import torch

    return getattr(torch, name) if name is not None else None


def run_conversion(
    convert: Callable[[], str], output: str, push_to_hub: str | None = None, private: bool = False, quiet: bool = False
) -> int:
    """
    Run a conversion, and upload its folder if `push_to_hub` names a repository.

    The report goes to stderr and the folder's name to stdout.

    Args:
        convert: writes `output` and returns the report.
        output: the folder that `convert` writes.
        quiet: print no report, and show no progress bars. They are shown on terminals only.

    Returns:
        The exit code 0.

    Raises:
        HFValidationError: if `push_to_hub` is not a valid name.
        UploadError: if the upload fails.
        ConversionError, OSError: the errors of `convert`.
    """
    from huggingface_hub.utils import validate_repo_id

    if push_to_hub:
        validate_repo_id(push_to_hub)
    if quiet or not sys.stderr.isatty():
        hide_progress_bars()
    report = convert()
    if not quiet:
        print(report, file=sys.stderr)
    print(for_stdout(output))
    if push_to_hub:
        try:
            repo_id = push(output, push_to_hub, private)
        except Exception as error:  # networks and repositories fail in many ways
            raise UploadError(f"'{output}' is complete, but the upload failed: {error}") from error
        print(f"uploaded to {repo_id}", file=sys.stderr)
    return 0


def report_errors(run: Callable[[], int]) -> int:
    """
    Run a conversion that is a program of its own, not a command of `showo-hf`.

    Returns:
        The exit code of `run`; 1 after an expected error, which is one line on stderr.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        return run()
    except (ConversionError, UploadError, OSError, HFValidationError) as error:
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return 1


def push(folder: str, repo_id: str, private: bool = False) -> str:
    """Upload a converted folder and return the full name of the repository."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True, private=private or None).repo_id
    # Shards of an earlier upload would be loaded instead of the new ones.
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, delete_patterns=["*.safetensors", "*.safetensors.index.json", "*.bin"]
    )
    return repo_id
