"""The options of the conversion commands, alike in `showo-hf` and in the modules. Without heavy imports."""

import argparse
from typing import Any

from showo_hf.utils.argument_types import DTYPES, positive_integer, shard_size


FORMATS = ("safetensors", "bin")
SOURCE: dict[str, Any] = {"required": True, "metavar": "PATH_OR_HUB_ID"}


def add_convert_arguments(parser: argparse.ArgumentParser):
    """Options of `convert_showo`."""
    add = parser.add_argument
    add("--showo", **SOURCE, help="the transformer: a folder, a file or a Hub name, as showlab/show-o")
    add_image_tokenizer_argument(parser)
    add("--text-tokenizer", **SOURCE, help="as microsoft/phi-1_5")
    add("--clip-vision", metavar="PATH_OR_HUB_ID", help="for the CLIP-ViT variant: openai/clip-vit-large-patch14-336")
    add(
        "--num-image-tokens",
        type=positive_integer,
        metavar="N",
        help="tokens of an image, where the checkpoint does not say it",
    )
    add(
        "--with-code",
        action="store_true",
        help="put the code in too: to be used without showo-hf, by those who trust it",
    )
    add_verify_argument(parser)
    add_output_arguments(parser)


def add_convert_magvitv2_arguments(parser: argparse.ArgumentParser):
    """Options of `convert_magvitv2`."""
    add_image_tokenizer_argument(parser)
    add_verify_argument(parser)
    add_output_arguments(parser)


def add_export_arguments(parser: argparse.ArgumentParser):
    """Options of `export_showo`."""
    parser.add_argument("folder", help="a pipeline folder, or the model/ in it")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="bin is torch.save's")
    add_output_arguments(parser, max_shard_size="100GB")  # the original reads one file


def add_image_tokenizer_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--image-tokenizer", **SOURCE, help="the image tokenizer, as showlab/magvitv2")


def add_verify_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--verify", action="store_true", help="run it, and a plain reading of the source, and compare")


def add_output_arguments(parser: argparse.ArgumentParser, max_shard_size: str = "5GB"):
    """Options that every conversion has."""
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="the folder to write; it is whole or not there")
    add("--dtype", choices=DTYPES, help="number format of the weights on the disk (default: the source's)")
    add(
        "--max-shard-size",
        default=max_shard_size,
        type=shard_size,
        metavar="SIZE",
        help=f"largest file, such as 2GB (default: {max_shard_size})",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--push-to-hub", metavar="ORG/NAME", help="upload the folder to this repository when it is done")
    add("--private", action="store_true", help="make that repository a private one, if it is new")
