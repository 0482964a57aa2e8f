"""What a command loads is said before it is loaded: real processes on a terminal, which end where torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from terminals import PseudoTerminal


SOURCE = Path(__file__).parents[2] / "src"

END_AT_TORCH = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))

class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("torch is imported", file=sys.stderr, flush=True)
            os._exit(3)

def watch_programs(event, arguments):
    if event == "subprocess.Popen":
        print("a program is started", file=sys.stderr, flush=True)
        os._exit(3)

sys.meta_path.insert(0, Watch)
sys.addaudithook(watch_programs)
import showo_hf_command
sys.exit(showo_hf_command.main())
"""
LIBRARIES = "loading the libraries ..."
COMMANDS = {
    "generate owl -o a.png": LIBRARIES,
    "generate owl -o a.png --device cpu": LIBRARIES,
    "generate --prompts p.txt -o images": LIBRARIES,
    "inpaint apple.png owl -o a.png --box 0,0,20,20": LIBRARIES,
    "extend apple.png owl -o a.png": LIBRARIES,
    "vary apple.png owl -o a.png": LIBRARIES,
    "caption apple.png": LIBRARIES,
    "caption apple.png --device cpu": LIBRARIES,
    "ask apple.png what?": LIBRARIES,
    "chat": LIBRARIES,
    "tokenize full -o tokens": LIBRARIES,
    "convert --image-tokenizer full -o out": "loading the conversion ...",
    "export full -o out": "loading the conversion ...",
    "train lora data=full output=out steps=1": "loading the training code ...",
    "info": LIBRARIES,
}


@pytest.fixture
def files(empty_folder):
    Image.new("RGB", (96, 96), "white").save("apple.png")
    Path("p.txt").write_text("an owl\n")
    Path("full").mkdir()
    Path("full/config.json").write_text('{"model_type": "showo"}')  # all that is read before an export loads anything


def lines_until_torch(command: str) -> list[str]:
    """What a command prints to a terminal before torch is imported, or another program started."""
    words = [sys.executable, "-c", END_AT_TORCH, SOURCE, *command.split()]
    with PseudoTerminal() as terminal:
        process = subprocess.run(
            words, stdin=terminal.file, stdout=subprocess.DEVNULL, stderr=terminal.file, timeout=60
        )
    assert process.returncode == 3, terminal.text
    return terminal.text.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_loaded_is_said_before(files, command):
    assert lines_until_torch(command) == [COMMANDS[command], "torch is imported"]


def test_a_wheel_is_said_to_be_built(empty_folder):
    pytest.importorskip("gradio")
    assert lines_until_torch("space out") == ["building the wheel of this package ...", "a program is started"]


@pytest.mark.parametrize("command", ["generate owl -o a.png", "caption apple.png --device cpu", "chat"])
def test_a_quiet_command_says_nothing(files, command):
    assert lines_until_torch(f"{command} -q") == ["torch is imported"]


def test_in_a_pipe_nothing_is_said(files):
    words = [sys.executable, "-c", END_AT_TORCH, SOURCE, "caption", "apple.png"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "torch is imported\n")
