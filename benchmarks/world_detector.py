"""The judge of benchmarks.world: a small network that finds the things in an image, trained on real scenes alone."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import STYLES, Objects
from recipes.world.recolouring import PALETTE
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import LARGE_CELLS, SMALL_CELLS, Item, Scene
from recipes.world.words import THINGS


NAMES, COLOURS = list(THINGS), [None, *PALETTE]
SIZES = (0, SMALL_CELLS, LARGE_CELLS)  # of the thing whose middle is in a cell; 0 for no thing
HEADS = {"size": len(SIZES), "thing": len(NAMES), "colour": len(COLOURS), "style": len(STYLES)}
FOUND_ABOVE = 0.5  # probability of a thing
_LARGE_SHARE, _LARGE_KINDS = (
    0.4,
    ("single", "colours"),
)  # so many more scenes of one large thing, which are else too few
_PRESENCE_WEIGHT = torch.tensor([1.0, 8.0, 8.0])


class Detector(nn.Module):
    """
    Classifies each of the 12 x 12 cells: is there the middle of a thing, of which size, what is it, colour and style.

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
    return item.row + item.cells // 2, item.column + item.cells // 2


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each cell by size (batch, 12, 12), and for each item its scene, row, column, thing, colour, style."""
    sizes = torch.zeros(len(scenes), 12, 12, dtype=torch.long)
    items = []
    for number, scene in enumerate(scenes):
        for item in scene.items:
            row, column = middle(item)
            sizes[number, row, column] = SIZES.index(item.cells)
            classes = (NAMES.index(item.thing), COLOURS.index(item.colour), STYLES.index(scene.style))
            items.append((number, row, column, *classes))
    return sizes, torch.tensor(items)


def detector_loss(logits: dict[str, torch.Tensor], scenes: list[Scene]) -> torch.Tensor:
    """The cross-entropy of the sizes at all cells, plus that of thing, colour and style where things are."""
    sizes, items = targets(scenes)
    loss = F.cross_entropy(logits["size"], sizes, weight=_PRESENCE_WEIGHT)
    number, row, column = items[:, :3].T
    for at, name in enumerate(("thing", "colour", "style"), start=3):
        loss = loss + F.cross_entropy(logits[name][number, :, row, column], items[:, at])
    return loss


def worsened(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images with blur and noise of random strength, because generated ones are not as sharp as real ones."""
    blurred = F.avg_pool2d(F.pad(pixel_values, [1] * 4, mode="replicate"), 3, 1)
    share, strength = torch.rand(2, len(pixel_values), 1, 1, 1, generator=generator)
    noise = torch.randn(pixel_values.shape, generator=generator)
    return pixel_values.lerp(blurred, share) + 0.15 * strength**2 * noise


def train_detector(
    objects: Objects, steps: int, batch_size: int = 32, seed: int = 0, seconds: float = 900
) -> Detector:
    """
    Train on real scenes of all combinations. It stops after `steps`, or earlier when the time is over.

    Args:
        objects: the cut-outs.
        steps: training steps. The learning rate falls with them, or with the time if that is shorter.
        batch_size: scenes in a step.
        seed: seed of the weights and of the scenes.
        seconds: at most so long.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, maker = Detector(), SceneMaker(objects, random.Random(f"detector {seed}"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    start = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - done)
        kinds = [
            kind if maker.rng.random() < _LARGE_SHARE else None
            for kind in maker.rng.choices(_LARGE_KINDS, k=batch_size)
        ]
        scenes = [maker.scene("any", kind) for kind in kinds]
        pixels = to_pixel_values(np.stack([draw(scene, objects) for scene in scenes]))
        loss = detector_loss(model(worsened(pixels, generator)), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"detector: step {step}, loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def detect(model: Detector, pixel_values: torch.Tensor, batch_size: int = 64) -> list[list[tuple[Item, str]]]:
    """The things in images (batch, 3, 96, 96) in [-1, 1]: for each image its items, each with its style."""
    return [found for part in pixel_values.split(batch_size) for found in _detect(model, part)]


def _detect(model: Detector, pixel_values: torch.Tensor) -> list[list[tuple[Item, str]]]:
    logits = model(pixel_values)
    presence = 1 - logits["size"].softmax(1)[:, 0]  # (batch, 12, 12)
    highest = F.max_pool2d(presence[:, None], 3, 1, 1)[:, 0]
    found: list[list[tuple[Item, str]]] = [[] for _ in pixel_values]
    for number, row, column in ((presence == highest) & (presence > FOUND_ABOVE)).nonzero().tolist():
        best = {
            name: int(values[number, :, row, column].argmax()) for name, values in logits.items() if name != "size"
        }
        large = bool(logits["size"][number, 2, row, column] > logits["size"][number, 1, row, column])
        half = (LARGE_CELLS if large else SMALL_CELLS) // 2
        item = Item(NAMES[best["thing"]], COLOURS[best["colour"]], column - half, row - half, large)
        found[number].append((item, STYLES[best["style"]]))
    return found


def save_detector(model: Detector, path: str | Path) -> None:
    """Write the weights."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)


def load_detector(path: str | Path) -> Detector:
    """Read what [`save_detector`] wrote."""
    model = Detector()
    model.load_state_dict(load_file(path))
    return model.eval()
