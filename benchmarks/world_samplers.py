"""Which sampler, how many steps, which guidance and temperature? Prints three tables, and draws a plot. From the root:

    python -m recipes.world.objects --output data/world-objects
    python -m benchmarks.world_samplers --results runs/world-samplers --plot docs/images/samplers.png

Every setting draws the same scenes of several things, of unseen combinations (validation), with the same seeds.
benchmarks.world says when an image is right, and what `detail` is. Each setting has a JSON file in the folder of results. It
is not measured again unless the model, the judge or the prompts change.

- Samplers have the guidance scale and the temperature of the model. Others of both are compared for the model's usual
  sampler, MaskGIT.
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
    """A key of `SETTINGS`, how many steps at most, a guidance scale, and a temperature if it is not the model's."""

    sampler: str
    steps: int
    guidance: float
    temperature: float | None = None

    @property
    def file_stem(self) -> str:
        """The name of its file: "maskgit-16-steps-guidance-2"."""
        name = f"{file_stem(self.sampler)}-{self.steps}-steps-guidance-{self.guidance:g}"
        return name if self.temperature is None else f"{name}-temperature-{self.temperature:g}"


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
        changes = {} if setting.temperature is None else {"temperature": setting.temperature}
        self.pipe.scheduler = scheduler_of(setting.sampler, {**self.config, **changes})
        return self.results.part(
            setting.file_stem,
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


def settings_of(
    options: argparse.Namespace, guidance: float, temperature: float
) -> tuple[list[Setting], dict[float, Setting], dict[float, Setting]]:
    """
    The settings of the table of samplers, those of each guidance scale, and those of each temperature.

    Args:
        options: the options of the command.
        guidance: the guidance scale of the model.
        temperature: the temperature of the model's scheduler.
    """
    samplers = [Setting(sampler, steps, guidance) for sampler in options.samplers for steps in options.steps]
    scales = {scale: Setting(*REFERENCE, scale) for scale in sorted({guidance, *options.guidance})}
    temperatures = {value: Setting(*REFERENCE, guidance, value) for value in sorted(options.temperatures)}
    temperatures[temperature] = Setting(*REFERENCE, guidance)
    return samplers, scales, dict(sorted(temperatures.items()))


def run(options: argparse.Namespace) -> None:
    """Measure all settings, print the tables, and draw the plot."""
    bench = Samplers(options)
    own = bench.sampling()["guidance_scale"]
    samplers, scales, temperatures = settings_of(
        options, own, scheduler_of(REFERENCE[0], bench.config).config.temperature
    )
    asked = dict.fromkeys((*samplers, *scales.values(), *temperatures.values()))
    made = {setting: bench.result(setting) for setting in asked}
    reference = made[Setting(*REFERENCE, own)]  # its scale is always among the guidance scales
    settings = bench.settings(SPLIT, bench.model_settings, bench.decoder_settings, bench.judge_settings, kinds=KINDS)
    rows = [[one.sampler, one.steps, *bench.columns(made[one], reference)] for one in samplers]
    title = f"Samplers, guidance {own:g}, {len(bench.asked)} prompts"
    bench.results.table(SPLIT, title, ["sampler", "steps at most", *HEAD], rows, settings)
    for name, compared in (("guidance", scales), ("temperature", temperatures)):
        rows = [[f"{value:g}", *bench.columns(made[one], reference)] for value, one in compared.items()]
        title = "{} of {}, {} steps".format(name.capitalize(), *REFERENCE)
        bench.results.table(SPLIT, title, [name, *HEAD], rows, settings)
    if options.plot is not None:
        points = []
        for one in samplers:
            share, error = bench.share(made[one]["right"])
            steps = made[one]["steps_run"]
            points.append({"sampler": one.sampler, "steps_run": steps, "share": share, "error": error or 0.0})
        plot(points, options.plot, "right images", f"Right images against steps, guidance {own:g}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare samplers, steps, guidance scales and temperatures.")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder (default: the embedded model)")
    parser.add_argument("--results", type=Path, default=Path("runs/world-samplers"), help="folder for the results")
    parser.add_argument("--plot", type=Path, help="image file for the plot")
    parser.add_argument("--samplers", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--steps", type=positive_integer, nargs="+", default=[2, 4, 8, 16], help="steps at most")
    parser.add_argument(
        "--guidance", type=scale_number, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0], help="guidance scales"
    )
    parser.add_argument(
        "--temperatures", type=scale_number, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0], help="temperatures"
    )
    add_judge_options(parser)
    add_workbench_options(parser, count=50, counted="prompts of each kind")
    try:
        run(parser.parse_args(arguments))
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
