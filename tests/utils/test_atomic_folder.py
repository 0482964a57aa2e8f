"""The folder is missing, unchanged or complete, whatever happens to the process that writes it."""

import errno
import random
import signal
import subprocess
import sys
import time

import pytest

from showo_hf.utils import atomic_folder as module
from showo_hf.utils.atomic_folder import atomic_folder


# Loads only the module, because importing the package takes seconds.
WRITER = """
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("atomic_folder", sys.argv[3])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
target, name = sys.argv[1:3]
print("ready", flush=True)
while True:
    with module.atomic_folder(target, overwrite=True) as folder:
        for part in range(8):
            (folder / f"{part}.txt").write_text(name)
"""


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "out"
    with atomic_folder(target) as folder:
        (folder / "x.txt").write_text("new")
        assert not target.exists() and folder.parent == target.parent
    assert contents(target) == {"x.txt": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_error_leaves_the_target_unchanged(tmp_path):
    target = tmp_path / "out"
    for expected in ({}, {"x.txt": "old"}):
        if expected:
            target.mkdir()
            (target / "x.txt").write_text("old")
        with pytest.raises(ZeroDivisionError), atomic_folder(target, overwrite=True) as folder:
            (folder / "x.txt").write_text("new")
            raise ZeroDivisionError
        assert (contents(target) if target.exists() else {}) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_replaced_only_with_overwrite(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "x.txt").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(target):
        pytest.fail("the work must not begin")
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "y.txt").write_text("new")
    assert contents(target) == {"y.txt": "new"}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="but is a file"), atomic_folder(file, overwrite=True):
        pytest.fail("the work must not begin")
    assert file.read_text() == "mine"


def test_a_target_created_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(FileExistsError), atomic_folder(target) as folder:
        (folder / "x.txt").write_text("new")
        target.mkdir()
        (target / "x.txt").write_text("theirs")
    assert contents(target) == {"x.txt": "theirs"}


def test_two_writers_of_one_target(tmp_path):
    target = tmp_path / "out"
    with atomic_folder(target, overwrite=True) as one:
        (one / "x.txt").write_text("one")
        with atomic_folder(target, overwrite=True) as other:
            (other / "x.txt").write_text("other")
        assert contents(target) == {"x.txt": "other"}
    assert contents(target) == {"x.txt": "one"}


def test_killed_at_any_moment(tmp_path):
    """After each of 5 kills the folder is missing or has all files of one writer, and the next run cleans up."""
    target = tmp_path / "out"
    rng = random.Random(0)
    seen = set()
    for number in range(5):
        command = [sys.executable, "-c", WRITER, str(target), str(number), module.__file__]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = contents(target) if target.exists() else {}
        assert len(found) in (0, 8) and len(set(found.values())) <= 1
        seen |= set(found.values())
    assert len(seen) > 1, "some kills must come after the first write"
    with atomic_folder(target, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_check_that_fails_keeps_the_old_folder(tmp_path):
    target = tmp_path / "out"
    target.mkdir()

    def check():
        if (target / "x.txt").exists():
            raise ValueError("somebody put a file there")

    check()
    with pytest.raises(ValueError, match="somebody"), atomic_folder(target, overwrite=True, check=check) as folder:
        (folder / "y.txt").write_text("new")
        (target / "x.txt").write_text("theirs")
    assert contents(target) == {"x.txt": "theirs"} and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_displaced_old_folder_is_restored(tmp_path):
    """A process was killed between the two renames."""
    lost = module.name_of_old(tmp_path / "out")
    lost.mkdir()
    (lost / "x.txt").write_text("old")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "out"):
        pytest.fail("the work must not begin")
    assert contents(tmp_path / "out") == {"x.txt": "old"} and not lost.exists()


