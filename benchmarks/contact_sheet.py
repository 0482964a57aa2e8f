"""A sheet of uncurated samples of the embedded model: docs/images/samples.png. Run from the repository root:

python -m benchmarks.contact_sheet --data data/emoji --output docs/images/samples.png
"""

import argparse
import random

import torch
from diffusers.utils import make_image_grid

from recipes.emoji.captions import caption
from recipes.emoji.emoji import load_emoji
from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--output", required=True)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    data = load_emoji(options.data)
    count = options.rows * options.columns
    rng = random.Random(options.seed)
    # Only emoji without skin tone, for variety. Otherwise the sample is random.
    toneless = [row for row in data.train_indices.tolist() if data.records[row].tone is None]
    captions = [caption(data.records[row], rng) for row in rng.sample(toneless, count)]
    pipeline = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32)
    generators = [torch.Generator().manual_seed(options.seed + i) for i in range(count)]
    images = pipeline(captions, generator=generators).images
    make_image_grid(images, options.rows, options.columns).save(options.output)
    for first in range(0, count, options.columns):
        print(" | ".join(captions[first : first + options.columns]))


if __name__ == "__main__":
    main()
