"""The judge of benchmarks.world: a small network that finds the things in an image, trained on real scenes alone."""

import os
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import STYLES, Objects
from recipes.world.recolouring import PALETTE
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import CELLS, THING_CELLS, Item, Scene
from recipes.world.words import THINGS


NAMES, COLOURS = list(THINGS), [None, *PALETTE]
#: The heads of the network and their classes. "presence": whether the middle of a thing is in a cell.
HEADS = {"presence": 2, "thing": len(NAMES), "colour": len(COLOURS), "style": len(STYLES)}
FOUND_ABOVE = 0.5  # probability of a thing
#: The least probability of what a found thing is. Half-made things have 0.3 to 0.5.
CLEAR_ABOVE = 0.5
UNCLEAR = "something unclear"  # the name of a found thing that is not clear
_PRESENCE_WEIGHT = torch.tensor([1.0, 8.0])
_REPORTED_EVERY = 100  # steps of the training


def scene_pixels(scenes: Iterable[Scene], objects: Objects) -> torch.Tensor:
    """The images of scenes, (scenes, 3, 96, 96) in [-1, 1]."""
    return to_pixel_values(np.stack([draw(scene, objects) for scene in scenes]))


class Detector(nn.Module):
    """
    Classifies each of the 12 x 12 cells: is there the middle of a thing, what is it, colour and style.

    Args:
        width: channels.
        depth: residual blocks at the resolution of the cells.
    """

    def __init__(self, width: int = 96, depth: int = 5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 8, 4, 2), nn.GELU(), nn.Conv2d(48, width, 4, 2, 1), nn.GroupNorm(8, width), nn.GELU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU())
            for _ in range(depth)
        )
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, classes, 1) for name, classes in HEADS.items()})

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels (batch, 3, 96, 96) in [-1, 1] to the logits (batch, classes, 12, 12) of each head."""
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return {name: head(hidden) for name, head in self.heads.items()}


def middle(item: Item) -> tuple[int, int]:
    """The row and column of the cell where the middle of a thing is."""
    return item.row + THING_CELLS // 2, item.column + THING_CELLS // 2


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Whether the middle of a thing is in each cell, 0 or 1 (batch, 12, 12); and for each item the numbers of its scene, row,
    column, thing, colour and style.
    """
    presence = torch.zeros(len(scenes), CELLS, CELLS, dtype=torch.long)
    items = []
    for number, scene in enumerate(scenes):
        for item in scene.items:
            row, column = middle(item)
            presence[number, row, column] = 1
            classes = (NAMES.index(item.thing), COLOURS.index(item.colour), STYLES.index(scene.style))
            items.append((number, row, column, *classes))
    return presence, torch.tensor(items)


def detector_loss(logits: dict[str, torch.Tensor], scenes: list[Scene]) -> torch.Tensor:
    """The cross-entropy of the middles at all cells, and of thing, colour and style where things are."""
    presence, items = targets(scenes)
    loss = F.cross_entropy(logits["presence"], presence, weight=_PRESENCE_WEIGHT)
    number, row, column = items[:, :3].T
    for at, name in enumerate(("thing", "colour", "style"), start=3):
        loss = loss + F.cross_entropy(logits[name][number, :, row, column], items[:, at])
    return loss


def worsened(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images with blur, stains and noise of random strength, because generated ones are neither sharp nor clean."""
    side, count = pixel_values.shape[-1], len(pixel_values)
    halved = F.interpolate(F.avg_pool2d(pixel_values, 2), side, mode="bilinear")
    share, stain, strength = torch.rand(3, count, 1, 1, 1, generator=generator)
    stains = F.interpolate(torch.randn(count, 3, CELLS, CELLS, generator=generator), side, mode="bilinear")
    noise = torch.randn(pixel_values.shape, generator=generator)
    return pixel_values.lerp(halved, share) + 0.2 * stain**2 * stains + 0.15 * strength**2 * noise


def train_detector(objects: Objects, steps: int, batch_size: int = 32, seed: int = 0) -> Detector:
    """
    Train on real scenes of all combinations. The same arguments give the same judge, however long it takes.

    Args:
        objects: the cut-outs.
        steps: training steps, with which the learning rate falls.
        batch_size: scenes in a step.
        seed: seed of the weights and of the scenes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Detector()
    generator, maker = torch.Generator().manual_seed(seed), SceneMaker(objects, random.Random(f"detector {seed}"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        scenes = [maker.scene("any") for _ in range(batch_size)]
        loss = detector_loss(model(worsened(scene_pixels(scenes, objects), generator)), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % _REPORTED_EVERY == 0:
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1) / 60
            words = f"judge: step {step + 1} of {steps}, loss {loss.item():.3f}, {left:.0f} minutes left"
            print(words, file=sys.stderr, flush=True)
    return model.eval()


@torch.no_grad()
def detect(model: Detector, pixel_values: torch.Tensor, batch_size: int = 64) -> list[list[tuple[Item, str]]]:
    """
    The things in images (batch, 3, 96, 96) in [-1, 1]: for each image its items, each with its style.

    What is half-made, so that no class has a probability above `CLEAR_ABOVE`, is an item too: of the thing `UNCLEAR`.
    """
    return [found for part in pixel_values.split(batch_size) for found in _detect(model, part)]


def _detect(model: Detector, pixel_values: torch.Tensor) -> list[list[tuple[Item, str]]]:
    logits = model(pixel_values)
    presence = 1 - logits["presence"].softmax(1)[:, 0]  # (batch, 12, 12)
    highest = F.max_pool2d(presence[:, None], 3, 1, 1)[:, 0]
    found: list[list[tuple[Item, str]]] = [[] for _ in pixel_values]
    for number, row, column in ((presence == highest) & (presence > FOUND_ABOVE)).nonzero().tolist():
        best = {
            name: int(values[number, :, row, column].argmax()) for name, values in logits.items() if name != "presence"
        }
        clear = logits["thing"][number, :, row, column].softmax(0).max() > CLEAR_ABOVE
        thing = NAMES[best["thing"]] if clear else UNCLEAR
        half = THING_CELLS // 2
        item = Item(thing, COLOURS[best["colour"]], column - half, row - half)
        found[number].append((item, STYLES[best["style"]]))
    return found


def save_detector(model: Detector, path: str | Path, origin: dict[str, str]) -> None:
    """Write the weights and what they come from, whole or not at all."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file(model.state_dict(), part, origin)
    os.replace(part, file)


def detector_origin(path: str | Path) -> dict[str, str]:
    """What the weights of a file come from, as [`save_detector`] wrote it. Empty for a file of others."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def load_detector(path: str | Path) -> Detector:
    """Read what [`save_detector`] wrote."""
    model = Detector()
    model.load_state_dict(load_file(path))
    return model.eval()
