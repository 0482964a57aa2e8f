"""`showo-hf ask`: questions about images."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .reading import (
    RESUMING,
    Record,
    add_reading_options,
    ask_each,
    ask_in_words,
    is_alone,
    is_url,
    one_line,
    read_images,
)


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


EXAMPLES = f"""\
Of one image the answer alone is printed, of several "image: answer", one a line; where there are several questions,
each stands before its answer. Everything else goes to stderr.

examples:
  showo-hf ask apple.png "is it food?"

  several questions; the image is read once
    showo-hf ask apple.png --question "what is this?" --question "what is the main colour?"

  one of these answers, each with its probability among them; write them as the model would
    showo-hf ask apple.png pear.png "is it food?" --choices yes. no.

  a folder of thousands, which can be interrupted and gone on with:
  {{"image": "images/apple.png", "question": "is it food?", "answer": "yes."}}
    showo-hf ask images "is it food?" -o food.jsonl --batch-size 32

{RESUMING}"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "ask",
        help="ask about images",
        description="Ask about images.",
        usage="showo-hf ask [options] IMAGE... QUESTION [--choices ANSWER ANSWER...]\n"
        "       showo-hf ask [options] IMAGE... --question QUESTION [--question QUESTION...]",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="IMAGE... QUESTION", help="files, folders of images or URLs; the question last")
    add("-Q", "--question", action="append", metavar="QUESTION", help="in place of the last word; may be given again")
    add("--choices", nargs="+", metavar="ANSWER", help="answers to choose from; stand behind the question")
    add_reading_options(parser)
    parser.intermixed = True  # `showo_hf.cli.Parser`: names may stand before and behind options
    return parser


def run(options: argparse.Namespace) -> int:
    """Answer the questions; see [`read_images`]."""
    images, texts = images_and_questions(options.words, options.question)
    choices = check_choices(options.choices)
    questions: list[Record] = [{"question": text, **({"choices": choices} if choices else {})} for text in texts]
    answer = partial(choose if choices else answers, options=options)
    show = partial(line, alone=is_alone(images), several=len(texts) > 1)
    return read_images(options, images, questions, answer, show)


def images_and_questions(words: list[str], questions: list[str] | None) -> tuple[list[str], list[str]]:
    """Tell what is asked from what is asked about. `UsageError` if one of them is missing."""
    if questions is None:
        *words, question = words
        if is_url(question) or (question and Path(question).exists()):
            raise UsageError(
                f"the question must be the last word, or given by --question, but '{question}' is an image"
            )
        if not words:
            raise UsageError(f"an image and a question are needed, got '{question}' alone")
        questions = [question]
    for question in questions:
        if not question.strip():
            raise UsageError("a question must hold words, got none")
    return words, list(dict.fromkeys(questions))


def check_choices(choices: list[str] | None) -> list[str]:
    """The answers to choose from. `UsageError` unless there are two or more, all different."""
    if choices is None:
        return []
    stripped = [choice.strip() for choice in choices]
    if len(stripped) < 2 or len(set(stripped)) < len(stripped) or not all(stripped):
        raise UsageError(f"`--choices` must be two or more different answers, got {', '.join(map(repr, choices))}")
    return stripped


def answers(
    pipe: DiffusionPipeline, images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """What the model says, for each image and question."""
    found = ask_in_words(pipe, images, [question["question"] for question in questions], options)
    return [[{"answer": text} for text in texts] for texts in found]


def choose(
    pipe: DiffusionPipeline, loaded_images: list[Image.Image], questions: list[Record], options: argparse.Namespace
) -> list[list[Record]]:
    """The likeliest of the given answers, and the probability of each if the answer is one of them."""
    choices = questions[0]["choices"]

    def call(images: list, prompts: list[str]) -> list[Record]:
        scores = pipe.score(images, prompts, choices, batch_size=options.batch_size).log_likelihoods
        return [best_choice(choices, score.double().softmax(-1).tolist()) for score in scores]

    return ask_each(call, loaded_images, [question["question"] for question in questions])


def best_choice(choices: list[str], probabilities: list[float]) -> Record:
    """The fields of an answer that was chosen."""
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return {"answer": choices[best], "probabilities": [round(one, 6) for one in probabilities]}


def line(record: Record, alone: bool, several: bool) -> str:
    """An answer as a line of text."""
    answer = record["answer"]
    if "probabilities" in record:
        pairs = zip(record["choices"], record["probabilities"], strict=True)
        answer += f" ({', '.join(f'{choice} {probability:.3f}' for choice, probability in pairs)})"
    if alone and not several:
        return answer
    said = one_line(record["question"], answer) if several else one_line(answer)
    return said if alone else f"{record['image']}: {said}"
