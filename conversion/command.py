"""How the conversion commands run and end."""

import argparse
import sys
from collections.abc import Callable

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .errors import ConversionError


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of a `--dtype`."""
    return getattr(torch, name) if name is not None else None


def conversion_main(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], str],
    arguments: list[str] | None,
) -> int:
    """Parse and convert; see [`finish`]."""
    parser = argparse.ArgumentParser(description=doc.split(" Run as")[0])
    add_arguments(parser)
    return finish(run, parser.parse_args(arguments))


def finish(run: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """
    Run a parsed conversion, and upload its folder if that was asked for.

    What happened goes to stderr, the folder's name to stdout. Returns the exit code: 0, or 1 after one message.
    """
    try:
        if options.push_to_hub:
            validate_repo_id(options.push_to_hub)
        print(run(options), file=sys.stderr)
    except (ConversionError, OSError, HFValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.output)
    if options.push_to_hub:
        try:
            repo_id = push(options.output, options.push_to_hub, options.private)
        except Exception as error:  # the many ways in which a network or a repository fails
            print(f"error: '{options.output}' is whole, but the upload failed: {error}", file=sys.stderr)
            return 1
        print(f"uploaded to {repo_id}", file=sys.stderr)
    return 0


def push(folder: str, repo_id: str, private: bool = False) -> str:
    """Upload a converted folder; returns the repository's full name. Tokens come from the environment, as usual."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True, private=private or None).repo_id
    # Weights of an earlier upload in other shards would be loaded instead of the new ones.
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, delete_patterns=["*.safetensors", "*.safetensors.index.json", "*.bin"]
    )
    return repo_id
