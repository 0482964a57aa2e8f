"""The sources of a conversion: a folder, a file, or a repository on the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from showo_hf.utils.argument_types import HUB_NAME
from showo_hf.utils.messages import examples, printable
from showo_hf.utils.weight_files import PICKLES, SAFETENSORS

from .checkpoint import STEMS, SUBFOLDERS
from .errors import ConversionError


SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md")


def local_source(argument: str, path_or_hub_id: str, weights: bool = True) -> Path:
    """
    The path of a local folder or file, or of a repository `org/name` after its download.

    If a repository has .safetensors files and pickles, only the .safetensors files are downloaded. Offline, it is what
    was downloaded before.

    Args:
        argument: the name of the option, for error messages.
        weights: False for a text tokenizer, which needs no weights.

    Raises:
        ConversionError: if it is not on this machine and cannot be downloaded.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(path_or_hub_id):
        raise ConversionError(
            f"`{argument}` must be a folder or file on this machine, or a Hub name such as showlab/show-o, "
            f"got '{printable(path_or_hub_id)}'"
        )
    patterns = list(SMALL_FILES)
    try:
        if weights and not constants.is_offline_mode():
            patterns += weight_patterns(HfApi().list_repo_files(path_or_hub_id))
        return Path(snapshot_download(path_or_hub_id, allow_patterns=patterns))  # offline, from the cache
    except ConversionError:
        raise
    except Exception as error:  # networks and repositories fail in many ways
        raise ConversionError(
            f"`{argument}`: '{path_or_hub_id}' is not on this machine and could not be downloaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def weight_patterns(files: Iterable[str]) -> list[str]:
    """The weights to download from a repository with these files: .safetensors if there are any, else pickles."""
    files = list(files)
    folders = "|".join(re.escape(f"{name}/") for name in SUBFOLDERS if name)
    names = rf"(?:{folders})?(?:{'|'.join(STEMS)})(?:-\d+-of-\d+)?"
    for suffixes in (SAFETENSORS, PICKLES):
        pattern = re.compile(names + f"(?:{'|'.join(map(re.escape, suffixes))})")
        if found := [name for name in files if pattern.fullmatch(name)]:
            return found
    raise ConversionError(f"the repository has no weights, but {examples(sorted(files), 10) or 'nothing'}")
