"""Ctrl-C in `showo-hf chat`: in an answer, in an image, and at the prompt of a terminal."""

import functools
import io
import os
import pty
import select
import signal
import subprocess
import sys

import conversations
import pytest
import torch
from chats import conversation, files, paint, pixels

from showo_hf import ShowoAnyToAnyPipeline, cli
from showo_hf.commands.chat_screen import stop_on_interrupt


def test_the_first_interrupt_requests_a_stop_and_the_second_raises():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(True) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    with stop_on_interrupt(False) as stop:
        assert signal.getsignal(signal.SIGINT) == before


ENDLESS = 100_000  # tokens; too many to wait for


def endless(**bias: float) -> ShowoAnyToAnyPipeline:
    """A model that does not end its answers."""
    pipe = conversations.random_chat_pipeline(eot=-1e4, **bias)
    pipe.model.config.text_config.max_position_embeddings = ENDLESS
    return pipe


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "endless"
    endless(soi=-1e4).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("where", ["words", "image"])
def test_a_stopped_answer_changes_nothing(where, interrupt_when, capfd):
    pipe = endless(soi=-1e4 if where == "words" else 1e4)
    wanted = {"max_new_tokens": ENDLESS, "max_images": ENDLESS, "steps": 16}
    chat = conversation(pipe, interactive=True, quiet=False, **wanted)
    paint("apple.png")
    assert chat.run_line("/image apple.png")
    state = chat.generator.get_state()
    printed = {"out": "", "err": ""}

    def begun() -> bool:
        more = capfd.readouterr()
        printed["out"] += more.out
        printed["err"] += more.err
        return bool(printed["out"])  # a word, or the path of the first image

    with interrupt_when(begun):
        assert chat.run_line("tell me a story")
    end = capfd.readouterr()
    assert "(stopped; your message and the answer are discarded)" in printed["err"] + end.err
    assert chat.sources == chat.session.messages == []
    assert [attachment.name for attachment in chat.attachments] == ["apple.png"]
    assert torch.equal(chat.generator.get_state(), state)
    assert not chat.failed
    for name in files():
        pixels(name)  # Pillow raises if a file is truncated
    # The next answer is the same as in a new conversation.
    number = len(files()) - 1
    fresh = conversation(chat.pipe, steps=2, max_new_tokens=4, max_images=1)
    chat.options = fresh.options
    for one in (chat, fresh):
        one.next_number = number
    fresh.run_line("/image apple.png")
    assert chat.run_line("tell me") and fresh.run_line("tell me")
    assert conversations.same_parts(chat.session.messages[1]["content"], fresh.session.messages[1]["content"])


def test_an_interrupt_ends_the_program_if_stdin_is_not_a_terminal(endless_folder, monkeypatch, interrupt_when, capfd):
    monkeypatch.setattr("sys.stdin", io.StringIO("tell me\n"))
    options = ["--device", "cpu", "--quiet", "--seed", "0", "--max-new-tokens", str(ENDLESS)]
    with interrupt_when(lambda: capfd.readouterr().out != ""):
        code = cli.main(["chat", "--model", endless_folder, *options])
    assert code == cli.INTERRUPTED
    assert capfd.readouterr().err.splitlines()[-1] == "showo-hf: interrupted"


class Terminal:
    """A command in a pseudo terminal."""

    def __init__(self, *command: str):
        self.master, slave = pty.openpty()
        # Background jobs of a shell ignore the signal, and so do their children.
        reset = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=reset, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def read(self) -> None:
        """Read the available output; fail if there is none."""
        assert select.select([self.master], [], [], 240)[0], f"no output after {self.seen!r}"
        self.seen += os.read(self.master, 4096).decode(errors="replace")

    def wait_for(self, text: str) -> None:
        """Read until `text` appears, and drop everything up to it."""
        while text not in self.seen:
            self.read()
        self.seen = self.seen.partition(text)[2]

    def wait_for_more(self, count: int) -> None:
        """Read until `count` more characters have appeared."""
        while len(self.seen) < count:
            self.read()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_prompt(self, text: str) -> None:
        """
        Press Ctrl-C until `text` appears. If Ctrl-C arrives after the prompt but before Python's `input` waits for a
        key, `input` only notices it at the next key.
        """
        for _ in range(20):
            self.interrupt()
            while text not in self.seen and select.select([self.master], [], [], 10)[0]:
                self.read()
            if text in self.seen:
                break
        self.wait_for(text)


@pytest.mark.slow
def test_in_a_terminal(endless_folder):
    paint("apple.png")
    options = ["--device", "cpu", "--seed", "3", "--max-new-tokens", str(ENDLESS)]
    terminal = Terminal(sys.executable, "-m", "showo_hf.cli", "chat", "--model", endless_folder, *options)
    terminal.wait_for("Ctrl-D quits.")
    terminal.wait_for("> ")
    terminal.interrupt_prompt("(/quit or Ctrl-D quits)")
    terminal.wait_for("> ")
    terminal.type("/image apple.png\n")
    terminal.wait_for("20x16, is sent with your next message)")
    for _ in range(2):
        terminal.wait_for("> ")
        terminal.type("tell me\n")
        terminal.wait_for("tell me")
        terminal.wait_for_more(50)
        terminal.interrupt()
        terminal.wait_for("(stopped; your message and the answer are discarded)")
    terminal.wait_for("> ")
    terminal.type("/save said.json\n")
    terminal.wait_for("(0 messages in said.json)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    os.close(terminal.master)
    assert files() == ["apple.png", "said.json"]
