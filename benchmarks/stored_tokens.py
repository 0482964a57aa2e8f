"""How long does training wait for its data? A run of the real trainer on stored image tokens. Part of `training.py`."""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline
from showo_hf.training.arguments import training_arguments
from showo_hf.training.callbacks import StopSignals
from showo_hf.training.data.sources import DataSource
from showo_hf.training.data.tokenizing import TokenizeOptions, store_tokens
from showo_hf.training.output_folders import checkpoint_root
from showo_hf.training.recipe_files import build_config
from showo_hf.training.run import settings_of
from showo_hf.training.showo_training import build_trainer, load_pipeline, prepare_model


class TimedData:
    """The data of a trainer, with the time at the start and at the end of each `next`, in seconds."""

    def __init__(self, data: Iterable):
        self.data = data
        self.times: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.data)
        while True:
            start = time.perf_counter()
            item = next(iterator)
            self.times.append((start, time.perf_counter()))
            yield item

    def waited(self) -> tuple[float, float]:
        """Seconds within `next`, and of the whole time, both without the first `next`, which starts the loader."""
        return sum(end - start for start, end in self.times[1:]), self.times[-1][1] - self.times[0][1]


def write_images(folder: Path, count: int):
    """Drawn images with texts, as the trainer reads them from a folder."""
    folder.mkdir()
    rows = []
    for number in range(count):
        image = Image.new("RGB", (64, 64), "white")
        box = [number % 20, number % 13, 40 + number % 24, 50]
        ImageDraw.Draw(image).ellipse(box, fill=f"hsl({number * 7 % 360},90%,50%)")
        image.save(folder / f"{number:03}.png")
        rows.append({"file_name": f"{number:03}.png", "text": f"a circle, number {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def waiting(steps: int, batch_size: int, images: int = 64) -> tuple[float, float]:
    """
    Train the embedded model on stored tokens.

    Args:
        steps: steps that are timed.
        batch_size: rows of a step.
        images: stored images.

    Returns:
        seconds spent waiting for data, and of all steps.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images", images)
        pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
        tokenizer = pipe.model.image_tokenizer, pipe.processor.image_processor
        store_tokens(
            TokenizeOptions(DataSource(str(folder / "images")), shard_size=16), folder / "tokens", lambda _: tokenizer
        )
        entries = {
            "kind": "finetune",
            "model": "embedded",
            "data": str(folder / "tokens"),
            "output": str(folder / "out"),
            "steps": steps + 1,
            "batch_size": batch_size,
            "use_cpu": True,
            "report_to": "none",
            "save_steps": steps + 1,
        }
        config = build_config("stored tokens", entries)
        root = checkpoint_root(Path(config.output))
        trained = load_pipeline(config)
        prepare_model(config, trained)
        args = training_arguments(config, root)
        trainer = build_trainer(config, args, trained, settings_of(config, args, root), None, StopSignals())
        data = trainer.data = TimedData(trainer.data)
        trainer.train()
        return data.waited()
