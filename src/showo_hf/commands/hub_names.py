"""Models on the Hugging Face Hub: one question whether there is such a model, before libraries and weights are loaded."""

from __future__ import annotations

import sys
from pathlib import Path

from ..utils.argument_types import quoted
from .errors import UsageError


LONGEST_NAME = 200  # characters
LONGEST_ANSWER = 10.0  # seconds

#: Models of which the Hub has told this process that it has newer files than those that were downloaded.
CHANGED: set[str] = set()


def downloaded_folder(name: str) -> Path | None:
    """
    The folder of a model of the Hub that was downloaded before. Does not ask the Hub.

    None if there is none, or if [`check_hub_model`] found that it is not the newest one.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name in CHANGED or len(name) > LONGEST_NAME:
        return None
    try:
        index = try_to_load_from_cache(name, "model_index.json")
    except HFValidationError:
        return None
    return Path(index).parent if isinstance(index, str) else None


def check_repository(option: str, name: str) -> None:
    """Raise `UsageError` unless `name` can be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"`{option}` must be ORG/NAME or NAME, got {quoted(name)}: {error}") from error


def check_hub_model(name: str, option: str = "--model") -> None:
    """
    Raise `UsageError`, which names `option`, unless `name` is a model of the Hub, or was downloaded before.

    The libraries repeat each request for half a minute where there is no network. This asks once. Without an answer, a
    model that was downloaded before is read from the cache, and the Hub is not asked any more by this process.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    no_folder = f"`{option}` must be a folder, or a model on the Hub; there is no folder {quoted(name)}"
    downloaded = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()
    try:
        if constants.is_offline_mode():
            if downloaded:
                return
            raise UsageError(f"{no_folder}, and no model of this name was downloaded before HF_HUB_OFFLINE was set")
        newest = HfApi().model_info(name, timeout=LONGEST_ANSWER).sha
        CHANGED.discard(name)
        found = downloaded_folder(name)
        if found is not None and found.name != newest:  # a snapshot is named after its commit
            CHANGED.add(name)
    except HFValidationError as error:
        raise UsageError(f"{no_folder}, and it is no name of a model") from error
    except RepositoryNotFoundError as error:
        if not isinstance(error, GatedRepoError):
            raise UsageError(f"{no_folder}, and the Hub has no such model, or it is private") from error
    except HfHubHTTPError:
        pass  # the download says what is wrong
    except UsageError:
        raise
    except Exception as error:  # the errors of whichever HTTP library huggingface_hub uses
        if not downloaded:
            raise UsageError(f"{no_folder}, and {constants.ENDPOINT} cannot be reached") from error
        constants.HF_HUB_OFFLINE = True
        print(
            f"showo-hf: warning: {constants.ENDPOINT} cannot be reached; the downloaded model is used", file=sys.stderr
        )
