import fcntl
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
from terminals import PseudoTerminal

from showo_hf import cli
from showo_hf.training.recipe_entries import shipped_recipes


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import small_run  # noqa: E402


def train(*arguments) -> int:
    return cli.main(["train", *map(str, arguments)])


def lines(capsys) -> list[str]:
    """The lines on stderr, of which each error is one."""
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    return printed.err.splitlines()


def test_the_list_of_recipes(capsys):
    assert train("--list") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(shipped_recipes())
    assert {"finetune", "lora", "concept", "instruct", "stage1", "stage2", "stage3"} <= set(shipped_recipes())
    assert all(len(line) <= 120 and line.endswith(".") for line in printed)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give a recipe; `showo-hf train --list` lists them"),
        (["finetun"], "did you mean 'finetune'?"),
        (["none.yaml"], "The recipe 'none.yaml' cannot be read"),
        (["finetune", "data=x"], "`output` is missing"),
        (["finetune", "output=o", "data=x"], "`steps` is missing"),
        (["finetune", "output=o", "steps=3"], "`data` is missing"),
        (["finetune", "output=o", "steps=3", "data=x", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["finetune", "output=o", "steps=three", "data=x"], "`steps` must be a whole number, got 'three'"),
        (["finetune", "output=o", "steps=0", "data=x"], "`steps`"),
        (["finetune", "output=o", "steps=3", "max_steps=3", "data=x"], "`max_steps` is called `steps`"),
        (["finetune", "output=o", "steps=3", "steps=4", "data=x"], "`steps` is given twice"),
        (["finetune", "output=o", "steps=3", "data=x", "bad_step=go"], "`bad_step` must be one of skip, stop"),
        (["finetune", "output=o", "steps=3", "data=x", "extra"], "must be key=value, got 'extra'"),
        (["finetune", "output=o", "steps=3", "data=x", "keep_best=true"], "need `validation_data`"),
        (["finetune", "output=..", "steps=3", "data=x"], "`output` must be the path of a folder with a name"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_usage_errors_are_short_and_name_what_is_wrong(refused, empty_folder, arguments, named):
    refused(["train", *arguments], named)


def test_usage_errors_have_three_lines_at_most(capsys):
    assert train("finetune", "output=o", "steps=3", "data=x", "nothing=1") == cli.USAGE
    assert len(lines(capsys)) <= 3


def test_a_broken_recipe_is_a_usage_error(refused, empty_folder):
    Path("broken.yaml").write_text("kind: [")
    refused(["train", "broken.yaml"], "The recipe 'broken.yaml' is not YAML")


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"output": "file"}, cli.USAGE, "`output` must be a folder, but 'file' is a file"),
        ({"output": "file/below"}, cli.USAGE, "`output` must be a folder, but 'file' is a file"),
        ({"output": "full"}, cli.USAGE, "The folder 'full' exists and is not a result of this run"),
        ({"model": "full"}, cli.FAILED, "`model` must be a folder with a model_index.json, but 'full' has none"),
    ],
    ids=["file", "below-file", "not-empty", "other-folder"],
)
def test_a_run_that_cannot_start_fails_with_one_sentence(empty_folder, capsys, changes, code, named):
    Path("file").write_text("a file")
    Path("full").mkdir()
    Path("full/other.txt").write_text("kept")
    small_run.shared()
    capsys.readouterr()
    started = time.process_time()
    assert train(*small_run.arguments(empty_folder, **changes)) == code
    assert time.process_time() - started < 5
    (line,) = [line for line in lines(capsys) if line.startswith("showo-hf")]
    assert line.startswith("showo-hf: error: ") and named in line
    assert Path("file").read_text() == "a file" and Path("full/other.txt").read_text() == "kept"


def test_a_run_prints_the_folder_alone(empty_folder, capsys):
    """And the losses on stderr, without progress bars: stderr is no terminal here."""
    arguments = small_run.arguments(empty_folder, steps=2)
    capsys.readouterr()
    assert train(*arguments) == cli.GOOD
    printed = capsys.readouterr()
    assert printed.out == f"{empty_folder / 'out'}\n"
    assert "step 1  loss " in printed.err and "step 2  loss " in printed.err
    assert "it/s" not in printed.err and "%|" not in printed.err
    assert train(*arguments) == cli.GOOD
    assert capsys.readouterr().out == f"{empty_folder / 'out'}\n"


def test_a_run_that_is_out_of_time_says_how_it_goes_on(empty_folder, capsys):
    assert train(*small_run.arguments(empty_folder, max_minutes=1e-9)) == 75
    assert lines(capsys)[-1] == "showo-hf: The run stopped after step 1. The same command continues it."


def test_other_options_fail_with_the_difference(empty_folder, capsys):
    assert train(*small_run.arguments(empty_folder, max_minutes=1e-9)) == 75
    capsys.readouterr()
    assert train(*small_run.arguments(empty_folder, learning_rate=0.5)) == cli.FAILED
    (line,) = [line for line in lines(capsys) if line.startswith("showo-hf")]
    assert "`learning_rate` was 0.001 and is 0.5" in line


def test_damaged_checkpoints_fail_with_their_name(empty_folder, capsys):
    assert train(*small_run.arguments(empty_folder, max_minutes=1e-9)) == 75
    Path("out-checkpoints/checkpoint-1/position.json").write_text("{}")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="step 1 is left out"):
        assert train(*small_run.arguments(empty_folder)) == cli.FAILED
    (line,) = [line for line in lines(capsys) if line.startswith("showo-hf")]
    assert "No checkpoint is intact" in line and "position.json" in line


@pytest.mark.slow
def test_progress_bars_are_shown_on_terminals(empty_folder):
    with PseudoTerminal() as terminal:
        fcntl.ioctl(terminal.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # rows and columns
        process = small_run.command(small_run.arguments(empty_folder, steps=1), stderr=terminal.file)
        out, _ = process.communicate(timeout=200)
    assert (process.returncode, out) == (0, f"{empty_folder / 'out'}\n"), terminal.text
    assert "Loading weights" in terminal.text


@pytest.mark.slow
@pytest.mark.parametrize("module", [("showo_hf_command", "train"), ("showo_hf.training",)], ids=" ".join)
def test_the_modules_for_launchers_are_the_same_command(empty_folder, module):
    process = small_run.command(small_run.arguments(empty_folder, steps=1, warmup_steps=0), module)
    out, text = process.communicate(timeout=200)
    assert (process.returncode, out) == (0, f"{empty_folder / 'out'}\n"), text
    assert "it/s" not in text
    # Importing `showo_hf.training` imports the whole package first, with the reports of its libraries.
    assert module == ("showo_hf.training",) or all(line.startswith("step ") for line in text.splitlines()), text
    process = small_run.command(["finetune", "output=x", "data=x"], module)
    out, text = process.communicate(timeout=200)
    assert (process.returncode, out) == (2, "") and "`steps` is missing" in text


@pytest.mark.slow
def test_accelerate_starts_several_processes(empty_folder):
    # accelerate starts several processes without a GPU only where `--multi_gpu` says so; the recipe names the CPU.
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m")
    recipe = small_run.arguments(empty_folder, steps=2)
    process = small_run.command(recipe, (*launch, "showo_hf_command", "train"))
    out, text = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, f"{empty_folder / 'out'}\n"), text
    assert text.count("step 2  loss ") == 1 and "torchao" not in text
