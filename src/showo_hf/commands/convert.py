"""`showo-hf convert`: convert original Show-o weights to a pipeline folder."""

from __future__ import annotations

import argparse
from typing import Any

from showo_hf.conversion.command_line import (
    SOURCE,
    add_image_tokenizer_argument,
    add_output_arguments,
    add_verify_argument,
    run_conversion,
    torch_dtype,
)
from showo_hf.utils.argument_types import positive_integer


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
    add = parser.add_argument
    add("--showo", **SOURCE, help="the transformer: a folder, a file or a Hub name, for example showlab/show-o")
    add_image_tokenizer_argument(parser)
    add("--text-tokenizer", **SOURCE, help="the text tokenizer, for example microsoft/phi-1_5")
    add("--clip-vision", metavar="PATH_OR_HUB_ID", help="for the CLIP-ViT variant: openai/clip-vit-large-patch14-336")
    add(
        "--num-image-tokens",
        type=positive_integer,
        metavar="N",
        help="number of tokens of an image, if the checkpoint does not name it",
    )
    add(
        "--with-code",
        action="store_true",
        help="add the package's code, so that the folder loads without showo-hf and with trust_remote_code=True",
    )
    add_verify_argument(parser)
    add_output_arguments(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Convert. The folder's name goes to stdout, the report to stderr."""
    from showo_hf.conversion.convert_showo import convert_showo

    def convert() -> str:
        return convert_showo(
            options.showo,
            options.image_tokenizer,
            options.text_tokenizer,
            options.output,
            clip_vision=options.clip_vision,
            dtype=torch_dtype(options.dtype),
            max_shard_size=options.max_shard_size,
            overwrite=options.overwrite,
            verify=options.verify,
            num_image_tokens=options.num_image_tokens,
            with_code=options.with_code,
            repo_id=options.push_to_hub,
        )

    return run_conversion(convert, options.output, options.push_to_hub, options.private)
