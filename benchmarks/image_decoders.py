"""Does a diffusion decoder make images sharper, and are the details right? Prints one table. Run from the repository root:

    python -m benchmarks.image_decoders --data data/emoji --decoder checkpoints/image-decoder

The images are held out of every training. They are encoded to tokens, and decoded in several ways:

- `detail` is the variance of the Laplacian of the brightness, divided by that of the original: the mean over the images;
  `capped` counts each image at most as 1.
- `high band` is the mean squared error, times 1000 with pixels in [-1, 1], of what a Gaussian blur of 1.5 pixels removes.
  An unsharp mask and added noise of the same mean detail stand beside the decoder: detail in the wrong place costs more
  here than it gains.
- `name` is the share of the images that a small classifier names right. It was trained on real images, in `--classifier`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarks.measuring import print_table
from diffusers.utils import make_image_grid
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from recipes.emoji.emoji import EmojiDataset, load_emoji
from recipes.emoji.image_tokens import move, to_pixel_values
from showo_hf import EMBEDDED_MODEL, ShowoDiffusionDecoder, ShowoForCausalLM
from showo_hf.models.modeling_diffusion_decoder import gaussian_blur
from showo_hf.utils.metrics import psnr


BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue
HIGH_BAND = 1.5  # standard deviation of the blur, in pixels
UNSHARP = 1.0  # the same of the unsharp mask
NAMED_SIZE = 48  # image size for the classifier, in pixels
SHOWN = 10  # images of a contact sheet
ENLARGED = 3


def laplacian_variance(images: torch.Tensor) -> torch.Tensor:
    """The variance (images,) of the Laplacian of the brightness of images (images, 3, H, W)."""
    bright = (images * images.new_tensor(BRIGHTNESS).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(bright, kernel).flatten(1).var(1)


def detail(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """The fine detail (images,) of images (images, 3, H, W), relative to that of their originals."""
    return laplacian_variance(images) / laplacian_variance(originals)


def high_band_error(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The mean squared error of what a blur removes from images (images, 3, H, W)."""
    error = images - originals
    return (error - gaussian_blur(error, HIGH_BAND)).square().mean().item()


def of_equal_detail(change: Callable[[float], torch.Tensor], originals: torch.Tensor, wanted: float) -> torch.Tensor:
    """The images that `change` makes with the strength that gives them the mean detail `wanted`, found by bisection."""
    low, high = 0.0, 4.0
    for _ in range(14):
        middle = (low + high) / 2
        if detail(change(middle), originals).mean() < wanted:
            low = middle
        else:
            high = middle
    return change(high)


def unsharp_mask(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Images (images, 3, H, W) with what a blur removes added once more, times `strength`."""
    return (images + strength * (images - gaussian_blur(images, UNSHARP))).clamp(-1, 1)


# The classifier


class Names(nn.Sequential):
    """Names images (batch, 3, H, W)."""

    def __init__(self, names: int, width: int = 32):
        widths = [3, *(width * 2**stage for stage in range(4))]
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2 if stage else 1, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], names))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(F.adaptive_avg_pool2d(pixel_values, NAMED_SIZE))


def train_classifier(data: EmojiDataset, names: list[str], epochs: int, batch_size: int = 64, seed: int = 0) -> Names:
    """Train a classifier on the training images, moved and scaled. No image has gone through a tokenizer."""
    rows = np.asarray(data.train_indices)
    labels = torch.tensor([names.index(data.records[row].unified) for row in rows])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Names(len(names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator)
        for chosen in order[: len(rows) // batch_size * batch_size].split(batch_size):
            pixels = move(to_pixel_values(data.images[rows[chosen.numpy()]]), generator)
            loss = F.cross_entropy(model(pixels), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def classifier(file: Path, data: EmojiDataset, epochs: int) -> tuple[Names, list[str]]:
    """The classifier of a file, which is trained and written first if there is none, and its names."""
    names = sorted({record.unified for record in data.records})
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(train_classifier(data, names, epochs).state_dict(), file)
    model = Names(len(names)).eval()
    model.load_state_dict(load_file(file))
    return model, names


@torch.no_grad()
def right_names(model: Names, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images (images, 3, H, W) that are named as their labels (images,) say."""
    found = torch.cat([model(part).argmax(-1) for part in images.split(64)])
    return (found == labels).double().mean().item()


# Decoding


@torch.no_grad()
def decode_all(
    decoder: ShowoDiffusionDecoder, codes: torch.Tensor, plain: torch.Tensor, steps: int, batch_size: int = 27
) -> torch.Tensor:
    """The diffusion decoder's images, (images, 3, H, W). Image i has its own generator with seed i."""
    images = []
    for first in range(0, len(codes), batch_size):
        part = slice(first, first + batch_size)
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(codes[part]))]
        images.append(decoder.decode(codes[part], plain[part], steps, generators).sample)
    return torch.cat(images)


