"""`showo-hf caption`: describe images in words."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import user_name
from .image_files import is_single_image
from .image_questions import RESUMING, add_question_options, answer_questions, generate_answers
from .results import Record, one_line
from .texts import check_text


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


DEFAULT_PROMPT = "describe the picture."  # a question in the training data of the embedded model

EXAMPLES = f"""\
For one image, the caption is printed; for several, "image: caption", one per line. Everything else goes to stderr.

examples:
  one image
    showo-hf caption scene.png

  all images in a folder and its subfolders
    showo-hf caption images --recursive

  thousands of images, in a resumable run
    showo-hf caption images -o captions.jsonl --batch-size 32
  each line of captions.jsonl looks like
    {{"image": "images/scene.png", "prompt": "{DEFAULT_PROMPT}", "text": "an apple to the left of a blue car."}}

  another prompt
    showo-hf caption scene.png cat.png --prompt "what is in the picture?" --json

{RESUMING}"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "caption",
        help="describe images in words",
        description="Describe images in words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=user_name, metavar="IMAGE", help="file, folder of images, or URL")
    parser.add_argument(
        "--prompt",
        default=DEFAULT_PROMPT,
        metavar="WORDS",
        help=f'what to ask the model (default: "{DEFAULT_PROMPT}")',
    )
    add_question_options(parser)
    parser.intermixed = True  # `showo_hf.cli.Parser`: options may stand between the images
    return parser


def run(options: argparse.Namespace) -> int:
    """Caption the images; see [`answer_questions`]."""
    check_text("--prompt", options.prompt)
    show = partial(line, single=is_single_image(options.images))
    assumed = {"prompt": DEFAULT_PROMPT}  # records once named only other prompts
    return answer_questions(
        options, options.images, [{"prompt": options.prompt}], partial(captions, options=options), show, assumed
    )


def captions(
    pipe: DiffusionPipeline, images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """The caption of every image for every prompt."""
    prompts = [question["prompt"] for question in questions]
    answers = generate_answers(pipe, images, prompts, options)
    return [[{"text": text} for text in texts] for texts in answers]


def line(record: Record, single: bool) -> str:
    """Format a caption as a line of text."""
    return record["text"] if single else f"{record['image']}: {one_line(record['text'])}"
