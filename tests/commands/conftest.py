import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import talking

from showo_hf import cli


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Each test runs in an empty folder of its own, as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory) -> str:
    """A saved pipeline that says "an owl." to an image and "what?", and two images to "two hearts"."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    talking.taught().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refused(empty_folder, capsys) -> Callable[[list[str], str], None]:
    """Fail unless a command line is refused in words, the last line with what is `named`, and nothing is written."""

    def check(arguments: list[str], named: str) -> None:
        before = sorted(empty_folder.rglob("*"))
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's way
            code = end.code
        printed = capsys.readouterr()
        assert code == cli.USAGE
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert named in printed.err.splitlines()[-1]
        assert sorted(empty_folder.rglob("*")) == before

    return check


@contextlib.contextmanager
def _interrupt_when(ready: Callable[[], bool]) -> Iterator[None]:
    """Send this process a Ctrl-C as soon as something is so; the test fails if it never is within the block."""
    over = threading.Event()
    sent = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if ready():
                sent.set()
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    # pytest's own handler may be another, and a shell's background jobs ignore the signal.
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