def seconds_for_one(function: Callable[[], object], repeats: int = 7) -> float:
    """The shortest of several times, after a warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def make_sheets(folder: Path, columns: dict[str, torch.Tensor], styles: np.ndarray):
    """Save `true-size.png`, many images of each style, and `enlarged.png`, some of them. Each row is one way to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [row for style in sorted(set(styles)) for row in np.flatnonzero(styles == style)[:SHOWN]]
    for name, rows, scale in (
        ("true-size", chosen, 1),
        ("enlarged", [row for number, row in enumerate(chosen) if number % SHOWN < 3], ENLARGED),
    ):
        tiles = [to_image(images[row], scale) for images in columns.values() for row in rows]
        make_image_grid(tiles, len(columns), len(rows)).save(folder / f"{name}.png")


def to_image(pixels: torch.Tensor, scale: int) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as an image, each pixel `scale` x `scale` pixels large."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(0, -1)
    image = Image.fromarray(levels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(" Run from")[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--decoder", required=True, help="a folder of a ShowoDiffusionDecoder")
    parser.add_argument("--model", default=f"{EMBEDDED_MODEL}/model")
    parser.add_argument("--steps", type=int, nargs="+", help="numbers of steps (default: the decoder's)")
    parser.add_argument("--images", type=int, help="number of images (default: all that are held out)")
    parser.add_argument("--classifier", type=Path, help="file of the classifier, trained first if there is none")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the classifier's training")
    parser.add_argument("--sheets", type=Path, help="folder for the contact sheets")
    options = parser.parse_args()

    data = load_emoji(options.data)
    rows = data.held_out_indices[: options.images]
    if options.images:
        rows = np.random.RandomState(0).permutation(data.held_out_indices)[: options.images]
    rows = rows[(laplacian_variance(to_pixel_values(data.images[rows])) > 0).numpy()]  # a blank image has no detail
    styles = np.array([data.records[row].style for row in rows])
    originals = to_pixel_values(data.images[rows])
    model = ShowoForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    decoder = ShowoDiffusionDecoder.from_pretrained(options.decoder, dtype=torch.float32).eval()
    tokens = torch.cat([model.encode_images(part) for part in originals.split(27)])
    plain = torch.cat([model.decode_images(part) for part in tokens.split(27)])
    codes = model.image_codes(tokens)

    steps = options.steps or [decoder.config.num_inference_steps]
    ways = {"original": originals, "plain decoder": plain}
    ways |= {f"diffusion, {number} steps": decode_all(decoder, codes, plain, number) for number in steps}
    shown = dict(ways)
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    changes = {
        "unsharp mask": lambda strength: unsharp_mask(plain, strength),
        "noise": lambda strength: (plain + strength * noise).clamp(-1, 1),
    }
    for name in list(ways)[2:]:
        wanted = detail(ways[name], originals).mean().item()
        for change, apply in changes.items():
            ways[f"{change} as {name}"] = of_equal_detail(apply, originals, wanted)

    named = None
    if options.classifier is not None:
        network, names = classifier(options.classifier, data, options.epochs)
        named = network, torch.tensor([names.index(data.records[row].unified) for row in rows])
    header = ["", "detail", *sorted(set(styles)), "capped", "PSNR", "high band"] + ["name"] * (named is not None)
    table = []
    for name, images in ways.items():
        ratios = detail(images, originals)
        quality = psnr(images, originals).mean().item()
        row = [
            name,
            f"{ratios.mean():.2f}",
            *(f"{ratios[styles == style].mean():.2f}" for style in sorted(set(styles))),
        ]
        row += [f"{ratios.clamp(max=1).mean():.2f}", f"{quality:.2f} dB"]
        row += [f"{1000 * high_band_error(images, originals):.2f}"]
        table.append(row + ([f"{100 * right_names(named[0], images, named[1]):.1f}%"] if named is not None else []))
    print(f"{len(rows)} held-out images\n")
    print_table(header, table)

    weights = sum(weight.numel() for weight in decoder.parameters())
    print(f"\n{weights:,} weights, {2 * weights / 1e6:.1f} MB in bfloat16")
    one = tokens[:1]
    before = seconds_for_one(lambda: model.decode_images(one))
    for number in steps:
        after = seconds_for_one(lambda number=number: decoder.decode(codes[:1], plain[:1], number))
        print(f"one image, {torch.get_num_threads()} thread(s): {before:.3f} s, and {after:.3f} s for {number} steps")
    if options.sheets is not None:
        make_sheets(options.sheets, shown, styles)


if __name__ == "__main__":
    main()
