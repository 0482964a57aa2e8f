"""`showo-hf caption`: what images show, in words."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .reading import RESUMING, Record, add_reading_options, ask_in_words, is_alone, one_line, read_images


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


DEFAULT_PROMPT = "describe the picture."  # a question that the embedded model was trained on

EXAMPLES = f"""\
Of one image the caption alone is printed, of several "image: caption", one a line. Everything else goes to stderr.

examples:
  one image
    showo-hf caption apple.png

  every image in a folder, and in its folders
    showo-hf caption images --recursive

  thousands of them, which can be interrupted and gone on with: {{"image": "images/apple.png", "text": "a red apple."}}
    showo-hf caption images -o captions.jsonl --batch-size 32

  in other words
    showo-hf caption apple.png pear.png --prompt "what is this?" --json

{RESUMING}"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "caption",
        help="say what images show",
        description="Say what images show.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder of images, or URL")
    parser.add_argument(
        "--prompt", default=DEFAULT_PROMPT, metavar="WORDS", help=f'what to ask for (default: "{DEFAULT_PROMPT}")'
    )
    add_reading_options(parser)
    parser.intermixed = True  # `showo_hf.cli.Parser`: names may stand before and behind options
    return parser


def run(options: argparse.Namespace) -> int:
    """Caption the images; see [`read_images`]."""
    if not options.prompt.strip():
        raise UsageError("`--prompt` must hold words, got none")
    # A prompt of one's own is part of the record: another one is another question.
    question = {} if options.prompt == DEFAULT_PROMPT else {"prompt": options.prompt}
    alone = is_alone(options.images)
    return read_images(
        options, options.images, [question], partial(captions, options=options), partial(line, alone=alone)
    )


def captions(
    pipe: DiffusionPipeline, images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """The caption of each image."""
    prompts = [question.get("prompt", DEFAULT_PROMPT) for question in questions]
    answers = ask_in_words(pipe, images, prompts, options)
    return [[{"text": text} for text in texts] for texts in answers]


def line(record: Record, alone: bool) -> str:
    """A caption as a line of text."""
    return record["text"] if alone else f"{record['image']}: {one_line(record['text'])}"
