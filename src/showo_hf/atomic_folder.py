"""Folders that are whole or not there: written beside their place, synced to disk, then renamed."""

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """
    A new, empty folder to write into, which takes the place of `target` when the block ends without an error.

    Whenever the process dies, `target` is absent, the old one, or whole. What a dead process left behind is put right by
    the next call for the same target: an old folder that lost its place is put back, a half-written one is deleted.

    Args:
        target: where the folder shall lie. Its parents are made.
        overwrite: replace a `target` that exists.

    Raises:
        FileExistsError: if `target` exists and `overwrite` is False, or if it is a file.
        OSError: where the disk is full or cannot be written to; `target` is then as it was.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    check_target(target, overwrite)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    with locked(fresh):
        try:
            yield fresh
            sync_folder(fresh)
            put_in_place(fresh, target, overwrite)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(
                    error.errno, f"{error.strerror}; nothing was changed at the target", str(target)
                ) from error
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_target(target: str | os.PathLike, overwrite: bool):
    """Raise `FileExistsError` unless a folder may be put at `target`."""
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileExistsError(errno.EEXIST, "the output must be a folder, but a file lies there", str(target))
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(errno.EEXIST, "the output exists already; overwriting it was not asked for", str(target))


def put_in_place(fresh: Path, target: Path, overwrite: bool):
    """Rename `fresh` to `target`, and delete what lay there."""
    check_target(target, overwrite)  # again: much time has passed
    os.chmod(fresh, 0o777 & ~current_umask())  # temporary folders are for their owner alone
    old = target.with_name(f".{target.name}.old")
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(fresh, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path):
    """Put right what processes that died in the middle left beside `target`."""
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.new-*"):
        with contextlib.suppress(OSError), locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, which ends with the process; `OSError` where another process holds it."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where an open folder cannot be deleted by others anyway
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handles of folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    """The permissions that new files of this process do not get; it can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
