"""Runs of several processes, as forks of this one that talk to each other."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import small_run


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(processes: int, function: Callable[[int], None], errors: Path) -> list[small_run.Child]:
    """
    Start processes with the environment of a launcher.

    Args:
        function: what each process does, given its rank.
        errors: folder of their output.
    """
    errors.mkdir(parents=True, exist_ok=True)
    small_run.shared()  # otherwise each process makes its own
    port = free_port()

    def work(rank: int):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        function(rank)

    return [small_run.Child(lambda rank=rank: work(rank), errors / f"rank-{rank}.txt") for rank in range(processes)]


def wait(children: list[small_run.Child], seconds: float = 240.0) -> list[int]:
    """The exit codes of processes that end within a time."""
    try:
        for child in children:
            child.wait(seconds=seconds)
    finally:
        for child in children:
            if child.running():
                child.kill()
                child.wait()
    return [child.code for child in children]


def run(processes: int, folder: Path, function: Callable[[int], None] | None = None, **changes):
    """A training run of several processes in `folder`. All must end well."""
    folder.mkdir(exist_ok=True)
    function = function or (lambda rank: small_run.run(folder, **changes))
    children = start(processes, function, folder / "errors")
    codes = wait(children)
    assert codes == [0] * processes, "\n".join(child.errors.read_text()[-3000:] for child in children)
