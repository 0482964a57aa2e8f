"""How well does the embedded model inpaint, vary and extend? Prints a table of docs/benchmarks.md. Run from the root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.editing --data data/emoji

`embedded_quality.py` defines when the name of an image is right.
"""

import argparse
import random

import torch
from benchmarks.edits import extending, inpainting, varying
from benchmarks.embedded_quality import gallery, hits
from benchmarks.measuring import print_table

from recipes.emoji.captions import canonical_caption
from recipes.emoji.emoji import load_emoji
from recipes.image_tokens import to_pixel_values
from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline


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
    others = asked[1:] + asked[:1]  # each image is varied to the caption of the next one
    parts = ShowoT2IPipeline.from_pretrained(options.model, dtype=torch.float32).components
    real, originals = gallery(data), to_pixel_values(data.images[asked])
    captions, other_captions = ([canonical_caption(data.records[row]) for row in rows] for rows in (asked, others))

    def right_names(wanted: list[int], images: torch.Tensor) -> dict[str, float]:
        return {"right name": hits(data, real, wanted, images)["name"]}

    sampling = {"batch_size": options.batch_size, "seed": 0, "num_inference_steps": options.steps}
    with torch.no_grad():
        rows = inpainting(parts, originals, captions, lambda images: right_names(asked, images), **sampling)
        rows += varying(parts, originals, other_captions, lambda images: right_names(others, images), **sampling)
        rows += extending(parts, originals, captions, **sampling)
    print_table((f"{options.images} training images, {options.steps} steps", "measured"), rows)


if __name__ == "__main__":
    main()
