"""Does a LoRA learn a new style from 100 images of the small world's things? Run from the repository root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world_lora_style --output runs/lora-style --sheet docs/images/lora_style.png steps=500

The new style is drawn by a program from flat scenes: blue ink. 100 drawings of 70 things, each alone and some of them
together, train the embedded model by the command `showo-hf train lora`. 35 other things are held out: the model knows them
in its four styles, and has never seen them in ink.

- **Style**: a small network tells ink from the old styles. It is trained on real pictures of both, but on no held-out
  thing in ink. What is not ink has the style that the judge of benchmarks.world finds. All pictures went through the image
  tokenizer, as generated images do, so that nothing is judged by blur. The accuracy of both is printed, on things that
  the network has not seen. The judge of benchmarks.world, which tells the old styles, has seen all things in them.
- **Name**: right if the nearest real picture among those of all 105 things, in the requested style, shows the requested
  thing. The distance is the mean squared RGB difference at 32x32 pixels.
- **Time**: of making the model's own images and of the training command.

Trained on the new style alone, a model draws the old styles in ink too. So its own images of scenes in the old styles are
mixed in (`--kept`), without held-out things, which needs no further data.
"""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from benchmarks import style_lora
from benchmarks.ink import StyleJudge, draw_ink, train_judge
from benchmarks.style_lora import NEW, Things, style_parser
from benchmarks.world_detector import Detector, detect, load_detector
from benchmarks.world_workbench import CONFIGS, OBJECTS, add_judge_options, trained_file

from recipes.file_hashes import files_hash, weights_hash
from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.held_out import DEFAULT_STYLE, split_of, styled
from recipes.world.objects import STYLES, Objects, load_objects
from recipes.world.phrases import content_and_background, one_of, style_word
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene
from recipes.world.words import THINGS
from showo_hf import ShowoT2IPipeline
from showo_hf.commands.errors import UsageError
from showo_hf.utils.argument_types import positive_integer


STYLE_WORDS = {**{style: style_word(style) for style in STYLES}, NEW: "ink"}
#: Captions of a training image; one is drawn each time. The first is the one of the measured prompts. The last one names
#: the style alone, so that it is learnt apart from the things that it is shown on.
CAPTIONS = (
    "{text}, {style} style",
    "{text} in {style} style",
    "{style} style, {text}",
    "{style} style",
)
OLD = "old"  # what the network calls all styles but ink


def pixels_of(scenes: list[Scene], objects: Objects) -> torch.Tensor:
    """The images of scenes, (N, 3, 96, 96) in [-1, 1]."""
    return to_pixel_values(np.stack([draw(scene, objects) for scene in scenes]))


def choose_things(objects: Objects, trained: int, held_out: int, judged: int, checked: int, seed: int = 0) -> Things:
    """
    Draw the things at random. Those that are trained and held out are trained in all of the model's styles.

    Raises:
        ValueError: if there are too few.
    """
    names = random.Random(seed).sample(list(THINGS), len(THINGS))
    known = [name for name in names if split_of(styled(name, style) for style in STYLES) == "train"]
    if len(known) < trained + held_out or len(names) < trained + held_out + judged + checked:
        raise ValueError(
            f"`trained` and `held_out` must be at most {len(known)} together, and all numbers at most {len(names)}, "
            f"got {trained}, {held_out}, {judged} and {checked}."
        )
    measured = known[: trained + held_out]
    others = [name for name in names if name not in measured][: judged + checked]
    real = {}
    for style in STYLES:
        alone = [Scene((Item(name, None, 4, 4),), style) for name in (*measured, *others)]
        pictures = pixels_of(alone, objects)
        real.update({(scene.items[0].thing, style): one for scene, one in zip(alone, pictures, strict=True)})
        if style == DEFAULT_STYLE:
            drawn = draw_ink(pictures)
            real.update({(scene.items[0].thing, NEW): one for scene, one in zip(alone, drawn, strict=True)})
    return Things(
        measured[:trained], measured[trained:], others[:judged], others[judged:], real=real,
        words=STYLE_WORDS, phrases={name: one_of(name) for name in THINGS}, drawn_from=DEFAULT_STYLE,
    )  # fmt: skip


