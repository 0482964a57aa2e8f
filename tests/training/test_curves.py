"""Plots of the logs of runs."""

import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from showo_hf.training.curves import blind_guesses, draw, main, plot_curves, read_run, smoothed
from showo_hf.training.logs import RunLog


GUESS = {"loss_t2i": math.log(1024), "loss_mmu": math.log(2048)}


def write_log(file, steps=40, offset=0.0, guess=GUESS):
    log = RunLog(file)
    if guess:
        log.append({"step": 0, "blind_guess": guess})
    for step in range(1, steps + 1):
        row = {"step": step, "loss_t2i": 6 - step / 20 + offset, "loss_mmu": 5 + offset, "grad_norm": 9.0}
        log.append(row | {"loss": 11 + 2 * offset, "learning_rate": 1e-4, "seconds_per_step": 0.5})
        if step % 10 == 0:
            log.append({"step": step, "eval_loss_t2i": 6.1 - step / 20 + offset, "eval_loss": 11.2})
    return file


def test_a_panel_for_each_loss_with_its_blind_guess(tmp_path):
    run = read_run(write_log(tmp_path / "run-log.jsonl"), "run")
    figure = draw([run], run.blind_guess)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}
    assert list(panels) == [
        "text to image (loss_t2i): masked image tokens",
        "understanding (loss_mmu): next token of answers",
        "weighted sum of the losses",
        "learning rate",
    ]
    logged, mean, dots, guess = panels["text to image (loss_t2i): masked image tokens"].lines
    assert list(logged.get_ydata()) == [6 - step / 20 for step in range(1, 41)]
    assert len(mean.get_ydata()) == 40
    assert list(dots.get_xdata()) == [10, 20, 30, 40] and dots.get_linestyle() == "None"
    assert set(guess.get_ydata()) == {math.log(1024)} and guess.get_linestyle() == "--"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["training, as logged", "training, smoothed", "validation", "blind guess"]


def test_runs_lie_over_one_another(tmp_path):
    files = [write_log(tmp_path / name / "run-log.jsonl", offset=i) for i, name in enumerate(("first", "second"))]
    output = plot_curves(files, tmp_path / "new" / "curves.png")
    with Image.open(output) as image:
        assert image.format == "PNG" and 850 <= image.width <= 900
        assert len(image.convert("RGB").getcolors(10**6)) > 50
    runs = [read_run(file, name) for file, name in zip(files, ("first", "second"), strict=True)]
    lines = draw(runs, GUESS).axes[0].lines
    assert [line.get_color() for line in lines[:4]] == ["#1f77b4", "#1f77b4", "#d62728", "#d62728"]


def test_one_loss_alone_has_no_panel_of_the_sum(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    log.append({"step": 1, "loss": 2.0, "loss_other": 2.0})
    run = read_run(log.file, "run")
    assert [axes.get_title(loc="left") for axes in draw([run], {}).axes] == ["loss_other"]
    assert draw([run], {}).axes[0].lines[-1].get_marker() == "."  # one point is no line


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_leave_a_gap(tmp_path, value):
    log = RunLog(write_log(tmp_path / "run.jsonl"))
    log.append({"step": 41, "loss_t2i": value})
    log.append({"step": 42, "loss_t2i": 1e9})
    run = read_run(log.file, "run")
    axes = draw([run], GUESS).axes[0]
    assert all(map(math.isfinite, axes.get_ylim()))
    plot_curves(log.file, tmp_path / "curves.png")


def test_a_log_of_nothing_but_nan(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    log.append({"step": 1, "loss_t2i": math.nan})
    assert plot_curves(log.file, tmp_path / "curves.png").is_file()


def test_an_outlier_does_not_hide_the_curve(tmp_path):
    log = RunLog(write_log(tmp_path / "run.jsonl", steps=400))
    log.append({"step": 401, "loss_t2i": 1000.0})
    axes = draw([read_run(log.file, "run")], GUESS).axes[0]
    assert axes.get_ylim()[1] < 10
    assert max(axes.lines[1].get_ydata()) < 10


numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=60)


@given(numbers, st.integers(0, 70))
def test_smoothing_stays_within_the_values(values, width):
    mean = smoothed(values, width)
    assert len(mean) == len(values)
    assert all(min(values) - 1e-9 <= one <= max(values) + 1e-9 for one in mean)
    if width < 3:
        assert mean == pytest.approx(values)


def test_smoothing_is_the_mean_of_the_window():
    assert smoothed([0, 3, 6, math.nan, 9], 3) == pytest.approx([1.5, 3, 4.5, 7.5, 9])
    assert smoothed([0, 0, 90], 3, high=3) == pytest.approx([0, 1, 1.5])


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="at least one log"):
        plot_curves([], tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="no log '.*absent.jsonl'"):
        plot_curves(tmp_path / "absent.jsonl", tmp_path / "a.png")
    RunLog(tmp_path / "empty.jsonl").append({"step": 1, "learning_rate": 1.0})
    with pytest.raises(ValueError, match="empty.jsonl' has no losses"):
        plot_curves(tmp_path / "empty.jsonl", tmp_path / "a.png")
    with pytest.raises(ValueError, match="one name for each of the 1 logs, got 2"):
        plot_curves(tmp_path / "empty.jsonl", tmp_path / "a.png", names=["a", "b"])
    with pytest.raises(ValueError, match="loss_t2i=6.93, got 'loss_t2i'"):
        blind_guesses(["loss_t2i"])
    assert not (tmp_path / "a.png").exists()


def test_the_command(tmp_path, capsys):
    file, output = write_log(tmp_path / "run-log.jsonl"), tmp_path / "curves.png"
    assert main([str(file), "-o", str(output), "--blind-guess", "loss_t2i=6.9"]) == 0
    assert capsys.readouterr().out == f"{output}\n" and output.is_file()
    assert main([str(tmp_path / "absent"), "-o", str(output)]) == 1
    assert capsys.readouterr().err.startswith("error: there is no log")


@pytest.mark.slow
def test_the_command_as_documented(tmp_path):
    write_log(tmp_path / "run-log.jsonl")
    command = [sys.executable, "-m", "showo_hf.training.curves", "run-log.jsonl", "-o", "curves.png"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "tkagg"}
    )
    assert done.returncode == 0 and done.stdout == "curves.png\n", done.stderr
    assert (tmp_path / "curves.png").is_file()
