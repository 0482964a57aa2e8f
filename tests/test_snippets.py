"""
The Python of README.md and the guides: each snippet runs, or stands below with the reason why not.

The snippets of a page run in order, in one process and in a folder that is empty at first, and so do its commands that make
images or read them. What follows a command after "$ " is what it prints. What a page's training or conversion would have
made is put there as a small model with random weights; trainings and conversions have their own tests.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import originals
import pytest
import tiny
import tiny_adapters
import torch
from hub_server import user_of
from PIL import Image

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM, ShowoT2IPipeline
from showo_hf.cli import main
from showo_hf.conversion.convert_showo import convert_showo


ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
RUN_COMMANDS = ("generate", "inpaint", "extend", "vary", "caption", "ask")
NUMBER = re.compile(r"\d+\.\d+")

#: Pages, the numbers of their snippets that do not run here (from 0), and the reason.
NOT_RUN = {
    "tensor_parallel.md": ({0}, "runs in several processes, see tests/models/test_tensor_parallel.py"),
}
MOST_NOT_RUN = 1  # fewer is better: lower this bound with each that runs
COMMAND_LINE = re.compile(r"(showo-hf|python3?|pip|make|docker|accelerate|torchrun|printf|cat) ")
#: Commands that no test runs as they stand in the guides, by how they begin, and what tests them.
COMMANDS_NOT_RUN = {
    "showo-hf train": "data and models of the reader; tests/training runs the recipes with small ones",
    "accelerate launch": "several GPUs; tests/training/test_parallel.py and tests/commands run two processes",
    "torchrun": "several GPUs; tests/training/test_parallel.py runs two processes",
    "showo-hf convert": "published weights; tests/conversion has small ones",
    "showo-hf export": "minutes; tests/conversion/test_export_onnx.py",
    "showo-hf tokenize": "data of the reader; tests/commands/test_tokenize.py",
    "showo-hf space": "uploads; tests/commands/test_space.py",
    "showo-hf chat": "asks for a line at a time; tests/commands/test_chat.py",
    "showo-hf generate --": "help, or a file of the reader; tests/commands/test_prompt_files.py",
    "pip": "installs; tests/test_packaging.py",
    "make": "installs; tests/test_packaging.py and .ci/run",
    "docker": "no Docker in the tests, which run the same app: tests/app, tests/commands/test_space.py",
    "python": "recipes and benchmarks take minutes to hours; tests/recipes and tests/benchmarks run them in small",
}
MOST_COMMANDS_NOT_RUN = 95
#: Pages that take more than some seconds: they compile, export, or make many images.
SLOW = {
    *("concept.md", "conversion.md", "extending.md", "inpainting.md", "lora.md", "mixed.md", "models.md", "onnx.md"),
    *("samplers.md", "sharing.md", "space.md", "text_to_image.md", "variations.md"),
}


# What must be there before the snippets of a page run


def put_model(name: str) -> None:
    tiny.pipeline(tiny.processor()).save_pretrained(name)


def put_adapter(name: str) -> None:
    model = ShowoForCausalLM.from_pretrained(f"{EMBEDDED_MODEL}/model")
    tiny_adapters.add_adapter(model, tiny_adapters.adapter_config(model, rank=2), seed=0)
    tiny_adapters.save_adapter(model, Path(name), EMBEDDED_MODEL)


def before_lora() -> None:
    put_adapter("my-lora")
    put_adapter("my-ring")


def before_diffusion_decoder() -> None:
    put_model("my-model")
    tiny.image_decoder().save_pretrained("my-decoder")


def before_image_tokenizer_training() -> None:
    tiny.lfq().save_pretrained("my-tokenizer")
    torch.save({"features.0.weight": torch.zeros(2, 3)}, "vgg16-397923af.pth")
    torch.save({"lin0.model.1.weight": torch.zeros(2, 3).T}, "vgg.pth")


def before_instruct() -> None:
    put_model("my-chat")
    Image.new("RGB", (32, 32), "red").save("0001.png")


def before_conversion() -> None:
    weights, config = originals.small_showo()
    sources = [
        originals.write_original(Path("showo"), weights, config),
        originals.write_original(Path("magvitv2"), originals.small_magvitv2(), None),
        originals.TEXT_TOKENIZER,
    ]
    Path("you").mkdir()
    convert_showo(*sources, "you/show-o-hf", with_code=True)


def before_onnx() -> None:
    """The snippet of the page runs in the exported folder."""
    export_onnx = pytest.importorskip("showo_hf.conversion.export_onnx").export_onnx
    put_model("model")
    export_onnx("model", "exported")
    os.chdir("exported")
    sys.path.insert(0, os.getcwd())


BEFORE: dict[str, Callable[[], None]] = {
    "README.md": lambda: put_adapter("my-lora"),
    "concept.md": lambda: put_adapter("my-mug-lora"),
    "conversion.md": before_conversion,
    "diffusion_decoder.md": before_diffusion_decoder,
    "finetuning.md": lambda: put_model("my-model"),
    "image_tokenizer_training.md": before_image_tokenizer_training,
    "instruct.md": before_instruct,
    "lora.md": before_lora,
    "models.md": lambda: put_model("show-o-hf"),
    "onnx.md": before_onnx,
    "stages.md": lambda: put_model("stage1"),
}


@pytest.fixture
def running_space():
    """A Space at the address that the guide names, unless a test of the Space has one there already."""
    app = pytest.importorskip("showo_hf.app")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 7860)) == 0:
            yield
            return
    space = app.build_space(ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL), warm_up=False)
    demo = app.build_demo(space)
    app.launch(demo, space, server_name="127.0.0.1", server_port=7860, prevent_thread_lock=True, quiet=True)
    yield
    demo.close(verbose=False)


#: Fixtures that pages need.
FIXTURES = {"space.md": "running_space"}


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (language, code)."""
    text = page.read_text(encoding="utf-8")
    return [(match["language"], textwrap.dedent(match["code"])) for match in FENCE.finditer(text)]


