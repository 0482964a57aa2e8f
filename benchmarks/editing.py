"""How well does the embedded model inpaint, vary and extend? Prints a table of docs/benchmarks.md. Run from the root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.editing --data data/emoji

`embedded_quality.py` defines when the name of an image is right.
"""

import argparse
import math
import random

import torch
from benchmarks.embedded_quality import gallery, hits
from benchmarks.measuring import print_table

from recipes.emoji.captions import canonical_caption
from recipes.emoji.emoji import EmojiDataset, load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import (
    EMBEDDED_MODEL,
    ShowoExtrapolatePipeline,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoT2IPipeline,
)
from showo_hf.utils.metrics import psnr


Row = tuple[str, str]


def generators(first: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def share(value: float) -> str:
    return f"{value:.0%}"


def inpainting(
    parts: dict, data: EmojiDataset, real: torch.Tensor, asked: list[int], steps: int, batch: int
) -> list[Row]:
    """Inpaint the middle four ninths of real images, with their own caption and with an empty prompt."""
    pipe = quiet(ShowoInpaintPipeline(**parts))
    side, factor = pipe.default_grid[0], pipe.patch
    hole = torch.zeros(side, side, dtype=torch.bool)
    margin = max(1, side // 6)
    hole[margin:-margin, margin:-margin] = True
    pixels_of_hole = hole.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    painted = {"own": [], "none": []}
    same, kept, restored = [], [], []
    for first in range(0, len(asked), batch):
        rows = asked[first : first + batch]
        original = to_pixel_values(data.images[rows])
        tokens = pipe.image_tokenizer.encode(original).image_tokens
        captions = [canonical_caption(data.records[row]) for row in rows]
        options = {"mask_image": hole, "num_inference_steps": steps}
        for name, prompts in (("own", captions), ("none", [""] * len(rows))):
            seeds = generators(first, len(rows))
            grids = pipe(prompts, tokens, generator=seeds, output_type="latent", **options).images
            same.append((grids == tokens)[:, ~hole].flatten())
            painted[name].append(pipe.image_tokenizer.decode(grids).sample)
        # Outside of the hole and its soft border, which is one token wide.
        far = ~torch.nn.functional.max_pool2d(pixels_of_hole[None].float(), 2 * factor + 1, 1, factor)[0].bool()
        restored.append(psnr(painted["own"][-1][..., far], original[..., far]))
        for_pixels = pipe(
            captions, (original + 1) / 2, preserve_pixels=True, generator=generators(first, len(rows)),
            output_type="pt", **options,
        ).images * 2 - 1  # fmt: skip
        kept.append(((for_pixels - original)[..., far].abs() < 1e-6).flatten(1).all(1))
    exact = float(torch.cat(kept).float().mean())
    return [
        ("inpainting: known tokens unchanged", share(float(torch.cat(same).float().mean()))),
        ("inpainted with its caption: right name", share(hits(data, real, asked, torch.cat(painted["own"]))["name"])),
        (
            "inpainted with an empty prompt: right name",
            share(hits(data, real, asked, torch.cat(painted["none"]))["name"]),
        ),
        ("kept part, decoded from tokens: PSNR", f"{float(torch.cat(restored).mean()):.1f} dB"),
        ("kept part with `preserve_pixels`: unchanged images", share(exact)),
    ]


def varying(
    parts: dict, data: EmojiDataset, real: torch.Tensor, asked: list[int], steps: int, batch: int
) -> list[Row]:
    """Vary real images with the caption of the next image, for several strengths."""
    pipe = quiet(ShowoImg2ImgPipeline(**parts))
    rows = []
    targets = asked[1:] + asked[:1]
    for strength in (0.5, 0.7, 0.9):
        made, same = [], []
        for first in range(0, len(asked), batch):
            chunk = slice(first, first + batch)
            tokens = pipe.image_tokenizer.encode(to_pixel_values(data.images[asked[chunk]])).image_tokens
            captions = [canonical_caption(data.records[row]) for row in targets[chunk]]
            seeds = generators(first, len(captions))
            grids = pipe(
                captions, tokens, strength, generator=seeds, num_inference_steps=steps, output_type="latent"
            ).images
            same.append((grids == tokens).float().flatten())
            made.append(pipe.image_tokenizer.decode(grids).sample)
        name = hits(data, real, targets, torch.cat(made))["name"]
        rows.append((f"varied to another caption, strength {strength}: right name", share(name)))
        rows.append((f"varied, strength {strength}: unchanged tokens", share(float(torch.cat(same).mean()))))
    return rows


def extending(parts: dict, data: EmojiDataset, asked: list[int], steps: int, batch: int) -> list[Row]:
    """Extend images to at least twice their width, in rounds of a small, a medium and the largest extent."""
    pipe = quiet(ShowoExtrapolatePipeline(**parts))
    width, factor = pipe.default_grid[1], pipe.patch
    same, rows = [], []
    for extent in dict.fromkeys((max(2, width // 6), width // 2, width - 1)):
        rounds = max(2, math.ceil(width / extent))
        grown, given = [], []
        for first in range(0, len(asked), batch):
            chunk = asked[first : first + batch]
            tokens = pipe.image_tokenizer.encode(to_pixel_values(data.images[chunk])).image_tokens
            captions = [canonical_caption(data.records[row]) for row in chunk]
            grids = pipe(
                captions, tokens, "right", extent * factor, rounds, generator=generators(first, len(chunk)),
                num_inference_steps=steps, output_type="latent",
            ).images  # fmt: skip
            same.append((grids[..., :width] == tokens).float().flatten())
            grown.append(pipe.image_tokenizer.decode(grids).sample)
            given.append(pipe.image_tokenizer.decode(tokens).sample)
        seams = torch.arange(width, width + rounds * extent, extent)
        here = seam_visibility(torch.cat(grown), seams, width, factor)
        there = seam_visibility(torch.cat(given), torch.tensor([width - extent]), width - extent, factor)
        what = f"extended by {extent * factor} pixels, {rounds} rounds: gradient across seams / other token borders"
        rows.append((f"{what} (same columns of the input images)", f"{here:.2f} ({there:.2f})"))
    return [("extending: known tokens unchanged", share(float(torch.cat(same).mean()))), *rows]


def seam_visibility(pixels: torch.Tensor, seams: torch.LongTensor, first: int, factor: int) -> float:
    """
    The mean pixel gradient across seams, divided by the mean gradient across the other token borders.

    Args:
        pixels (`torch.Tensor` of shape `(batch, 3, H, W)`): the images.
        seams: the token columns with a seam at their left border.
        first: the first token column to consider.
        factor: pixels per token.
    """
    change = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((0, 1, 2))  # (W - 1,)
    borders = torch.arange(max(1, first), pixels.shape[-1] // factor)
    at_seam = torch.isin(borders, seams)
    across = change[borders * factor - 1]
    return float(across[at_seam].mean() / across[~at_seam].mean())


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=25)
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    toneless = [int(row) for row in data.train_indices if data.records[row].tone is None]
    asked = random.Random(0).sample(toneless, min(len(toneless), options.images))
    parts = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32).components
    real = gallery(data)
    with torch.no_grad():
        rows = inpainting(parts, data, real, asked, options.steps, options.batch_size)
        rows += varying(parts, data, real, asked, options.steps, options.batch_size)
        rows += extending(parts, data, asked, options.steps, options.batch_size)
    print_table((f"{options.images} training images, {options.steps} steps", "measured"), rows)


if __name__ == "__main__":
    main()
