"""`showo-hf export`: a pipeline folder back to the original's format."""

from __future__ import annotations

import argparse
from typing import Any

from showo_hf.conversion.arguments import add_export_arguments


EXAMPLES = """\
examples:
  showo-hf export show-o --output original
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "export",
        help="a pipeline folder back to the original's format",
        description="Write a model of this package in the format of the original code.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_export_arguments(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Export; the folder's name goes to stdout, the report to stderr."""
    from showo_hf.conversion.command import finish
    from showo_hf.conversion.export_showo import run as work

    return finish(work, options)
