"""Does a LoRA learn a new style from 100 images? Run from the repository root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.lora_style --data data/emoji --output lora-style

The new style is drawn by program from the flat emoji: blue ink. 100 of them train the embedded model by the command
`showo-hf train lora`. The names of 50 others are held out: the model knows these things in its three styles, and has
never seen them in ink.

- **Style**: a small network judges it, trained on real images of all four styles, but on no held-out name in ink. They
  went through the image tokenizer, as generated images do, so that it cannot judge by blur. Its own accuracy is printed
  on names that it has not seen in any style.
- **Name**: right if the nearest real image among those of all 150 names, in the requested style, shows the requested
  thing. The distance is the mean squared RGB difference at 32x32 pixels.
- **Time**: of making the model's own images and of the training command. Two quiet cores need about half of the CPU
  minutes.

Trained on the new style alone, the model draws the old styles in ink too. So its own images of the old styles are mixed
in (`--kept`), which needs no further data.
"""

import random
from pathlib import Path

import torch
from benchmarks import style_lora
from benchmarks.ink import draw_ink, train_judge
from benchmarks.style_lora import NEW, Things, style_parser

from recipes.emoji.captions import STYLE_ADJECTIVES, with_article
from recipes.emoji.emoji import STYLES, EmojiDataset, load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import ShowoT2IPipeline


DRAWN_FROM = "twemoji"
STYLE_WORD = {**{style: words[0] for style, words in STYLE_ADJECTIVES.items()}, NEW: "ink"}
#: Captions of a training image; one is drawn each time. The first is the one of the measured prompts. The last two name
#: the style alone, so that it is learnt apart from the hundred things that it is shown on.
CAPTIONS = (
    "{thing}, {style} style",
    "{thing} in {style} style",
    "{bare}, {style} style",
    "{style} emoji of {thing}",
    "{style} style",
    "emoji in {style} style",
)


def choose_things(data: EmojiDataset, trained: int, held_out: int, judged: int, checked: int, seed: int = 0) -> Things:
    """Draw the things at random, out of those that the embedded model was trained on in all of its styles."""
    rows: dict[str, dict[str, int]] = {}
    for row, record in enumerate(data.records):
        if record.tone is None and not record.held_out:
            rows.setdefault(record.name, {})[record.style] = row
    known = sorted(name for name, found in rows.items() if len(found) == len(STYLES))
    counts = (trained, held_out, judged, checked)
    if len(known) < sum(counts):
        raise ValueError(f"`data` must have {sum(counts)} emoji that are known in all styles, got {len(known)}.")
    names = random.Random(seed).sample(known, len(known))[: sum(counts)]
    real = {}
    for style in STYLES:
        pixels = to_pixel_values(data.images[[rows[name][style] for name in names]])
        real.update({(name, style): picture for name, picture in zip(names, pixels, strict=True)})
        if style == DRAWN_FROM:
            real.update({(name, NEW): drawn for name, drawn in zip(names, draw_ink(pixels), strict=True)})
    drawn = iter(names)
    parts = [[next(drawn) for _ in range(count)] for count in counts]
    phrases = {name: with_article(name) for name in names}
    return Things(*parts, real=real, words=STYLE_WORD, phrases=phrases, drawn_from=DRAWN_FROM)


def prompt(name: str, style: str, form: str = CAPTIONS[0]) -> str:
    """A caption of a thing in a style: "a red apple, ink style"."""
    return form.format(thing=with_article(name), bare=name, style=STYLE_WORD[style])


def texts_of(names: list[str], styles: list[str]) -> list[list[str]]:
    """All captions of each thing in its style."""
    return [[prompt(name, style, form) for form in CAPTIONS] for name, style in zip(names, styles, strict=True)]


def write_images(folder: Path, names: list[str], styles: list[str], images: torch.Tensor):
    """A folder of images (N, 3, H, W) with their captions."""
    style_lora.write_images(folder, images, texts_of(names, styles))


def main(arguments: list[str] | None = None):
    parser = style_parser(__doc__.splitlines()[0], trained=100, held_out=50, judged=350, checked=150)
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.set_defaults(steps=8)
    options = parser.parse_args(arguments)
    counts = (options.trained, options.held_out, options.judged, options.checked)
    things = choose_things(load_emoji(options.data), *counts, seed=options.seed)
    pipe = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def train_adapter() -> Path:
        texts = texts_of(things.trained, [NEW] * len(things.trained))
        kept = (things.judged * options.kept)[: options.kept]  # names that are not measured
        own_texts = texts_of(kept, [STYLES[number % len(STYLES)] for number in range(options.kept)])
        return style_lora.train(pipe, options, things.pictures(things.trained, NEW), texts, own_texts)

    style_lora.run(pipe, options, things, train_judge, train_adapter, str(options.model))


if __name__ == "__main__":
    main()
