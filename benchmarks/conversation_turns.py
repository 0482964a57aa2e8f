"""
How far does a conversation hold? Each turn asks for a picture, and then what it shows.

    python benchmarks/conversation_turns.py [--model FOLDER] [--conversations N] [--turns N]

For each turn, the table gives the share of conversations in which the request was answered with exactly one picture, in
which the model then named what had been asked for, and how long the conversation is by then.
"""

import argparse
import random
from collections.abc import Sequence

import torch

from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline
from showo_hf.utils.argument_types import positive_integer, seed_number


NAMES = (
    "red apple",
    "pear",
    "owl",
    "red heart",
    "pizza",
    "banana",
    "frog",
    "cat",
    "snowman",
    "rocket",
    "cactus",
    "fox",
)
REQUEST, QUESTION = "draw a {}, noto style", "what is this?"


def texts(content: Sequence[dict]) -> str:
    return " ".join(part["text"] for part in content if part["type"] == "text")


def converse(pipe: ShowoAnyToAnyPipeline, names: Sequence[str], seed: int, steps: int) -> list[tuple[bool, bool]]:
    """One conversation: for each name, whether one picture came, and whether the model then named it."""
    talk = pipe.start()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name in names:
        try:
            drawn = talk.send(REQUEST.format(name), generator=generator, num_inference_steps=steps).content
            answer = texts(talk.send(QUESTION, generator=generator, num_inference_steps=steps).content)
        except ValueError:  # the context of the model is full
            break
        pictures = sum(part["type"] == "image" for part in drawn)
        found.append((pictures == 1, name.split()[-1] in answer))
    return found + [(False, False)] * (len(names) - len(found))


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--conversations", type=positive_integer, default=12)
    parser.add_argument("--turns", type=positive_integer, default=6)
    parser.add_argument("--steps", type=positive_integer, default=12)
    parser.add_argument("--seed", type=seed_number, default=0)
    options = parser.parse_args(arguments)

    pipe = ShowoAnyToAnyPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    draw = random.Random(options.seed)
    runs = []
    for number in range(options.conversations):
        names = draw.sample(NAMES, options.turns)
        runs.append(converse(pipe, names, options.seed + number, options.steps))
    print("| turn | one picture | then named right |")
    print("| ---: | ---: | ---: |")
    for turn in range(options.turns):
        pictures, named = (sum(run[turn][part] for run in runs) / len(runs) for part in (0, 1))
        print(f"| {turn + 1} | {pictures:.0%} | {named:.0%} |", flush=True)


if __name__ == "__main__":
    main()
