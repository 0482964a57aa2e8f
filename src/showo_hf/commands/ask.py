"""`showo-hf ask`: questions about images."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import quoted, user_name
from .errors import UsageError
from .image_files import is_single_image, is_url
from .image_questions import RESUMING, add_question_options, answer_questions, ask_each, generate_answers
from .results import Record, one_line
from .texts import check_characters, check_text, exists


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


EXAMPLES = f"""\
For one image, the answer is printed; for several, "image: answer", one per line. With several questions, each answer
follows its question. Everything else goes to stderr.

examples:
  showo-hf ask scene.png "what is left of the car?"

  several questions; the image is encoded once
    showo-hf ask scene.png --question "how many things are there?" --question "what colour is the car?"

  multiple choice: print the likeliest answer and the probability of each; write the answers as the model would
    showo-hf ask scene.png car.png "what colour is the car?" --choices "it is red." "it is blue."

  a folder of thousands of images, in a resumable run
    showo-hf ask images "how many things are there?" -o counts.jsonl --batch-size 32
  each line of counts.jsonl looks like
    {{"image": "images/scene.png", "question": "how many things are there?", "answer": "there are two."}}

{RESUMING}"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "ask",
        help="ask questions about images",
        description="Ask questions about images.",
        usage="showo-hf ask [options] IMAGE... QUESTION [--choices ANSWER ANSWER...]\n"
        "       showo-hf ask [options] IMAGE... --question QUESTION [--question QUESTION...]",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="IMAGE... QUESTION", help="files, folders of images or URLs; the question is last")
    add("-Q", "--question", action="append", metavar="QUESTION", help="replaces the last word; can be repeated")
    add("--choices", nargs="+", metavar="ANSWER", help="answers to choose from; must follow the question")
    add_question_options(parser)
    parser.intermixed = True  # `showo_hf.cli.Parser`: options may stand between the images
    return parser


def run(options: argparse.Namespace) -> int:
    """Answer the questions; see [`answer_questions`]."""
    images, texts = images_and_questions(options.words, options.question)
    choices = check_choices(options.choices)
    questions: list[Record] = [{"question": text, **({"choices": choices} if choices else {})} for text in texts]
    answer = partial(choose if choices else answers, options=options)
    show = partial(line, single=is_single_image(images), several=len(texts) > 1)
    return answer_questions(options, images, questions, answer, show)


def images_and_questions(words: list[str], questions: list[str] | None) -> tuple[list[str], list[str]]:
    """Split the positional arguments into images and questions. Raises `UsageError` if either is missing."""
    if questions is None:
        *words, question = words
        if is_url(question) or (question and exists(Path(user_name(question)))):
            raise UsageError(
                f"the last argument must be the question unless --question is given, but {quoted(question)} is an image"
            )
        if not words:
            raise UsageError(f"an image and a question are needed, got only {quoted(question)}")
        questions = [question]
    for question in questions:
        check_text("QUESTION", question)
    return list(map(user_name, words)), list(dict.fromkeys(questions))


def check_choices(choices: list[str] | None) -> list[str]:
    """The answers to choose from. Raises `UsageError` unless there are at least two, all different."""
    if choices is None:
        return []
    for choice in choices:
        check_characters("--choices", choice)
    stripped = [choice.strip() for choice in choices]
    if len(stripped) < 2 or len(set(stripped)) < len(stripped) or not all(stripped):
        raise UsageError(
            f"`--choices` must be two or more different answers, got {', '.join(map(quoted, choices[:5]))}"
        )
    return stripped


def answers(
    pipe: DiffusionPipeline, images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """The generated answer to every question about every image."""
    found = generate_answers(pipe, images, [question["question"] for question in questions], options)
    return [[{"answer": text} for text in texts] for texts in found]


def choose(
    pipe: DiffusionPipeline, images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """The likeliest of the given answers, with the probability of each, normalized over the given answers."""
    choices = questions[0]["choices"]

    def call(pair_images: list, prompts: list[str]) -> list[Record]:
        scores = pipe.score(pair_images, prompts, choices, batch_size=options.batch_size).log_likelihoods
        return [best_choice(choices, score.double().softmax(-1).tolist()) for score in scores]

    return ask_each(call, images, [question["question"] for question in questions])


def best_choice(choices: list[str], probabilities: list[float]) -> Record:
    """The fields of a chosen answer."""
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return {"answer": choices[best], "probabilities": [round(one, 6) for one in probabilities]}


def line(record: Record, single: bool, several: bool) -> str:
    """Format an answer as a line of text: with the image unless `single`, with the question if `several`."""
    answer = record["answer"]
    if "probabilities" in record:
        pairs = zip(record["choices"], record["probabilities"], strict=True)
        answer += f" ({', '.join(f'{choice} {probability:.3f}' for choice, probability in pairs)})"
    if single and not several:
        return answer
    text = one_line(record["question"], answer) if several else one_line(answer)
    return text if single else f"{record['image']}: {text}"
