"""The command `showo-hf`: its parser, the dispatch to the commands, and the exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

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
from .commands.errors import UsageError
from .commands.info import package_version


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

EXAMPLES = """\
examples:
  showo-hf generate "a red apple, flat style" -o apple.png
  showo-hf vary apple.png "a green apple, flat style" -o green.png
  showo-hf caption apple.png
  showo-hf ask apple.png "is it food?"
  showo-hf chat
  showo-hf info
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command on `arguments`, by default those of the process, and return its exit code."""
    options = build_parser().parse_args(arguments)
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
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"showo-hf: error: {message}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with subcommands that can allow options between positional arguments (`intermixed`)."""

    intermixed = False

    def parse_known_args(self, args=None, namespace=None):  # argparse calls this for a subcommand
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # parse_known_intermixed_args calls this method twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command. The parsed options contain the function of the chosen command as `run`."""
    parser = Parser(
        prog="showo-hf",
        description="Text to image and image to text with a Show-o model. A small one is embedded in the package.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"showo-hf {package_version('showo-hf') or 'unknown'}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = command.add_parser(subparsers)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
