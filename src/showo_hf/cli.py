"""The command `showo-hf`: its parser, the dispatch to the commands, and the exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Collection

from .commands import (
    ask,
    caption,
    chat,
    convert,
    export,
    extend,
    generate,
    info,
    inpaint,
    space,
    tokenize,
    train,
    vary,
)
from .commands.completion import add_completion
from .commands.errors import UsageError
from .commands.info import package_version
from .commands.saved_model import asked_model, help_numbers
from .training.recipe_entries import nearest
from .utils.argument_types import quoted
from .utils.messages import one_sentence


GOOD, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes
COMMANDS = (
    generate,
    inpaint,
    extend,
    vary,
    caption,
    ask,
    chat,
    train,
    tokenize,
    convert,
    export,
    space,
    info,
)  # in the order of the help

#: Options that have another name than the argument in Python.
PYTHON_NAMES = {
    "--guidance-scale": "--guidance",
    "--height": "--size",
    "--num-images-per-prompt": "--num",
    "--num-inference-steps": "--steps",
    "--width": "--size",
}
EXAMPLES = """\
examples:
  showo-hf generate "a red apple to the left of a blue car" -o scene.png
  showo-hf vary scene.png "a red apple to the left of a yellow bell" -o bell.png
  showo-hf caption scene.png
  showo-hf ask scene.png "what is left of the car?"
  showo-hf chat
  showo-hf info
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command on `arguments`, by default those of the process, and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = build_parser(asked_model(words)).parse_args(words)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("showo-hf: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader closed our output, as `head` does. Without this, Python reports an error when it flushes its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(f"showo-hf: error: {one_sentence(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


class Parser(argparse.ArgumentParser):
    """
    An `ArgumentParser` whose errors are one line, and whose help names the defaults of the model that is asked for.

    A subcommand may allow options between positional arguments (`intermixed`), and take `key=value` (`entry_names`).
    """

    intermixed = False
    entry_names: Callable[[], Collection[str]] = tuple
    numbers: Callable[[], dict[str, str]] = dict  # what stands for the words in braces in the help

    def __init__(self, *args, **kwargs):
        self.arguments: list[argparse.Action] = []
        self.commands: list[Parser] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *args, **kwargs) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self.arguments.append(action)
        return action

    def all_arguments(self) -> list[argparse.Action]:
        """The arguments of this parser and of its commands."""
        return [*self.arguments, *(action for command in self.commands for action in command.arguments)]

    def check_options(self, words: list[str]) -> None:
        """Exit with an error for an option that is not known. argparse looks for missing arguments first."""
        known = [option for action in self.arguments for option in action.option_strings if option.startswith("--")]
        for word in words:
            name = word.partition("=")[0]
            if name == "--":
                return
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                here, entry = PYTHON_NAMES.get(name), name.removeprefix("--").replace("-", "_")
                if here in known:
                    meant = f"; here it is called {here}"
                elif entry in self.entry_names():
                    meant = f"; write {entry}=VALUE"
                else:
                    meant = nearest(name, known).rstrip(".")
                self.error(f"there is no option {quoted(name)}{meant}")

    def parse_known_args(self, args=None, namespace=None):  # argparse calls this for a subcommand, with its words
        if not self.commands:
            self.check_options(args)
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # parse_known_intermixed_args calls this method twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True

    def format_help(self) -> str:
        text = super().format_help()
        for word, number in self.numbers().items():
            text = text.replace(word, number)
        return text

    def error(self, message: str):
        # Without argparse's usage, which is many lines long and hides the error.
        self.exit(USAGE, f"{self.prog}: error: {one_sentence(ValueError(message))} (see {self.prog} --help)\n")


class Version(argparse.Action):
    """Prints the version. It is looked up only then."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"showo-hf {package_version('showo-hf') or 'unknown'}")
        parser.exit(GOOD)


def build_parser(model: str | None = None) -> Parser:
    """
    The parser of the whole command. The parsed options contain the function of the chosen command as `run`.

    Args:
        model: the model whose defaults the help names; None for the embedded one.
    """
    parser = Parser(
        prog="showo-hf",
        description="Text to image and image to text with a Show-o model. A small one is embedded in the package.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    add_completion(parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = command.add_parser(subparsers)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(run=command.run)
        subparser.numbers = lambda: help_numbers(model)
        parser.commands.append(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
