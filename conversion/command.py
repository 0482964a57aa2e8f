"""What the conversion commands share: their options for the output, and how they end."""

import argparse
import re
import sys
from collections.abc import Callable

import torch

from .errors import ConversionError


DTYPES = ("float32", "bfloat16", "float16")


def add_output_arguments(parser: argparse.ArgumentParser):
    """Options that every conversion has."""
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="the folder to write; it is whole or not there")
    add("--dtype", choices=DTYPES, help="dtype of the weights on the disk; as in the source by default")
    add("--max-shard-size", default="5GB", type=shard_size, metavar="SIZE", help="of one file, such as 2GB")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--push-to-hub", metavar="ORG/NAME", help="upload the folder to this repository when it is done")


def shard_size(text: str) -> str:
    """A size in bytes with a unit, as huggingface_hub takes it."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]i?B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a number with KB, MB, GB or TB, such as 2GB, got {text!r}")
    return text.upper().replace("IB", "B")


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of a `--dtype`."""
    return getattr(torch, name) if name is not None else None


def conversion_command(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], str],
    arguments: list[str] | None,
) -> int:
    """Parse, convert, print the report and the folder's name, perhaps upload. The exit code: 0, or 1 with one message."""
    parser = argparse.ArgumentParser(
        description=doc.split(" Run as")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    add_arguments(parser)
    return finish(run, parser.parse_args(arguments))


def finish(run: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Run a parsed conversion; what happened goes to stderr, the folder's name to stdout."""
    try:
        print(run(options), file=sys.stderr)
        if options.push_to_hub:
            push(options.output, options.push_to_hub)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


def push(folder: str, repo_id: str):
    """Upload a converted folder."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    print(f"uploaded to {repo_id}", file=sys.stderr)
