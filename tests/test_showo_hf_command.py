"""How the command starts: without torch for help, version, completion and usage errors, and complete for all else."""

import configparser
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import showo_hf_command


ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "src" / "showo_hf_command.py"
MOST = 0.2  # of the CPU time of `import torch`, both above a bare Python


def cpu_seconds(*words: object, folder: Path, code: int = 0, runs: int = 3) -> tuple[float, str]:
    """CPU time of a Python process that ends with `code`, the best of `runs`, and the last line of its stderr."""
    best, told = 1e9, ""
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) <= 3, done.stderr
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        told = "".join(done.stderr.splitlines()[-1:])
    return best, told


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> float:
    return cpu_seconds("-c", "pass", folder=tmp_path_factory.mktemp("bare"))[0]


@pytest.fixture(scope="module")
def most(bare, tmp_path_factory) -> float:
    """The CPU time that a fast start may take on this machine, above a bare Python."""
    return MOST * (cpu_seconds("-c", "import torch", folder=tmp_path_factory.mktemp("torch"), runs=1)[0] - bare)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["chat", "--scheduler", "help"],
        ["--print-completion", "bash"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_starts_fast(words, bare, most, tmp_path):
    seconds, _ = cpu_seconds(COMMAND, *words, folder=tmp_path)
    assert seconds - bare < most


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("paint", "paint"),
        ("generate -o a.png", "a prompt is needed"),
        ("generate owl -o a.bmp", "--output"),
        ("generate owl -o a.png --size 97", "--size"),
        ("generate owl -o a.png --model nope", "--model"),
        ("generate owl -o a.png --scheduler magic", "--scheduler"),
        ("generate owl -o a.png --scheduler-option heat=3", "--scheduler-option"),
        ("generate owl -o a.png --device abacus", "--device"),
        ("generate --prompts gone.txt -o images", "--prompts"),
        ("vary gone.png owl -o a.png", "IMAGE"),
        ("caption gone.png", "gone.png"),
        ("ask gone.png what?", "gone.png"),
        ("chat -o gone", "--output"),
        ("tokenize gone -o a --model nope", "DATA"),
        ("train", "give a recipe"),
        ("train nope", "nope"),
        ("convert --image-tokenizer x --text-tokenizer y -o a", "--showo"),
    ],
)
def test_usage_errors_start_fast_and_name_the_option(words, named, bare, most, tmp_path):
    seconds, told = cpu_seconds(COMMAND, *words.split(), folder=tmp_path, code=2)
    assert named in told
    assert seconds - bare < most
    assert not list(tmp_path.iterdir())


NOT_LOADED_YET = """
import sys
sys.path.insert(0, sys.argv[1])
import showo_hf_command
showo_hf_command.prepare()
import showo_hf
from showo_hf.commands import generate
assert "torch" not in sys.modules
assert not hasattr(showo_hf, "__wrapped__") and "torch" not in sys.modules
folder = showo_hf.EMBEDDED_MODEL  # any public name loads the package
assert "torch" in sys.modules and showo_hf.__version__ and showo_hf.commands.generate is generate
try:
    showo_hf.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise SystemExit("a name that does not exist was found")
"""
USE_AUTO_CLASSES = """
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
assert type(AutoConfig.from_pretrained(folder + "/model")) is showo_hf.ShowoConfig
assert type(AutoProcessor.from_pretrained(folder + "/model")) is showo_hf.ShowoProcessor
assert type(AutoModelForCausalLM.from_pretrained(folder + "/model")) is showo_hf.ShowoForCausalLM
assert showo_hf.ShowoMMUPipeline.from_pretrained(folder).model.config.model_type == "showo"
"""
PLAIN_IMPORT = "import showo_hf\nfolder = showo_hf.EMBEDDED_MODEL\n"


@pytest.mark.parametrize(
    "start",
    [pytest.param(NOT_LOADED_YET, id="command"), pytest.param(PLAIN_IMPORT, id="import")],
)
@pytest.mark.slow
def test_auto_classes_work_however_the_package_was_imported(start, tmp_path):
    code = start + USE_AUTO_CLASSES
    done = subprocess.run([sys.executable, "-c", code, COMMAND.parent], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_command_prints_only_what_concerns_the_user(tmp_path):
    words = [
        "generate",
        "a red apple to the left of a blue car",
        "-o",
        "a.png",
        "--seed",
        "1",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    done = subprocess.run([sys.executable, COMMAND, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.png\n", "")


def test_an_image_above_the_limit_is_reported_once(tmp_path, monkeypatch, capfd):
    """Pillow has a limit of its own, and would warn."""
    monkeypatch.chdir(tmp_path)
    Image.new("1", (10_000, 9_500)).save("large.png")
    monkeypatch.setattr(sys, "argv", ["showo-hf", "caption", "large.png", "--device", "cpu"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert showo_hf_command.main() == 1
    assert not caught
    printed = capfd.readouterr()
    start = "showo-hf: error: 'large.png' cannot be read: its 10000x9500 pixels are more than"
    assert printed.out == "" and printed.err.startswith(start) and printed.err.count("\n") == 1


@pytest.mark.slow
def test_warnings_of_the_user_stay():
    code = (
        "import logging, sys; sys.path.insert(0, sys.argv[1])\n"
        "import showo_hf_command; showo_hf_command.prepare()\n"
        "from showo_hf.commands.model_loading import load_package\n"
        "load_package()\n"
        "logging.getLogger('torchao').warning('of the user')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, COMMAND.parent], capture_output=True, text=True, env=os.environ)
    assert done.stderr.splitlines() == ["of the user"]


def test_the_console_script_starts_outside_of_the_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = settings["options.entry_points"]["console_scripts"].split()
    assert scripts == ["showo-hf", "=", "showo_hf_command:main"]
    assert settings["options"]["py_modules"].split() == ["showo_hf_command"]
