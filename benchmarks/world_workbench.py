"""What the benchmarks of the world have in common: the things, a model, the judge, prompts and what images score."""

import argparse
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.world_detector import (
    CLEAR_ABOVE,
    FOUND_ABOVE,
    Detector,
    detector_origin,
    load_detector,
    save_detector,
    scene_pixels,
    train_detector,
)
from benchmarks.world_judging import look, scores
from benchmarks.world_prompts import Prompt, draw_prompts
from benchmarks.world_results import Results

from recipes.file_hashes import files_hash, weights_hash
from recipes.world.objects import Objects, load_objects
from recipes.world.publish import DECODER, decoder_settings, model_weights, scheduler_settings
from showo_hf import ShowoT2IPipeline
from showo_hf.commands.errors import UsageError
from showo_hf.utils.argument_types import positive_integer, seed_number
from showo_hf.utils.metrics import laplacian_variance


DETECTOR_STEPS = 4000
#: Where benchmarks.world has its judge, which the other benchmarks of the world share.
DETECTOR = "runs/world-benchmark/detector.safetensors"
#: The files of a model beside its weights, and the files of the cut-outs.
CONFIGS, OBJECTS = ("*.json", "*.jinja"), ("cutouts.*",)


def add_workbench_options(parser: argparse.ArgumentParser, count: int, counted: str) -> None:
    """
    Add the options of [`Workbench`], but for `--model` and those of the judge.

    Args:
        parser: the parser of the command.
        count: the default of `--count`.
        counted: what is counted.
    """
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--count", type=positive_integer, default=count, help=f"number of {counted}")
    parser.add_argument("--batch-size", type=positive_integer, default=10, help="images or answers made together")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of all that is drawn at random")


def add_judge_options(parser: argparse.ArgumentParser, default: str | None = DETECTOR) -> None:
    """Add the options of the judge. Without a default, it is in the folder of results."""
    where = "by default in the output folder" if default is None else f"default: {default}"
    parser.add_argument("--detector", default=default, help=f"file of the judge, which is trained if missing; {where}")
    parser.add_argument(
        "--detector-steps",
        type=positive_integer,
        default=DETECTOR_STEPS,
        help=f"training steps of the judge (default: {DETECTOR_STEPS})",
    )


def trained_file(file: Path, objects: Objects, options: argparse.Namespace) -> Path:
    """
    The file of the judge. If it is not there, the judge is trained.

    Args:
        file: the file.
        objects: the cut-outs.
        options: `objects`, the folder of the cut-outs, and `detector_steps`.

    Raises:
        UsageError: if the judge was trained on other cut-outs, or for another number of steps.
    """
    origin = {"objects": files_hash(options.objects, OBJECTS), "steps": str(options.detector_steps)}
    if not file.exists():
        save_detector(train_detector(objects, options.detector_steps), file, origin)
    return checked_file(file, origin)


def checked_file(file: Path, origin: dict[str, str]) -> Path:
    """
    The file of a judge, if it has this origin.

    Raises:
        UsageError: if it has another one.
    """
    found = detector_origin(file)
    for name, value in origin.items():
        if found.get(name) != value:
            raise UsageError(
                f"`--detector` must be a judge with {name} {value}, but '{file}' has {name} {found.get(name)}. Remove "
                "the file to train it again, or name the `--objects` and the `--detector-steps` that it belongs to."
            )
    return file


def real_pixels(prompts: list[Prompt], objects: Objects) -> torch.Tensor:
    """The real scenes of the prompts, (prompts, 3, 96, 96) in [-1, 1]."""
    return scene_pixels((prompt.scene for prompt in prompts), objects)


def asked_settings(asked: Iterable[object]) -> dict[str, str]:
    """The setting that says what is asked, and what is right: a hash of prompts, questions with their answers, and so on."""
    return {"asked": hashlib.sha256(json.dumps(plain(list(asked))).encode()).hexdigest()[:16]}