def test_a_user_s_folders_of_similar_names_stay(tmp_path, monkeypatch):
    names = [".out.new-1", ".out.new-mine", ".out.old"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("mine")
    for can_exchange in (True, False):
        if not can_exchange:
            monkeypatch.setattr(module, "exchange", lambda one, other: False)
        for _ in range(2):
            with atomic_folder(tmp_path / "out", overwrite=True) as folder:
                (folder / "x.txt").write_text("new")
        assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "out"]
        assert all(contents(tmp_path / name) == {"x.txt": "mine"} for name in names)


@pytest.mark.parametrize("exists", [True, False])
def test_what_an_earlier_version_left(tmp_path, exists):
    """Its names have no mark. It is certain that it was killed between the two renames if the new folder is there."""
    target, early, fresh = tmp_path / "out", tmp_path / ".out.old", tmp_path / f".out.new-{'0a' * 16}"
    for folder in (early, fresh, *[target] * exists):
        folder.mkdir()
        (folder / "x.txt").write_text(folder.name)
    module.recover(target)
    assert not fresh.exists()
    assert contents(target) == {"x.txt": "out" if exists else ".out.old"}
    assert early.exists() == exists


def test_a_half_deleted_old_folder_is_not_restored(tmp_path):
    """A process was killed while it deleted the old folder."""
    target = tmp_path / "out"
    for number in range(2):
        with atomic_folder(target, overwrite=True) as folder:
            (folder / "x.txt").write_text(str(number))
    leftovers = [path for path in tmp_path.iterdir() if path != target]
    assert not leftovers
    trash = module.temporary_name(target)
    trash.mkdir()
    (target / "x.txt").rename(trash / "x.txt")
    target.rmdir()
    with atomic_folder(target) as folder:
        (folder / "y.txt").write_text("new")
    assert contents(target) == {"y.txt": "new"} and not trash.exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    for number in range(3):
        with atomic_folder(link, overwrite=True) as folder:
            (folder / "x.txt").write_text(str(number))
    assert link.is_symlink() and contents(tmp_path / "disk" / "real") == {"x.txt": "2"}
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "link", "real", "x.txt"}


def test_a_failed_rename_restores_the_old_folder(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "x.txt").write_text("old")
    with pytest.raises(FileNotFoundError):
        module.put_in_place(tmp_path / "absent", target)
    assert contents(target) == {"x.txt": "old"} and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_has_default_permissions(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs file size limits")
def test_a_file_size_limit_leaves_the_target_unchanged(tmp_path):
    """Writing fails in the middle, as with a full disk."""
    import resource

    target = tmp_path / "out"
    target.mkdir()
    (target / "x.txt").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(OSError, match="the target is unchanged") as caught:
            with atomic_folder(target, overwrite=True) as folder:
                (folder / "x.txt").write_bytes(b"0" * 2**17)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert contents(target) == {"x.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def replaced_while_watched(target) -> int:
    """Replace a folder some times in another process, and count the moments at which it was missing."""
    target.mkdir()
    command = [sys.executable, "-c", WRITER, str(target), "new", module.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    missing, seen, end = 0, set(), time.monotonic() + 10
    while len(seen) < 8 and time.monotonic() < end:
        try:
            seen.add(target.stat().st_mtime_ns)
        except FileNotFoundError:
            missing += 1
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(seen) > 2, "the folder must have been replaced while it was watched"
    return missing


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_the_target_exists_at_every_moment(tmp_path):
    assert replaced_while_watched(tmp_path / "out") == 0


def test_an_exchange_leaves_nothing_behind_and_needs_no_second_rename(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not module.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system has no exchange")
    monkeypatch.setattr(module.os, "rename", None)
    for number in range(3):
        with atomic_folder(tmp_path / "other", overwrite=True) as folder:
            (folder / "x.txt").write_text(str(number))
        assert contents(tmp_path / "other") == {"x.txt": str(number)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_without_an_exchange_the_folders_are_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "exchange", lambda one, other: False)
    for number in range(2):
        with atomic_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "x.txt").write_text(str(number))
    assert contents(tmp_path / "out") == {"x.txt": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
