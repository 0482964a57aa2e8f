"""The image of a scene: 96 x 96 pixels, by program."""

from functools import cache, lru_cache

import numpy as np

from recipes.world.objects import Objects
from recipes.world.scenes import CELLS, Scene


CELL = 8  # pixels
SIZE = CELLS * CELL
#: The colours of the plain backgrounds, sRGB: paler than those that things are given.
PLAIN = {
    "white": (255, 255, 255),
    "yellow": (255, 241, 160),
    "blue": (170, 215, 250),
    "pink": (255, 208, 224),
}
_SKY, _GRASS, _DARK_GRASS = (178, 222, 250), (128, 196, 92), (98, 168, 70)
_WATER, _WAVE, _NIGHT, _STARLIGHT = (64, 148, 214), (130, 190, 236), (30, 36, 78), (236, 232, 190)
_HORIZON = 7 * CELL  # where the sky ends


@cache
def background_image(name: str) -> np.ndarray:
    """
    A background, uint8 (96, 96, 3), read-only.

    Its pattern repeats from cell to cell, so that it has few different tokens.
    """
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    if name in PLAIN:
        image[:] = PLAIN[name]
    elif name == "night":
        image[:] = _NIGHT
        for row, column in ((1, 2), (0, 7), (3, 10), (4, 0), (6, 5), (8, 11), (10, 2), (9, 8)):  # cells with a light
            image[row * CELL + 3 : row * CELL + 5, column * CELL + 3 : column * CELL + 5] = _STARLIGHT
    else:
        image[:_HORIZON] = _SKY
        image[_HORIZON:] = _GRASS if name == "grass" else _WATER
        x = np.arange(SIZE) % CELL
        edge = (2 - abs(x - 3.5)).clip(0).round().astype(int) if name == "grass" else np.zeros(SIZE, dtype=int)
        for column, height in enumerate(edge):
            image[_HORIZON - height : _HORIZON, column] = _GRASS
        for row in range(_HORIZON + CELL, SIZE, 2 * CELL):  # tufts, or waves
            for column in range(SIZE):
                if name == "grass":
                    height = max(0, 3 - 2 * abs(int(x[column]) - 4)) if (column // CELL + row // CELL) % 2 else 0
                    image[row + 5 - height : row + 5, column] = _DARK_GRASS
                else:
                    crest = row + 3 + round(np.sin(x[column] / CELL * 2 * np.pi))
                    image[crest : crest + 2, column] = _WAVE
    image.setflags(write=False)
    return image


def draw(scene: Scene, objects: Objects) -> np.ndarray:
    """
    The image of a scene, uint8 (96, 96, 3).

    Args:
        scene: the scene.
        objects: the cut-outs.
    """
    image = background_image(scene.background).astype(np.float32)
    for item in scene.items:
        rgba = objects.image(item.thing, scene.style, item.colour).astype(np.float32)
        side = len(rgba)
        box = image[item.row * CELL : item.row * CELL + side, item.column * CELL : item.column * CELL + side]
        box += (rgba[..., :3] - box) * (rgba[..., 3:] / 255)
    return image.round().astype(np.uint8)


@lru_cache(maxsize=2)
def contrasts(objects: Objects) -> dict[str, np.ndarray]:
    """
    How far each cut-out stands out from each background: float32 (cut-outs,), by background.

    It is the mean distance of its visible pixels from the background's mean colour, in 0..441.
    """
    visible = objects.images[..., 3] > 128
    found = {}
    for name in (*PLAIN, "grass", "sea", "night"):
        mean = background_image(name).reshape(-1, 3).mean(0)
        distance = np.linalg.norm(objects.images[..., :3].astype(np.float32) - mean.astype(np.float32), axis=-1)
        found[name] = (distance * visible).sum((1, 2)) / visible.sum((1, 2)).clip(1)
    return found