def plain(value: Any) -> Any:
    """A value as JSON can hold it. The parts of a set come in a fixed order, because each process has another one."""
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, frozenset):
        return sorted(map(plain, value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value


class Workbench:
    """
    What is needed to measure a model of the world. The model and the judge are made on first use.

    Args:
        options: `model`, the options of [`add_workbench_options`] and, if images are judged, of [`add_judge_options`].
        folder: for the results.
    """

    def __init__(self, options: argparse.Namespace, folder: str | Path):
        self.options = options
        self.results = Results(folder)
        self.objects: Objects = load_objects(options.objects)

    @functools.cached_property
    def detector_file(self) -> Path:
        """The file of the judge, which is trained if it is not there."""
        file = Path(self.options.detector or self.results.folder / "detector.safetensors")
        return trained_file(file, self.objects, self.options)

    @functools.cached_property
    def detector(self) -> Detector:
        """The judge."""
        return load_detector(self.detector_file)

    @functools.cached_property
    def pipe(self) -> ShowoT2IPipeline:
        """The model's pipeline."""
        pipe = ShowoT2IPipeline.from_pretrained(self.options.model)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # Settings

    def sampling(self, steps: int | None = None, guidance: float | None = None) -> dict[str, Any]:
        """The arguments of a call that makes images. What is None is the model's default."""
        steps, guidance = self.pipe.with_defaults(steps, guidance)
        return {"num_inference_steps": steps, "guidance_scale": guidance}

    @functools.cached_property
    def model_settings(self) -> dict[str, Any]:
        """Which model: its path, and hashes of its weights, but for the diffusion decoder, and of its other files."""
        model = self.options.model
        if not model:
            return {"model": None, "model_weights": None}
        hashes = {"model_weights": model_weights(Path(model)), "model_configs": files_hash(model, CONFIGS, DECODER)}
        return {"model": model, **hashes}

    @functools.cached_property
    def decoder_settings(self) -> dict[str, Any]:
        """Which diffusion decoder, if the model has one."""
        return decoder_settings(Path(self.options.model) if self.options.model else None)

    @functools.cached_property
    def objects_hash(self) -> str:
        """A hash of the cut-outs."""
        return files_hash(self.options.objects, OBJECTS)

    @functools.cached_property
    def judge_settings(self) -> dict[str, Any]:
        """Which judge."""
        return {
            "detector": str(self.detector_file),
            "detector_weights": weights_hash(self.detector_file),
            "found_above": FOUND_ABOVE,
            "clear_above": CLEAR_ABOVE,
        }

    def image_settings(self, sampling: dict[str, Any]) -> dict[str, Any]:
        """All that generated images and their judgement depend on, but for the prompts and the size of a batch."""
        scheduled = {**sampling, "scheduler": scheduler_settings(self.pipe.scheduler)}
        return {**self.model_settings, **self.decoder_settings, **self.judge_settings, **scheduled}

    def settings(self, split: str, *more: dict[str, Any], **others: Any) -> dict[str, Any]:
        """The settings of a part with prompts or questions of a split."""
        found = {"split": split, "count": self.options.count, "seed": self.options.seed, "objects": self.objects_hash}
        return functools.reduce(lambda one, other: one | other, more, found) | others

    # Images

    def prompts(self, split: str, kind: str) -> list[Prompt]:
        """The prompts of a kind."""
        return draw_prompts(self.objects, split, kind, self.options.count, self.options.seed)

    def scores(self, prompts: list[Prompt], pixel_values: torch.Tensor) -> dict[str, Any]:
        """What images score, and their detail against real scenes."""
        found = scores([prompt.wish for prompt in prompts], look(self.detector, pixel_values))
        return {**found, "detail": self.detail(prompts, pixel_values)}

    def detail(self, prompts: list[Prompt], pixel_values: torch.Tensor) -> float:
        """The variance of the Laplacian of images, divided by the variance for the real scenes of their prompts."""
        real = real_pixels(prompts, self.objects)
        return float(laplacian_variance(pixel_values).mean() / laplacian_variance(real).mean())
