"""Write scenes as image files, for the training of the image tokenizer. Run from the repository root:

    python -m recipes.world.images --objects data/world-objects --output data/world

The folder `train` holds scenes of trained combinations, `validation` and `test` hold scenes with unseen ones. With
`--four-things`, `train` also holds scenes of four different things, for the training of a decoder, which only has to know
things.
"""

import argparse
import os
import random
from pathlib import Path

from PIL import Image

from recipes.world.drawing import draw
from recipes.world.held_out import SPLITS
from recipes.world.objects import Objects, load_objects
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Scene
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.validation import check_count


def write_images(
    objects: Objects, output: str | os.PathLike, counts: dict[str, int], seed: int = 0, four_things: int = 0
) -> None:
    """
    Write `counts[split]` scenes of each split to the folder `output`, and replace an existing one.

    Args:
        objects: the cut-outs.
        output: the folder.
        counts: the number of scenes by split.
        seed: seed of the random choices.
        four_things: the number of scenes of four different things in "train", which `counts` must have then.

    Raises:
        ValueError: for numbers that are not allowed.
    """
    for split, count in counts.items():
        check_count(split, count)
    check_count("four_things", four_things, least=0)
    if four_things and "train" not in counts:
        raise ValueError(f"`counts` must have 'train' with `four_things`, got {counts}.")

    def save(scene: Scene, file: Path) -> None:
        Image.fromarray(draw(scene, objects)).save(file)

    with atomic_folder(Path(output), overwrite=True) as folder:
        for split, count in counts.items():
            (folder / split).mkdir()
            maker = SceneMaker(objects, random.Random(f"{seed} {split}"))
            for number in range(count):
                save(maker.scene(split), folder / split / f"{number:06}.png")
        maker = SceneMaker(objects, random.Random(f"{seed} four things"), even=True)
        for number in range(four_things):
            save(maker.scene("train", "four_objects"), folder / "train" / f"four-{number:06}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write scenes as PNG files.")
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--output", default="data/world", help="folder for the files")
    parser.add_argument("--scenes", type=int, default=24_000, help="training scenes")
    parser.add_argument("--four-things", type=int, default=0, help="more training scenes, of four different things")
    parser.add_argument("--held-out", type=int, default=512, help="scenes of each of the other splits")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    options = parser.parse_args(arguments)
    counts = {split: options.scenes if split == "train" else options.held_out for split in SPLITS}
    write_images(load_objects(options.objects), options.output, counts, options.seed, options.four_things)
    for split, count in counts.items():
        print(f"{split:10} {count + (options.four_things if split == 'train' else 0):6} images")


if __name__ == "__main__":
    main()
