"""Images inside of a terminal: what is printed for each protocol, read back, and which protocol is chosen."""

import base64
import io
import os
import pty
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from terminals import PseudoTerminal

from showo_hf import cli
from showo_hf.commands.terminal_images import iterm, kitty, sixel, terminal_features, terminal_protocol


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Noise, so that its PNG needs several chunks, of a height that is no multiple of six, with a plain area."""
    pixels = np.random.default_rng(0).integers(0, 4, (107, 121, 3), dtype=np.uint8) * 85
    pixels[10:30, 5:50] = (255, 0, 51)
    return Image.fromarray(pixels)


def same(data: bytes, picture: Image.Image) -> bool:
    with Image.open(io.BytesIO(data)) as found:
        return found.format == "PNG" and np.array_equal(np.asarray(found), np.asarray(picture))


def test_kitty(picture):
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(picture))
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == kitty(picture)
    assert len(chunks) > 1 and all(len(data) <= 4096 for _, data in chunks)
    assert [keys.split("m=")[1] for keys, _ in chunks] == ["1"] * (len(chunks) - 1) + ["0"]
    assert chunks[0][0].startswith("a=T,f=100,")
    assert same(base64.b64decode("".join(data for _, data in chunks)), picture)


def test_iterm(picture):
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):([A-Za-z0-9+/=]+)\x07", iterm(picture))
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1]) and same(data, picture)


def read_sixels(text: str) -> np.ndarray:
    """Draw sixels, as a terminal does: RGB of shape (H, W, 3) in per cent."""
    header = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    width, height = int(header[1]), int(header[2])
    canvas = np.full((height + 6, width, 3), -1)
    palette, colour, x, y = {}, 0, 0, 0
    for token in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|\$|-|(?:!(\d+))?([?-~])", text[header.end() : -2]):
        if token[1]:
            palette[int(token[1])] = [int(token[2]), int(token[3]), int(token[4])]
        elif token[5]:
            colour = int(token[5])
        elif token[0] == "$":
            x = 0
        elif token[0] == "-":
            x, y = 0, y + 6
        else:
            mask = ord(token[7]) - 63
            for _ in range(int(token[6] or 1)):
                for row in range(6):
                    if mask >> row & 1:
                        canvas[y + row, x] = palette[colour]
                x += 1
    assert text.endswith("\x1b\\") and (canvas[height:] == -1).all()
    return canvas[:height]


def test_sixel(picture):
    text = sixel(picture)
    assert np.abs(read_sixels(text) - np.asarray(picture) / 2.55).max() <= 1  # all of its 64 colours
    assert "!" in text  # the plain area is shortened
    grey = Image.radial_gradient("L").resize((100, 60))
    assert np.abs(read_sixels(sixel(grey)) - np.asarray(grey.convert("RGB")) / 2.55).mean() < 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, kitty),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, kitty),
        ({"TERM": "xterm-ghostty"}, kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, iterm),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, iterm),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, iterm),
        ({"TERM": "xterm-sixel"}, sixel),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_the_protocol_of_a_terminal(variables, protocol, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # not a terminal, so nothing is asked
    assert terminal_protocol(Terminal(), variables) is protocol
    assert terminal_protocol(io.StringIO(), variables) is None


@pytest.mark.parametrize(
    ("answer", "features", "protocol"),
    [(b"\x1b[?62;4;22c", {62, 4, 22}, sixel), (b"\x1b[?1;2c", {1, 2}, None), (b"", set(), None)],
)
def test_a_terminal_is_asked_for_sixel(answer, features, protocol, monkeypatch):
    master, slave = pty.openpty()

    def be_terminal():
        if os.read(master, 100) == b"\x1b[c" and answer:
            os.write(master, answer)

    with os.fdopen(slave, "r+b", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        for check in (
            lambda: terminal_features(stream) == features,
            lambda: terminal_protocol(stream, {"TERM": "xterm"}) is protocol,
        ):
            thread = threading.Thread(target=be_terminal)
            thread.start()
            assert check()
            thread.join()
    os.close(master)


def test_a_system_without_termios_shows_no_sixels(monkeypatch):
    for name in ("termios", "tty"):
        monkeypatch.setitem(sys.modules, name, None)  # an import raises `ImportError`
    assert terminal_features(Terminal()) == set()
    assert terminal_protocol(Terminal(), {"TERM": "xterm"}) is None
    assert terminal_protocol(Terminal(), {"KITTY_WINDOW_ID": "1"}) is kitty


@pytest.mark.parametrize("quiet", [False, True])
def test_a_chat_shows_its_images_in_the_terminal(quiet, taught_folder, monkeypatch):
    """The image in kitty's protocol, and then the path of its file."""
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TMUX", raising=False)
    options = ["--device", "cpu", "--seed", "3", *(["-q"] if quiet else [])]
    with (
        PseudoTerminal() as terminal,
        os.fdopen(terminal.file, "r+b", buffering=0, closefd=False) as raw,
        io.TextIOWrapper(raw, write_through=True) as stream,
    ):
        monkeypatch.setattr("sys.stdin", stream)
        monkeypatch.setattr("sys.stdout", stream)
        os.write(terminal.keyboard, b"two hearts\n/quit\n")
        assert cli.main(["chat", "--model", taught_folder, *options]) == 0
    text = terminal.text
    pictures = re.findall(r"((?:\x1b_G[^;]*;[^\x1b]*\x1b\\)+)\r\n(image-\d\.png)\r\n", text)
    assert [path for _, path in pictures] == ([] if quiet else ["image-0.png", "image-1.png"])
    assert "image-0.png\r\n" in text and ("\x1b_G" in text) is not quiet
    for escapes, path in pictures:
        data = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)", escapes))
        with Image.open(path) as saved:
            assert same(base64.b64decode(data), saved)
