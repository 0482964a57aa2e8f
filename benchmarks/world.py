"""How good is a model of the small world? GenEval's six kinds, understanding and conversations. From the repository root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world --model checkpoints/published/showo-world --output runs/world-benchmark

The parts are "judge", "images" (of unseen combinations), "trained" (images of trained ones, compared with the unseen ones),
"wordings", "inpainting", "understanding" and "conversations". Each result is a JSON file in the output folder with all
settings that it depends on: the weights, too. The same command goes on where it stopped, and prints the tables of what is
there, which tables-SPLIT.json holds. benchmarks.world_goals has the goals. The test split is for the end: `--split test`.
"""

import argparse
import functools
import sys
import time
from typing import Any

import numpy as np
import torch
from benchmarks import world_tables as tables
from benchmarks.pictures import generate, generators
from benchmarks.world_detector import scene_pixels
from benchmarks.world_inpainting import Replacement, draw_replacements, measured
from benchmarks.world_judging import GENEVAL, exactly, faults, look, scores, standard_error
from benchmarks.world_prompts import KINDS, NearestByWords, Prompt, prompt_text
from benchmarks.world_scripts import Step, converse, script
from benchmarks.world_understanding import ASKED, Baselines, draw_questions, understanding
from benchmarks.world_wordings import WORDINGS
from benchmarks.world_workbench import Workbench, add_judge_options, add_workbench_options, asked_settings, real_pixels
from PIL import Image

from recipes.world.drawing import draw
from recipes.world.questions import Question
from recipes.world.scenes import Scene
from showo_hf import ShowoAnyToAnyPipeline, ShowoInpaintPipeline, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.commands.errors import UsageError
from showo_hf.commands.scheduler_options import (
    add_scheduler_options,
    check_scheduler,
    check_scheduler_values,
    set_scheduler,
)
from showo_hf.utils.argument_types import positive_integer, scale_number


PARTS = ("judge", "images", "trained", "wordings", "inpainting", "understanding", "conversations")
WORDED_KINDS = ("single", "two_objects", "position")
ANSWER_TOKENS, TURN_TOKENS = 48, 100  # at most, of an answer and of a turn in a conversation
_TURNS = 10  # more than a script has: so many seeds of a conversation are its own


