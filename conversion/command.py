"""How the conversion commands run and end."""

import argparse
import sys
from collections.abc import Callable

import torch
from huggingface_hub import HfApi

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
        print(run(options), file=sys.stderr)
        if options.push_to_hub:
            repo_id = push(options.output, options.push_to_hub)
            print(f"uploaded to {repo_id}", file=sys.stderr)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


def push(folder: str, repo_id: str) -> str:
    """Upload a converted folder; returns the repository's full name. Tokens come from the environment, as usual."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id