# The training images


def scenes_of(names: list[str], count: int, maker: SceneMaker) -> list[Scene]:
    """
    `count` flat scenes on white: each thing alone, and then two to four of a thing, or two things, as the training has them.

    Args:
        names: the things.
        count: how many scenes.
        maker: arranges the things; it draws the random numbers.
    """
    scenes = [Scene((Item(name, None, 4, 4),), DEFAULT_STYLE) for name in names[:count]]
    while len(scenes) < count:
        several = [maker.rng.choice(names)] * maker.rng.randint(2, 4)
        things = maker.rng.choice([several, maker.rng.sample(names, min(2, len(names)))])
        scene = Scene(tuple(maker.arrange([(thing, None) for thing in things])), DEFAULT_STYLE)
        if scene.split == "train":
            scenes.append(scene)
    return scenes


def old_scenes(held_out: list[str], count: int, maker: SceneMaker) -> list[Scene]:
    """`count` scenes of the model's training, in its styles, without held-out things."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = maker.scene("train")
        if not set(held_out) & set(scene.counts):
            scenes.append(scene)
    return scenes


def texts_of(scene: Scene, style: str) -> list[str]:
    """All captions of a scene in a style."""
    text = content_and_background(scene)
    return [form.format(text=text, style=STYLE_WORDS[style]) for form in CAPTIONS]


# The judge


class InkAndOldStyles:
    """
    Tells ink by a network of its own, and the old styles by the judge of benchmarks.world.

    Args:
        ink: tells ink from everything else.
        detector: finds the things and their styles.
    """

    def __init__(self, ink: StyleJudge, detector: Detector):
        self.ink, self.detector = ink, detector

    def judge(self, pixels: torch.Tensor) -> list[str]:
        """The style of each image (N, 3, 96, 96) in [-1, 1]: of most of its things. "none" if there are none."""
        pairs = zip(self.ink.judge(pixels), detect(self.detector, pixels), strict=True)
        return [NEW if one == NEW else most([style for _, style in found]) for one, found in pairs]


def most(styles: list[str]) -> str:
    """The most frequent style; "none" without any."""
    return Counter(styles).most_common(1)[0][0] if styles else "none"


def main(arguments: list[str] | None = None):
    parser = style_parser(
        "Train a new style on the small world, and measure it.", trained=70, held_out=35, judged=12, checked=14
    )
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--images", type=positive_integer, default=100, help="number of training images")
    add_judge_options(parser)
    options = parser.parse_args(arguments)
    objects = load_objects(options.objects)
    counts = (options.trained, options.held_out, options.judged, options.checked)
    things = choose_things(objects, *counts, seed=options.seed)
    pipe = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    made_of = [weights_hash(options.model), files_hash(options.model, CONFIGS), files_hash(options.objects, OBJECTS)]
    try:
        detector = load_detector(trained_file(Path(options.detector), objects, options))
    except UsageError as error:
        parser.error(str(error))

    def train_on(pixels: torch.Tensor, styles: list[str]) -> InkAndOldStyles:
        labels = [NEW if style == NEW else OLD for style in styles]
        return InkAndOldStyles(train_judge(pixels, labels), detector)

    def train_adapter() -> Path:
        maker = SceneMaker(objects, random.Random(f"drawings {options.seed}"))
        scenes = scenes_of(things.trained, options.images, maker)
        own = [texts_of(scene, scene.style) for scene in old_scenes(things.held_out, options.kept, maker)]
        texts = [texts_of(scene, NEW) for scene in scenes]
        return style_lora.train(pipe, options, draw_ink(pixels_of(scenes, objects)), texts, own)

    style_lora.run(pipe, options, things, train_on, train_adapter, made_of)


if __name__ == "__main__":
    main()
