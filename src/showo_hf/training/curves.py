"""
Curves of the losses of one run, or of several runs over one another.

Usage: python -m showo_hf.training.curves LOG [LOG ...] -o curves.png
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .logs import RunLog


# What each loss means, as the title of its panel. All are in nats.
TITLES = {
    "loss": "weighted sum of the losses",
    "loss_t2i": "text to image (loss_t2i): masked image tokens",
    "loss_lm": "text (loss_lm): next token",
    "loss_mmu": "understanding (loss_mmu): next token of answers",
    "learning_rate": "learning rate",
}
WIDTH = 8.8  # inches; 880 pixels at 100 dots per inch, the width of a README
HEIGHT = 2.7  # inches of one row of panels
COLUMNS = 2
DOTS_PER_INCH = 100
SMOOTHED = 0.04  # share of the run that a smoothed point averages over
SHOWN = 0.995  # share of the values that a panel shows; higher ones are outliers
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
VALIDATION, BLIND = "#ff7f0e", "#666666"

Points = tuple[list[int], list[float]]  # steps, values


@dataclass(frozen=True)
class Run:
    """
    What a log says about one run.

    Args:
        name: the label of the run.
        train: name of a loss, or "learning_rate", to steps and values.
        validation: name of a loss to steps and values; without the prefix "eval_".
        blind_guess: name of a loss to its value in nats for a model that knows nothing.
    """

    name: str
    train: dict[str, Points] = field(default_factory=dict)
    validation: dict[str, Points] = field(default_factory=dict)
    blind_guess: dict[str, float] = field(default_factory=dict)


def plot_curves(
    logs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    blind_guess: Mapping[str, float] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """
    Plot the losses and the learning rate of runs into a PNG file.

    Each named loss has a panel. One run has a thin line of what was logged, a smoothed line, and dots of the
    validation; of several runs, the smoothed lines and the dots lie over one another, each run in its own colour.
    A dashed line is the loss of a blind guess.

    Args:
        logs: the log file of a run, as [`RunLog`] writes it, or several.
        output: the PNG file.
        blind_guess: name of a loss to nats, such as `{"loss_t2i": math.log(codebook_size)}`; by default what the logs
            give in a row `{"step": 0, "blind_guess": {...}}`.
        names: a label for each run; by default the names of the files.

    Returns:
        `output` as a path.

    Raises:
        ValueError: if there are no logs, a log has no losses, or the number of names is another one.
        FileNotFoundError: if a log does not exist.
        ImportError: if matplotlib is not installed.
    """
    files = [Path(logs)] if isinstance(logs, str | os.PathLike) else [Path(log) for log in logs]
    if not files:
        raise ValueError("`logs` must name at least one log, got none")
    if names is not None and len(names) != len(files):
        raise ValueError(f"`names` must have one name for each of the {len(files)} logs, got {len(names)}")
    runs = [read_run(file, name) for file, name in zip(files, names or labels(files), strict=True)]
    guesses: dict[str, float] = {}
    for run in reversed(runs):
        guesses |= run.blind_guess
    figure = draw(runs, guesses if blind_guess is None else dict(blind_guess))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return output


def labels(files: Sequence[Path]) -> list[str]:
    """The names of the runs: those of the files, with the folders before them where two are the same."""
    names = [file.name.removesuffix(".jsonl").removesuffix("-log") for file in files]
    if len(set(names)) < len(names):
        names = [f"{file.resolve().parent.name}/{name}" for file, name in zip(files, names, strict=True)]
    return names


def read_run(file: Path, name: str) -> Run:
    """Read a log. Raises `FileNotFoundError` without one, and `ValueError` if it has no losses."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no log '{file}'")
    run = Run(name)
    for row in RunLog(file).read():
        if isinstance(row.get("blind_guess"), dict):
            run.blind_guess.update(row["blind_guess"])
        for key, value in row.items():
            series = run.validation if key.startswith("eval_") else run.train
            key = key.removeprefix("eval_")
            if is_plotted(key) and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = series.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    if not any(key != "learning_rate" for key in (*run.train, *run.validation)):
        raise ValueError(f"'{file}' has no losses: no row has a value named loss, loss_..., or eval_loss_...")
    return run


def is_plotted(key: str) -> bool:
    return key in TITLES or key.startswith("loss_")


def panels_of(runs: Iterable[Run]) -> list[str]:
    """The names of the panels, in their order: the losses by name, their sum if there are several, the learning rate."""
    found = {key for run in runs for key in (*run.train, *run.validation)}
    named = [key for key in TITLES if key in found and key.startswith("loss_")]
    named += sorted(key for key in found if key.startswith("loss_") and key not in TITLES)
    total = ["loss"] if "loss" in found and len(named) != 1 else []
    return named + total + [key for key in ("learning_rate",) if key in found]


