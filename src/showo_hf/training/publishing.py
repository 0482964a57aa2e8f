"""Uploads of trained models to the Hub: each is one commit, so that a repository never holds half a model."""

import json
import logging
import os
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, is_offline_mode
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Only these files are uploaded. Pickles are not among them.
SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".md", ".png")
NAMES = ("tokenizer.model",)
# Files of a checkpoint, which a finished folder does not have. They are not uploaded whatever their format is.
TRAINING_STATE = re.compile(
    r"(optimizer|rng_state|random_state|lr_scheduler|scheduler_state|trainer_state|training_args)"
)
CHECKPOINT = re.compile(r"checkpoint-\d+")
# One of these files says what a finished folder holds.
INDEXES = ("model_index.json", "adapter_config.json", "config.json")
# Files of an earlier upload that would be loaded or shown in place of the new ones.
REPLACED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "assets/*.png",
    "model_index.json",
    "adapter_config.json",
)

TRANSIENT = (408, 412, 425, 429)  # 412: another commit came in between
CHECK_SECONDS = 60.0
LONGEST_WAIT = 60.0


class PublishError(OSError):
    """The Hub refused an upload, or would refuse it. Another try does not help."""


class NotReachableError(PublishError):
    """The Hub could not be reached, or it failed at each try."""


@dataclass(frozen=True)
class Destination:
    """
    A repository that may be written to, as far as this is known before the upload.

    Args:
        repo_id: its name, with the user's name before it.
        exists: whether it exists already; None if unknown.
        warning: a sentence if the Hub cannot be reached now; None otherwise.
    """

    repo_id: str
    exists: bool | None = None
    warning: str | None = None


@dataclass(frozen=True)
class PublishResult:
    """
    The result of an upload.

    Args:
        uploaded: False if the result stayed a local folder.
        repo_id: the repository, with the user's name before it where it is known.
        folder: the local folder.
        message: a sentence for the user. After no upload it has the command that uploads the folder later.
        files: the files of the repository that this folder provides.
        left_out: files of the folder that are never uploaded.
        commit: the commit's id; None after no upload.
        url: the repository's page; None after no upload.
    """

    uploaded: bool
    repo_id: str
    folder: Path
    message: str
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    commit: str | None = None
    url: str | None = None


def check_destination(repo_id: str, token: str | None = None, seconds: float = CHECK_SECONDS) -> Destination:
    """
    Check, before the training, that its result can be uploaded.

    Nothing is created on the Hub. The address of the Hub is `HF_ENDPOINT`; with `HF_HUB_OFFLINE` nothing is asked.

    Args:
        repo_id: "ORG/NAME", or "NAME" for a repository of the token's user.
        token: the token; by default the one of `hf auth login` or `HF_TOKEN`.
        seconds: a Hub that has not answered after this time cannot be reached.

    Raises:
        ValueError: if the name is not valid.
        PublishError: if there is no token, or if it may not write to this repository.
    """
    check_repo_id(repo_id)
    if is_offline_mode():
        return Destination(repo_id, warning=unreachable(repo_id, summary(OfflineModeIsEnabled())))
    try:
        return within(seconds, lambda: find_destination(HfApi(token=token), repo_id))
    except Exception as error:
        if not is_transient(error):
            raise refused(repo_id, error) from error
        return Destination(repo_id, warning=unreachable(repo_id, summary(error)))


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload of a trained model",
    allow_offline: bool = True,
    retries: int = 5,
    wait: float = 1.0,
) -> PublishResult:
    """
    Upload a finished folder as one commit. The repository has the whole new model afterwards, or it is unchanged.

    The repository is created if needed. Weights of an earlier upload which the folder does not have are deleted in
    the same commit. Files other than weights in safetensors, JSON, text, templates, Markdown and PNG stay here, and so
    do all files of a training's state. A failed connection, a busy server (429) and its own errors (5xx) are retried.

    Args:
        folder: a pipeline, a model, or an adapter.
        repo_id: "ORG/NAME", or "NAME" for a repository of the token's user.
        private: make the repository private, if it is new.
        token: the token; by default the one of `hf auth login` or `HF_TOKEN`.
        revision: the branch; "main" by default. It is created if needed.
        allow_offline: if the Hub cannot be reached, return a result that says so instead of raising.
        retries: how many more tries after the first.
        wait: seconds before the first of them; each further wait is twice as long, at most a minute.

    Raises:
        ValueError: if the name is not valid, or if the folder is not a finished model.
        PublishError: if the Hub refuses the upload.
        NotReachableError: if the Hub cannot be reached and `allow_offline` is False.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    files, left_out = files_of(folder)
    check_finished(folder, files)
    try:
        repo_id, commit = upload(folder, files, repo_id, private, token, revision, commit_message, retries, wait)
    except NotReachableError as error:
        later = f"Upload it later with `{command(folder, repo_id, private, revision)}`."
        message = f"'{folder}' was not uploaded to {repo_id}: {error}. {later}"
        if not allow_offline:
            raise NotReachableError(message) from error
        return PublishResult(False, repo_id, folder, message, files, left_out)
    url = f"{HfApi().endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    return PublishResult(True, repo_id, folder, f"'{folder}' was uploaded to {url}.", files, left_out, commit, url)


def upload(
    folder: Path,
    files: tuple[str, ...],
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload of a trained model",
    retries: int = 5,
    wait: float = 1.0,
    stop: threading.Event | None = None,
) -> tuple[str, str]:
    """
    Upload `files` of a folder as one commit; see [`publish`] for the arguments.

    Args:
        stop: once this event is set, no further try is made. Then this upload cannot replace one that begins later.

    Returns:
        The full name of the repository, and the commit's id.

    Raises:
        PublishError: if the Hub refuses the upload.
        NotReachableError: if the Hub cannot be reached, or fails at each try.
    """
    api, stop = HfApi(token=token), stop or threading.Event()
    try:
        if is_offline_mode():
            raise OfflineModeIsEnabled
        repo_id = retried(lambda: repository(api, repo_id, private, revision), retries, wait, stop)
        commit = retried(
            lambda: one_commit(api, repo_id, folder, files, revision, commit_message, stop), retries, wait, stop
        )
    except Exception as error:
        if is_transient(error):
            raise NotReachableError(summary(error)) from error
        raise refused(repo_id, error) from error
    return repo_id, commit


def check_repo_id(repo_id: str):
    """Raise `ValueError` unless `repo_id` is a valid name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`push_to_hub` must be ORG/NAME or NAME, got {repo_id!r}: {error}") from error


