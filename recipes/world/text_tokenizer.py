"""Train the text tokenizer on captions, questions and conversations of the world. Case does not matter to it.

Run from the repository root:

    python -m recipes.world.text_tokenizer --objects data/world-objects --output checkpoints/world-text-tokenizer
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from recipes.byte_pairs import train_text_tokenizer
from recipes.world.captions import caption
from recipes.world.conversations import Talker
from recipes.world.objects import Objects, load_objects
from recipes.world.questions import Asker
from recipes.world.scene_maker import SceneMaker
from recipes.world.words import THINGS
from showo_hf.utils.atomic_folder import atomic_folder


def text_corpus(objects: Objects, scenes: int, seed: int = 0) -> Iterator[str]:
    """Every noun, then captions, questions with answers, and conversations of `scenes` random training scenes."""
    for thing in THINGS.values():
        for noun in thing.nouns:
            yield from (form for form in (noun.singular, noun.plural) if form)
    maker = SceneMaker(objects, random.Random(seed))
    talker = Talker(maker)
    for number in range(scenes):
        scene = maker.scene()
        yield caption(scene, maker.rng)
        question = Asker(scene, maker.rng).ask()
        yield f"USER: \n{question.text} ASSISTANT:{question.answer}"
        if number % 4 == 0:
            yield from (f"USER: \n{turn.text} ASSISTANT:{turn.answer}" for turn in talker.conversation(3))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the text tokenizer of the world.")
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--output", default="checkpoints/world-text-tokenizer", help="folder for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=1024, help="number of ids")
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes whose texts it is trained on")
    options = parser.parse_args(arguments)
    objects = load_objects(options.objects)
    tokenizer = train_text_tokenizer(text_corpus(objects, options.scenes), options.vocab_size, lower_case=True)
    with atomic_folder(Path(options.output), overwrite=True) as folder:
        tokenizer.save_pretrained(folder)
    maker = SceneMaker(objects, random.Random(1))
    lengths = sorted(len(tokenizer(caption(maker.scene(), maker.rng))["input_ids"]) for _ in range(1000))
    print(f"{len(tokenizer)} ids; a caption takes {lengths[500]} ids in the median, the longest {lengths[-1]}")


if __name__ == "__main__":
    main()