def smoothed(values: Sequence[float], width: int, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """
    The mean of the `width` values around each value, fewer at both ends.

    Values are clipped to `low` and `high`, so that an outlier does not lift the line beyond what the panel shows. Values
    that are not numbers do not count.
    """
    sums, counts = [0.0], [0]
    for value in values:
        known = not math.isnan(value) and math.isfinite(clipped := min(max(value, low), high))
        sums.append(sums[-1] + (clipped if known else 0.0))
        counts.append(counts[-1] + known)
    half, result = max(0, width - 1) // 2, []
    for place in range(len(values)):
        first, last = max(0, place - half), min(len(values), place + half + 1)
        count = counts[last] - counts[first]
        result.append((sums[last] - sums[first]) / count if count else math.nan)
    return result


def draw(runs: Sequence[Run], blind_guess: Mapping[str, float]) -> Any:
    """The matplotlib figure with a panel for each loss."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("curves need matplotlib: install it with `pip install showo-hf[train]`") from error

    panels = panels_of(runs)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, HEIGHT * rows + 0.35), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot is not used, so any thread may draw
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, runs, blind_guess.get(panel), handles)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def draw_panel(axes: Any, panel: str, runs: Sequence[Run], blind_guess: float | None, handles: dict[str, Any]):
    """Draw one panel. `handles` collects the entries of the legend."""
    axes.set_title(TITLES.get(panel, panel), fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if panel == "learning_rate":
        return draw_learning_rate(axes, runs)
    one = len(runs) == 1
    low, high = limits(panel, runs, blind_guess)
    axes.set_ylim(low, high)
    for number, run in enumerate(runs):
        color = COLORS[number % len(COLORS)]
        steps, values = run.train.get(panel, ([], []))
        if one and values:
            (line,) = axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.4)
            handles.setdefault("training, as logged", line)
        if values:
            mean = smoothed(values, round(len(values) * SMOOTHED), low, high)
            (line,) = axes.plot(steps, mean, color=color, linewidth=1.6, marker="." if len(mean) == 1 else "")
            handles.setdefault("training, smoothed" if one else run.name, line)
        steps, values = run.validation.get(panel, ([], []))
        if values:
            style = {"marker": "o", "linestyle": "none", "markersize": 4.5, "markeredgewidth": 0.6, "zorder": 3}
            style |= {"markeredgecolor": "white", "color": VALIDATION if one else color}
            (line,) = axes.plot(steps, values, **style)
            handles.setdefault("validation" if one else f"{run.name}, validation", line)
    if blind_guess is not None and math.isfinite(blind_guess):
        line = axes.axhline(blind_guess, color=BLIND, linestyle="--", linewidth=1)
        handles.setdefault("blind guess", line)
        place = {"xy": (1, blind_guess), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"{blind_guess:.2f}", xytext=(-2, 2), ha="right", fontsize=8, color=BLIND, **place)


def draw_learning_rate(axes: Any, runs: Sequence[Run]):
    """Draw the learning rates. Two runs often have the same, so the first lines are wider than those over them."""
    for number, run in enumerate(runs):
        steps, values = run.train.get("learning_rate", ([], []))
        width = 1.5 + 1.5 * (len(runs) - 1 - number)
        axes.plot(steps, values, color=COLORS[number % len(COLORS)], linewidth=width)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(8)


def limits(panel: str, runs: Sequence[Run], blind_guess: float | None) -> tuple[float, float]:
    """A range that shows all values but single outliers, and the blind guess."""
    values: list[float] = []
    for run in runs:
        for series in (run.train, run.validation):
            values += [value for value in series.get(panel, ([], []))[1] if math.isfinite(value)]
    values.sort()
    low, high = (values[0], values[math.ceil(len(values) * SHOWN) - 1]) if values else (0.0, 1.0)
    if blind_guess is not None and math.isfinite(blind_guess):
        low, high = min(low, blind_guess), max(high, blind_guess)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m showo_hf.training.curves", description="Plot the losses of runs, over one another if several."
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="the log of a run, OUT-log.jsonl")
    parser.add_argument("-o", "--output", default="curves.png", metavar="FILE", help="PNG file (default: curves.png)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="a label for each run")
    parser.add_argument(
        "--blind-guess", action="append", metavar="LOSS=NATS", help="loss of a blind guess, if the logs lack it"
    )
    options = parser.parse_args(arguments)
    try:
        guesses = blind_guesses(options.blind_guess) if options.blind_guess else None
        print(plot_curves(options.logs, options.output, guesses, options.names))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def blind_guesses(words: Iterable[str]) -> dict[str, float]:
    """Parse "loss_t2i=6.93"."""
    guesses = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            guesses[name] = float(value)
        except ValueError as error:
            raise ValueError(f"`--blind-guess` must be LOSS=NATS, such as loss_t2i=6.93, got '{word}'") from error
    return guesses


if __name__ == "__main__":
    sys.exit(main())
