"""What does editing keep, and how well do variations follow? Prints a table of docs/benchmarks.md. Run from the root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world_editing --output runs/world-editing

Real scenes of all six kinds of benchmarks.world are edited, of unseen combinations. benchmarks.world itself measures how
well one thing is painted over with another; this script measures the rest:

- inpainting the middle four ninths of an image, with its own caption and without: are known tokens kept, and, with
  `preserve_pixels`, known pixels?
- variation of an image to the caption of the next one: does the judge find the things of this caption? "right" images also
  have its colours, sides, style and background.
- extension: how large is the gradient across the seams, against other borders of tokens? Without visible seams, the ratio
  is near 1, or near the ratio in the given images.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.edits import Judge, Row, extending, inpainting, varying
from benchmarks.world_detector import Detector
from benchmarks.world_judging import faults, look
from benchmarks.world_prompts import Prompt, prompts_by_turns
from benchmarks.world_workbench import (
    Workbench,
    add_judge_options,
    add_workbench_options,
    asked_settings,
    real_pixels,
)

from showo_hf import EMBEDDED_MODEL
from showo_hf.commands.errors import UsageError
from showo_hf.utils.argument_types import positive_integer, scale_number


def judge_of(detector: Detector, prompts: list[Prompt]) -> Judge:
    """Gives the shares of images with the right things of their prompts, and of images that are right altogether."""

    def judge(images: torch.Tensor) -> dict[str, float]:
        found = [faults(prompt.wish, seen) for prompt, seen in zip(prompts, look(detector, images), strict=True)]
        rights = {"right things": ["things" not in one for one in found], "right": [not one for one in found]}
        return {name: sum(right) / len(right) for name, right in rights.items()}

    return judge


class Editing(Workbench):
    """
    Makes the parts of the table, or reads them if they were made with the same settings.

    Args:
        options: the options of the command.
    """

    def __init__(self, options: argparse.Namespace):
        super().__init__(options, options.output)
        self.asked = prompts_by_turns(self.objects, options.split, options.count, options.seed)
        self.others = [*self.asked[1:], self.asked[0]]  # of another kind each
        self.originals = real_pixels(self.asked, self.objects)
        self.used = self.sampling(options.steps, options.guidance)

    @functools.cached_property
    def all_settings(self) -> dict[str, Any]:
        """All that the table depends on."""
        asked, batch_size = asked_settings(self.asked), self.options.batch_size
        return self.settings(self.options.split, self.image_settings(self.used), asked, batch_size=batch_size)

    @torch.no_grad()
    def rows(self) -> list[Row]:
        """The rows of the table."""
        parts, options = self.pipe.components, self.options
        more = {"batch_size": options.batch_size, "seed": options.seed, **self.used}
        own, other = ([prompt.text for prompt in prompts] for prompts in (self.asked, self.others))
        judge, judge_others = (judge_of(self.detector, prompts) for prompts in (self.asked, self.others))
        makers: dict[str, Callable[[], list[Row]]] = {
            "inpainting": lambda: inpainting(parts, self.originals, own, judge, **more),
            "varying": lambda: varying(parts, self.originals, other, judge_others, **more),
            "extending": lambda: extending(parts, self.originals, own, **more),
        }
        return [row for name, make in makers.items() for row in self.part(name, make)["rows"]]

    def part(self, name: str, make: Callable[[], list[Row]]) -> dict[str, Any]:
        """The rows of a part, made once."""
        return self.results.part(f"{name}-{self.options.split}", lambda: {"rows": make()}, self.all_settings)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Edit scenes of the small world.")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder (default: the embedded model)")
    parser.add_argument("--output", type=Path, default=Path("runs/world-editing"), help="folder for the results")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="unseen combinations")
    parser.add_argument("--steps", type=positive_integer, help="inference steps; the pipeline's default without it")
    parser.add_argument("--guidance", type=scale_number, help="guidance scale; the pipeline's default without it")
    add_judge_options(parser)
    add_workbench_options(parser, count=96, counted="scenes")
    options = parser.parse_args(arguments)
    bench = Editing(options)
    title = f"Editing {len(bench.asked)} scenes in {bench.used['num_inference_steps']} steps"
    try:
        rows = bench.rows()
    except UsageError as error:
        parser.error(str(error))
    bench.results.table(options.split, title, ["measurement", "measured"], rows, bench.all_settings)


if __name__ == "__main__":
    main()
