"""The package as others get it: its metadata, its wheel, and an image made far from the repository."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = "showo_hf/checkpoints/showo-world"
GENERATE = (
    "generate",
    "a red apple to the left of a blue car",
    "--seed",
    "3",
    "--num",
    "2",
    "--device",
    "cpu",
    "--quiet",
)


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def source_folder(package: str, settings: configparser.ConfigParser) -> Path:
    """The folder of a package, by `package_dir` in setup.cfg."""
    mapping = dict(re.split(r"\s*=\s*", line.strip()) for line in lines(settings["options"]["package_dir"]))
    if package in mapping:
        return ROOT / mapping[package]
    return ROOT / mapping[""] / package.replace(".", "/")


def test_every_listed_package_is_there(settings):
    packages = lines(settings["options"]["packages"])
    assert packages
    for package in packages:
        assert (source_folder(package, settings) / "__init__.py").is_file(), package


def test_every_package_is_listed(settings):
    packages = lines(settings["options"]["packages"])
    listed = {source_folder(package, settings) for package in packages}
    modules = {ROOT / "src" / f"{name}.py" for name in lines(settings["options"]["py_modules"])}
    for top in (ROOT / "src", ROOT / "pipelines", ROOT / "conversion"):
        for file in top.rglob("*.py"):
            assert file in modules or file.parent in listed, f"{file.relative_to(ROOT)} is in no package of setup.cfg"


def all_requirements(settings: configparser.ConfigParser) -> list[Requirement]:
    texts = lines(settings["options"]["install_requires"])
    for extra in settings["options.extras_require"].values():
        texts += lines(extra)
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "showo-hf"]


def versions_in(file: str) -> dict[str, str]:
    """Versions by name of package, in a file of constraints."""
    pins = (line.split("==") for line in lines((ROOT / file).read_text(encoding="utf-8")) if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def lower_bound(requirement: Requirement) -> str | None:
    return next((bound.version for bound in requirement.specifier if bound.operator == ">="), None)


def test_every_requirement_has_a_lower_bound_and_a_tested_version(settings):
    pins = versions_in("constraints.txt")
    for requirement in all_requirements(settings):
        assert lower_bound(requirement), requirement
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_lowest_versions_are_the_lower_bounds(settings):
    pins = versions_in("constraints-lowest.txt")
    bounds = {canonicalize_name(one.name): lower_bound(one) for one in all_requirements(settings)}
    assert set(pins) == set(bounds)
    for name, bound in bounds.items():
        if name == "torch":  # the file's comment says why
            assert Version(pins[name]) >= Version(bound)
        else:
            assert Version(pins[name]) == Version(bound), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), f"{page} links to {link}"


def test_ci_runs_the_readme_s_test_command_and_the_slow_tests():
    assert "\nmake test\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:TEST_MINUTES=\d+ )?make (test|test-slow) ", script, re.MULTILINE)
    assert commands == ["test", "test-slow"]


MAKE = """#!/usr/bin/env bash
echo "make $1"
case "$1" in
    test) echo "===== 9 passed, 2 skipped in 8.10s ====="; exit $QUICK ;;
    test-slow) echo "=== 1 failed, 3 passed in 99.00s (0:01:39) ==="; echo "make: Error"; exit $SLOW ;;
