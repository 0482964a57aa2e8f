"""Atomic folders: written under a temporary name, synced to disk, then renamed."""

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows has no such locks; leftovers of killed processes stay there
    fcntl = None  # type: ignore[assignment]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_SUPPORTED = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
)  # errors on some file systems

#: The end of every temporary name. No user gives a folder of their own such a name.
MARK = ".showo-hf"

#: Constants of Linux for `renameat2`.
AT_FDCWD, RENAME_EXCHANGE = -100, 2

#: The open handles of locks. A forked process closes its copies: it would keep the locks when this process is killed.
LOCK_HANDLES: set[int] = set()


def close_lock_handles():
    """Close the copies of the lock handles in a forked process. The locks stay with its parent."""
    while LOCK_HANDLES:
        os.close(LOCK_HANDLES.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=close_lock_handles)


@contextlib.contextmanager
def atomic_folder(
    target: str | os.PathLike, overwrite: bool = False, check: Callable[[], object] | None = None
) -> Iterator[Path]:
    """
    Yield a new, empty folder to write into. It replaces `target` when the block ends without an error.

    If the process is killed at any moment, `target` is unchanged or complete: the two folders exchange their names in
    one step. Where the system cannot do that (it is Linux that can, on most file systems), `target` is missing for a
    moment. The next call for the same target cleans up after a killed process: it restores a displaced old folder and
    deletes an incomplete one.

    Args:
        target: path of the folder. Missing parents are created; a link to a folder is followed.
        overwrite: replace an existing `target` and all of its contents.
        check: called just before the new folder replaces `target`. An error that it raises leaves `target` as it is.

    Raises:
        FileExistsError: if `target` exists and `overwrite` is False, or if it is a file.
        OSError: if the disk is full or not writable. `target` is unchanged.
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
                check_target(target, overwrite)  # again: another process may have created it
                if check is not None:
                    check()
                put_in_place(fresh, target)
        except OSError as error:
            if error.errno in DISK_FULL:
                text = f"{error.strerror}; the target is unchanged"
                raise OSError(error.errno, text, str(target)) from error
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_target(target: str | os.PathLike, overwrite: bool):
    """Raise `FileExistsError` unless a folder may be written to `target`."""
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileExistsError(errno.EEXIST, "the output must be a folder, but is a file", str(target))
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(errno.EEXIST, "the output exists already, and overwriting is not enabled", str(target))


def temporary_name(target: Path) -> Path:
    """A path beside `target` for an incomplete folder. `recover` deletes folders with such names."""
    return target.with_name(f".{target.name}.new-{uuid.uuid4().hex}{MARK}")


def name_of_old(target: Path) -> Path:
    """The path beside `target` for the folder that is being replaced. `recover` restores it."""
    return target.with_name(f".{target.name}.old{MARK}")


def unfinished(target: Path) -> list[Path]:
    """The folders beside `target` that have a [`temporary_name`], or such a name of an earlier version, without the mark."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.new-[0-9a-f]{{32}}({re.escape(MARK)})?")
    return [path for path in target.parent.glob(f".{glob.escape(target.name)}.new-*") if ours.fullmatch(path.name)]


def put_in_place(fresh: Path, target: Path):
    """Rename `fresh` to `target`, and delete the old folder."""
    if target.is_dir() and exchange(fresh, target):
        with contextlib.suppress(OSError):  # as below
            sync(target.parent)
        shutil.rmtree(fresh, ignore_errors=True)  # the old folder has this name now
        return
    old = name_of_old(target)
    if target.is_dir():
        os.rename(target, old)
    try:
        os.rename(fresh, target)
    except OSError:
        if old.is_dir():
            os.rename(old, target)
        raise
    with contextlib.suppress(OSError):  # the rename is done, so an error of the sync does not matter
        sync(target.parent)
    discard(old, target)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step. False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one))


def discard(folder: Path, target: Path):
    """Rename a folder beside `target` to a temporary name, and delete it."""
    if folder.is_dir():
        trash = temporary_name(target)
        os.rename(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


def recover(target: Path):
    """
    Clean up what killed processes left beside `target`.

    Earlier versions called the folder that is being replaced `.NAME.old`, which may also be a user's own. It is restored
    if `target` is missing and the folder that should have replaced it is there, and else stays as it is.
    """
    leftovers = unfinished(target)
    old, early = name_of_old(target), target.with_name(f".{target.name}.old")
    if not target.exists():
        if old.is_dir():
            os.rename(old, target)
        elif early.is_dir() and any(not path.name.endswith(MARK) for path in leftovers):
            os.rename(early, target)
    discard(old, target)
    if fcntl is None:
        return
    for leftover in leftovers:
        with contextlib.suppress(OSError), locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """
    Hold a lock on `folder`. The lock is released when the process ends.

    Raises:
        BlockingIOError: if another process holds the lock and `wait` is False.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    LOCK_HANDLES.add(handle)
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
        if handle in LOCK_HANDLES:
            LOCK_HANDLES.remove(handle)
            os.close(handle)


def sync_folder(folder: Path):
    """Sync all files below `folder` to disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path):
    """Sync a file, or the entries of a folder, to disk."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in NOT_SUPPORTED):
            raise
    finally:
        os.close(handle)
