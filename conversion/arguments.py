"""The options of the conversion commands, alike in `showo-hf` and in the modules. Without heavy imports."""

import argparse
import re
from typing import Any


DTYPES = ("float32", "bfloat16", "float16")
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
        help="tokens of a picture, where the checkpoint does not say it",
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
    parser.add_argument("--image-tokenizer", **SOURCE, help="the picture tokenizer, as showlab/magvitv2")


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


def positive_integer(text: str) -> int:
    """A whole number from 1 on."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def shard_size(text: str) -> str:
    """A size with a unit, as huggingface_hub takes it."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a number with KB, MB, GB or TB, such as 2GB, got {text!r}")
    return text.upper()
