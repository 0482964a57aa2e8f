"""Small real data: drawn images, folders and tables, and loaders that need no processes."""

import json
from pathlib import Path

import datasets
from PIL import Image, ImageDraw

from showo_hf.training.data.loader import StepLoader
from showo_hf.training.data.sources import DataSource, OpenedSource


COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black")


def drawing(number: int, size=(24, 20)) -> Image.Image:
    """A coloured disc, or a square for odd numbers."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    shape = draw.rectangle if number % 2 else draw.ellipse
    shape((3, 3, size[0] - 4, size[1] - 4), fill=COLOURS[number % len(COLOURS)])
    return image


def image_folder(folder: Path, count=6) -> Path:
    """Images with texts; every second text is a list."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        drawing(number).save(folder / f"{number}.png")
        text = f"drawing {number}"
        rows.append({"file_name": f"{number}.png", "text": [text, f"picture {number}"] if number % 2 else text})
    write_lines(folder / "metadata.jsonl", rows)
    return folder


def write_lines(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text_stream(sizes: list[int], broken=(), name="stream", weight=1.0) -> OpenedSource:
    """Texts as an iterable dataset with a shard of each of these sizes. `broken` are (shard, row) without a text."""
    shards = [
        [None if (shard, row) in broken else f"{name} shard {shard} row {row}" for row in range(size)]
        for shard, size in enumerate(sizes)
    ]
    stream = datasets.IterableDataset.from_generator(rows_of_shards, gen_kwargs={"shards": shards})
    return OpenedSource(DataSource(name, weight=weight), "lm", ["text"], stream=stream)


def text_table(size: int, broken=(), name="table", weight=1.0) -> OpenedSource:
    """Texts with random access."""
    texts = [None if row in broken else f"{name} row {row}" for row in range(size)]
    return OpenedSource(
        DataSource(name, weight=weight), "lm", ["text"], table=datasets.Dataset.from_dict({"text": texts})
    )


def rows_of_shards(shards):
    for texts in shards:
        for text in texts:
            yield {"text": text}


class LoaderWithoutProcesses(StepLoader):
    """Makes the steps of the workers in this process, in the order in which `DataLoader` takes them."""

    def from_workers(self, steps):
        made = [steps.made_by(worker, self.num_workers) for worker in range(self.num_workers)]
        while True:
            for worker in made:
                yield next(worker)
