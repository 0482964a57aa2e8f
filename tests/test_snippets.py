"""
The Python of README.md and the guides: each snippet runs, or stands below with the reason why not.

The snippets of a page run in order, in one process and in a folder that is empty at first. The page's commands
`showo-hf generate ... -o FILE` make the images that they read.
"""

import os
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from showo_hf.cli import main


ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
MAKES_IMAGE = re.compile(r"showo-hf generate \"[^\"]*\"(?: --(?:seed|steps) \d+)* -o \w+\.png")

TRAINED = "loads the result of a training"
PUBLISHED = "loads published weights"
#: Pages, the numbers of their snippets that do not run here (from 0), and the reason.
NOT_RUN = {
    "concept.md": ({0}, TRAINED),
    "conversion.md": ({0}, PUBLISHED),
    "diffusion_decoder.md": ({0}, TRAINED),
    "finetuning.md": ({0}, TRAINED),
    "image_tokenizer_training.md": ({0, 1}, "loads the result of a training, and published weights of LPIPS"),
    "instruct.md": ({0}, TRAINED),
    "lora.md": ({0, 1}, TRAINED),
    "models.md": ({3, 4}, PUBLISHED),
    "onnx.md": ({0}, "runs in an exported folder, see tests/conversion/test_export_onnx.py"),
    "sharing.md": ({2, 3}, "pushes to the Hub, see tests/pipelines/test_pipeline_showo_t2i_saving.py"),
    "stages.md": ({0}, TRAINED),
    "tensor_parallel.md": ({0}, "runs in several processes, see tests/models/test_tensor_parallel.py"),
}


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (language, code)."""
    text = page.read_text(encoding="utf-8")
    return [(match["language"], textwrap.dedent(match["code"])) for match in FENCE.finditer(text)]


def snippets_of(page: Path) -> list[str]:
    return [code for language, code in blocks_of(page) if language == "python"]


PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if snippets_of(page)}


def skipped_on(name: str) -> set[int]:
    return NOT_RUN.get(name, (set(), ""))[0]


def test_every_snippet_is_python_and_runs_or_has_a_reason():
    count = {name: len(snippets_of(page)) for name, page in PAGES.items()}
    for name, (numbers, reason) in NOT_RUN.items():
        assert numbers <= set(range(count.get(name, 0))), f"{name} has no such snippet; remove it from NOT_RUN"
        print(f"{name}: {len(numbers)} of {count[name]} not run: {reason}")
    for page in PAGES.values():
        for number, code in enumerate(snippets_of(page)):
            compile(code, f"{page.name}, snippet {number}", "exec")
    not_run = sum(len(numbers) for numbers, _ in NOT_RUN.values())
    print(f"{sum(count.values()) - not_run} of {sum(count.values())} snippets run")
    assert not_run <= 16  # fewer is better: lower this bound with each that runs


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if len(skipped_on(name)) < len(snippets_of(PAGES[name]))])
def test_the_snippets_of_a_page_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = {"__name__": "__main__"}
    number = 0
    for language, code in blocks_of(PAGES[name]):
        if language == "python":
            if number not in skipped_on(name):
                exec(compile(code, f"{name}, snippet {number}", "exec"), variables)
            number += 1
        elif not language:
            for command in MAKES_IMAGE.findall(code):
                if not os.path.exists(shlex.split(command)[-1]):
                    assert main([*shlex.split(command)[1:], "--quiet"]) == 0
