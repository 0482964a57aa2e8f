"""
Writes docs/command_line.md: the help of every command, as `showo-hf COMMAND --help` prints it.

    python docs/site/command_line.py
"""

import argparse
import os
import re
from pathlib import Path

from showo_hf.cli import build_parser


PAGE = Path(__file__).parents[1] / "command_line.md"
WIDTH = "100"  # columns of the terminal
HEAD = """\
# Command line

`showo-hf` has one command for each task. Every command has `--help`, which this page repeats. The
defaults belong to the embedded model; with `--model`, the help names the defaults of that model.
`showo-hf --print-completion bash` (or `zsh`, `fish`) prints a script for the completion of words. In
bash, this line in `~/.bashrc` turns it on: `eval "$(showo-hf --print-completion bash)"`.

Errors are one line that names the option. A command that makes images and would take more than an
hour says how long it would take on this machine, and asks for `--yes`. The exit code is 0 if all is
done, 1 if the work failed, 2 if the arguments are not valid, and 130 after Ctrl-C.
"""


def help_text(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        text = parser.format_help()
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def section(title: str, parser: argparse.ArgumentParser) -> str:
    return f"\n## {title}\n\n```text\n{help_text(parser)}\n```\n"


def page() -> str:
    """The text of the page."""
    parser = build_parser()
    commands = [section(one.prog.rpartition(" ")[2], one) for one in parser.commands]
    return HEAD + section("showo-hf", parser) + "".join(commands)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
