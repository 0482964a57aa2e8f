"""`--scheduler` and `--scheduler-option` of the commands that make images."""

import argparse
import inspect
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from PIL import Image

from showo_hf import MaskGITScheduler, ShowoAnyToAnyPipeline, ShowoT2IPipeline, cli
from showo_hf.commands.errors import UsageError
from showo_hf.commands.scheduler_options import (
    CHOICES,
    KNOWN,
    SCALES,
    SHARES,
    check_scheduler,
    check_steps_and_temperature,
    fits,
    option_values,
    parse_value,
    set_scheduler,
    settings_of,
)
from showo_hf.schedulers import SCHEDULERS


NAMES = sorted(SCHEDULERS)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def generate(taught_folder):
    """Run the command with a small model."""

    def run(output: str, *arguments: str) -> int:
        options = ["--model", taught_folder, "--device", "cpu", "--quiet", "--seed", "5", "--steps", "4"]
        return cli.main(["generate", "an owl", "-o", output, *options, *arguments])

    return run


@pytest.mark.parametrize("command", [["generate"], ["chat", "--quiet"], ["generate", "an owl", "-o", "missing/a.png"]])
def test_scheduler_help_lists_all_schedulers(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--scheduler", "help"])
    printed = capsys.readouterr()
    assert end.value.code == cli.GOOD
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(SCHEDULERS)
    for line, kind in zip(lines, SCHEDULERS.values(), strict=True):
        summary = line.split("  ", 1)[1].strip()
        assert len(line) <= 140 and summary.endswith(".") and summary == kind.__doc__.split("\n")[1].strip()


@pytest.mark.parametrize("kind", [AmusedScheduler, BlockRefinementScheduler])
def test_a_scheduler_of_diffusers_makes_each_image_from_its_seed(kind, taught_folder, tmp_path):
    folder = tmp_path / "model"
    pipe = ShowoT2IPipeline.from_pretrained(taught_folder)
    pipe.scheduler = kind(**({"mask_token_id": tiny.CODES} if kind is AmusedScheduler else {}))
    pipe.save_pretrained(folder)
    common = ["--model", str(folder), "--device", "cpu", "--quiet", "--steps", "4"]
    assert cli.main(["generate", "an owl", "-o", "a.png", "--seed", "5", "--num", "2", *common]) == cli.GOOD
    assert cli.main(["generate", "an owl", "-o", "b.png", "--seed", "6", *common]) == cli.GOOD
    assert (pixels("a-1.png") == pixels("b.png")).all()
    # BlockRefinementScheduler takes the likeliest tokens by default, whatever the seed.
    assert (pixels("a-0.png") == pixels("b.png")).all() == (kind is BlockRefinementScheduler)
    # A scheduler of this package gets its mask id from the model: some of diffusers' have none.
    assert cli.main(["generate", "an owl", "-o", "c.png", *common, "--scheduler", "maskgit"]) == cli.GOOD


@pytest.mark.parametrize("name", NAMES)
def test_generate_uses_the_scheduler(name, generate, taught_folder):
    assert generate("a.png", "--scheduler", name) == cli.GOOD
    pipe = ShowoT2IPipeline.from_pretrained(taught_folder)
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    generator = [torch.Generator().manual_seed(5)]
    (image,) = pipe("an owl", num_inference_steps=4, generator=generator).images
    assert (pixels("a.png") == np.asarray(image)).all()


@pytest.mark.parametrize("name", NAMES)
def test_chat_uses_the_scheduler(name, taught_folder, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.StringIO("two hearts\n"))
    options = ["--device", "cpu", "--quiet", "--seed", "3", "--steps", "3", "--max-images", "1"]
    assert cli.main(["chat", "--model", taught_folder, "--scheduler", name, *options]) == cli.GOOD
    pipe = ShowoAnyToAnyPipeline.from_pretrained(taught_folder)
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    answer = pipe("two hearts", generator=torch.Generator().manual_seed(3), num_inference_steps=3, max_images=1)
    (image,) = [part["image"] for part in answer.content if part["type"] == "image"]
    assert (pixels("image-0.png") == np.asarray(image)).all()


def test_schedulers_and_their_options_make_a_difference(generate):
    named = {name: ["--scheduler", name] for name in ("maskgit", "halton", "mask-and-replace")}
    options = {"own": ["temperature=9"], "maskgit": ["masking_schedule=pow3", "temperature=9"]}
    runs = {
        **named,
        "own, hot": ["--scheduler-option", options["own"][0]],
        "maskgit, hot and fast": [
            "--scheduler", "maskgit", *(word for one in options["maskgit"] for word in ("--scheduler-option", one)),
        ],
    }  # fmt: skip
    images = {"plain": None, **dict.fromkeys(runs)}
    for name, more in {"plain": [], **runs}.items():
        assert generate("a.png", *more) == cli.GOOD
        images[name] = Path("a.png").read_bytes()
    assert images.pop("maskgit") == images["plain"]  # the model's own
    assert len(set(images.values())) == len(images)


@pytest.mark.parametrize("command", [["generate", "an owl", "-o", "a.png"], ["chat"]])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--scheduler", "magic"], f"one of {', '.join(SCHEDULERS)}, got 'magic'"),
        (["--scheduler", ""], "one of"),
        (["--scheduler-option", "temperature"], "NAME=VALUE, got 'temperature'"),
        (["--scheduler-option", "=1"], "NAME=VALUE, got '=1'"),
        (
            ["--scheduler", "maskgit", "--scheduler-option", "heat=2"],
            "of MaskGITScheduler must be among masking_schedule, temperature,",
        ),
        (["--scheduler", "maskgit", "--scheduler-option", "mask_token_id=2"], "got 'mask_token_id'"),
        (
            ["--scheduler", "maskgit", "--scheduler-option", "temperature=hot"],
            "temperature must be a number, got 'hot'",
        ),
        (["--scheduler", "maskgit", "--scheduler-option", "temperature=NaN"], "temperature must be a number"),
    ],
)
def test_invalid_scheduler_options_are_refused_before_the_model_is_loaded(command, arguments, named, refused):
    refused([*command, *arguments, "--model", "./missing"], named)


