"""`showo-hf convert`: original Show-o weights to a pipeline folder."""

from __future__ import annotations

import argparse
from typing import Any

from showo_hf.conversion.arguments import add_convert_arguments


EXAMPLES = """\
examples:
  showo-hf convert --showo showlab/show-o --image-tokenizer showlab/magvitv2 --text-tokenizer microsoft/phi-1_5 \\
    --output show-o-hf
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "convert",
        help="original Show-o weights to a pipeline folder",
        description="Convert an original Show-o checkpoint to a folder that ShowoT2IPipeline.from_pretrained loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_convert_arguments(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Convert; the folder's name goes to stdout, the report to stderr."""
    from showo_hf.conversion.command import finish
    from showo_hf.conversion.convert_showo import run as work

    return finish(work, options)
