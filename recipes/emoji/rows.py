"""Write the training rows of the transformer: captions, questions and mixed conversations. Run from the root:

    python -m recipes.emoji.rows --data data/emoji --image-tokenizer checkpoints/image-tokenizer --output data/emoji-rows

The images are stored as tokens, so the rows belong to one image tokenizer. The folder contains

- `t2i.jsonl`: an image with several captions; also the text-only rows,
- `mmu.jsonl`: a view of an image and questions about it,
- `mixed.jsonl`: conversations with generated images, or with several input images.
"""

import argparse
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.colours import main_colour
from recipes.emoji.captions import caption
from recipes.emoji.conversations import (
    Message,
    Scene,
    comparison,
    drawing,
    questions_about,
    restyling,
    small_talk,
    story,
)
from recipes.emoji.emoji import EmojiRecord, load_emoji
from recipes.image_tokens import encode_views
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.training.diffusion_decoder import load_tokenizer
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.validation import check_count


CAPTIONS = 8  # captions of a row, of which training draws one
TURNS = 3  # questions about an image
MIXED_SHARE = 0.25  # mixed conversations for each row of another task


@dataclass(frozen=True)
class TrainingSet:
    """
    The training images.

    Args:
        records: what the images show.
        colours: the main colour of each image, or None.
        views: image tokens (views, N, h, w). The first view is the image itself, the others are shifted and scaled.
    """

    records: list[EmojiRecord]
    colours: list[str | None]
    views: torch.Tensor

    def scene(self, index: int, view: int = 0) -> Scene:
        """An image with its facts."""
        return Scene(self.records[index], self.colours[index], self.views[view, index])


def training_set(data: str | os.PathLike, image_tokenizer: ShowoImageTokenizer, views: int) -> TrainingSet:
    """The training images of the data set `data`, with the tokens of each image and of `views` moved versions."""
    emoji = load_emoji(data)
    indices = emoji.train_indices
    images = emoji.images[indices]
    return TrainingSet(
        [emoji.records[index] for index in indices],
        [main_colour(image) for image in images],
        encode_views(image_tokenizer, images, views),
    )


def balanced_draws(records: list[EmojiRecord], count: int, rng: random.Random) -> list[int]:
    """
    `count` indices for each emoji of each style, so that all are trained equally often, regardless of their number of
    skin tones. If there are skin tones, half of the indices are without one, and the others go through the skin tones.
    """
    toneless: dict[tuple[str, str], list[int]] = {}
    toned: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(records):
        of_kind = toneless if record.tone is None else toned
        of_kind.setdefault((record.unified, record.style), []).append(index)
    drawn = []
    for emoji in dict.fromkeys([*toneless, *toned]):
        plain, tones = toneless.get(emoji, []), toned.get(emoji, [])
        rng.shuffle(tones)
        with_tone = 0 if not tones else count // 2 if plain else count
        drawn += [tones[turn % len(tones)] for turn in range(with_tone)]
        drawn += [plain[turn % len(plain)] for turn in range(count - with_tone)]
    return drawn


class RowMaker:
    """
    Makes the rows. All random choices come from `rng`.

    Args:
        data: the training images.
        rng: the source of the random choices.
    """

    def __init__(self, data: TrainingSet, rng: random.Random):
        self.data, self.rng = data, rng
        self.toneless = [record for record in data.records if record.tone is None]
        self.styles: dict[str, list[int]] = {}  # images of each emoji without skin tones
        for index, record in enumerate(data.records):
            if record.tone is None:
                self.styles.setdefault(record.unified, []).append(index)

    def t2i(self, index: int) -> dict[str, Any]:
        """An image with captions."""
        texts = [caption(self.data.records[index], self.rng) for _ in range(CAPTIONS)]
        return {"text": texts, "image_tokens": self.data.views[0, index].tolist()}

    def mmu(self, index: int) -> dict[str, Any]:
        """A view of an image, and questions about it."""
        scene = self.data.scene(index, self.rng.randrange(len(self.data.views)))
        return {"messages": plain_messages(questions_about(scene, self.toneless, self.rng, TURNS))}

    def mixed(self, index: int) -> dict[str, Any]:
        """A conversation about an image. Some conversations take a second, random image."""
        data, rng, views = self.data, self.rng, len(self.data.views)
        other = rng.randrange(len(data.records))
        same_thing = [found for found in self.styles.get(data.records[index].unified, ()) if found != index]
        makers: list[Callable[[], list[Message]]] = [
            lambda: drawing(data.scene(index), self.toneless, rng),
            lambda: story(data.scene(index), data.scene(self.in_style_of(index, other)), rng),
            lambda: comparison(data.scene(index, rng.randrange(views)), data.scene(other, rng.randrange(views)), rng),
            lambda: small_talk(data.records[index], self.toneless, rng),
        ]
        weights = [4.0, 4.0, 2.0, 1.0]
        if same_thing:
            makers.append(lambda: restyling(data.scene(index), data.scene(rng.choice(same_thing)), rng))
            weights.append(2.0)
        return {"messages": plain_messages(rng.choices(makers, weights)[0]())}

    def in_style_of(self, index: int, other: int) -> int:
        """The emoji of the image `other` in the style of `index`, if the data has it, else `other`."""
        records = self.data.records
        found = (
            one for one in self.styles.get(records[other].unified, ()) if records[one].style == records[index].style
        )
        return next(found, other)


def plain_messages(messages: list[Message]) -> list[Message]:
    """The messages as JSON holds them: an image is `{"type": "image", "image_tokens": rows of integers}`."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return part if part["type"] == "text" else {"type": "image", "image_tokens": part["image"].tolist()}

    return [
        message if isinstance(message["content"], str) else message | {"content": list(map(plain, message["content"]))}
        for message in messages
    ]


def write_rows(data: TrainingSet, output: str | os.PathLike, rows: int, seed: int = 0) -> dict[str, int]:
    """
    Write the files to the folder `output`, and replace an existing one.

    Args:
        data: the training images.
        rows: rows of each emoji and style, for text to image and for questions.
        seed: seed of the random choices.

    Returns:
        the number of rows of each file.
    """
    check_count("rows", rows)
    counts = {}
    with atomic_folder(Path(output), overwrite=True) as folder:
        for task, count in (("t2i", rows), ("mmu", rows), ("mixed", max(1, round(rows * MIXED_SHARE)))):
            rng = random.Random(f"{seed} {task}")
            make = getattr(RowMaker(data, rng), task)
            made: Iterator[dict[str, Any]] = map(make, balanced_draws(data.records, count, rng))
            with open(folder / f"{task}.jsonl", "w", encoding="utf-8") as lines:
                counts[task] = sum(bool(lines.write(json.dumps(row, separators=(",", ":")) + "\n")) for row in made)
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the training rows of the embedded model's transformer.")
    parser.add_argument("--data", default="data/emoji", help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--image-tokenizer", default="checkpoints/image-tokenizer", help="a trained image tokenizer")
    parser.add_argument("--output", default="data/emoji-rows", help="folder for the rows")
    parser.add_argument("--rows", type=int, default=16, help="rows of each emoji and style, for each task")
    parser.add_argument("--views", type=int, default=4, help="moved versions of each image, for questions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    options = parser.parse_args(arguments)
    image_tokenizer = load_tokenizer(options.image_tokenizer)
    data = training_set(options.data, image_tokenizer, options.views)
    for task, count in write_rows(data, options.output, options.rows, options.seed).items():
        print(f"{task:6} {count:7} rows")


if __name__ == "__main__":
    main()
