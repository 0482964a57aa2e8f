"""The command `showo-hf`: help, usage errors, exit codes."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import showo_hf
from showo_hf import cli


# A stand-in for the package, because importing the package imports torch.
READ_THE_COMMAND_LINE = """
import sys, types
package = types.ModuleType("showo_hf")
package.__path__ = [sys.argv[1]]
sys.modules["showo_hf"] = package
from showo_hf.cli import build_parser
build_parser().format_help()
sys.exit(any(name in sys.modules for name in ("torch", "diffusers", "transformers")))
"""


def test_the_parser_does_not_import_torch():
    package = Path(showo_hf.__file__).parent
    assert subprocess.run([sys.executable, "-c", READ_THE_COMMAND_LINE, package]).returncode == 0


ROOT = Path(__file__).resolve().parents[1]
NAMES = tuple(module.__name__.rpartition(".")[2] for module in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in NAMES)])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert "usage: showo-hf" in capsys.readouterr().out


def test_every_example_in_the_help_can_be_parsed():
    parser = cli.build_parser()
    texts = [cli.EXAMPLES, *(getattr(command, "EXAMPLES", "") for command in cli.COMMANDS)]
    examples = re.findall(r"^ +showo-hf (.+)$", "\n".join(texts).replace("\\\n", " "), flags=re.MULTILINE)
    assert len(examples) >= 18
    for example in examples:
        words = re.findall(r'"([^"]*)"|(\S+)', example)
        parser.parse_args([quoted or plain for quoted, plain in words])


def test_the_help_in_the_docs_is_the_real_one(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    import command_line

    written = command_line.PAGE.read_text(encoding="utf-8")
    assert re.findall("^## (.+)$", written, flags=re.MULTILINE) == ["showo-hf", *NAMES]
    assert plain(written) == plain(command_line.page()), "run `python docs/site/command_line.py`"


def plain(text: str) -> str:
    """A help text without line breaks, and as Python 3.13 writes it: a value once for both names of an option."""
    return " ".join(re.sub(r"(-\w) (\S+), (--[\w-]+) \2", r"\1, \3 \2", text).split())


def commands_in_docs() -> list[tuple[str, str]]:
    """The command lines of README.md and the guides, with the name of their page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    fence = re.compile(r"^ *```(?:bash|sh)?\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    line = re.compile(r'^ *(?:\$ )?(?:\.venv/bin/)?showo-hf ((?:[^"\n]|"[^"]*")+)$', re.MULTILINE)
    blocks = [(page.name, block) for page in pages for block in fence.findall(page.read_text(encoding="utf-8"))]
    return [(name, command) for name, block in blocks for command in line.findall(block.replace("\\\n", " "))]


def test_every_command_in_the_docs_can_be_parsed():
    found = commands_in_docs()
    assert len(found) >= 30
    parser = cli.build_parser()
    for page, command in found:
        words = shlex.split(re.sub(r" (?:[<>|]|&&) [^\"']*$", "", command), comments=True)
        try:
            parser.parse_args(words)
        except SystemExit as end:
            assert end.code == cli.GOOD, f"{page}: showo-hf {command}"


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"showo-hf {version('showo-hf')}\n"


@pytest.mark.parametrize(("arguments", "named"), [([], "COMMAND"), (["paint"], "paint")])
def test_an_unknown_command_is_refused(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == cli.USAGE
    assert printed.out == ""
    assert named in printed.err.splitlines()[-1]


def test_debug_shows_the_traceback_and_keeps_the_exit_code(capsys):
    assert cli.main(["generate", "an owl", "-o", "owl.bmp", "--debug"]) == cli.USAGE
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "owl", "--styel", "flat"], "there is no option '--styel'"),  # not that --output is missing
        (["generate", "owl", "--sted=3"], "there is no option '--sted'; did you mean '--seed'?"),
        (["ask", "a.png", "b", "--questoin", "c"], "there is no option '--questoin'; did you mean '--question'?"),
        (["generate", "owl", "--height", "96"], "there is no option '--height'; here it is called --size"),
        (["extend", "a.png", "owl", "--num-inference-steps=3"], "here it is called --steps"),
        (["caption", "--height", "96"], "there is no option '--height'"),
        (["train", "finetune", "--data", "x"], "there is no option '--data'; write data=VALUE"),
        (["train", "lora", "--learning-rate=3"], "'--learning-rate'; write learning_rate=VALUE"),
        (["info", "--\x1b[2J"], r"'--\x1b[2J'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_option_is_named_first_with_one_like_it(capsys, words, told):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    assert told in lines[0] and lines[0].endswith(f"(see showo-hf {words[0]} --help)")


def test_known_options_may_be_shortened_and_two_dashes_end_them(capsys):
    for words in (["generate", "owl", "--see", "3"], ["generate", "--", "--styel"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "-o/--output" in capsys.readouterr().err  # what is missing


def test_the_parser_of_each_command_knows_all_its_options():
    for command in cli.build_parser().commands:
        options = {word for action in command.arguments for word in action.option_strings if word.startswith("--")}
        assert set(re.findall(r"--[a-z][a-z-]+", command.format_usage())) <= options
