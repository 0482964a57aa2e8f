"""How good is the embedded model? Prints the numbers of docs/embedded_model.md. Run from the repository root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.embedded_quality --data data/emoji

A generated image is a hit if the nearest real image shows the requested emoji. The distance is the mean squared RGB
difference at 32x32 pixels. The candidates are all images of the requested style, including held-out images and all
skin tones. The skin tone may differ, because all skin tones of an emoji have the same name.
"""

import argparse
import json
import random
import time

import numpy as np
import torch
from benchmarks.pictures import COMPARED_SIZE, generate, nearest, shrink

from recipes.emoji.captions import canonical_caption
from recipes.emoji.emoji import EmojiDataset, load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import EMBEDDED_MODEL, ShowoLFQTokenizer, ShowoT2IPipeline
from showo_hf.utils.metrics import psnr


FRECHET_SIZE = 6  # image size for the features of the Frechet distance, in pixels


def gallery(data: EmojiDataset, size: int = COMPARED_SIZE) -> torch.Tensor:
    """All real images, shrunk to rows (N, 3 * size * size)."""
    chunks = np.array_split(np.arange(len(data.records)), 32)
    return torch.cat([shrink(to_pixel_values(data.images[rows]), size) for rows in chunks])


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Frechet distance between Gaussians fitted to two sets of rows, as in FID (arXiv:1706.08500)."""
    one, other = one.double(), other.double()
    a, b = one.T.cov(), other.T.cov()
    # trace of (a b)^(1/2); the eigenvalues of a b are real and non-negative
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((one.mean(0) - other.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root)


@torch.no_grad()
def tokenizer_quality(tokenizer: ShowoLFQTokenizer, data: EmojiDataset, batch_size: int = 64) -> dict[str, float]:
    """The mean PSNR of held-out images in dB, and the share of the codebook that training images use."""
    values, used = [], torch.zeros(tokenizer.config.codebook_size, dtype=torch.bool)
    for rows in torch.from_numpy(data.held_out_indices).split(batch_size):
        pixels = to_pixel_values(data.images[rows.numpy()])
        values.append(psnr(tokenizer(pixels).sample.clamp(-1, 1), pixels))
    for rows in torch.from_numpy(data.train_indices).split(batch_size):
        used[tokenizer.encode(to_pixel_values(data.images[rows.numpy()])).image_tokens.flatten()] = True
    return {"held_out_psnr_db": torch.cat(values).mean().item(), "codes_used": used.float().mean().item()}


def each_hit(data: EmojiDataset, real: torch.Tensor, asked: list[int], images: torch.Tensor) -> dict[str, list[bool]]:
    """For each image: whether its name (within the style, and over all styles) and its style are right."""
    queries = shrink(images, COMPARED_SIZE)
    styles = np.array([record.style for record in data.records])
    overall = nearest(queries, real).tolist()
    within = []
    for query, row in zip(queries, asked, strict=True):
        candidates = np.flatnonzero(styles == styles[row])
        within.append(int(candidates[nearest(query[None], real[candidates]).item()]))
    names = [record.unified for record in data.records]
    return {
        "name": [names[a] == names[b] for a, b in zip(asked, within, strict=True)],
        "name_any_style": [names[a] == names[b] for a, b in zip(asked, overall, strict=True)],
        "style": [bool(styles[a] == styles[b]) for a, b in zip(asked, overall, strict=True)],
    }


def hits(data: EmojiDataset, real: torch.Tensor, asked: list[int], images: torch.Tensor) -> dict[str, float]:
    """The shares of right names (within the style, and over all styles) and of right styles."""
    return {name: float(np.mean(found)) for name, found in each_hit(data, real, asked, images).items()}


def choose(data: EmojiDataset, count: int, seed: int) -> dict[str, list[int]]:
    """The measured rows: `count` random training images, and all held-out images without skin tone."""
    train = random.Random(seed).sample(data.train_indices.tolist(), min(count, len(data.train_indices)))
    held_out = [int(row) for row in data.held_out_indices if data.records[row].tone is None]
    return {"training": train, "held out": held_out}


def wording(text: str) -> str:
    """The text, which must have one place for a caption, `{}`."""
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
        raise argparse.ArgumentTypeError(f"must have {{}} once, got {text!r}")
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--captions", type=int, default=500, help="number of training captions")
    parser.add_argument("--wording", type=wording, default="{}", help="of the prompts, with {} for the caption")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the pipeline's)")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-tokenizer", action="store_true", help="skip the image tokenizer")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    pipeline = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    real = gallery(data)
    result: dict[str, dict[str, float]] = {}
    if not options.skip_tokenizer:
        result["tokenizer"] = tokenizer_quality(pipeline.image_tokenizer, data)
    sampling = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "temperature": options.temperature,
    }
    sampling = {name: value for name, value in sampling.items() if value is not None}
    for name, asked in choose(data, options.captions, options.seed).items():
        captions = [options.wording.format(canonical_caption(data.records[row])) for row in asked]
        start = time.perf_counter()
        images = generate(pipeline, captions, options.seed, options.batch_size, **sampling)
        elapsed = time.perf_counter() - start
        result[name] = {"images": len(asked), **hits(data, real, asked, images)}
        wanted = shrink(to_pixel_values(data.images[asked]), FRECHET_SIZE)
        result[name]["frechet"] = frechet_distance(shrink(images, FRECHET_SIZE), wanted)
        result[name]["seconds_an_image"] = elapsed / len(asked)
        if toneless := [i for i, row in enumerate(asked) if data.records[row].tone is None]:
            rows = [asked[i] for i in toneless]
            result[f"{name}, without skin tones"] = {
                "images": len(rows),
                **hits(data, real, rows, images[toneless]),
            }
    halves = np.random.RandomState(options.seed).permutation(data.train_indices)[: 2 * options.captions]
    one, other = (shrink(to_pixel_values(data.images[half]), FRECHET_SIZE) for half in np.array_split(halves, 2))
    result["real against real"] = {"images": len(one), "frechet": frechet_distance(one, other)}
    if options.json:
        print(json.dumps(result))
        return
    for name, row in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