esac
"""


@pytest.mark.parametrize(("quick", "slow"), [(0, 0), (1, 0), (0, 2), (2, 2)])
def test_ci_ends_with_pytest_s_closing_lines_and_fails_if_either_fails(tmp_path, quick, slow):
    (tmp_path / "make").write_text(MAKE, encoding="utf-8")
    (tmp_path / "make").chmod(0o755)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "QUICK": str(quick), "SLOW": str(slow)}
    done = subprocess.run([ROOT / ".ci" / "run"], env=os.environ | variables, capture_output=True, text=True)
    assert bool(done.returncode) == bool(quick or slow)
    closing = ["=== 1 failed, 3 passed in 99.00s (0:01:39) ===", "===== 9 passed, 2 skipped in 8.10s ====="]
    assert done.stdout.splitlines()[-2:] == closing


def run(command: list, folder: Path) -> str:
    """Run a command in `folder`, without this process's Python variables, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONNOUSERSITE"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the source: a build writes into its source folder, and reads old files there."""
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "pipelines", "conversion"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_all_packages(wheel, settings):
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in lines(settings["options"]["packages"]):
        assert f"{package.replace('.', '/')}/__init__.py" in held
    for folder, name in (("src/showo_hf", ""), ("pipelines", "pipelines/"), ("conversion", "conversion/")):
        for file in (ROOT / folder).rglob("*"):
            # Gradio writes a `.pyi` file beside a module of components when the module is imported.
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyi":
                assert f"showo_hf/{name}{file.relative_to(ROOT / folder).as_posix()}" in held
    assert f"{EMBEDDED}/model_index.json" in held
    assert {Path(name).name for name in held if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"showo_hf", "showo_hf_command.py"}


@pytest.mark.slow
def test_the_embedded_model_is_small(wheel):
    weights = [entry for entry in zipfile.ZipFile(wheel).infolist() if entry.filename.endswith(".safetensors")]
    assert weights
    assert sum(entry.file_size for entry in weights) <= 45e6


@pytest.fixture(scope="session")
def empty_environment(wheel, tmp_path_factory) -> Path:
    """
    A new virtual environment with the wheel only, outside of the repository.

    Installing torch again would take minutes, so a .pth file adds the package folders of this interpreter. Python does
    not read the .pth files in these folders, so an editable install of the checkout has no effect in the environment.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site_packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run([*install, "--ignore-installed", wheel], folder)
    return folder


@pytest.mark.slow
def test_nothing_of_the_checkout_can_be_imported_there(empty_environment, tmp_path):
    program = """
import sys, showo_hf, showo_hf.cli, showo_hf.pipelines, showo_hf.conversion
print(*[module.__file__ for name, module in sys.modules.items() if name.startswith("showo_hf")], sep="\\n")
print("PATH", *sys.path, sep="\\n")
"""
    printed = run([empty_environment / "bin" / "python", "-c", program], tmp_path)
    modules, path = (lines(part) for part in printed.split("PATH\n"))
    assert len(modules) > 4
    assert all(Path(file).resolve().is_relative_to(empty_environment.resolve()) for file in modules)
    # The environment that runs the tests may be a folder of the checkout. Its packages do not count.
    outside = [Path(entry).resolve() for entry in path if not Path(entry).is_relative_to(sys.prefix)]
    assert not any(entry.is_relative_to(ROOT) for entry in outside)


@pytest.mark.slow
def test_the_installed_command_makes_the_same_images_as_the_checkout(empty_environment, tmp_path):
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    here.mkdir()
    printed = run([empty_environment / "bin" / "showo-hf", *GENERATE, "-o", "scene.png"], away)
    assert printed == "scene-0.png\nscene-1.png\n"

    program = "import sys, showo_hf; from showo_hf.cli import main; print(showo_hf.__file__); sys.exit(main())"
    command = [sys.executable, "-c", program, *GENERATE, "-o", "scene.png"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split("\n")[0]).resolve().is_relative_to(ROOT)

    for name in ("scene-0.png", "scene-1.png"):
        assert (away / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(sys.prefix) / "installed.stamp").exists() or shutil.which("make") is None,
    reason="`make test` did not create this environment",
)
def test_make_demo_makes_an_image_and_says_where(tmp_path):
    pil_image = tmp_path / "new" / "demo.png"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "demo", f"VENV={sys.prefix}", f"DEMO_OUTPUT={pil_image}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"The image is in {pil_image}"
    with Image.open(pil_image) as image:
        assert image.size == (96, 96)
