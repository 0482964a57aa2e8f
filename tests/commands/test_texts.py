"""Texts of the user in messages, long work, and the facts that a saved model's files give."""

import argparse
import inspect
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from showo_hf import (
    EMBEDDED_MODEL,
    ShowoAnyToAnyPipeline,
    ShowoConfig,
    ShowoImg2ImgPipeline,
    ShowoT2IPipeline,
    cli,
    pipelines,
)
from showo_hf.commands.errors import UsageError
from showo_hf.commands.image_generation import check_size, pipeline_arguments, size_of
from showo_hf.commands.saved_model import GUIDANCE, STEPS, asked_model, help_numbers, read_saved_model
from showo_hf.commands.texts import OPTION_NAMES, with_option_names
from showo_hf.commands.time_limit import LONG_WORK, TimeLimit, duration
from showo_hf.pipelines.showo_pipeline import MAX_GRID
from showo_hf.utils.argument_types import integer, quoted, user_path
from showo_hf.utils.messages import LONGEST_MESSAGE, one_sentence


# Messages


def test_quoted_is_short_and_has_no_control_characters():
    assert quoted("an owl") == "'an owl'"
    assert quoted("a\x1b[31m\n") == "'a\\x1b[31m\\n'"
    long = quoted("a" * 50 + "b" * 10_000)
    assert len(long) < 70 and long.startswith("'aaa") and " ... " in long and long.endswith("bbb'")


def test_one_sentence_is_one_line_of_printable_characters():
    assert one_sentence(ValueError("two\nlines \x1b[31mred\x1b[0m \udce9")) == "two lines \\x1b[31mred\\x1b[0m \\udce9"
    assert one_sentence(ValueError()) == "ValueError"
    assert len(one_sentence(ValueError("x" * 10**6))) < LONGEST_MESSAGE + 10


def test_errors_of_pipelines_name_options():
    message = with_option_names("`height` must fit `model_output`, not `prompt`")
    assert message == "`--size` must fit `--guidance`, not `prompt`"
    assert with_option_names("`height` and `width` need a tokenizer") == "`--size` need a tokenizer"


def test_every_argument_of_a_pipeline_that_is_an_option_has_its_name():
    options = {word for action in cli.build_parser().all_arguments() for word in action.option_strings}
    assert set(OPTION_NAMES.values()) <= options
    kinds = [getattr(pipelines, name) for name in pipelines.__all__ if name.endswith("Pipeline")]
    arguments = {name for kind in kinds for name in inspect.signature(kind.__call__).parameters}
    assert {"guidance_scale", "num_inference_steps", "height", "mask_image", "padding_mask_crop"} < arguments
    same = {name for name in arguments if f"--{name.replace('_', '-')}" in options}
    assert same - set(OPTION_NAMES) == {"prompt", "prompts"}  # most commands take them without a name
    given = cli.build_parser().parse_args(["generate", "owl", "-o", "a.png"])
    assert {*pipeline_arguments(given), *size_of(given)} <= set(OPTION_NAMES)


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.0", " 3", "1_0", "", "٣", "9" * 5000, str(2**63)])
def test_an_integer_names_its_limits(text):
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 10, got '"):
        integer(1, 10)(text)
    assert integer(1, 10)("10") == 10


def test_user_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x" and user_path("a~/x") == Path("a~/x")
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


# Long work


class Clock:
    """A clock whose steps take given times."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(limit: TimeLimit, clock: Clock, taken: list[float], num_timesteps: int) -> int:
    """Run a call with steps of these lengths, and return how often the limit's own callback was called."""
    called = []
    callback = limit.before(lambda pipe, step, timestep, tensors: called.append(step) or tensors)
    for step, seconds in enumerate(taken):
        clock.now += seconds
        assert callback(SimpleNamespace(num_timesteps=num_timesteps), step, 0, {"latents": 1}) == {"latents": 1}
    return len(called)


def test_long_work_is_refused_after_its_first_steps():
    clock = Clock()
    limit = TimeLimit(agreed=False, calls=100, clock=clock)
    with pytest.raises(UsageError, match="about 5.0 hours on this machine; add --yes"):
        steps(limit, clock, [30.0, 10.0], num_timesteps=18)  # 10 s * 18 * 100