@pytest.mark.parametrize("command", [["generate", "an owl", "-o", "a.png"], ["chat"]])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["--scheduler-option", "heat=2"],
            "of MaskGITScheduler must be among masking_schedule, temperature,",
        ),  # the scheduler of the model
        (["--scheduler-option", "masking_schedule=steep"], "'steep'"),
        (["--scheduler", "maskgit", "--scheduler-option", "temperature_rule=warm"], "'warm'"),
    ],
)
def test_values_that_a_scheduler_rejects_are_refused(command, arguments, named, taught_folder, refused):
    refused([*command, *arguments, "--model", taught_folder, "--device", "cpu", "--quiet", "--seed", "3"], named)


def test_settings_of_the_previous_scheduler_are_kept(pipe):
    pipe.scheduler = MaskGITScheduler(mask_token_id=tiny.CODES, masking_schedule="linear", temperature=3.0)
    options = argparse.Namespace(scheduler="maskgit", scheduler_option=[("temperature", "2")])
    check_scheduler(options)
    before = pipe.scheduler
    set_scheduler(pipe, options)
    config = pipe.scheduler.config
    assert pipe.scheduler is not before
    assert (config.mask_token_id, config.masking_schedule, config.temperature) == (tiny.CODES, "linear", 2)
    nothing = argparse.Namespace(scheduler=None, scheduler_option=[])
    before = pipe.scheduler
    set_scheduler(pipe, nothing)
    assert pipe.scheduler is before


def test_the_table_of_schedulers_is_what_the_classes_say():
    assert {name: known.name for name, known in KNOWN.items()} == {n: kind.__name__ for n, kind in SCHEDULERS.items()}
    for name, kind in SCHEDULERS.items():
        assert KNOWN[name].settings == settings_of(kind)
        assert list(KNOWN[name].settings) == list(settings_of(kind))
        assert KNOWN[name].takes_temperature == ("temperature" in inspect.signature(kind.set_timesteps).parameters)


def options_with(*words: str) -> argparse.Namespace:
    return cli.build_parser().parse_args(["generate", "an owl", "-o", "a.png", *words])


