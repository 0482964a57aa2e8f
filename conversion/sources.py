"""Where checkpoints come from: a folder, a file, or a repository on the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from .checkpoint import PICKLES, SAFETENSORS, STEMS, SUBFOLDERS
from .errors import ConversionError


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md")


def local_source(argument: str, path_or_hub_id: str, weights: bool = True) -> Path:
    """
    A local folder or file as it is; anything that looks like `org/name` downloaded from the Hub.

    Of a repository that has its weights as .safetensors and as pickles, only the former are fetched.

    Args:
        argument: the name of the option, for messages.
        weights: False for a text tokenizer, of which only the small files are wanted.

    Raises:
        ConversionError: if it is neither on this machine nor a Hub name that can be fetched.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(path_or_hub_id):
        raise ConversionError(
            f"`{argument}` must be a folder or file on this machine, or a Hub name such as showlab/show-o; "
            f"got '{path_or_hub_id}', which is neither"
        )
    patterns = list(SMALL_FILES)
    try:
        if weights:
            patterns += weight_patterns(HfApi().list_repo_files(path_or_hub_id))
        return Path(snapshot_download(path_or_hub_id, allow_patterns=patterns))
    except ConversionError:
        raise
    except Exception as error:  # the many ways in which a network or a repository fails
        raise ConversionError(
            f"`{argument}`: '{path_or_hub_id}' is not on this machine, and could not be fetched from the Hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def weight_patterns(files: Iterable[str]) -> list[str]:
    """The files of weights to fetch out of a repository's files: .safetensors if there are any, else pickles."""
    files = list(files)
    places = "|".join(re.escape(f"{name}/") for name in SUBFOLDERS if name)
    names = rf"(?:{places})?(?:{'|'.join(STEMS)})(?:-\d+-of-\d+)?"
    for endings in (SAFETENSORS, PICKLES):
        wanted = re.compile(names + f"(?:{'|'.join(map(re.escape, endings))})")
        if found := [name for name in files if wanted.fullmatch(name)]:
            return found
    raise ConversionError(f"the repository holds no weights, but {', '.join(sorted(files)[:10]) or 'nothing'}")
