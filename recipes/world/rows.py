"""Write the training rows of the transformer: captions, questions and conversations. Run from the repository root:

    python -m recipes.world.rows --objects data/world-objects --image-tokenizer checkpoints/world-image-tokenizer \
        --output data/world-rows --even

The images are stored as tokens, so the rows belong to one image tokenizer. The folder contains

- `t2i.jsonl`: a scene with several captions; also the text-only rows,
- `mmu.jsonl`: a scene and questions about it,
- `mixed.jsonl`: conversations with drawn and shown images.

All combinations in them are trained ones (recipes.world.held_out).

A share of the captions may name a style that the image does not have (`--wrong-styles`). A model that has seen this draws a
thing in another style, not a blob, where it never saw the thing in the style of the prompt.

Rows with questions may begin with checks (`--checks`), some of them on a thing that is not there (`--absent-share`). Later
questions of a row can often be answered from the answers before, and the first ones from the image alone.

Conversations may ask for changes (`--changes`) and talk (`--talk`) more often, and be shorter (`--turns`).

`--wordings more` draws requests, questions, changes and small talk from many more wordings (recipes.world.more_wordings).
`--wordings most` draws changes and small talk from hundreds of them besides (recipes.world.change_wordings).

A share of the images that questions are about may be as the model draws them (`--redrawn`): decoded, and encoded again.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recipes.image_tokens import encode_images
from recipes.world.captions import REQUEST_SHARE, caption
from recipes.world.change_wordings import change_wordings
from recipes.world.conversations import CHANGES, TALK_SHARE, Talker, Turn, to_messages
from recipes.world.drawing import CELL, draw
from recipes.world.held_out import DEFAULT_STYLE, STYLE_FAMILIES
from recipes.world.more_wordings import MORE, Reworded, Wordings
from recipes.world.objects import Objects, load_objects
from recipes.world.questions import Asker
from recipes.world.redrawing import Redrawer
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import CELLS, Scene
from showo_hf import ShowoDiffusionDecoder
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.training.diffusion_decoder import load_tokenizer
from showo_hf.utils.argument_types import fraction, positive_integer
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.validation import check_count


CAPTIONS = 8  # captions of a row, of which training draws one
QUESTIONS = 4  # questions about an image
LEAST_TURNS, TURNS = 2, 7  # of a conversation
CONVERSATION_IMAGES = 3
#: What is said instead of the first wordings, by the value of `--wordings`.
WORDINGS: dict[str, Callable[[], Wordings]] = {"first": dict, "more": lambda: MORE, "most": change_wordings}
_CHUNK = 512  # rows whose images are encoded together
_CELLS_AT_ONCE = 1024

Draft = tuple[
    list[Scene], Callable[[dict[Scene, Any]], dict[str, Any]]
]  # the scenes of a row, and how it is made of them


def twin(scene: Scene) -> Scene | None:
    """
    The scene with its two different things changed over; None for other scenes.

    Training sees both beside each other, which are told apart by the order of the words alone.
    """
    if len(scene.items) != 2 or len(scene.counts) != 2:
        return None
    one, other = scene.items
    return dataclasses.replace(scene, items=(other.moved(one.column, one.row), one.moved(other.column, other.row)))


def colour_twin(scene: Scene, objects: Objects) -> Scene | None:
    """
    The scene with the colours of its two different things changed over; None for other scenes, and unless both things are
    recoloured and each can have the other's colour.

    With one colour of both it is the scene itself.
    """
    if len(scene.items) != 2 or len(scene.counts) != 2:
        return None
    one, other = scene.items
    colours = objects.colours
    if one.colour not in colours.get(other.thing, ()) or other.colour not in colours.get(one.thing, ()):
        return None
    items = (dataclasses.replace(one, colour=other.colour), dataclasses.replace(other, colour=one.colour))
    return dataclasses.replace(scene, items=items)


class RowMaker:
    """
    Makes rows. All random choices come from the `rng` of the maker.

    Args:
        maker: draws the scenes.
        questions: questions about an image, at most. There are no two of a kind.
        wrong_styles: share of the captions of text to image that name another style, where the scene is a trained one in
            that style. The default style is never named wrongly, because it need not be named.
        checks: questions that come before the others ([`Asker.check`]).
        absent_share: the share of the checks on a thing that is not there.
        requests: the share of the captions of text to image that are requests, such as "please draw a dog".
        changes, talk: those of [`Talker`].
        turns: of a conversation, at most.
    """

    def __init__(
        self,
        maker: SceneMaker,
        questions: int = QUESTIONS,
        wrong_styles: float = 0.0,
        checks: int = 0,
        absent_share: float = 0.5,
        requests: float = REQUEST_SHARE,
        changes: float = CHANGES,
        talk: float = TALK_SHARE,
        turns: int = TURNS,
    ):
        self.maker, self.rng = maker, maker.rng
        self.questions, self.wrong_styles, self.requests = questions, wrong_styles, requests
        self.checks, self.absent_share = checks, absent_share
        self.talker, self.turns = Talker(maker, changes, talk), turns
        self.waiting: list[Scene] = []

    def t2i(self) -> Draft:
        """A scene with captions. Scenes that differ from it by order alone come next."""
        if not self.waiting:
            scene = self.maker.scene()
            twins = [twin(scene), colour_twin(scene, self.maker.objects)]
            self.waiting = [scene, *(one for one in twins if one and one.split == "train" and self.maker.fits(one))]
        scene = self.waiting.pop(0)
        texts = [caption(self.perhaps_restyled(scene), self.rng, self.requests) for _ in range(CAPTIONS)]
        return [scene], lambda images: {"text": texts, "image_tokens": images[scene]}

    def perhaps_restyled(self, scene: Scene) -> Scene:
        """The scene, or, as often as `wrong_styles` says, the scene in another style if that is a trained one."""
        if not self.wrong_styles or self.rng.random() >= self.wrong_styles:
            return scene
        others = [dataclasses.replace(scene, style=style) for style in STYLE_FAMILIES if style != DEFAULT_STYLE]
        others = [one for one in others if one != scene and one.split == "train" and self.maker.fits(one)]
        return self.rng.choice(others) if others else scene

    def mmu(self) -> Draft:
        """A scene and questions about it: the checks, and then others, of which none are of the same kind."""
        scene = self.maker.scene()
        asker = Asker(scene, self.rng)
        asked = [asker.check(self.absent_share) for _ in range(self.checks)] + asker.several(self.questions)
        turns = [Turn("ask", one.text, one.answer, shown=scene if at == 0 else None) for at, one in enumerate(asked)]
        return [scene], lambda images: {"messages": to_messages(turns, images)}

    def mixed(self) -> Draft:
        """A conversation."""
        turns = self.talker.conversation(self.rng.randint(LEAST_TURNS, self.turns), CONVERSATION_IMAGES)
        scenes = [scene for turn in turns for scene in turn.scenes]
        return scenes, lambda images: {"messages": to_messages(turns, images)}


class SceneEncoder:
    """
    Encodes scenes. Each different cell of them is encoded once.

    Args:
        objects: the cut-outs.
        image_tokenizer: sees each cell of an image alone (`encoder_context=False`).

    Raises:
        ValueError: for an image tokenizer that sees the cells around a cell.
    """

    def __init__(self, objects: Objects, image_tokenizer: ShowoImageTokenizer):
        if image_tokenizer.config.encoder_context or image_tokenizer.config.downsampling != CELL:
            raise ValueError(f"`image_tokenizer` must see cells of {CELL} x {CELL} pixels, each alone.")
        self.objects, self.image_tokenizer = objects, image_tokenizer
        self.known: dict[bytes, int] = {}  # pixels of a cell -> token

    def __call__(self, scenes: Iterable[Scene]) -> dict[Scene, list[list[int]]]:
        """The tokens of each scene, as rows of integers."""
        distinct = list(dict.fromkeys(scenes))
        cells = [cells_of(draw(scene, self.objects)) for scene in distinct]
        new = {one: None for image in cells for one in image if one not in self.known}
        if new:
            pixels = np.frombuffer(b"".join(new), dtype=np.uint8).reshape(-1, CELL, CELL, 3)
            tokens = encode_images(self.image_tokenizer, pixels, batch_size=_CELLS_AT_ONCE)
            self.known.update(zip(new, tokens.flatten().tolist(), strict=True))
        tokens_of = [np.array([self.known[one] for one in image]).reshape(CELLS, CELLS).tolist() for image in cells]
        return dict(zip(distinct, tokens_of, strict=True))


def cells_of(image: np.ndarray) -> list[bytes]:
    """The pixels of each cell of an image (96, 96, 3)."""
    cells = image.reshape(CELLS, CELL, CELLS, CELL, 3).swapaxes(1, 2).reshape(CELLS * CELLS, -1)
    return [cell.tobytes() for cell in cells]


def made_rows(
    task: str,
    count: int,
    encode: SceneEncoder,
    seed: int,
    even: bool = False,
    wordings: str = "first",
    redraw: Redrawer | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """
    `count` rows of a task. They depend on the other arguments, the cut-outs and the image tokenizer alone.

    `wordings` is a key of [`WORDINGS`]. `redraw` replaces the tokens of some images. `options` are those of [`RowMaker`].
    """
    maker = SceneMaker(encode.objects, Reworded(f"{seed} {task}", WORDINGS[wordings]()), even)
    make: Callable[[], Draft] = getattr(RowMaker(maker, **options), task)
    for first in range(0, count, _CHUNK):
        drafts = [make() for _ in range(min(_CHUNK, count - first))]
        images = encode(scene for scenes, _ in drafts for scene in scenes)
        if redraw is not None:
            images = redraw(images)
        yield from (finish(images) for _, finish in drafts)


def write_rows(
    objects: Objects,
    image_tokenizer: ShowoImageTokenizer,
    output: str | os.PathLike,
    counts: dict[str, int],
    seed: int = 0,
    redraw: Redrawer | None = None,
    **options: Any,
) -> None:
    """
    Write the files to the folder `output`, and replace an existing one.

    Args:
        objects: the cut-outs.
        image_tokenizer: encodes the images.
        output: the folder.
        counts: rows by task: "t2i", "mmu", "mixed".
        seed: seed of the random choices.
        redraw: replaces the tokens of some images that questions are about.
        options: those of [`made_rows`].
    """
    for task, count in counts.items():
        check_count(task, count)
    encode = SceneEncoder(objects, image_tokenizer)
    with atomic_folder(Path(output), overwrite=True) as folder:
        for task, count in counts.items():
            with open(folder / f"{task}.jsonl", "w", encoding="utf-8") as lines:
                for row in made_rows(task, count, encode, seed, redraw=redraw if task == "mmu" else None, **options):
                    lines.write(json.dumps(row, separators=(",", ":")) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the training rows of the world's transformer.")
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument(
        "--image-tokenizer", default="checkpoints/world-image-tokenizer", help="a trained image tokenizer"
    )
    parser.add_argument("--output", default="data/world-rows", help="folder for the rows")
    parser.add_argument("--t2i", type=int, default=90_000, help="scenes with captions")
    parser.add_argument("--mmu", type=int, default=40_000, help="scenes with questions")
    parser.add_argument("--mixed", type=int, default=14_000, help="conversations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    parser.add_argument(
        "--even", action="store_true", help="draw what is not the default, such as noto style or grass, more often"
    )
    parser.add_argument(
        "--questions", type=positive_integer, default=QUESTIONS, help="questions about an image, at most"
    )
    parser.add_argument(
        "--wrong-styles", type=fraction, default=0.0, help="share of the captions that name another style"
    )
    parser.add_argument(
        "--checks", type=int, default=0, help="questions that come first, on what is there and what is not"
    )
    parser.add_argument("--absent-share", type=fraction, default=0.5, help="share of the checks on what is not there")
    parser.add_argument(
        "--requests", type=fraction, default=REQUEST_SHARE, help="share of the captions that are requests"
    )
    parser.add_argument(
        "--changes", type=fraction, default=CHANGES, help="share of the turns of conversations that ask for a change"
    )
    parser.add_argument(
        "--talk", type=fraction, default=TALK_SHARE, help="share of the turns of conversations that are small talk"
    )
    parser.add_argument("--turns", type=positive_integer, default=TURNS, help="turns of a conversation, at most")
    parser.add_argument("--wordings", choices=WORDINGS, default="first", help="how many wordings of what is said")
    parser.add_argument(
        "--redrawn",
        type=fraction,
        default=0.0,
        help="share of the questions about images that were decoded and encoded",
    )
    parser.add_argument("--image-decoder", help="the diffusion decoder that decodes them")
    options = parser.parse_args(arguments)
    if (options.redrawn > 0) != (options.image_decoder is not None):
        parser.error("arguments --redrawn and --image-decoder: one needs the other")
    if options.turns < LEAST_TURNS:
        parser.error(f"argument --turns: must be at least {LEAST_TURNS}, got {options.turns}")
    image_tokenizer = load_tokenizer(options.image_tokenizer)
    counts = {"t2i": options.t2i, "mmu": options.mmu, "mixed": options.mixed}
    apart = {*counts, "objects", "image_tokenizer", "output", "seed", "redrawn", "image_decoder"}
    choices = {name: value for name, value in vars(options).items() if name not in apart}
    redraw = None
    if options.image_decoder is not None:
        decoder = ShowoDiffusionDecoder.from_pretrained(options.image_decoder)
        redraw = Redrawer(image_tokenizer, decoder, options.redrawn, options.seed)
    write_rows(load_objects(options.objects), image_tokenizer, options.output, counts, options.seed, redraw, **choices)
    for task, count in counts.items():
        print(f"{task:6} {count:7} rows")


if __name__ == "__main__":
    main()