class Benchmark(Workbench):
    """
    Makes the parts, or reads them if they were made with the same settings.

    Args:
        options: the options of the command.
    """

    def __init__(self, options: argparse.Namespace):
        super().__init__(options, options.output)

    # What several parts need, made on first use

    @functools.cached_property
    def pipe(self) -> ShowoT2IPipeline:
        """The model's pipeline, with the scheduler that was asked for."""
        pipe = super().pipe
        set_scheduler(pipe, self.options)
        return pipe

    @functools.cached_property
    def nearest(self) -> NearestByWords:
        """The baseline of images."""
        return NearestByWords(self.objects, self.options.known_scenes)

    @functools.cached_property
    def baselines(self) -> Baselines:
        """The baselines of questions."""
        return Baselines(self.objects, self.options.known_rows)

    # Settings

    @functools.cached_property
    def own_sampling(self) -> dict[str, Any]:
        """The arguments of every call that makes images."""
        return self.sampling(self.options.steps, self.options.guidance)

    @functools.cached_property
    def own_settings(self) -> dict[str, Any]:
        """All that the images and their judgement depend on, but for the prompts and the size of a batch."""
        return self.image_settings(self.own_sampling)

    def drawn_settings(self, split: str) -> dict[str, Any]:
        """The settings of images of a split, but for what is asked."""
        return self.settings(split, self.own_settings, batch_size=self.options.batch_size)

    # Images

    def generated(self, texts: list[str]) -> torch.Tensor:
        """The model's images for prompts, (prompts, 3, H, W) in [-1, 1]. Each prompt has its own seed."""
        return generate(self.pipe, texts, self.options.seed, self.options.batch_size, **self.own_sampling)

    @torch.no_grad()
    def through_tokens(self, pixels: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
        """Images (images, 3, H, W) in [-1, 1], encoded and decoded by the pipeline. Each has its own seed."""
        encode, seeds = self.pipe.image_tokenizer.encode, generators(self.options.seed, len(pixels))
        parts = [slice(first, first + batch_size) for first in range(0, len(pixels), batch_size)]
        return torch.cat([self.pipe.decode_pixels(encode(pixels[one]).image_tokens, seeds[one]) for one in parts])

    # The parts

    def judge(self, kind: str) -> dict[str, Any]:
        """
        The judge on real scenes, and on scenes that were encoded to tokens and decoded as the pipeline decodes its own, with
        its diffusion decoder if it has one: the ceiling of the model.
        """
        prompts = self.prompts(self.options.split, kind)
        pixels = real_pixels(prompts, self.objects)
        result = {"real": self.scores(prompts, pixels)}
        if self.options.model:
            result["tokenizer"] = self.scores(prompts, self.through_tokens(pixels))
        for name, asked in {"nearest": prompts, "nearest, trained": self.prompts("train", kind)}.items():
            answers = [exactly(self.nearest.answer(prompt.text)) for prompt in asked]
            result[name] = scores([prompt.wish for prompt in asked], answers)
        return result

    def images(self, split: str, kind: str) -> dict[str, Any]:
        """Generated images of the prompts of a kind."""
        prompts = self.prompts(split, kind)
        start = time.monotonic()
        pixels = self.generated([prompt.text for prompt in prompts])
        seconds = time.monotonic() - start
        wishes, seen = [prompt.wish for prompt in prompts], look(self.detector, pixels)
        points = [sorted(faults(wish, one)) for wish, one in zip(wishes, seen, strict=True)]
        clusters = [prompt.combinations for prompt in prompts]
        return {
            **scores(wishes, seen),
            "detail": self.detail(prompts, pixels),
            "is_right": [not one for one in points],
            "standard_error": standard_error([not one for one in points], clusters),
            "standard_error_as_geneval": standard_error([not GENEVAL & set(one) for one in points], clusters),
            "prompts": len(prompts),
            "combinations": len(set(clusters)),
            "seconds": seconds,
            "wrong": [
                {"prompt": prompt.text, "points": wrong, "found": one.words}
                for prompt, wrong, one in zip(prompts, points, seen, strict=True)
                if wrong
            ],
        }

    def images_part(self, split: str, kind: str) -> dict[str, Any]:
        """[`images`], made once."""
        settings = self.drawn_settings(split) | asked_settings(self.prompts(split, kind))
        return self.results.part(f"images-{split}-{kind}", lambda: self.images(split, kind), settings)

    def worded(self, kind: str) -> tuple[list[Prompt], dict[str, list[str]]]:
        """The prompts of a kind, and their texts by wording."""
        prompts = self.prompts(self.options.split, kind)
        canonical = [prompt.text for prompt in prompts]
        texts = {name: [wording.format(text) for text in canonical] for name, wording in WORDINGS.items()}
        texts["title case"] = [text.title() for text in canonical]
        texts["reordered"] = [prompt_text(prompt.scene, kind, reordered=True) for prompt in prompts]
        return prompts, texts

    def wordings(self, kind: str) -> dict[str, Any]:
        """The same prompts in other words. Where these give the same ids, the images are the same: none are made."""
        split, (prompts, texts) = self.options.split, self.worded(kind)
        tokenizer, result, canonical = self.pipe.processor.tokenizer, {}, texts["canonical"]
        clusters, expected = [prompt.combinations for prompt in prompts], []
        for name, some in texts.items():
            same = tokenizer(some).input_ids == tokenizer(canonical).input_ids
            if same:
                is_right = self.images_part(split, kind)["is_right"]
            else:
                seen = look(self.detector, self.generated(some))
                is_right = [not faults(prompt.wish, one) for prompt, one in zip(prompts, seen, strict=True)]
            expected = is_right if name == "canonical" else expected
            more = np.subtract(is_right, expected, dtype=float).tolist()
            difference = {"difference": float(np.mean(more)), "standard_error": standard_error(more, clusters)}
            result[name] = {"right": float(np.mean(is_right)), "same_ids": same, **difference}
        return result

    def replacements(self, split: str) -> list[Replacement]:
        """What is painted over."""
        return draw_replacements(self.objects, split, self.options.count, self.options.seed)

    def inpainting(self, split: str) -> dict[str, Any]:
        """One of two things painted over with another, and the score of not changing the image."""
        replacements = self.replacements(split)
        pipe = ShowoInpaintPipeline(**self.pipe.components)

        def inpaint(asked: list[Replacement]) -> torch.Tensor:
            images = []
            for first in range(0, len(asked), self.options.batch_size):
                some = asked[first : first + self.options.batch_size]
                pictures = [Image.fromarray(draw(one.before, self.objects)) for one in some]
                masks = [one.mask() for one in some]
                inputs = {"image": pictures, "mask_image": masks, **self.own_sampling}
                texts = [one.text for one in some]
                images.append(generate(pipe, texts, self.options.seed + first, len(texts), **inputs))
            return torch.cat(images)

        def unchanged(asked: list[Replacement]) -> torch.Tensor:
            return scene_pixels((one.before for one in asked), self.objects)

        seen = functools.partial(look, self.detector)
        return {"model": measured(replacements, inpaint, seen), "copy": measured(replacements, unchanged, seen)}

    def questions(self, kind: str) -> list[tuple[Scene, Question]]:
        """The questions of a kind, with the scenes that they are about."""
        return draw_questions(self.objects, self.options.split, kind, self.options.count, self.options.seed)

    def understanding(self, kind: str) -> dict[str, Any]:
        """The answers to a kind of question."""
        pipe, options = ShowoMMUPipeline(**self.pipe.components), self.options

        def answer(images: list[Image.Image], questions: list[str]) -> list[str]:
            return pipe(images, questions, max_new_tokens=ANSWER_TOKENS, batch_size=options.batch_size).texts

        return understanding(
            answer, self.objects, options.split, kind, options.count, self.baselines, seed=options.seed
        )

    def script(self, number: int) -> list[Step]:
        """The turns of the user in a conversation."""
        return script(self.objects, self.options.split, number, self.options.seed)

    def conversation(self, number: int) -> dict[str, Any]:
        """One scripted conversation."""
        steps = self.script(number)
        pipe, seed = ShowoAnyToAnyPipeline(**self.pipe.components), self.options.seed + _TURNS * number
        options = {"max_new_tokens": TURN_TOKENS, **self.own_sampling}
        return {"turns": converse(pipe, steps, self.objects, self.detector, seed, **options)}

    # Their tables

    def run(self) -> None:
        """Make the parts that were asked for, and print their tables."""
        for part in self.options.parts:
            settings, found = getattr(self, f"{part}_tables")()
            for title, head, rows in found:
                self.results.table(self.options.split, title, head, rows, settings)

    def judge_tables(self) -> tables.Tables:
        split = self.options.split
        settings = self.settings(
            split,
            self.model_settings,
            self.decoder_settings,
            self.judge_settings,
            known_scenes=self.options.known_scenes,
        )
        made = {
            kind: self.results.part(
                f"judge-{split}-{kind}",
                functools.partial(self.judge, kind),
                settings | asked_settings(self.prompts(some, kind) for some in (split, "train")),
            )
            for kind in KINDS
        }
        return settings, tables.judge(made)

    def images_tables(self) -> tables.Tables:
        split = self.options.split
        made = {kind: self.images_part(split, kind) for kind in KINDS}
        count, seconds = (sum(one[name] for one in made.values()) for name in ("prompts", "seconds"))
        print(f"{count} images were made in {seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
        return self.drawn_settings(split), tables.images(made)

    def trained_tables(self) -> tables.Tables:
        split = self.options.split
        made = {kind: (self.images_part(split, kind), self.images_part("train", kind)) for kind in KINDS}
        return self.drawn_settings(split), tables.trained(made)

    def wordings_tables(self) -> tables.Tables:
        split = self.options.split
        settings = self.drawn_settings(split)
        made = {
            kind: self.results.part(
                f"wordings-{split}-{kind}",
                functools.partial(self.wordings, kind),
                settings | asked_settings(self.worded(kind)),
            )
            for kind in WORDED_KINDS
        }
        return settings, tables.wordings(made)

    def inpainting_tables(self) -> tables.Tables:
        made = {}
        for split in ("train", self.options.split):
            settings = self.drawn_settings(split) | asked_settings(self.replacements(split))
            made[split] = self.results.part(f"inpainting-{split}", functools.partial(self.inpainting, split), settings)
        return self.drawn_settings(split), tables.inpainting(
            {"unseen": made[self.options.split], "trained": made["train"]}
        )

    def understanding_tables(self) -> tables.Tables:
        split = self.options.split
        settings = self.settings(
            split,
            self.model_settings,
            known_rows=self.options.known_rows,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=self.options.batch_size,
        )
        made = {
            kind: self.results.part(
                f"understanding-{split}-{kind}",
                functools.partial(self.understanding, kind),
                settings | asked_settings(self.questions(kind)),
            )
            for kind in ASKED
        }
        return settings, tables.understanding(made)

    def conversations_tables(self) -> tables.Tables:
        split = self.options.split
        settings = self.settings(split, self.own_settings, max_new_tokens=TURN_TOKENS)
        del settings["count"]  # prompts of the other parts
        turns = [
            turn
            for number in range(self.options.conversations)
            for turn in self.results.part(
                f"conversations-{split}/{number:03}",
                functools.partial(self.conversation, number),
                settings | asked_settings(self.script(number)),
            )["turns"]
        ]
        return settings | {"conversations": self.options.conversations}, tables.conversations(turns)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a model of the small world.")
    parser.add_argument("--model", help="a pipeline folder; without it, only the part `judge` can run")
    parser.add_argument("--output", default="runs/world-benchmark", help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="unseen combinations")
    parser.add_argument("--conversations", type=positive_integer, default=50, help="number of conversations")
    parser.add_argument("--steps", type=positive_integer, help="inference steps; the pipeline's default without it")
    parser.add_argument("--guidance", type=scale_number, help="guidance scale; the pipeline's default without it")
    add_scheduler_options(parser)
    parser.add_argument(
        "--known-scenes", type=positive_integer, default=120_000, help="captions that the baseline of images knows"
    )
    parser.add_argument(
        "--known-rows", type=positive_integer, default=40_000, help="rows of questions that the baselines know"
    )
    add_judge_options(parser, default=None)
    add_workbench_options(parser, count=100, counted="prompts or questions of each kind")
    options = parser.parse_args(arguments)
    if options.model is None and options.parts != ["judge"]:
        parser.error("--model is needed for all parts but `judge`")
    try:
        if options.model is not None:
            check_scheduler(options)
            check_scheduler_values(options)
        Benchmark(options).run()
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
