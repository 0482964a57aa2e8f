"""`showo-hf tokenize`: compute the image tokens of a data set once, for training."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..utils.argument_types import (
    HUB_NAME,
    LARGEST_SIDE,
    integer,
    non_negative_integer,
    positive_integer,
    quoted,
    user_name,
    user_path,
)
from ..utils.messages import for_stdout
from .errors import CommandError, UsageError
from .files import check_folder
from .image_files import add_max_pixels
from .image_generation import check_size
from .model_loading import (
    accelerators,
    add_loading_options,
    check_model,
    choose_device,
    load_package,
    load_pipeline,
)
from .texts import exists, with_option_names


EXAMPLES = """\
DATA is what training takes: a folder of images with metadata.jsonl, a table, tars, conversations, or a data set on the Hub.
Training on FOLDER needs no image tokenizer at every step. The folder's name goes to stdout, everything else to stderr.

examples:
  a folder of images with metadata.jsonl
    showo-hf tokenize my-images -o my-tokens

  conversations with images, for a model of 512 pixels, in eight processes
    showo-hf tokenize llava.json --image-folder images --model path/to/folder --size 512 --num-proc 8 -o llava-tokens

Run the same command again to resume after an interruption: shards that are there and undamaged are kept.

exit codes: 0 all shards are written, 1 the work failed, 2 the arguments are not valid, 130 interrupted
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "tokenize",
        help="compute the image tokens of a data set once, for training",
        description="Compute the image tokens of a data set once, and store them in checked shards for training.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", type=user_name, metavar="DATA", help="file, folder, or name on the Hugging Face Hub")
    add("-o", "--output", type=user_path, required=True, metavar="FOLDER", help="where the tokens are stored")
    add("--size", type=integer(1, LARGEST_SIDE), metavar="PIXELS", help="side of the images (default: the model's)")
    add("--split", default="train", metavar="NAME", help="split of the data set (default: train)")
    add("--text-column", default="text", metavar="NAME", help="column of the text (default: text)")
    add("--image-column", default="image", metavar="NAME", help="column of the image (default: image)")
    add(
        "--image-folder",
        type=user_name,
        metavar="FOLDER",
        help="where the images named in a table lie (default: beside the table, then in `images` there)",
    )
    add("--flip", action="store_true", help="store the mirrored images as well; training draws one of the two")
    add("--shard-size", type=positive_integer, default=10_000, metavar="N", help="rows of a shard (default: 10000)")
    add("--batch-size", type=positive_integer, default=16, metavar="N", help="images encoded at once (default: 16)")
    add("--num-proc", type=positive_integer, default=1, metavar="N", help="processes (default: 1)")
    add(
        "--max-broken",
        type=non_negative_integer,
        default=100,
        metavar="N",
        help="images that cannot be read and are left out before the work fails (default: 100)",
    )
    add_max_pixels(parser)
    add_loading_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Tokenize the images."""
    if options.dtype != "float32":
        raise UsageError(f"`--dtype` must be float32, because image tokenizers compute in it, got {options.dtype}")
    check_folder("--output", options.output)
    if not exists(Path(options.data)) and not HUB_NAME.fullmatch(options.data):
        raise UsageError(
            f"`DATA` must be a file, a folder, or a data set on the Hub such as owner/name, got {quoted(options.data)}"
        )
    if options.size is not None:
        check_size((options.size, options.size), options.model)
    check_model(options.model)
    device = choose_device(options.device, quiet=options.quiet)
    devices = [device] if options.device else accelerators() or [device]

    load_package(options.quiet)
    from tqdm import tqdm

    try:
        from ..training.data.sources import DataSource, open_source
        from ..training.data.tokenizing import TokenizeOptions, store_tokens
    except ModuleNotFoundError as error:
        raise CommandError(f"this command needs {error.name}: pip install 'showo-hf[train]'") from error

    try:
        source = DataSource(
            options.data,
            options.split,
            text_column=options.text_column,
            image_column=options.image_column,
            image_folder=options.image_folder,
            max_pixels=options.max_pixels,
        )
        open_source(source, "mmu")  # before the model is loaded
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    load = partial(load_image_tokenizer, options.model, options.size, devices, options.quiet)
    settings = TokenizeOptions(source, options.shard_size, options.batch_size, options.flip)
    hidden = True if options.quiet else None  # None: shown on terminals only
    with tqdm(desc="tokenizing", unit="shard", disable=hidden) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        try:
            stored = store_tokens(
                settings,
                options.output,
                load,
                num_proc=options.num_proc,
                max_broken=options.max_broken,
                on_shard=show,
            )
        except BlockingIOError as error:
            raise CommandError(f"another process writes to '{options.output}'") from error
        except (ValueError, OSError) as error:
            raise CommandError(with_option_names(error)) from error
    broken = [f"{key}: {reason}" for shard in stored.shards for key, reason in shard["broken"].items()]
    for line in broken:
        print(f"showo-hf: left out: {with_option_names(line)}", file=sys.stderr)
    if not options.quiet:
        print(f"rows: {len(stored)} stored, {len(broken)} left out", file=sys.stderr)
    print(for_stdout(str(options.output)))
    return 0


def load_image_tokenizer(
    model: str | None, size: int | None, devices: list[str], quiet: bool, process: int
) -> tuple[Any, Any]:
    """
    The image tokenizer of a pipeline and its image processor, for square images of `size` pixels.

    `process` is the number of the process. It chooses one of `devices`. Only process 0 shows progress.

    Raises:
        UsageError: for a size that the image tokenizer cannot encode, if the files of the model did not tell.
        CommandError: if the model has no image tokenizer.
    """
    from ..processing.processing_showo import showo_image_processor

    pipe = load_pipeline(model, "float32", "cpu", quiet or process > 0)
    tokenizer = pipe.model.image_tokenizer
    if tokenizer is None:
        raise CommandError(f"the model '{model}' has no image tokenizer")
    patch = tokenizer.config.downsampling
    if size is not None and size % patch:
        raise UsageError(f"`--size` must be a multiple of {patch} pixels for this model, got {size}")
    processor = pipe.processor.image_processor if size is None else showo_image_processor(size)
    return tokenizer.eval().to(devices[process % len(devices)]), processor