def test_the_most_steps_are_those_that_the_scheduler_will_have():
    """A scheduler inherits the settings of the model's own; see `set_scheduler`."""
    limit = "`--steps` must be at most the `num_train_timesteps` of this MaskAndReplaceScheduler, {}, got {}"
    replace = ["--scheduler", "mask-and-replace"]
    check_steps_and_temperature(options_with(*replace, "--steps", "100"))
    with pytest.raises(UsageError, match=limit.format(100, 101)):
        check_steps_and_temperature(options_with(*replace, "--steps", "101"))
    with pytest.raises(UsageError, match=limit.format(7, 16)):  # the number of steps of the embedded model
        check_steps_and_temperature(options_with(*replace, "--scheduler-option", "num_train_timesteps=7"))
    Path("mine/scheduler").mkdir(parents=True)
    config = Path("mine/scheduler/scheduler_config.json")
    for kind in ("MaskAndReplaceScheduler", "MaskGITScheduler"):
        config.write_text(json.dumps({"_class_name": kind, "num_train_timesteps": 200}))
        check_steps_and_temperature(options_with(*replace, "--steps", "200", "--model", "mine"))
        with pytest.raises(UsageError, match=limit.format(200, 201)):
            check_steps_and_temperature(options_with(*replace, "--steps", "201", "--model", "mine"))
    check_steps_and_temperature(options_with("--steps", "201", "--model", "mine"))  # of MaskGIT
    config.write_text(json.dumps({"_class_name": "MaskAndReplaceScheduler", "num_train_timesteps": 5}))
    with pytest.raises(UsageError, match=limit.format(5, 6)):
        check_steps_and_temperature(options_with("--steps", "6", "--model", "mine"))
    with pytest.raises(UsageError, match="`--temperature` is not an option of MaskAndReplaceScheduler, got 3.0"):
        check_steps_and_temperature(options_with("--steps", "5", "--temperature", "3", "--model", "mine"))
    # Only the loaded model tells.
    check_steps_and_temperature(options_with(*replace, "--steps", "101", "--model", "someone/unknown"))


def some_scheduler(mask_token_id=1, flag=False, count=3, share=0.5, order="linear", other=None):
    """Options of all types."""


def test_values_are_json_or_text():
    given = [("flag", "true"), ("count", "7"), ("share", "1"), ("order", "12"), ("other", "[1, 2]"), ("order", "pow2")]
    assert option_values("one", settings_of(some_scheduler), given) == {
        "flag": True, "count": 7, "share": 1, "order": "pow2", "other": [1, 2],
    }  # fmt: skip
    assert parse_value("name", "12", "linear") == "12"
    assert parse_value("name", '"a b"', "linear") == "a b"
    assert parse_value("other", "spiral", None) == "spiral"
    assert parse_value("other", "null", None) is None


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("flag", "1", "true or false"),
        ("flag", "yes", "true or false"),
        ("count", "1.5", "an integer"),
        ("count", "true", "an integer"),
        ("share", "true", "a number"),
        ("share", "half", "a number"),
        ("share", "1e999", "a number"),
        ("share", "1" + 400 * "0", "a number"),
        ("share", "null", "a number"),
    ],
)
def test_values_of_another_type_are_refused(name, text, wanted):
    with pytest.raises(UsageError, match=f"{name} must be {wanted}, got '{text[:20]}"):
        option_values("one", settings_of(some_scheduler), [(name, text)])


def test_defaults_of_every_scheduler_are_values_of_their_own_types():
    for kind in SCHEDULERS.values():
        config = kind().config
        values = {name: value for name, value in config.items() if not name.startswith("_")}
        assert values and all(fits(value, value) for value in values.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_without_torch_is_what_the_class_refuses(name):
    """Values that the command refuses raise in the class, and the limits that it names are accepted there."""
    kind, settings = SCHEDULERS[name], settings_of(SCHEDULERS[name])
    wrong = {**dict.fromkeys(CHOICES, "linaer"), **dict.fromkeys(SCALES, "10001"), **dict.fromkeys(SHARES, "1.5")}
    right = {**{one: words[-1] for one, words in CHOICES.items()}, **dict.fromkeys(SCALES, "10000")}
    for setting in settings.keys() & wrong.keys():
        for text in (wrong[setting], "-1" if setting not in CHOICES else "Linear"):
            with pytest.raises(UsageError, match=f"`--scheduler-option` {setting} must be"):
                parse_value(setting, text, settings[setting])
            with pytest.raises(ValueError, match=setting):
                kind(mask_token_id=8, **{setting: text if setting in CHOICES else float(text)})
        allowed = parse_value(setting, right.get(setting, "1"), settings[setting])
        assert kind(mask_token_id=8, **{setting: allowed}).config[setting] == allowed
