"""
Images inside of a terminal: the protocols of kitty, of iTerm2, and sixel.

kitty: https://sw.kovidgoyal.net/kitty/graphics-protocol. iTerm2: https://iterm2.com/documentation-images.html. Sixel: the
VT340's bands of six pixels, https://vt100.net/docs/vt3xx-gp/chapter14.html.
"""

from __future__ import annotations

import base64
import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO


if TYPE_CHECKING:
    from PIL import Image


KITTY_CHUNK = 4096  # bytes of base64 in one escape sequence, as the protocol demands
SIXEL_COLOURS = 256
ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "vscode", "mintty", "rio")
ANSWER_SECONDS = 0.3  # how long a terminal gets to say what it can


def terminal_protocol(
    stream: TextIO, variables: Mapping[str, str] = os.environ
) -> Callable[[Image.Image], str] | None:
    """
    The function that turns an image into what this terminal shows as an image; None if it shows none.

    Inside of tmux and screen there is none, because they do not pass the sequences on.

    Args:
        stream: where the text is printed.
        variables: the environment.
    """
    term, program = variables.get("TERM", ""), variables.get("TERM_PROGRAM", "")
    if not stream.isatty() or term == "dumb" or "TMUX" in variables or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in variables or "kitty" in term or term == "xterm-ghostty" or program == "ghostty":
        return kitty
    if program in ITERM_PROGRAMS or variables.get("LC_TERMINAL") == "iTerm2":
        return iterm
    if "sixel" in term or 4 in terminal_features(stream):
        return sixel
    return None


def terminal_features(stream: TextIO) -> set[int]:
    """
    The numbers with which a terminal says what it can (its primary device attributes); 4 is sixel.

    Empty where stdin is no terminal, and on systems without termios.
    """
    try:
        import termios
        import tty
    except ImportError:
        return set()
    try:
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (OSError, ValueError, termios.error):
        return set()
    answer = b""
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        stream.write("\x1b[c")
        stream.flush()
        end = time.monotonic() + ANSWER_SECONDS
        while not answer.endswith(b"c") and len(answer) < 200:
            ready, _, _ = select.select([keyboard], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                break
            answer += os.read(keyboard, 1)
    finally:
        with suppress(termios.error):
            termios.tcsetattr(keyboard, termios.TCSANOW, before)
    _, found, numbers = answer.rpartition(b"\x1b[?")
    return {int(number) for number in numbers.rstrip(b"c").split(b";") if number.isdigit()} if found else set()


def kitty(image: Image.Image) -> str:
    """The image as PNG in kitty's protocol, in chunks."""
    data = base64.b64encode(png(image)).decode("ascii")
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    last = len(chunks) - 1
    first_keys = "a=T,f=100,q=2,"  # transmit and show, PNG, no answers
    return "".join(
        f"\x1b_G{first_keys if number == 0 else ''}m={int(number < last)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def iterm(image: Image.Image) -> str:
    """The image as PNG in iTerm2's protocol."""
    data = png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)}:{base64.b64encode(data).decode('ascii')}\a"


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sixel(image: Image.Image) -> str:
    """The image in at most 256 colours as sixels."""
    import numpy as np

    reduced = image.convert("RGB").quantize(SIXEL_COLOURS)
    pixels = np.asarray(reduced)  # (height, width), numbers of colours
    palette = np.asarray(reduced.getpalette()).reshape(-1, 3)
    colours = np.unique(pixels)
    parts = [f'\x1bPq"1;1;{reduced.width};{reduced.height}']
    for colour in colours:
        red, green, blue = (round(int(value) * 100 / 255) for value in palette[colour])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]  # (up to 6, width)
        bits = 1 << np.arange(len(band))[:, None]
        lines = []
        for colour in np.unique(band):
            masks = ((band == colour) * bits).sum(0)  # (width,), one bit for each row of the band
            lines.append(f"#{colour}{runs(masks.tolist())}")
        parts.append("$".join(lines) + "-")  # $ goes back to the left, - to the next band
    parts.append("\x1b\\")
    return "".join(parts)


def runs(masks: Iterable[int]) -> str:
    """Columns of a band as sixel characters, with runs of four or more shortened to `!count`."""
    text, last, count = [], -1, 0
    for mask in (*masks, -1):
        if mask == last:
            count += 1
            continue
        if count:
            character = chr(63 + last)
            text.append(f"!{count}{character}" if count > 3 else character * count)
        last, count = mask, 1
    return "".join(text)