def find_destination(api: HfApi, repo_id: str) -> Destination:
    """Ask the Hub about a repository. Raises `PublishError`, or huggingface_hub's errors."""
    user = api.whoami()
    if "/" not in repo_id:
        repo_id = f"{user['name']}/{repo_id}"
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise PublishError(
            f"`push_to_hub`: the token '{token.get('displayName', '')}' of {user['name']} may only read. Make one that "
            f"may write at {api.endpoint}/settings/tokens, and log in with `hf auth login`."
        )
    try:
        api.auth_check(repo_id, write=True)
    except RepositoryNotFoundError:
        check_namespace(repo_id, user, token)
        return Destination(repo_id, exists=False)
    return Destination(repo_id, exists=True)


def check_namespace(repo_id: str, user: dict[str, Any], token: dict[str, Any]):
    """Raise `PublishError` if a new repository cannot be created for this user, as far as `whoami` says so."""
    namespace = repo_id.split("/")[0]
    groups = {group["name"]: group.get("roleInOrg") for group in user.get("orgs", [])}
    if namespace != user["name"] and groups.get(namespace, "read") == "read":
        allowed = [user["name"], *(name for name, role in groups.items() if role != "read")]
        raise PublishError(
            f"`push_to_hub`: {user['name']} may not create repositories of {namespace}, but of: {', '.join(allowed)}."
        )
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        named = [scope for scope in scopes if scope.get("entity", {}).get("name") == namespace]
        if not any("write" in permission for scope in named for permission in scope.get("permissions", [])):
            raise PublishError(f"`push_to_hub`: the token may not write to repositories of {namespace}.")


def repository(api: HfApi, repo_id: str, private: bool, revision: str | None) -> str:
    """Create the repository and the branch if they do not exist. Returns the full name."""
    # None lets an organization decide. An existing repository stays as it is.
    repo_id = api.create_repo(repo_id, exist_ok=True, private=private or None).repo_id
    if revision not in (None, "main"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def one_commit(
    api: HfApi,
    repo_id: str,
    folder: Path,
    files: tuple[str, ...],
    revision: str | None,
    message: str,
    stop: threading.Event,
) -> str:
    """
    Commit the files of a folder. Returns the commit's id.

    `HfApi.upload_folder` is not used, because it may split an upload into several commits. With the parent named, the
    Hub refuses the commit if another one came in between: files that were the same as the parent's are not sent, so
    the other commit could have changed them. Repeating a commit whose answer was lost finds all files the same.
    """
    before = api.model_info(repo_id, revision=revision)
    if stop.is_set():  # a parent that is read after this event may be a later upload, which must stay
        raise PublishError("the upload was given up")
    there = {file.rfilename for file in before.siblings or ()}
    old = sorted(name for name in there - set(files) if any(fnmatchcase(name, one) for one in REPLACED))
    operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in old]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
    commit = api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, parent_commit=before.sha
    ).oid
    after = {file.rfilename for file in api.model_info(repo_id, revision=commit).siblings or ()}
    if missing := sorted(set(files) - after):  # the Hub leaves out what the repository's .gitignore names
        raise PublishError(f"{repo_id} lacks files after the upload, see its .gitignore: {', '.join(missing)}")
    return commit


