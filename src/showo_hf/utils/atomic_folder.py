"""Folders that are whole or not there: written beside their place, synced to disk, then renamed."""

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows has no such locks; there, what a killed process left behind stays
    fcntl = None  # type: ignore[assignment]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)  # by some file systems


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """
    A new, empty folder to write into, which takes the place of `target` when the block ends without an error.

    Whenever the process dies, `target` is absent, the old one, or whole. What a dead process left behind is put right by
    the next call for the same target: an old folder that lost its place is put back, a half-written one is deleted.

    Args:
        target: where the folder shall lie. Its parents are made; where it is a link to a folder, that one is meant.
        overwrite: replace a `target` that exists, with all that is in it.

    Raises:
        FileExistsError: if `target` exists and `overwrite` is False, or if it is a file.
        OSError: where the disk is full or cannot be written to; `target` is then as it was.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent, wait=True):
        recover(target)
        check_target(target, overwrite)
        fresh = temporary_name(target)
        fresh.mkdir()
        lock = contextlib.ExitStack()
        lock.enter_context(locked(fresh))
    with lock:
        try:
            yield fresh
            sync_folder(fresh)
            with locked(target.parent, wait=True):
                check_target(target, overwrite)  # again: much time has passed
                put_in_place(fresh, target)
        except OSError as error:
            if error.errno in DISK_FULL:
                text = f"{error.strerror}; nothing was changed at the target"
                raise OSError(error.errno, text, str(target)) from error
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_target(target: str | os.PathLike, overwrite: bool):
    """Raise `FileExistsError` unless a folder may be put at `target`."""
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileExistsError(errno.EEXIST, "the output must be a folder, but a file lies there", str(target))
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(errno.EEXIST, "the output exists already; overwriting it was not asked for", str(target))


def temporary_name(target: Path) -> Path:
    """A name beside `target` for a folder that is not whole; `recover` deletes such."""
    return target.with_name(f".{target.name}.new-{uuid.uuid4().hex}")


def name_of_old(target: Path) -> Path:
    """The name beside `target` of the whole folder that is about to be replaced; `recover` puts it back."""
    return target.with_name(f".{target.name}.old")


def put_in_place(fresh: Path, target: Path):
    """Rename `fresh` to `target`, and delete what lay there."""
    old = name_of_old(target)
    if target.is_dir():
        os.rename(target, old)
    try:
        os.rename(fresh, target)
    except OSError:
        if old.is_dir():
            os.rename(old, target)
        raise
    with contextlib.suppress(OSError):  # the new one is in its place, whatever the file system says to this
        sync(target.parent)
    discard(old, target)


def discard(folder: Path, target: Path):
    """Delete a folder beside `target`, under a name that says that it may be half deleted."""
    if folder.is_dir():
        trash = temporary_name(target)
        os.rename(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


def recover(target: Path):
    """Put right what processes that died in the middle left beside `target`."""
    old = name_of_old(target)
    if old.is_dir() and not target.exists():
        os.rename(old, target)
    discard(old, target)
    if fcntl is None:
        return
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.new-*"):
        with contextlib.suppress(OSError), locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """
    Hold a lock on `folder`, which ends with the process.

    Raises:
        BlockingIOError: where another process holds it and `wait` is False.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path):
    """Wait until every file below `folder` is on the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path):
    """Wait until a file, or the list of a folder's files, is on the disk."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # Windows has no handles of folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in NOT_SUPPORTED):
            raise
    finally:
        os.close(handle)
