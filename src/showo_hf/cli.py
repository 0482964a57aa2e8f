"""The command `showo-hf`: its parser, the dispatch to the commands, and the exit codes."""

from __future__ import annotations

import argparse
import sys
import traceback

from .commands import convert, export, generate, info
from .commands.errors import UsageError
from .commands.info import package_version


GOOD, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes
COMMANDS = (generate, convert, export, info)  # in the order of the help

EXAMPLES = """\
examples:
  showo-hf generate "a red apple, flat style" -o apple.png
  showo-hf info
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command on `arguments` (those of the process by default) and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("showo-hf: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"showo-hf: error: {message}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command. Parsed options hold the chosen command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="showo-hf",
        description="Pictures from words with a Show-o model. A small model comes with the package.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"showo-hf {package_version('showo-hf') or 'unknown'}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = command.add_parser(subparsers)
        subparser.add_argument("--debug", action="store_true", help="show the trace of an error")
        subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