def files_of(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """
    The files below a folder that are uploaded, and those that are left out, each by its path with "/".

    Hidden files and folders, checkpoints, and links to outside of the folder are left out.
    """
    files: list[str] = []
    left_out: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            inside = path.resolve().is_relative_to(folder.resolve())
            (files if inside and is_uploaded(name) else left_out).append(name)
    return tuple(files), tuple(left_out)


def is_uploaded(name: str) -> bool:
    """Whether a file with this path, relative to the folder, is uploaded."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or CHECKPOINT.fullmatch(part) for part in path.parts):
        return False
    return (path.suffix in SUFFIXES or path.name in NAMES) and not TRAINING_STATE.match(path.name)


def check_finished(folder: Path, files: tuple[str, ...]):
    """Raise `ValueError` unless a folder holds a complete pipeline, model or adapter."""
    if not folder.is_dir():
        raise ValueError(f"`folder` must be the folder of a trained model, but '{folder}' is no folder")
    if not any(name in files for name in INDEXES):
        raise ValueError(f"`folder` must be a trained model with one of {', '.join(INDEXES)}, but '{folder}' has none")
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"'{folder}' has no weights in safetensors")
    for name in files:
        if name.endswith(".safetensors.index.json"):
            shards = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(shard for shard in shards if str(PurePosixPath(name).parent / shard) not in files)
            if missing:
                raise ValueError(f"'{folder}' is not complete: '{name}' names {', '.join(missing)}, which it lacks")


def retried(work: Callable[[], Result], retries: int, wait: float, stop: threading.Event) -> Result:
    """The result of `work`, which is tried again after errors that may pass."""
    for left in range(retries, -1, -1):
        try:
            return work()
        except Exception as error:
            if left == 0 or isinstance(error, OfflineModeIsEnabled) or not is_transient(error):
                raise
            logger.warning("upload failed, %d tries left: %s", left, summary(error))
            if stop.wait(min(wait, LONGEST_WAIT)):
                raise
            wait *= 2
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the network or the server failed, not the request."""
    if isinstance(error, PublishError | LocalTokenNotFoundError | PermissionError):
        return isinstance(error, NotReachableError)
    if (status := status_of(error)) is not None:
        return status in TRANSIENT or status >= 500
    # HTTPError is the base of all errors of the HTTP client. An error page of a proxy is not JSON.
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError):
        return True
    # huggingface_hub wraps the errors of its uploads in RuntimeErrors, and hf_xet raises them for what failed inside.
    return isinstance(error, RuntimeError) and (error.__cause__ is None or is_transient(error.__cause__))


def status_of(error: BaseException) -> int | None:
    """The status code of the Hub's answer; None if the error is another one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def summary(error: BaseException) -> str:
    """A part of a sentence that says what failed."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "`HF_HUB_OFFLINE` is set"
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    status = status_of(error)
    return f"the Hub answered {status} ({text})" if status else f"the Hub could not be reached ({text})"


def refused(repo_id: str, error: Exception) -> Exception:
    """The error to raise for an error that another try does not change."""
    if isinstance(error, LocalTokenNotFoundError):
        return PublishError(
            "`push_to_hub` needs a token that may write: log in with `hf auth login`, or set `HF_TOKEN`."
        )
    status = status_of(error)
    if status == 401:
        return PublishError("`push_to_hub`: the Hub does not know the token. Log in again with `hf auth login`.")
    if status == 403:
        return PublishError(f"`push_to_hub`: the token may not write to {repo_id}.")
    if status is not None:
        return PublishError(f"`push_to_hub`: {summary(error)}")
    return error


def unreachable(repo_id: str, reason: str) -> str:
    return (
        f"The result cannot be uploaded to {repo_id} now, because {reason}. The upload is tried at the end, and the "
        "result stays a folder until then."
    )


def command(folder: Path, repo_id: str, private: bool, revision: str | None) -> str:
    """The command that uploads a folder."""
    words = ["hf", "upload", repo_id, str(folder)]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    return shlex.join(words)


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of `work`; `TimeoutError` if it takes longer. huggingface_hub's client itself waits without end."""
    results: list[tuple[Result | None, Exception | None]] = []

    def run():
        try:
            results.append((work(), None))
        except Exception as error:
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise TimeoutError(f"no answer in {seconds:g} seconds")
    result, error = results[0]
    if error is not None:
        raise error
    return result
