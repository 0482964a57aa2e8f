"""How well do image tokenizers reconstruct images, and how do they use their codes? Prints one table. Run as

    python -m benchmarks.image_tokenizer_quality --images held-out-images TOKENIZER [TOKENIZER ...]

A TOKENIZER is the folder of an image tokenizer, or of a Show-o pipeline; `embedded` is the embedded model's. Images are
cropped to a square of `--size` pixels, by default the size of the first tokenizer, and rounded to 8 bits after decoding.

- PSNR and SSIM: means over images.
- detail: the variance of the Laplacian, as a ratio to the original's; the mean over images, and the mean with each ratio
  capped at 1. Noise and sharpening raise it as well, so it says little without the next column.
- band error: the root mean square error of the fine band, which is an image minus its blurred self (a Gaussian of one
  pixel), divided by the root mean square of the original's. An image without fine detail has 1.
- codes used: the share of the codebook that the images use; entropy: of these codes, in bits, and what a code could have.
- tokens back: the share of tokens that come back after `encode(decode(tokens))`, with rounding in between.

Below each tokenizer whose images have more detail than the first one's are two baselines: the first one's images after an
unsharp mask, and with added noise, each just so strong that the detail is the same.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.measuring import print_table
from torch.nn import functional as F

from recipes.image_tokens import as_in_a_file
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.processing.images import load_image
from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.diffusion_decoder import load_tokenizer
from showo_hf.utils.argument_types import positive_integer
from showo_hf.utils.metrics import laplacian_variance, psnr, ssim


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BAND_SIGMA = 1.0  # of the Gaussian below the fine band, in pixels
HEADER = ["tokenizer", "PSNR", "SSIM", "detail", "capped", "band error", "codes used", "entropy", "tokens back"]


def load_images(folder: Path, size: int, count: int | None) -> torch.Tensor:
    """The images of a folder and its subfolders, (images, 3, size, size) in [-1, 1]: all, or `count` of all parts of it."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"`--images` must be a folder with images, but '{folder}' has none.")
    count = len(files) if count is None else min(count, len(files))
    files = [files[number * len(files) // count] for number in range(count)]
    processor = showo_image_processor(size)
    images = [load_image(str(file), "images") for file in files]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def blurred(images: torch.Tensor, sigma: float = BAND_SIGMA) -> torch.Tensor:
    """Images (batch, 3, H, W) after a Gaussian filter."""
    radius = int(4 * sigma + 0.5)
    row = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    row = (row / row.sum()).expand(images.shape[1], 1, 1, -1)
    images = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="replicate"), row, groups=images.shape[1])
    images = F.pad(images, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(images, row.transpose(2, 3), groups=images.shape[1])


def band_error(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The error in the fine band, as in this file's description."""
    fine, expected = images - blurred(images), originals - blurred(originals)
    return ((fine - expected).square().mean() / expected.square().mean()).sqrt().item()


def detail_ratios(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """The detail of each image as a ratio to its original's; images without any detail are left out."""
    expected = laplacian_variance(originals)
    return (laplacian_variance(images) / expected)[expected > 1e-6]


def batches(values: torch.Tensor, size: int = 32) -> Iterator[torch.Tensor]:
    """Parts of the images."""
    return iter(values.split(size))


@torch.no_grad()
def encoded(tokenizer: ShowoImageTokenizer, images: torch.Tensor) -> torch.Tensor:
    """The tokens (images, h, w) of images (images, 3, H, W)."""
    return torch.cat([tokenizer.encode(pixels).image_tokens for pixels in batches(images)])


@torch.no_grad()
def decoded(tokenizer: ShowoImageTokenizer, tokens: torch.Tensor) -> torch.Tensor:
    """The images (images, 3, H, W) of tokens (images, h, w)."""
    return torch.cat([as_in_a_file(tokenizer.decode(ids).sample) for ids in batches(tokens)])


def tokens_back(tokenizer: ShowoImageTokenizer, images: torch.Tensor, tokens: torch.Tensor) -> str:
    """The share of tokens (images, h, w) that images of them, (images, 3, H, W), have when they are encoded again."""
    return f"{(encoded(tokenizer, images) == tokens).double().mean().item():.1%}"


def quality(images: torch.Tensor, originals: torch.Tensor) -> list[str]:
    """The columns that need the images alone."""
    ratios = detail_ratios(images, originals)
    values = [psnr(images, originals), ssim(images, originals), ratios, ratios.clamp(max=1)]
    return [
        f"{values[0].mean():.2f}",
        *(f"{value.mean():.3f}" for value in values[1:]),
        f"{band_error(images, originals):.3f}",
    ]


def code_use(tokens: torch.Tensor, codes: int) -> list[str]:
    """The share of codes that occur, and the entropy of the codes."""
    shares = torch.bincount(tokens, minlength=codes).double() / len(tokens)
    entropy = -torch.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0))
    most = torch.log2(torch.tensor(float(codes)))
    return [f"{(shares > 0).double().mean():.1%}", f"{entropy:.2f} of {most:.2f}"]


def unsharp(images: torch.Tensor, amount: float) -> torch.Tensor:
    """Images with `amount` times their fine band added."""
    return as_in_a_file(images + amount * (images - blurred(images)))


def noisy(images: torch.Tensor, amount: float) -> torch.Tensor:
    """Images with Gaussian noise of the standard deviation `amount`; equal in each call."""
    generator = torch.Generator().manual_seed(0)
    return as_in_a_file(images + amount * torch.randn(images.shape, generator=generator))


def as_detailed(
    change: Callable[[torch.Tensor, float], torch.Tensor], images: torch.Tensor, originals: torch.Tensor, detail: float
) -> torch.Tensor:
    """Images changed just so strongly that the mean of their detail ratios is `detail`, found by bisection."""
    low, high = 0.0, 1e-3
    while detail_ratios(change(images, high), originals).mean() < detail and high < 100:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        if detail_ratios(change(images, middle), originals).mean() < detail:
            low = middle
        else:
            high = middle
    return change(images, high)


def table(paths: list[str], folder: Path, size: int | None, count: int | None) -> list[list[str]]:
    """The rows of the table."""
    rows: list[list[str]] = []
    first = originals = None
    for path in paths:
        tokenizer = load_tokenizer(path)
        if originals is None:
            originals = load_images(folder, size or tokenizer.config.sample_size, count)
        tokens = encoded(tokenizer, originals)
        images = decoded(tokenizer, tokens)
        codes = code_use(tokens.flatten(), tokenizer.config.codebook_size)
        rows.append([path, *quality(images, originals), *codes, tokens_back(tokenizer, images, tokens)])
        detail = detail_ratios(images, originals).mean().item()
        if first is None:
            first = images
        elif detail > detail_ratios(first, originals).mean():
            for name, change in (("unsharp mask", unsharp), ("noise", noisy)):
                changed = as_detailed(change, first, originals, detail)
                rows.append([f"  {paths[0]} and {name}", *quality(changed, originals), "", "", ""])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    parser.add_argument("tokenizers", nargs="+", metavar="TOKENIZER")
    parser.add_argument("--images", type=Path, required=True, help="folder of images held out of every training")
    parser.add_argument("--size", type=positive_integer, help="width and height in pixels")
    parser.add_argument("--count", type=positive_integer, help="use so many images, spread evenly over the names")
    options = parser.parse_args(arguments)
    print_table(HEADER, table(options.tokenizers, options.images, options.size, options.count))


if __name__ == "__main__":
    main()
