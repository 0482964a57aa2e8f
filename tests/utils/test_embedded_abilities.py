"""What the model in the package can do: a few of the things that benchmarks.world measures, each with room for an error."""

import re

import numpy as np
import pytest
import torch

from recipes.colours import COLOUR_NAMES, pixel_colours
from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline, ShowoMMUPipeline, ShowoT2IPipeline


#: Prompts, and the colours that their images must show.
PROMPTS = {
    "a red apple": {"red"},
    "a banana": {"yellow"},
    "a purple cat": {"purple"},
    "a red apple to the left of a blue car": {"red", "blue"},
    "a blue car to the left of a red apple": {"red", "blue"},
    "two cats": set(),
    "a heart": {"red"},
    "a frog": {"green"},
}
#: Two things with their colours, which are asked for in both orders.
SIDES = (
    (("a red apple", "red"), ("a blue car", "blue")),
    (("a banana", "yellow"), ("a frog", "green")),
    (("a purple cat", "purple"), ("a heart", "red")),
)
CLEAR = 0.03  # share of an image's pixels that a thing at least has in its colour: it takes a sixth of the image
ENOUGH = 0.75  # of the images or answers must be right


@pytest.fixture(scope="module")
def pipe():
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def images(pipe):
    """An image of each prompt."""
    generators = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
    return dict(zip(PROMPTS, pipe(list(PROMPTS), generator=generators).images, strict=True))


def share(image, colour: str) -> np.ndarray:
    """Where an image has a colour, bool (H, W)."""
    return pixel_colours(np.asarray(image.convert("RGB"))) == COLOUR_NAMES.index(colour)


def has_word(text: str, word: str) -> bool:
    """Whether a text has a whole word: no "car" of "carrot"."""
    return re.search(rf"\b{word}\b", text) is not None


@pytest.mark.slow
def test_images_show_the_colours_of_their_prompts_on_white(images):
    asked = {text: colours for text, colours in PROMPTS.items() if colours}
    right = {text: all(share(images[text], one).mean() > CLEAR for one in asked[text]) for text in asked}
    assert np.mean(list(right.values())) >= ENOUGH, right
    assert np.mean([share(image, "white").mean() > 0.4 for image in images.values()]) >= ENOUGH


@pytest.mark.slow
def test_things_stand_on_the_side_that_the_prompt_says(pipe):
    """A model that does not read the order of the words gets half of them right."""

    def column(image, colour: str) -> float:
        columns = np.nonzero(share(image, colour))[1]
        return float(columns.mean()) if len(columns) else np.nan

    asked = [(one, other) for pair in SIDES for one, other in (pair, pair[::-1])]
    prompts = [f"{one} to the left of {other}" for (one, _), (other, _) in asked]
    images = pipe(prompts, generator=[torch.Generator().manual_seed(7) for _ in prompts]).images
    right = [
        column(image, left) < column(image, right)
        for image, ((_, left), (_, right)) in zip(images, asked, strict=True)
    ]
    assert sum(right) >= 5, dict(zip(prompts, right, strict=True))


def test_a_named_background_is_drawn(pipe):
    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    night, grass = pipe(["a cat at night", "a cat on the grass"], generator=generators).images
    assert np.asarray(night.convert("L")).mean() < 120, "dark"
    assert share(grass, "green").mean() > 0.2


def test_questions_about_its_own_images_are_answered(pipe, images):
    asked = {
        "a red apple": ("what is this?", "apple"),
        "a banana": ("what is this?", "banana"),
        "a purple cat": ("what colour is the cat?", "purple"),
        "two cats": ("how many cats are there?", "two"),
        "a red apple to the left of a blue car": ("what is left of the car?", "apple"),
        "a heart": ("is it an animal?", "no"),
        "a frog": ("is it an animal?", "yes"),
        "a blue car to the left of a red apple": ("is there a car?", "yes"),
    }
    asking = ShowoMMUPipeline(**pipe.components)
    answers = {text: asking(images[text], question).texts[0] for text, (question, _) in asked.items()}
    right = [has_word(answers[text], word) for text, (_, word) in asked.items()]
    assert np.mean(right) >= ENOUGH, answers


@pytest.mark.slow
def test_an_answer_of_text_and_images_names_and_shows_what_was_asked_for(pipe):
    talking = ShowoAnyToAnyPipeline(**pipe.components)
    content = talking("show me a red apple, then a blue car", generator=torch.Generator().manual_seed(0)).content
    images = [part["image"] for part in content if part["type"] == "image"]
    said = " ".join(part["text"] for part in content if part["type"] == "text")
    assert len(images) == 2 and has_word(said, "apple") and has_word(said, "car")
    assert share(images[0], "red").mean() > CLEAR or share(images[1], "blue").mean() > CLEAR


@pytest.mark.slow
def test_a_conversation_goes_on_about_the_image_that_was_drawn(pipe):
    talk = ShowoAnyToAnyPipeline(**pipe.components).start()
    generator = torch.Generator().manual_seed(0)
    drawn = talk.send("draw a dog on the grass.", generator=generator).content
    assert sum(part["type"] == "image" for part in drawn) == 1
    answer = talk.send("what is this?", generator=generator).content
    assert [part["type"] for part in answer] == ["text"] and has_word(answer[0]["text"], "dog")
    assert any(part["type"] == "image" for part in talk.send("make it night", generator=generator).content)
