"""`python -m recipes.world`: the commands of docs/embedded_model.md in turn, and how it goes on."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recipes.world.__main__ import STEPS, Step, main, make


ROOT = Path(__file__).parents[3]


def python(code: str) -> str:
    return f'python -c "{code}"'


def test_the_guide_lists_the_same_steps():
    table = [f"| {step.name} | `{step.command}` |" for step in STEPS]
    assert "\n".join(table) in (ROOT / "docs" / "embedded_model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("step", [step for step in STEPS if step.command.startswith("showo-hf train")])
def test_a_training_writes_what_its_step_names(step):
    recipe = yaml.safe_load((ROOT / step.command.split()[-1]).read_text(encoding="utf-8"))
    assert recipe["output"] == step.output


def test_it_runs_what_is_missing_in_turn(tmp_path, capfd):
    (tmp_path / "two").mkdir()
    steps = tuple(
        Step(name, name, python(f"import os; os.mkdir('{name}'); print(os.listdir())"))
        for name in ("one", "two", "three")
    )
    make(steps, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"one", "two", "three"}
    printed = capfd.readouterr().out.splitlines()
    assert "two: two exists" in printed
    assert [line for line in printed if line.endswith("minutes")] == ["one: 0.0 minutes", "three: 0.0 minutes"]
    make(steps, tmp_path)
    assert capfd.readouterr().out.splitlines() == [f"{name}: {name} exists" for name in ("one", "two", "three")]


def test_it_stops_at_a_step_that_fails(tmp_path):
    steps = (
        Step("one", "one", python("raise SystemExit(5)")),
        Step("two", "two", python("import os; os.mkdir('two')")),
    )
    with pytest.raises(subprocess.CalledProcessError) as error:
        make(steps, tmp_path)
    assert error.value.returncode == 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options, last", [((), STEPS[-1].name), (("--until", "rows"), "rows")])
def test_it_ends_with_the_last_step_unless_another_one_is_named(tmp_path, monkeypatch, capsys, options, last):
    monkeypatch.chdir(tmp_path)
    for step in STEPS:
        (tmp_path / step.output).mkdir(parents=True)
    assert main(list(options)) == 0
    names = [step.name for step in STEPS]
    expected = [f"{step.name}: {step.output} exists" for step in STEPS[: names.index(last) + 1]]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_command_runs_with_this_python():
    words = [step.words for step in STEPS]
    assert all(one[:2] == [sys.executable, "-m"] for one in words)
    assert ["showo_hf_command", "train"] in [one[2:4] for one in words]


def test_the_command_lists_its_steps_and_refuses_others(capsys):
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(STEPS)
    with pytest.raises(SystemExit):
        main(["--until", "breakfast"])
    assert "--until" in capsys.readouterr().err
