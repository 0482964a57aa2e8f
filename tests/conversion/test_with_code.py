"""`--with-code`: a converted folder works without showo-hf."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import environment_of
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from transformers import AutoModelForCausalLM, AutoProcessor

from showo_hf import ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline
from showo_hf.conversion import remote_code
from showo_hf.conversion.convert_showo import convert_showo


IDS = [50300, 50256, 11, 12, 50256, 50296, 50306, 50309, 50321, 50321, 50297]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted folder with code; the same folder without code is beside it."""
    root = tmp_path_factory.mktemp("code")
    weights, config = small_showo()
    write_original(root / "showo", weights, config)
    write_original(root / "magvitv2", small_magvitv2(), None)
    sources = (root / "showo", root / "magvitv2", TEXT_TOKENIZER)
    convert_showo(*sources, root / "with-code", with_code=True)
    convert_showo(*sources, root / "without")
    return root / "with-code"


def results(model, processor, pipe) -> dict[str, torch.Tensor]:
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits
    return {
        "logits": logits,
        "ids": processor.text_to_image(["a red apple"])["input_ids"],
        "images": pipe(["a red apple", "owl"], **options).images,
    }


@pytest.fixture(scope="module")
def expected(folder):
    plain = folder.parent / "without"
    model, processor = (
        ShowoForCausalLM.from_pretrained(plain / "model"),
        ShowoProcessor.from_pretrained(plain / "model"),
    )
    return results(model, processor, ShowoT2IPipeline.from_pretrained(plain))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def files_of(folder: Path, pattern="*") -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if path.is_file()}


@pytest.mark.slow
def test_only_a_folder_with_code_has_code(folder):
    plain = folder.parent / "without"
    assert not files_of(plain, "*.py")
    assert "auto_map" not in "".join(path.read_text() for path in plain.rglob("*.json"))
    assert "trust_remote_code" not in (plain / "README.md").read_text()
    code = {str(Path(place) / f"{name}.py") for place, names in remote_code.FOLDERS.items() for name in names}
    assert files_of(folder) == files_of(plain) | code
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    for name in files_of(plain, "*.safetensors"):
        assert (folder / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("name", remote_code.MODULES)
def test_each_file_stands_alone(folder, name):
    for source in {path.read_text() for path in folder.rglob(f"{name}.py")}:
        imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in imported:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(module is None or module.split(".")[0] == "showo_hf" for module in modules)
            assert getattr(node, "level", 0) == 0
        # transformers and diffusers find such lines with a regular expression, also in docstrings.
        assert not re.search(r"^\s*(import|from)\s+\.", source, re.MULTILINE)


def test_with_this_package_the_folder_needs_no_trust(folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    pipe = ShowoT2IPipeline.from_pretrained(folder)
    assert type(model) is ShowoForCausalLM is type(pipe.model)
    assert type(processor) is ShowoProcessor is type(pipe.processor)
    assert_same(results(model, processor, pipe), expected)


def test_a_saved_pipeline_names_this_package_again(folder, tmp_path):
    ShowoT2IPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    saved, plain = (
        json.loads((place / "model_index.json").read_text()) for place in (tmp_path, folder.parent / "without")
    )
    assert {name: value for name, value in saved.items() if name != "_name_or_path"} == plain


# Without showo-hf


LOAD = """
import importlib.util
import sys

import torch
from diffusers import DiffusionPipeline
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

assert importlib.util.find_spec("showo_hf") is None
trust = {"trust_remote_code": True}


def refused(load, *arguments, **options):
    try:
        load(*arguments, **options, trust_remote_code=False)
    except ValueError as error:
        return "trust_remote_code" in str(error)


def results(name, subfolders):
    here, options = (name, {"subfolder": "model"}) if subfolders else (f"{name}/model", {})
    assert refused(AutoModelForCausalLM.from_pretrained, here, **options)
    assert refused(DiffusionPipeline.from_pretrained, name)
    assert AutoConfig.from_pretrained(here, **options, **trust).num_image_tokens == 4
    model = AutoModelForCausalLM.from_pretrained(here, **options, **trust)
    processor = AutoProcessor.from_pretrained(here, **options, **trust)
    pipe = DiffusionPipeline.from_pretrained(name, **trust)
    pipe.set_progress_bar_config(disable=True)
    sampling = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits
    return {
        "logits": logits,
        "ids": processor.text_to_image(["a red apple"])["input_ids"],
        "images": pipe(["a red apple", "owl"], **sampling).images,
    }


folder, output = sys.argv[1:]
found = [results(folder, False), results(folder, True), results("someone/coded", True)]
named = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, **trust)
assert type(named).__name__ == "ShowoT2IPipeline"
torch.save(found, output)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """
    The interpreter of an environment that has all packages but showo-hf.

    A .pth file adds the package folders of this interpreter. Python does not read .pth files in these folders, so it
    ignores the editable install of the checkout.
    """
    environment = tmp_path_factory.mktemp("elsewhere") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return environment / "bin" / "python"


@pytest.mark.slow
def test_without_this_package(folder, expected, python, hub, tmp_path):
    hub.repositories["someone/coded"] = {name: (folder / name).read_bytes() for name in files_of(folder)}
    environment = {
        name: value for name, value in environment_of(hub, tmp_path / "home").items() if "PYTHON" not in name
    }
    command = [python, "-c", f"IDS = {IDS}\n{LOAD}", folder, tmp_path / "found.pt"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run(command, env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules")}, **options)
    assert done.returncode == 0, done.stderr
    assert "Expected types" not in done.stderr
    for found in torch.load(tmp_path / "found.pt"):
        assert_same(found, expected)


# Joining modules


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that writes modules of a package, which replaces showo_hf."""

    def write(**sources):
        (tmp_path / "small").mkdir(exist_ok=True)
        for name, source in ({"__init__": ""} | sources).items():
            (tmp_path / "small" / f"{name}.py").write_text(source)

    monkeypatch.setattr(remote_code, "PACKAGE", "small")
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "small"]:
        del sys.modules[name]


def test_imported_modules_come_first(package):
    package(
        a="import math\n\nfrom .b import (\n    one,\n    two,\n)\nfrom small.c import three\n\nsix = one + two + three\n",
        b='"""Two numbers."""\n\nimport math\n\nfrom .c import three\n\none, two = math.floor(1.5), three - 1\n',
        c="three = 3\n",
    )
    source = remote_code.standalone("small.a")
    sections = [line for line in source.splitlines() if line.startswith("# From")]
    assert sections == ["# From small.c", "# From small.b", "# From small.a"]
    assert "Two numbers" in source and "small import" not in source and "from ." not in source
    made: dict = {}
    exec(source, made)
    assert made["six"] == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import small.b\n", "line 1: import the package by `from ... import`"),
        ("from .b import one as first\n", "small.a, line 1: import from the package at the top"),
        ("def f():\n    from .b import one\n", "small.a, line 2: import from the package at the top"),
        ("from . import b\n", "from the module that defines them"),
        ("from .b import *\n", "from the module that defines them"),
        ("from .b import one\n\nmath = 3\n", "`math` is both 'import math' and 'math = 3'"),
        ("from .b import one\n\ndef two():\n    pass\n", "`two` is both 'one, two = (1, 2)' and defined in small.a"),
    ],
)
def test_modules_that_cannot_be_joined_are_refused(package, source, message):
    package(a=source, b="import math\n\none, two = 1, 2\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        remote_code.standalone("small.a")


@pytest.mark.slow
def test_every_file_compiles():
    for module in remote_code.MODULES.values():
        compile(remote_code.standalone(module), module, "exec")