def test_a_slow_first_step_alone_is_not_long_work():
    clock = Clock()
    limit = TimeLimit(agreed=False, calls=100, clock=clock)
    assert steps(limit, clock, [30.0, 0.1, 500.0], num_timesteps=18) == 3
    assert steps(limit, clock, [1e9, 1e9], num_timesteps=18) == 2, "it is decided"


def test_short_work_and_work_that_was_agreed_to_is_not_measured():
    clock = Clock()
    assert steps(TimeLimit(agreed=True, calls=10**6, clock=clock), clock, [1e6, 1e6], num_timesteps=2) == 2
    assert TimeLimit(agreed=True, calls=10**6).before(None) is not None, "all calls have a callback, or none"
    with pytest.raises(UsageError, match="2.0 hours"):
        steps(TimeLimit(agreed=False, calls=720, clock=clock), clock, [10.0], num_timesteps=1)


def test_generate_asks_for_yes(monkeypatch, taught_folder, capfd):
    monkeypatch.setattr("showo_hf.commands.time_limit.LONG_WORK", 0.0)
    monkeypatch.setattr(TimeLimit.__init__, "__defaults__", (0.0, *TimeLimit.__init__.__defaults__[1:]))
    options = ["generate", "an owl", "-o", "a.png", "--seed", "1", "--model", taught_folder, "--device", "cpu", "-q"]
    assert cli.main(options) == cli.USAGE
    assert "add --yes to do it" in capfd.readouterr().err and not list(Path().iterdir())
    assert cli.main([*options, "--yes"]) == cli.GOOD
    assert Path("a.png").is_file()


def test_rounds_of_extend_ask_for_yes(monkeypatch, taught_folder, capfd):
    """A clock on which every step takes 100 s: a round of two steps is short, and a hundred rounds are hours."""
    ticks = itertools.count(0.0, 100.0)
    monkeypatch.setattr(TimeLimit.__init__, "__defaults__", (LONG_WORK, lambda: next(ticks)))
    Image.new("RGB", (16, 16), "red").save("a.png")
    options = ["-o", "b.png", "--seed", "1", "--model", taught_folder, "--device", "cpu", "--steps", "2", "-q"]
    extend = ["extend", "a.png", "an owl", *options]
    assert cli.main([*extend, "--rounds", "100"]) == cli.USAGE
    assert re.search(r"about [\d.]+ hours on this machine; add --yes to do it", capfd.readouterr().err)
    assert not Path("b.png").exists()
    assert cli.main([*extend, "--rounds", "2"]) == cli.GOOD
    assert cli.main([*extend, "--rounds", "20", "--yes"]) == cli.GOOD


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "1.0 minutes"), (3000, "50 minutes"), (7200, "2.0 hours"), (150_000, "42 hours"), (1e9, "11,574 days")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


# Help and saved models


def test_the_defaults_in_the_help_are_those_of_models():
    config = ShowoConfig()
    assert (STEPS, GUIDANCE) == (config.image_num_inference_steps, config.image_guidance_scale)
    for name in pipelines.__all__:
        kind = getattr(pipelines, name)
        parameters = inspect.signature(kind.__call__).parameters if "Pipeline" in name and "Output" not in name else {}
        for argument in ("num_inference_steps", "guidance_scale"):
            assert argument not in parameters or parameters[argument].default is None, name


