"""The terminal of a chat: what is printed where, and how Ctrl-C stops an answer."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..utils.messages import for_stdout
from .model_loading import on_terminal


if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

    from showo_hf.pipelines import ImageStep


def print_status(text: str) -> None:
    """Print to stderr: stdout is only for answers."""
    print(text, file=sys.stderr, flush=True)


# Interrupts


class StopSignal:
    """A signal handler. The first Ctrl-C requests a clean stop of the answer; the second raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_on_interrupt(active: bool) -> Iterator[StopSignal]:
    """Handle Ctrl-C by a [`StopSignal`] within the block. A no-op outside of the main thread, and unless `active`."""
    stop = StopSignal()
    if not active or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


# Output


class Screen:
    """
    Prints the answer to stdout and the progress of images to stderr, so that neither overwrites the other.

    Args:
        quiet: show no progress.
        protocol: turns an image into what the terminal shows as one; None prints the path only.
    """

    def __init__(self, quiet: bool, protocol: Callable[[Image.Image], str] | None = None) -> None:
        self.quiet, self.protocol = quiet, protocol
        self.at_line_start = True
        self.bar: tqdm | None = None

    def text(self, piece: str) -> None:
        """Print more text of the answer."""
        if self.at_line_start:
            piece = piece.lstrip()
        if piece:
            print(for_stdout(piece), end="", flush=True)
            self.at_line_start = piece.endswith("\n")

    def step(self, event: ImageStep) -> None:
        """Show the progress of an image."""
        from tqdm import tqdm

        self.end_line()
        if self.bar is None:
            name = f"image {event.index + 1}"
            self.bar = tqdm(
                total=event.num_steps, desc=name, unit="step", leave=False, disable=self.quiet or not on_terminal()
            )
        self.bar.update(event.step + 1 - self.bar.n)

    def image(self, path: Path, image: Image.Image) -> None:
        """Show an image where the terminal can, and print the path of its file."""
        self.close_bar()
        self.end_line()
        if self.protocol is not None:
            print(self.protocol(image), flush=True)
        print(for_stdout(str(path)), flush=True)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def end_line(self) -> None:
        if not self.at_line_start:
            print(flush=True)
            self.at_line_start = True

    def close(self) -> None:
        self.close_bar()
        self.end_line()
