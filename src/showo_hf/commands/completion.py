"""`showo-hf --print-completion SHELL`: the script with which a shell completes commands, options and file names."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..utils.argument_types import user_name, user_path
from .saved_model import help_numbers


SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
FILE_WORDS = (
    "image",
    "images",
    "words",
    "mask",
    "model",
    "load",
    "data",
    "image_folder",
    "folder",
    "prompts",
    "showo",
)


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        help="print the script that completes this command in a shell, and exit",
    )


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and exits, as `--help` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        import shtab

        for action in parser.all_arguments():
            if action.type in (Path, user_path, user_name) or action.dest in FILE_WORDS:
                action.complete = shtab.FILE  # where shtab looks for how to complete a value
        script = shtab.complete(parser, shell=values)
        for word, number in help_numbers(None).items():
            script = script.replace(word, number)
        print(script, end="" if script.endswith("\n") else "\n")
        parser.exit(0)