@pytest.mark.parametrize(
    ("command", "kind", "arguments"),
    [
        ("chat", ShowoAnyToAnyPipeline, ("max_new_tokens", "max_images")),
        ("vary", ShowoImg2ImgPipeline, ("strength", "remasking")),
    ],
)
def test_written_defaults_are_those_of_pipelines(command, kind, arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = " ".join(capsys.readouterr().out.partition("\noptions:")[2].split())
    for argument in arguments:
        default = inspect.signature(kind.__call__).parameters[argument].default
        option = options.partition(f"--{argument.replace('_', '-')} ")[2]
        assert re.search(r"\(default: (.*?)\)", option)[1] == str(default), argument


def test_the_largest_image_is_that_of_the_pipelines():
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    saved = read_saved_model(None)
    assert saved.most_pixels == MAX_GRID * pipe.model.config.num_image_tokens * pipe.patch**2
    side = int(saved.most_pixels**0.5) // pipe.patch * pipe.patch
    pipe.check_size(side, side)
    check_size((side, side), None)
    for check in (
        lambda: pipe.check_size(side + pipe.patch, side),
        lambda: check_size((side + pipe.patch, side), None),
    ):
        with pytest.raises((ValueError, UsageError), match="at most"):
            check()


def test_help_names_the_numbers_of_the_model_that_is_asked(taught_folder, capsys):
    pipe = ShowoT2IPipeline.from_pretrained(taught_folder)
    size = [side * pipe.patch for side in pipe.default_grid]
    saved = read_saved_model(taught_folder)
    assert saved.size == tuple(size) and saved.patch == pipe.patch
    assert saved.codebook_size == pipe.mask_token_id and saved.scheduler == "MaskGITScheduler"
    helps = {}
    for model in ("embedded", taught_folder, "someone/large"):
        more = [] if model == "embedded" else [f"--model={model}"]
        with pytest.raises(SystemExit):
            cli.main(["generate", *more, "--help"])
        helps[model] = " ".join(capsys.readouterr().out.split())
        numbers = None if model == "someone/large" else read_saved_model(None if model == "embedded" else model)
        for default in ("the model's",) if numbers is None else (numbers.steps, f"{numbers.guidance:g}"):
            assert f"(default: {default})" in helps[model]
        assert not {"{steps}", "{size}", "{patch}", "{temperature}", "{guidance}"} & set(helps[model].split())
    embedded = read_saved_model(None)
    config = json.loads(Path(EMBEDDED_MODEL, "model", "config.json").read_text())
    assert [embedded.steps, embedded.guidance] == [
        config[f"image_{name}"] for name in ("num_inference_steps", "guidance_scale")
    ]
    assert (saved.steps, saved.guidance) == (18, 2.75)
    assert f"a multiple of {embedded.patch} (default: {embedded.size[0]}x{embedded.size[1]})" in helps["embedded"]
    assert f"a multiple of {pipe.patch} (default: {size[0]}x{size[1]})" in helps[taught_folder]


def test_facts_of_files_that_say_nothing_useful(tmp_path):
    assert read_saved_model("someone/large") == read_saved_model("x" * 10_000) == read_saved_model("a\0b")
    (tmp_path / "model").mkdir()
    for config in ("[1]", "{", '{"image_tokenizer_config": 3, "num_image_tokens": "many"}', "[" * 100_000):
        (tmp_path / "model" / "config.json").write_text(config)
        assert read_saved_model(str(tmp_path)).size is None
    config = json.loads(Path(EMBEDDED_MODEL, "model", "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_image_tokens": 6}))
    assert read_saved_model(str(tmp_path)).size == (16, 24)
    assert help_numbers(str(tmp_path))["{size}"] == "16x24"
    for steps, guidance, shown in ((9, 1.5, ("9", "1.5")), ("many", [], ("the model's", "the model's"))):
        defaults = {"image_num_inference_steps": steps, "image_guidance_scale": guidance}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | defaults))
        numbers = help_numbers(str(tmp_path))
        assert (numbers["{steps}"], numbers["{guidance}"]) == shown


def test_the_model_that_is_asked():
    assert asked_model([]) is asked_model(["--model"]) is asked_model(["generate", "--help"]) is None
    assert asked_model(["generate", "--model", "a"]) == asked_model(["--model=a"]) == "a"


@pytest.mark.parametrize(
    ("shell", "before"), [("bash", "--"), ("zsh", "--"), ("fish", "-l "), ("tcsh", ""), ("powershell", "--")]
)
def test_completion_knows_every_command_and_option(shell, before, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert end.value.code == cli.GOOD
    parser = cli.build_parser()
    options = {word for action in parser.all_arguments() for word in action.option_strings if word.startswith("--")}
    words = [before + word.removeprefix("--") for word in options] + [one.prog.split()[-1] for one in parser.commands]
    assert len(words) > 70
    assert [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", script)] == []
    assert not {"{steps}", "{size}", "{patch}", "{temperature}", "{guidance}"} & set(script.split())
    if shell == "bash" and shutil.which("bash"):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_every_command_that_writes_takes_o_and_q():
    for command in cli.build_parser().commands:
        options = {word for action in command.arguments for word in action.option_strings}
        assert "--output" not in options or {"-o", "-q", "--quiet"} <= options, command.prog


def test_an_image_is_no_model(refused):
    Image.new("RGB", (8, 8)).save("apple.png")
    refused(["chat", "--model", "apple.png"], "'apple.png' is a file")
