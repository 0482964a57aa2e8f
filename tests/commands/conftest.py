import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from showo_hf import cli


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Every test runs in a new, empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(empty_folder, capsys) -> Callable[[list[str], str], None]:
    """Assert that a command refuses its arguments: the last error line contains `named`, and nothing is written."""

    def check(arguments: list[str], named: str) -> None:
        before = sorted(empty_folder.rglob("*"))
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # raised by argparse
            code = end.code
        printed = capsys.readouterr()
        assert code == cli.USAGE
        assert printed.out == ""
        assert "Traceback" not in printed.err
        lines = printed.err.splitlines()
        assert named in lines[-1]
        assert len(lines) <= 3 and len(lines[-1]) < 700 and not any(line.startswith("seed ") for line in lines)
        assert sorted(empty_folder.rglob("*")) == before

    return check


@contextlib.contextmanager
def _interrupt_when(ready: Callable[[], bool]) -> Iterator[None]:
    """Send this process a Ctrl-C when `ready()` is true. The test fails if that never happens within the block."""
    over = threading.Event()
    sent = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if ready():
                sent.set()
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    # pytest may have set another handler, and background jobs of a shell ignore the signal.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, previous)
    assert sent.is_set()


@pytest.fixture
def interrupt_when() -> Callable[[Callable[[], bool]], contextlib.AbstractContextManager[None]]:
    return _interrupt_when
