"""Which sampler, how many steps, which guidance scale? Prints two tables, and draws a plot. Run from the repository root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world_samplers --results runs/world-samplers --plot docs/images/samplers.png

Every setting draws the same scenes of several things, of unseen combinations (validation), with the same seeds.
benchmarks.world says when an image is right, and what `detail` is. Each setting has a JSON file in the folder of results. It
is not measured again unless the model, the judge or the prompts change.

- Samplers have the guidance scale of the model. Guidance scales are compared for the model's usual sampler, MaskGIT.
- "Steps run" is the mean of the steps that an image needs alone. In a batch it waits for the slowest image.
- "Seconds" are those of these steps and of decoding, at the time that both take per image of a batch.
- Differences are taken prompt by prompt. Standard errors count combinations that come several times.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.sampling import REFERENCE, SETTINGS, file_stem, make, plot, scheduler_of
from benchmarks.world_judging import GENEVAL, faults, look, standard_error
from benchmarks.world_prompts import Prompt
from benchmarks.world_tables import percent
from benchmarks.world_workbench import Workbench, add_judge_options, add_workbench_options, asked_settings

from showo_hf import EMBEDDED_MODEL
from showo_hf.commands.errors import UsageError
from showo_hf.utils.argument_types import positive_integer, scale_number


SPLIT = "validation"
KINDS = ("counting", "two_objects", "position", "binding")  # scenes of several things
Result = dict[str, Any]


class Setting(NamedTuple):
    """A key of `SETTINGS`, how many steps at most, and a guidance scale."""

    sampler: str
    steps: int
    guidance: float


class Samplers(Workbench):
    """
    Measures settings, or reads them if they were measured.

    Args:
        options: the options of the command.
    """

    def __init__(self, options: argparse.Namespace):
        super().__init__(options, options.results)
        self.config = self.pipe.scheduler.config
        self.asked: list[Prompt] = [prompt for kind in KINDS for prompt in self.prompts(SPLIT, kind)]
        self.clusters = [prompt.combinations for prompt in self.asked]

    def result(self, setting: Setting) -> Result:
        """What the images of a setting score and cost. "right" and "as_geneval" are lists, one value a prompt."""
        sampling = self.sampling(setting.steps, setting.guidance)
        self.pipe.scheduler = scheduler_of(setting.sampler, self.config)
        return self.results.part(
            f"{file_stem(setting.sampler)}-{setting.steps}-steps-guidance-{setting.guidance:g}",
            lambda: self.measured(sampling),
            self.settings(
                SPLIT,
                self.image_settings(sampling),
                asked_settings(self.asked),
                kinds=KINDS,
                batch_size=self.options.batch_size,
            ),
        )

    def measured(self, sampling: dict[str, Any]) -> Result:
        """The result of the pipeline with its scheduler."""
        texts = [prompt.text for prompt in self.asked]
        images, cost = make(self.pipe, texts, self.options.batch_size, self.options.seed, **sampling)
        seen = look(self.detector, images)
        wrong = [faults(prompt.wish, one) for prompt, one in zip(self.asked, seen, strict=True)]
        return {
            "right": [not one for one in wrong],
            "as_geneval": [not one & GENEVAL for one in wrong],
            "detail": self.detail(self.asked, images),
            **cost,
        }

    def share(self, values: list[bool]) -> tuple[float, float | None]:
        """The mean of a list of a result, and its standard error."""
        return float(np.mean(values)), standard_error(values, self.clusters)

    def difference(self, one: Result, other: Result) -> str:
        """By how many points more images of `one` are right, with the standard error: "+1.5 ± 0.8"."""
        more = np.subtract(one["right"], other["right"], dtype=float)
        error = standard_error(more.tolist(), self.clusters)
        return f"{100 * more.mean():+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")

    def columns(self, result: Result, reference: Result) -> list[str]:
        """The columns of `HEAD` for a result."""
        against = "-" if result is reference else self.difference(result, reference)
        shares = (percent(*self.share(result["right"])), against, percent(*self.share(result["as_geneval"])))
        seconds = result["seconds_a_step"] * result["steps_run"] + result["seconds_decoding"]
        return [f"{result['steps_run']:.1f}", *shares, f"{result['detail']:.2f}", f"{seconds:.2f}"]


HEAD = ["steps run", "right", "points against {} {}".format(*REFERENCE), "as GenEval", "detail", "seconds"]


def settings_of(options: argparse.Namespace, own: float) -> tuple[list[Setting], list[Setting]]:
    """
    The settings of the table of samplers, and those of the table of guidance scales.

    Args:
        options: the options of the command.
        own: the guidance scale of the model.
    """
    samplers = [Setting(sampler, steps, own) for sampler in options.samplers for steps in options.steps]
    return samplers, [Setting(*REFERENCE, scale) for scale in sorted({own, *options.guidance})]


def run(options: argparse.Namespace) -> None:
    """Measure all settings, print the tables, and draw the plot."""
    bench = Samplers(options)
    own = bench.sampling()["guidance_scale"]
    samplers, scales = settings_of(options, own)
    made = {setting: bench.result(setting) for setting in dict.fromkeys((*samplers, *scales))}
    reference = made[Setting(*REFERENCE, own)]  # its scale is always among the guidance scales
    settings = bench.settings(SPLIT, bench.model_settings, bench.decoder_settings, bench.judge_settings, kinds=KINDS)
    rows = [[one.sampler, one.steps, *bench.columns(made[one], reference)] for one in samplers]
    title = f"Samplers, guidance {own:g}, {len(bench.asked)} prompts"
    bench.results.table(SPLIT, title, ["sampler", "steps at most", *HEAD], rows, settings)
    rows = [[f"{one.guidance:g}", *bench.columns(made[one], reference)] for one in scales]
    bench.results.table(SPLIT, "Guidance of {}, {} steps".format(*REFERENCE), ["guidance", *HEAD], rows, settings)
    if options.plot is not None:
        points = []
        for one in samplers:
            share, error = bench.share(made[one]["right"])
            steps = made[one]["steps_run"]
            points.append({"sampler": one.sampler, "steps_run": steps, "share": share, "error": error or 0.0})
        plot(points, options.plot, "right images", f"Right images against steps, guidance {own:g}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare samplers, steps and guidance scales on the small world.")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder (default: the embedded model)")
    parser.add_argument("--results", type=Path, default=Path("runs/world-samplers"), help="folder for the results")
    parser.add_argument("--plot", type=Path, help="image file for the plot")
    parser.add_argument("--samplers", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--steps", type=positive_integer, nargs="+", default=[2, 4, 8, 16], help="steps at most")
    parser.add_argument(
        "--guidance", type=scale_number, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0], help="guidance scales"
    )
    add_judge_options(parser)
    add_workbench_options(parser, count=50, counted="prompts of each kind")
    try:
        run(parser.parse_args(arguments))
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
