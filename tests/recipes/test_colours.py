"""The main colour of an image."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from recipes.colours import CLEAR_SHARE, COLOUR_NAMES, _hue, main_colour, pixel_colours


def disc(colour, radius=12, size=32) -> np.ndarray:
    image = Image.new("RGB", (size, size), "white")
    middle = size // 2
    ImageDraw.Draw(image).ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=colour)
    return np.asarray(image)


@pytest.mark.parametrize(
    "colour, name",
    [
        ("red", "red"), ("#DD2E44", "red"), ("darkorange", "orange"), ("gold", "yellow"), ("#FFCC4D", "yellow"),
        ("green", "green"), ("lime", "green"), ("blue", "blue"), ("skyblue", "blue"), ("purple", "purple"),
        ("hotpink", "pink"), ("lightpink", "pink"), ("saddlebrown", "brown"), ("black", "black"), ("#202020", "black"),
        ("gray", "grey"), ("#CCD6DD", "grey"),
    ],
)  # fmt: skip
def test_names_of_plain_colours(colour, name):
    assert main_colour(disc(colour)) == name


def test_white_and_multicoloured_images_have_no_main_colour():
    assert main_colour(disc("white")) is None
    assert main_colour(disc("red", radius=1)) is None  # too few pixels
    thirds = disc("white").copy()
    for start, colour in ((0, "red"), (10, "green"), (20, "blue")):
        thirds[:, start : start + 10] = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    assert main_colour(thirds) is None


@given(st.integers(0, 1023))
def test_the_main_colour_needs_a_clear_share(count):
    """`count` of 1,024 pixels are red, the others green."""
    image = np.zeros((1024, 3), np.uint8)
    image[:, 1] = 255
    image[:count] = (255, 0, 0)
    expected = "red" if count >= CLEAR_SHARE * 1024 else "green" if 1024 - count >= CLEAR_SHARE * 1024 else None
    assert main_colour(image.reshape(32, 32, 3)) == expected


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_hues_match_hsv(pixel):
    rgb = np.array(pixel, np.float32) / 255
    spread = np.maximum(rgb.max() - rgb.min(), 1e-6)
    expected = colorsys.rgb_to_hsv(*rgb.tolist())[0] * 360
    assert abs((_hue(rgb, rgb.max(), spread) - expected + 180) % 360 - 180) < 0.01
    assert 0 <= pixel_colours(np.array(pixel, np.uint8)) < len(COLOUR_NAMES)
