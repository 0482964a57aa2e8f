"""The benchmark of large images, with a tiny model."""

from dataclasses import replace

import large_images
import pytest
from t2i import SMALL


# Captions are longer than `max_text_length` of the tiny processor, and are truncated.
pytestmark = pytest.mark.filterwarnings("ignore:A text of .* ids was cut")


def test_near_borders_marks_tokens_next_to_tile_borders():
    marked = large_images.near_borders(10, 4, 1)
    assert marked.nonzero().flatten().tolist() == [2, 3, 5, 6]
    assert not large_images.near_borders(4, 4, 1).any()


def test_tiling_differences(model):
    found = large_images.differences(model, side=2, images=1)
    assert set(found) == {f"{what}, {where}" for what in ("tokens", "pixels") for where in ("borders", "elsewhere")}
    assert 0 <= found["tokens, elsewhere"] <= 1 and found["pixels, elsewhere"] > 0


@pytest.mark.slow
def test_tiling_saves_memory():
    # Large enough that the activations need more memory than the weights that a convolution packs.
    whole, tiled = (large_images.memory(192, way, trained=32) for way in (False, True))
    assert whole["encode"] > 2 * tiled["encode"] > 0
    assert whole["decode"] > 1.5 * tiled["decode"] > 0


@pytest.mark.slow
def test_a_large_image_with_a_whole_model():
    sizes = replace(SMALL, image_tokens=64)  # an image of 16 pixels
    small, large = (large_images.text_to_image(size, 16, sizes=sizes) for size in (16, 32))
    assert (small["windows"], large["windows"]) == (1, 9) and small["model"] == large["model"] > 0
    assert large["above"] > 0
