"""
How far does a conversation hold? Each turn asks for a picture, and then what it shows.

    python benchmarks/conversation_turns.py [--model FOLDER] [--conversations N] [--turns N] --records FILE.jsonl

For each turn, the table gives the share of conversations in which the request was answered with exactly one picture, the
share in which the model then also named what had been asked for, and how much of the model's context is used by then. A
conversation whose context is full counts as wrong from there on.

Each conversation becomes a line of FILE.jsonl when it ends. The same command goes on where it was stopped, so a long run
can be made in parts (`--seconds`). The names must be words that the model knows.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline
from showo_hf.pipelines.conversation import Conversation
from showo_hf.utils.argument_types import positive_integer, seed_number


NAMES = "apple,pear,owl,heart,hamburger,banana,frog,cat,snowman,rocket,cactus,fox"
REQUEST, QUESTION = "draw {}", "what is this?"

Turn = dict[str, Any]  # "picture" and "named", whether they are right; "ids", how long the conversation is


def texts(content: Sequence[dict]) -> str:
    return " ".join(part["text"] for part in content if part["type"] == "text")


def with_article(name: str) -> str:
    """ "an owl", "a pear"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def converse(
    pipe: ShowoAnyToAnyPipeline, names: Sequence[str], request: str, question: str, seed: int, steps: int
) -> list[Turn]:
    """One conversation: for each name, whether one picture came, and whether the model then named it."""
    talk = pipe.start()
    options = {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": steps}
    turns: list[Turn] = []
    for name in names:
        picture = named = False
        wanted = request.format(with_article(name))
        if has_room(talk, pipe, wanted):
            drawn = talk.send(wanted, **options).content
            picture = sum(part["type"] == "image" for part in drawn) == 1
        if picture and has_room(talk, pipe, question):
            answer = texts(talk.send(question, **options).content)
            named = re.search(rf"\b{re.escape(name.split()[-1])}\b", answer) is not None
        turns.append({"picture": picture, "named": named, "ids": len(pipe.token_ids(talk.messages))})
    return turns


def has_room(talk: Conversation, pipe: ShowoAnyToAnyPipeline, words: str) -> bool:
    """Whether the model's context has room for a message and some of its answer."""
    message = {"role": "user", "content": [{"type": "text", "text": words}]}
    return len(pipe.token_ids([*talk.messages, message])) < pipe.context_length


def read_records(path: Path, settings: dict[str, Any]) -> dict[int, list[Turn]]:
    """The turns of finished conversations, by number. Exits if they were made with other settings."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        record = json.loads(line)
        if record["settings"] != settings:
            sys.exit(f"error: '{path}' holds conversations with other settings: {record['settings']}")
        found[record["number"]] = record["turns"]
    return found


def table(runs: Sequence[Sequence[Turn]], context: int) -> list[str]:
    """The lines of the table, one for each turn."""
    rows = ["| turn | one picture | then named right | context used |", "| ---: | ---: | ---: | ---: |"]
    for number, turns in enumerate(zip(*runs, strict=True), start=1):
        picture, named = (mean(turn[part] for turn in turns) for part in ("picture", "named"))
        used = mean(turn["ids"] for turn in turns) / context
        rows.append(f"| {number} | {picture:.0%} | {named:.0%} | {used:.0%} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder (default: the embedded model)")
    parser.add_argument("--records", type=Path, required=True, help="file for the conversations, one on each line")
    parser.add_argument("--names", default=NAMES, help=f"what to draw, separated by commas (default: {NAMES})")
    parser.add_argument("--request", default=REQUEST, help=f"with {{}} for the name (default: {REQUEST})")
    parser.add_argument("--question", default=QUESTION, help=f"default: {QUESTION}")
    parser.add_argument("--conversations", type=positive_integer, default=12)
    parser.add_argument("--turns", type=positive_integer, default=6)
    parser.add_argument("--steps", type=positive_integer, default=12)
    parser.add_argument("--seconds", type=float, help="start no conversation after this time")
    parser.add_argument("--seed", type=seed_number, default=0)
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.names.split(",") if name.strip()]
    if len(names) < options.turns:
        parser.error(f"--names must have a name for each of the {options.turns} turns, got {len(names)}")

    end = time.monotonic() + (float("inf") if options.seconds is None else options.seconds)
    wanted = ("model", "names", "request", "question", "turns", "steps", "seed")
    settings = {name: getattr(options, name) for name in wanted}
    runs = read_records(options.records, settings)
    pipe = ShowoAnyToAnyPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    for number in range(options.conversations):
        if number in runs or time.monotonic() > end:
            continue
        seed = options.seed + number
        chosen = random.Random(seed).sample(names, options.turns)
        runs[number] = converse(pipe, chosen, options.request, options.question, seed, options.steps)
        record = {"number": number, "settings": settings, "names": chosen, "turns": runs[number]}
        with open(options.records, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    done = [runs[number] for number in range(options.conversations) if number in runs]
    print(f"{len(done)} of {options.conversations} conversations")
    if done:
        print("\n".join(table(done, pipe.context_length)))


if __name__ == "__main__":
    main()
