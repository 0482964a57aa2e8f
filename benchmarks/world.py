"""How good is a model of the small world? GenEval's six kinds, understanding and conversations. From the repository root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world --model checkpoints/showo-world --output runs/world-benchmark

The parts are "judge", "images", "wordings", "inpainting", "understanding" and "conversations". Each result is a JSON file in
the output folder with all settings. The same command goes on where it stopped, and prints the tables of what is there. The
test split is for the end: `--split test`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import print_table
from benchmarks.world_detector import Detector, detect, load_detector, save_detector, train_detector
from benchmarks.world_inpainting import Replacement, draw_replacements, measured
from benchmarks.world_prompts import (
    KINDS,
    WORDINGS,
    NearestByWords,
    Prompt,
    draw_prompts,
    exactly,
    in_style,
    is_right,
    prompt_text,
)
from benchmarks.world_understanding import Baselines, converse, script, understanding
from PIL import Image

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import Objects, load_objects
from recipes.world.questions import KINDS_OF_QUESTION
from showo_hf import ShowoAnyToAnyPipeline, ShowoInpaintPipeline, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.utils.argument_types import positive_integer, seed_number


PARTS = ("judge", "images", "wordings", "inpainting", "understanding", "conversations")
DETECTOR_STEPS = 20_000  # at most; usually the time ends it
MAX_NEW_TOKENS = 48


def detail(pixel_values: torch.Tensor) -> float:
    """The mean difference between neighbouring pixels of images (batch, 3, H, W). Blurred images have less."""
    across, down = pixel_values.diff(dim=-1).abs().mean(), pixel_values.diff(dim=-2).abs().mean()
    return float(across + down) / 2


def real_pixels(prompts: list[Prompt], objects: Objects) -> torch.Tensor:
    """The real scenes of the prompts, (prompts, 3, 96, 96) in [-1, 1]."""
    return to_pixel_values(np.stack([draw(prompt.scene, objects) for prompt in prompts]))


def scores(prompts: list[Prompt], pixel_values: torch.Tensor, detector: Detector) -> dict[str, float]:
    """The share of right images, and the share of things in the right style."""
    found = detect(detector, pixel_values)
    return {
        "right": sum(map(is_right, prompts, found)) / len(prompts),
        "style": sum(map(in_style, prompts, found)) / len(prompts),
    }


class Benchmark:
    """
    Makes the parts, or reads them if they were made with the same settings.

    Args:
        options: the options of the command.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, Path(options.output)
        self.objects: Objects = load_objects(options.objects)
        self._loaded: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A thing that several parts need, made on first use."""
        if name not in self._loaded:
            self._loaded[name] = make()
        return self._loaded[name]

    def part(self, name: str, make: Callable[[], dict[str, Any]], **settings: Any) -> dict[str, Any]:
        """The result of a part, from its file if it has the same settings."""
        file = self.output / f"{name}.json"
        settings = {"split": self.options.split, "count": self.options.count, "seed": self.options.seed, **settings}
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["settings"] == settings:
                return stored["result"]
        result = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"settings": settings, "result": result}, indent=1), encoding="utf-8")
        print(f"{name}: done", file=sys.stderr, flush=True)
        return result

    @property
    def generation(self) -> dict[str, Any]:
        """The settings of generated images."""
        options = self.options
        return {"model": options.model, "steps": options.steps, "guidance": options.guidance}

    @property
    def detector(self) -> Detector:
        """The judge: from its file, or trained."""
        file = Path(self.options.detector or self.output / "detector.safetensors")

        def make() -> Detector:
            if not file.exists():
                save_detector(
                    train_detector(self.objects, DETECTOR_STEPS, seconds=self.options.detector_seconds), file
                )
            return load_detector(file)

        return self.once("detector", make)

    def pipe(self, kind: type) -> Any:
        """A pipeline of the model."""
        return self.once(kind.__name__, lambda: kind.from_pretrained(self.options.model))

    def prompts(self, split: str, kind: str) -> list[Prompt]:
        """The prompts of a kind."""
        return draw_prompts(self.objects, split, kind, self.options.count, self.options.seed)

    def generated(self, texts: list[str]) -> torch.Tensor:
        """The model's images for prompts, (prompts, 3, H, W) in [-1, 1]. Each prompt has its own seed."""
        size = self.options.batch_size
        parts = [(first, texts[first : first + size]) for first in range(0, len(texts), size)]
        return torch.cat([self.made(self.pipe(ShowoT2IPipeline), first, some) for first, some in parts])

    def made(self, pipe: Any, first: int, texts: list[str], **inputs: Any) -> torch.Tensor:
        """A pipeline's images for prompts, of which `first` is the number of the first one, as [`generated`]."""
        options = self.options
        generators = [torch.Generator().manual_seed(options.seed + first + number) for number in range(len(texts))]
        given = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
        given = {name: value for name, value in given.items() if value}
        return pipe(texts, generator=generators, output_type="pt", **given, **inputs).images.float() * 2 - 1

    # The parts

    def judge(self, kind: str) -> dict[str, Any]:
        """The judge on real scenes, and on scenes that went through the image tokenizer: the ceiling of the model."""
        prompts = self.prompts(self.options.split, kind)
        pixels = real_pixels(prompts, self.objects)
        result = {"real": scores(prompts, pixels, self.detector)}
        if self.options.model:
            tokenizer = self.pipe(ShowoT2IPipeline).image_tokenizer
            with torch.no_grad():
                parts = [tokenizer.decode(tokenizer.encode(some).image_tokens).sample for some in pixels.split(32)]
            through = torch.cat(parts).float()
            result["tokenizer"] = {
                **scores(prompts, through, self.detector),
                "detail": detail(through) / detail(pixels),
            }
        nearest = self.once("nearest", lambda: NearestByWords(self.objects, self.options.known_scenes))
        for name, asked in {"nearest": prompts, "nearest, trained": self.prompts("train", kind)}.items():
            answers = [exactly(nearest.answer(prompt.text)) for prompt in asked]
            result[name] = {"right": sum(map(is_right, asked, answers)) / len(asked)}
        return result

    def images(self, split: str, kind: str) -> dict[str, Any]:
        """Generated images of the prompts of a kind."""
        prompts = self.prompts(split, kind)
        pixels = self.generated([prompt.text for prompt in prompts])
        found = detect(self.detector, pixels)
        wrong = [
            {
                "prompt": prompt.text,
                "found": [f"{item.colour or 'own'} {item.thing} {item.column},{item.row}" for item, _ in one],
            }
            for prompt, one in zip(prompts, found, strict=True)
            if not is_right(prompt, one)
        ]
        compared = detail(pixels) / detail(real_pixels(prompts, self.objects))
        return {**scores(prompts, pixels, self.detector), "detail": compared, "wrong": wrong}

    def wordings(self, kind: str) -> dict[str, Any]:
        """The same prompts in other words."""
        prompts = self.prompts(self.options.split, kind)
        texts = {name: [wording.format(prompt.text) for prompt in prompts] for name, wording in WORDINGS.items()}
        texts["title case"] = [prompt.text.title() for prompt in prompts]
        texts["reordered"] = [prompt_text(prompt.scene, kind, reordered=True) for prompt in prompts]
        return {name: scores(prompts, self.generated(some), self.detector)["right"] for name, some in texts.items()}

    def inpainting(self, split: str) -> dict[str, Any]:
        """One of two things painted over with another; beside it, the score of not changing the image."""
        replacements = draw_replacements(self.objects, split, self.options.count, self.options.seed)

        def inpaint(asked: list[Replacement]) -> torch.Tensor:
            pipe, images = self.pipe(ShowoInpaintPipeline), []
            for first in range(0, len(asked), self.options.batch_size):
                some = asked[first : first + self.options.batch_size]
                pictures = [Image.fromarray(draw(one.before, self.objects)) for one in some]
                masks = [one.mask() for one in some]
                images.append(self.made(pipe, first, [one.text for one in some], image=pictures, mask_image=masks))
            return torch.cat(images)

        def unchanged(asked: list[Replacement]) -> torch.Tensor:
            return to_pixel_values(np.stack([draw(one.before, self.objects) for one in asked]))

        def found(pixels: torch.Tensor) -> list[Any]:
            return detect(self.detector, pixels)

        return {"model": measured(replacements, inpaint, found), "copy": measured(replacements, unchanged, found)}

    def understanding(self, kind: str) -> dict[str, Any]:
        """The answers to a kind of question."""
        pipe = self.pipe(ShowoMMUPipeline)

        def answer(images, questions):
            pairs = zip(images, questions, strict=True)
            return [pipe(image, question, max_new_tokens=MAX_NEW_TOKENS).texts[0] for image, question in pairs]

        baselines = self.once("baselines", lambda: Baselines(self.objects, self.options.known_scenes // 50))
        return understanding(answer, self.objects, self.options.split, kind, self.options.count, baselines)

    def conversation(self, number: int) -> dict[str, Any]:
        """One scripted conversation."""
        options = {"max_new_tokens": 100}
        options |= {"num_inference_steps": self.options.steps} if self.options.steps else {}
        turns = script(self.objects, self.options.split, number)
        return {"turns": converse(self.pipe(ShowoAnyToAnyPipeline), turns, self.objects, self.detector, **options)}

    # The tables

    def run(self) -> None:
        """Make the parts that were asked for, and print their tables."""
        for part in self.options.parts:
            print_table(*getattr(self, f"{part}_table")())

    def judge_table(self) -> tuple[list[str], list[list[str]]]:
        """The judge's own accuracy, the ceiling, and the nearest training scene."""
        detector = str(self.options.detector or self.output / "detector.safetensors")
        made = {
            kind: self.part(
                f"judge-{kind}", lambda kind=kind: self.judge(kind), model=self.options.model, detector=detector
            )
            for kind in KINDS
        }
        columns = [
            name
            for name in ("real", "tokenizer", "nearest", "nearest, trained")
            if all(name in one for one in made.values())
        ]
        rows = [[kind, *(percent(one[name]["right"]) for name in columns)] for kind, one in made.items()]
        return [f"{self.options.split}, right", *columns], rows

    def images_table(self) -> tuple[list[str], list[list[str]]]:
        """Unseen and trained combinations."""
        rows = []
        for kind in KINDS:
            made = [
                self.part(f"images-{split}-{kind}", lambda s=split, k=kind: self.images(s, k), **self.generation)
                for split in (self.options.split, "train")
            ]
            values = [[percent(one["right"]), percent(one["style"]), f"{one['detail']:.2f}"] for one in made]
            rows.append([kind, *values[0], *values[1]])
        return [f"{self.options.split}, images", "right", "style", "detail", "trained: right", "style", "detail"], rows

    def wordings_table(self) -> tuple[list[str], list[list[str]]]:
        """The same prompts in other words."""
        made = {
            kind: self.part(f"wordings-{kind}", lambda kind=kind: self.wordings(kind), **self.generation)
            for kind in ("single", "two_objects", "position")
        }
        names = list(made["single"])
        return ["wordings, right", *names], [
            [kind, *(percent(one[name]) for name in names)] for kind, one in made.items()
        ]

    def inpainting_table(self) -> tuple[list[str], list[list[str]]]:
        """Painting over: unseen and trained combinations, and not changing the image at all."""
        rows = []
        for split in (self.options.split, "train"):
            one = self.part(f"inpainting-{split}", lambda s=split: self.inpainting(s), **self.generation)
            for name, values in one.items():
                who = split if name == "model" else f"{split}, nothing changed"
                rows.append([who, *(percent(values[key]) for key in ("object", "rest", "right"))])
        return ["inpainting", "right object", "rest unchanged", "both"], rows

    def understanding_table(self) -> tuple[list[str], list[list[str]]]:
        """Right answers by kind of question."""
        rows = []
        for kind in KINDS_OF_QUESTION:
            one = self.part(f"understanding-{kind}", lambda k=kind: self.understanding(k), model=self.options.model)
            rows.append([kind, *(percent(one[name]) for name in ("model", "blind", "nearest"))])
        return [f"{self.options.split}, questions", "model", "blind guess", "nearest neighbour"], rows

    def conversations_table(self) -> tuple[list[str], list[list[str]]]:
        """Right turns by kind."""
        right: dict[str, list[bool]] = {}
        for turn in self.conversation_turns():
            right.setdefault(turn["kind"], []).append(turn["right"])
            right.setdefault("all", []).append(turn["right"])
        rows = [[kind, len(values), percent(sum(values) / len(values))] for kind, values in sorted(right.items())]
        return [f"{self.options.split}, turns", "number", "right"], rows

    def conversation_turns(self) -> Iterator[dict[str, Any]]:
        """All turns of all conversations."""
        for number in range(self.options.conversations):
            name = f"conversations/{number:03}"
            yield from self.part(name, lambda n=number: self.conversation(n), **self.generation)["turns"]


def percent(share: float) -> str:
    """ "93%"."""
    return f"{100 * share:.0f}%"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a model of the small world.")
    parser.add_argument("--model", help="a pipeline folder; without it, only the part `judge` can run")
    parser.add_argument("--objects", default="data/world-objects", help="the folder that recipes.world.objects wrote")
    parser.add_argument("--output", default="runs/world-benchmark", help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="unseen combinations")
    parser.add_argument("--count", type=positive_integer, default=100, help="prompts or questions of each kind")
    parser.add_argument("--conversations", type=positive_integer, default=50, help="number of conversations")
    parser.add_argument("--steps", type=positive_integer, help="inference steps; the model's default without it")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's default without it")
    parser.add_argument("--batch-size", type=positive_integer, default=10, help="images that are made together")
    parser.add_argument("--known-scenes", type=positive_integer, default=20_000, help="what the baselines know")
    parser.add_argument("--detector", help="file of a trained judge; by default in the output folder")
    parser.add_argument("--detector-seconds", type=float, default=900, help="how long the judge is trained")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the prompts and images")
    options = parser.parse_args(arguments)
    if options.model is None and options.parts != ["judge"]:
        parser.error("--model is needed for all parts but `judge`")
    Benchmark(options).run()


if __name__ == "__main__":
    main()
