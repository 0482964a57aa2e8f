"""What editing keeps of an image, and what it makes: inpainting, variation and extension, on images with captions."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benchmarks.pictures import generators

from showo_hf import ShowoExtrapolatePipeline, ShowoImg2ImgPipeline, ShowoInpaintPipeline
from showo_hf.utils.metrics import psnr


#: What is measured, and the value.
Row = tuple[str, str]
#: Gives shares of right images (N, 3, H, W) in [-1, 1], by what is right.
Judge = Callable[[torch.Tensor], dict[str, float]]
STRENGTHS = (0.5, 0.7, 0.9)


def share(value: float) -> str:
    return f"{value:.0%}"


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def batches(originals: torch.Tensor, captions: list[str], size: int) -> Iterator[tuple[int, torch.Tensor, list[str]]]:
    """The number of the first image, the images and the captions of each batch."""
    for first in range(0, len(captions), size):
        yield first, originals[first : first + size], captions[first : first + size]


def middle(side: int) -> torch.BoolTensor:
    """The middle four ninths of a grid (side, side)."""
    hole = torch.zeros(side, side, dtype=torch.bool)
    margin = max(1, side // 6)
    hole[margin:-margin, margin:-margin] = True
    return hole


def inpainting(
    parts: dict[str, Any],
    originals: torch.Tensor,
    captions: list[str],
    judge: Judge,
    batch_size: int,
    seed: int,
    **options: Any,
) -> list[Row]:
    """
    Inpaint the middle four ninths of images, with their own captions and with an empty prompt.

    Args:
        parts: the components of a pipeline.
        originals: the images (N, 3, H, W) in [-1, 1].
        captions: what they show.
        judge: compares images with the captions.
        batch_size: images that are made together.
        seed: image i has its own generator with the seed `seed + i`.
        options: further arguments of the pipeline.
    """
    pipe = quiet(ShowoInpaintPipeline(**parts))
    factor, hole = pipe.patch, middle(pipe.default_grid[0])
    pixels_of_hole = hole.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    # Outside of the hole and its soft border, which is one token wide.
    far = ~torch.nn.functional.max_pool2d(pixels_of_hole[None].float(), 2 * factor + 1, 1, factor)[0].bool()
    painted: dict[str, list[torch.Tensor]] = {"its caption": [], "an empty prompt": []}
    same, kept, restored = [], [], []
    for first, original, texts in batches(originals, captions, batch_size):
        tokens = pipe.image_tokenizer.encode(original).image_tokens
        for name, prompts in zip(painted, (texts, [""] * len(texts)), strict=True):
            seeds = generators(seed + first, len(texts))
            grids = pipe(prompts, tokens, mask_image=hole, generator=seeds, output_type="latent", **options).images
            same.append((grids == tokens)[:, ~hole].flatten())
            painted[name].append(pipe.image_tokenizer.decode(grids).sample)
        restored.append(psnr(painted["its caption"][-1][..., far], original[..., far]))
        for_pixels = pipe(
            texts, (original + 1) / 2, mask_image=hole, preserve_pixels=True,
            generator=generators(seed + first, len(texts)), output_type="pt", **options,
        ).images * 2 - 1  # fmt: skip
        kept.append(((for_pixels - original)[..., far].abs() < 1e-6).flatten(1).all(1))
    rows = [("inpainting: known tokens unchanged", share(float(torch.cat(same).float().mean())))]
    for name, images in painted.items():
        rows += [(f"inpainted with {name}: {what}", share(value)) for what, value in judge(torch.cat(images)).items()]
    exact = float(torch.cat(kept).float().mean())
    return [
        *rows,
        ("kept part, decoded from tokens: PSNR", f"{float(torch.cat(restored).mean()):.1f} dB"),
        ("kept part with `preserve_pixels`: unchanged images", share(exact)),
    ]


def varying(
    parts: dict[str, Any],
    originals: torch.Tensor,
    captions: list[str],
    judge: Judge,
    batch_size: int,
    seed: int,
    **options: Any,
) -> list[Row]:
    """
    Vary images to other captions, for several strengths.

    Args:
        parts: the components of a pipeline.
        originals: the images (N, 3, H, W) in [-1, 1].
        captions: what the variations shall show.
        judge: compares images with the captions.
        batch_size: images that are made together.
        seed: image i has its own generator with the seed `seed + i`.
        options: further arguments of the pipeline.
    """
    pipe, rows = quiet(ShowoImg2ImgPipeline(**parts)), []
    for strength in STRENGTHS:
        made, same = [], []
        for first, original, texts in batches(originals, captions, batch_size):
            tokens = pipe.image_tokenizer.encode(original).image_tokens
            seeds = generators(seed + first, len(texts))
            grids = pipe(texts, tokens, strength, generator=seeds, output_type="latent", **options).images
            same.append((grids == tokens).float().flatten())
            made.append(pipe.image_tokenizer.decode(grids).sample)
        for what, value in judge(torch.cat(made)).items():
            rows.append((f"varied to another caption, strength {strength}: {what}", share(value)))
        rows.append((f"varied, strength {strength}: unchanged tokens", share(float(torch.cat(same).mean()))))
    return rows


def extending(
    parts: dict[str, Any], originals: torch.Tensor, captions: list[str], batch_size: int, seed: int, **options: Any
) -> list[Row]:
    """
    Extend images to at least twice their width, in rounds of a small, a medium and the largest extent.

    Args:
        parts: the components of a pipeline.
        originals: the images (N, 3, H, W) in [-1, 1].
        captions: what they show.
        batch_size: images that are made together.
        seed: image i has its own generator with the seed `seed + i`.
        options: further arguments of the pipeline.
    """
    pipe = quiet(ShowoExtrapolatePipeline(**parts))
    width, factor = pipe.default_grid[1], pipe.patch
    same, rows = [], []
    for extent in dict.fromkeys((max(2, width // 6), width // 2, width - 1)):
        rounds = max(2, math.ceil(width / extent))
        grown, given = [], []
        for first, original, texts in batches(originals, captions, batch_size):
            tokens = pipe.image_tokenizer.encode(original).image_tokens
            seeds = generators(seed + first, len(texts))
            grids = pipe(
                texts, tokens, "right", extent * factor, rounds, generator=seeds, output_type="latent", **options
            ).images
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
