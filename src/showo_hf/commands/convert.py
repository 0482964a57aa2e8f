"""`showo-hf convert`: convert original Show-o weights to a pipeline folder, or an image tokenizer to a folder."""

from __future__ import annotations

import argparse
from typing import Any

from showo_hf.conversion.command_line import (
    add_image_tokenizer_argument,
    add_output_arguments,
    add_verify_argument,
    run_conversion,
    torch_dtype,
)
from showo_hf.utils.argument_types import HUB_NAME, LARGEST_SIDE, integer, quoted, square_number, user_path
from showo_hf.utils.weight_files import PICKLES, SAFETENSORS

from .errors import UsageError
from .export import check_output_options
from .hub_names import check_hub_model
from .model_loading import load_package, say_loading
from .texts import exists


EXAMPLES = """\
examples:
  showo-hf convert --showo showlab/show-o --image-tokenizer showlab/magvitv2 --text-tokenizer microsoft/phi-1_5 \\
    --output show-o-hf
  showo-hf convert --image-tokenizer kandinsky-community/kandinsky-2-2-decoder-movq --output movq-hf
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "convert",
        help="original Show-o weights to a pipeline folder",
        description="Convert an original Show-o checkpoint to a folder that ShowoT2IPipeline.from_pretrained loads. With "
        "--image-tokenizer alone, convert an image tokenizer to a folder that AutoModel.from_pretrained loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--showo",
        metavar="PATH_OR_HUB_ID",
        help="the transformer: a folder, a file or a Hub name, for example showlab/show-o",
    )
    add_image_tokenizer_argument(parser)
    add("--text-tokenizer", metavar="PATH_OR_HUB_ID", help="the text tokenizer, for example microsoft/phi-1_5")
    add("--clip-vision", metavar="PATH_OR_HUB_ID", help="for the CLIP-ViT variant: openai/clip-vit-large-patch14-336")
    add(
        "--num-image-tokens",
        type=square_number,
        metavar="N",
        help="number of tokens of an image, if the checkpoint does not name it",
    )
    add(
        "--image-size",
        type=integer(1, LARGEST_SIDE),
        metavar="PIXELS",
        help="side of the training images of an image tokenizer that is converted alone (default: 256)",
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
    """
    Convert. The folder's name goes to stdout, the report to stderr.

    Raises:
        UsageError: if only one of `--showo` and `--text-tokenizer` is given, or neither is and another option needs
            them, or both are and `--image-size` is given.
    """
    check_options(options)
    check_output_options(options)
    check_sources(options)
    say_loading("the conversion", options.quiet)
    load_package()
    shared = {
        "dtype": torch_dtype(options.dtype),
        "max_shard_size": options.max_shard_size,
        "overwrite": options.overwrite,
        "verify": options.verify,
        "repo_id": options.push_to_hub,
    }

    def convert() -> str:
        if options.showo is None:
            from showo_hf.conversion.convert_image_tokenizer import convert_image_tokenizer

            size = {} if options.image_size is None else {"sample_size": options.image_size}
            return convert_image_tokenizer(options.image_tokenizer, options.output, **size, **shared)
        from showo_hf.conversion.convert_showo import convert_showo

        return convert_showo(
            options.showo,
            options.image_tokenizer,
            options.text_tokenizer,
            options.output,
            clip_vision=options.clip_vision,
            num_image_tokens=options.num_image_tokens,
            with_code=options.with_code,
            **shared,
        )

    return run_conversion(convert, options.output, options.push_to_hub, options.private, options.quiet)


def check_options(options: argparse.Namespace):
    """Raise `UsageError` unless the options are those of a whole model or those of an image tokenizer alone."""
    if options.showo is not None:
        if options.text_tokenizer is None:
            raise UsageError("`--showo` needs `--text-tokenizer`, for example microsoft/phi-1_5")
        if options.image_size is not None:
            raise UsageError(
                "`--image-size` is for an image tokenizer alone; with `--showo`, give `--num-image-tokens`"
            )
        return
    given = {
        "--text-tokenizer": options.text_tokenizer,
        "--clip-vision": options.clip_vision,
        "--num-image-tokens": options.num_image_tokens,
        "--with-code": options.with_code,
    }
    wrong = [f"`{name}`" for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} needs `--showo`; without it only the image tokenizer is converted")


def check_sources(options: argparse.Namespace):
    """
    Raise `UsageError` for a source that is neither here nor a repository on the Hub, and for a file of another format.

    This may ask the Hub, so it comes after all other checks that need no torch.
    """
    for name in ("showo", "image_tokenizer", "text_tokenizer", "clip_vision"):
        option, source = f"--{name.replace('_', '-')}", getattr(options, name)
        if source is None:
            continue
        path = user_path(source)
        if exists(path):
            if name != "text_tokenizer" and path.is_file() and path.suffix not in SAFETENSORS + PICKLES:
                endings = ", ".join(SAFETENSORS + PICKLES)
                raise UsageError(
                    f"`{option}` must be a folder, or a file that ends in {endings}, got {quoted(source)}"
                )
            continue
        if not HUB_NAME.fullmatch(source):
            raise UsageError(
                f"`{option}` must be a folder or file, or a name on the Hub such as showlab/show-o, got {quoted(source)}"
            )
        check_hub_model(source, option)