def commands_of(code: str) -> list[str]:
    """The commands of a block that make images or read them, or that write a file for those."""
    lines = [line.strip().removeprefix(".venv/bin/") for line in code.replace("\\\n", " ").splitlines()]
    starts = ("printf ", *(f"showo-hf {one} " for one in RUN_COMMANDS))
    return [line for line in lines if line.startswith(starts) and not {"help", "--help"} & set(shlex.split(line))]


def run_command(command: str) -> None:
    if command.startswith("printf "):
        subprocess.run(command, shell=True, check=True)
    else:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command


def sessions_of(code: str) -> list[tuple[str, str]]:
    """The commands of a block that stand after a prompt, "$ ", and what the page shows below each."""
    found: list[tuple[str, list[str]]] = []
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return [(command, "".join(f"{line}\n" for line in shown)) for command, shown in found]


def run_session(command: str, shown: str, monkeypatch, capsys) -> None:
    """Write the file that `cat` shows, or run a command: it prints what the page shows, but for small digits."""
    command, _, source = command.partition(" < ")
    program, *words = shlex.split(command)
    if program == "cat":
        Path(words[0]).write_text(shown, encoding="utf-8")
        return
    assert program == "showo-hf", command
    capsys.readouterr()
    with open(source or os.devnull, encoding="utf-8") as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert main(words) == 0, command
    assert rounded(capsys.readouterr().out) == rounded(shown), command


def rounded(text: str) -> str:
    """The text with two digits after each decimal point: more of them depend on the machine."""
    return NUMBER.sub(lambda number: f"{float(number[0]):.2f}", text)


def snippets_of(page: Path) -> list[str]:
    return [code for language, code in blocks_of(page) if language == "python"]


PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if snippets_of(page)}


def skipped_on(name: str) -> set[int]:
    return NOT_RUN.get(name, (set(), ""))[0]


def test_every_snippet_is_python_and_runs_or_has_a_reason(record_property):
    """What is recorded as `said` is printed at the end of the tests; see conftest.py."""
    count = {name: len(snippets_of(page)) for name, page in PAGES.items()}
    for name, (numbers, reason) in NOT_RUN.items():
        assert numbers <= set(range(count.get(name, 0))), f"{name} has no such snippet; remove it from NOT_RUN"
        record_property("said", f"{name}: {len(numbers)} of {count[name]} snippets not run: {reason}")
    for page in PAGES.values():
        for number, code in enumerate(snippets_of(page)):
            compile(code, f"{page.name}, snippet {number}", "exec")
    not_run = sum(len(numbers) for numbers, _ in NOT_RUN.values())
    record_property(
        "said", f"{sum(count.values()) - not_run} of {sum(count.values())} Python snippets of the guides run"
    )
    assert not_run <= MOST_NOT_RUN
    assert {*BEFORE, *FIXTURES, *SLOW} <= set(PAGES)


def test_every_command_runs_or_has_a_reason(record_property):
    run, left = 0, dict.fromkeys(COMMANDS_NOT_RUN, 0)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for language, code in blocks_of(page):
            if language not in ("", "sh", "bash", "console") or "usage: showo-hf" in code:
                continue
            whole = code.replace("\\\n", " ")
            tested = [*commands_of(code), *(command for command, _ in sessions_of(code))] if page.name in PAGES else []
            run += len(tested)
            for line in whole.splitlines():
                command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if not COMMAND_LINE.match(command) or command in tested:
                    continue
                beginnings = [one for one in COMMANDS_NOT_RUN if command.startswith(one)]
                assert beginnings, f"{page.name}: `{command}` is not run; say in COMMANDS_NOT_RUN why"
                left[beginnings[0]] += 1
    for beginning, count in left.items():
        assert count, f"no guide has a command `{beginning}`; remove it from COMMANDS_NOT_RUN"
        record_property("said", f"{count} commands `{beginning} ...` not run: {COMMANDS_NOT_RUN[beginning]}")
    record_property("said", f"{run} of {run + sum(left.values())} commands of the guides run")
    assert sum(left.values()) <= MOST_COMMANDS_NOT_RUN


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, page in PAGES.items()
        if len(skipped_on(name)) < len(snippets_of(page))
    ],
)
def test_the_snippets_of_a_page_run_in_order(name, tmp_path, monkeypatch, hub_here, request, capsys):
    """The Hub is the local server of hub_server.py, on which the user is called `me`."""
    hub_here.tokens["hf_test"] = user_of("write", name="me")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    BEFORE.get(name, lambda: None)()
    if name in FIXTURES:
        request.getfixturevalue(FIXTURES[name])
    variables = {"__name__": "__main__"}
    number = 0
    for language, code in blocks_of(PAGES[name]):
        if language == "python":
            if number not in skipped_on(name):
                exec(compile(code, f"{name}, snippet {number}", "exec"), variables)
            number += 1
        elif not language:
            for command in commands_of(code):
                run_command(command)
            for command, shown in sessions_of(code):
                run_session(command, shown, monkeypatch, capsys)
