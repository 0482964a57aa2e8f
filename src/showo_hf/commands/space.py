"""`showo-hf space`: a folder that is ready to be a Gradio Space, or to be served anywhere."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..utils.argument_types import HUB_NAME, quoted, user_path
from ..utils.messages import for_stdout
from .errors import CommandError, UsageError
from .files import check_folder
from .info import package_version
from .model_loading import say
from .texts import exists


EXAMPLES = """\
FOLDER gets README.md, requirements.txt, app.py and the wheel of this package. The names of the files go to stdout.
If FOLDER holds just these files as an earlier call wrote them, they are replaced: so a failed push can be repeated.

examples:
  a folder with the embedded model, served here
    showo-hf space my-space
    cd my-space && pip install -r requirements.txt && python app.py

  a Space on the Hugging Face Hub, with a model from there
    showo-hf space my-space --model org/model --push org/name

exit codes: 0 the folder is written, and pushed, 1 the work failed, 2 the arguments are not valid
"""

#: What a wheel is built from, in a checkout of the source.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "pipelines", "conversion")

README = """\
---
title: {quoted}
colorFrom: indigo
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
{models}---

# {title}

A Show-o model that makes images from words, changes images, and answers questions about them.
"""

APP = '''\
"""Starts the Space. The variables can be set in the settings of the Space, too."""

import os


try:
    import spaces  # noqa: F401: on ZeroGPU, before anything that may use CUDA
except ImportError:
    pass

for name, value in {variables}.items():
    os.environ.setdefault(name, value)

from showo_hf.app import main  # noqa: E402


main()
'''


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "space",
        help="make a folder that is ready to be a Gradio Space",
        description="Make a folder that is ready to be a Gradio Space, and push it to the Hugging Face Hub.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=user_path, metavar="FOLDER", help="a new or empty folder, or one of an earlier call")
    add("--model", metavar="ORG/NAME", help="a model on the Hub (default: the embedded model)")
    add("--title", default="Show-o", help="title of the Space (default: Show-o)")
    add("--wheel", type=user_path, metavar="FILE", help="wheel of this package (default: built from the checkout)")
    add("--push", metavar="ORG/NAME", help="create or update this Space on the Hub")
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the folder, and push it."""
    check_options(options)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = options.wheel or build_wheel(Path(scratch))
        options.folder.mkdir(parents=True, exist_ok=True)
        target = options.folder / wheel.name
        if not (target.exists() and target.samefile(wheel)):
            shutil.copyfile(wheel, target)
    for earlier in options.folder.glob("*.whl"):
        if earlier.name != wheel.name:
            earlier.unlink()
    texts = texts_of(options.title, options.model, wheel.name, options.push, package_version("gradio"))
    for name, text in texts.items():
        (options.folder / name).write_text(text, encoding="utf-8")
    for name in (*texts, wheel.name):
        print(for_stdout(str(options.folder / name)))
    if options.push:
        push(options.folder, options.push)
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise `UsageError` for options that are not valid. Nothing is written."""
    check_folder("FOLDER", options.folder)
    if options.folder.exists() and any(options.folder.iterdir()) and not is_unchanged(options.folder):
        raise UsageError(
            "`FOLDER` must be a new or empty folder, or hold just what an earlier call wrote, without changes, "
            f"got {quoted(options.folder)}"
        )
    for name in ("model", "push"):
        value = getattr(options, name)
        if value is not None and not HUB_NAME.fullmatch(value):
            raise UsageError(f"`--{name}` must be a name on the Hub such as owner/name, got {quoted(value)}")
    if "\n" in options.title or not options.title.strip():
        raise UsageError(f"`--title` must be one line, got {quoted(options.title)}")
    if options.wheel is not None and not (
        exists(options.wheel) and options.wheel.is_file() and options.wheel.suffix == ".whl"
    ):
        raise UsageError(f"`--wheel` must be a wheel, a file *.whl, got {quoted(options.wheel)}")
    if options.wheel is None and not (checkout() / "setup.cfg").is_file():
        raise UsageError("`--wheel` is needed, because this package was not installed from a checkout of its source")
    if package_version("gradio") is None:
        raise UsageError("`showo-hf space` needs Gradio: pip install 'showo-hf[app]'")


def is_unchanged(folder: Path) -> bool:
    """Whether a folder holds the files that this command writes, with any options, and nothing else."""
    paths = {path.name: path for path in folder.iterdir()}
    if not all(path.is_file() and not path.is_symlink() for path in paths.values()):
        return False
    try:
        texts = {name: paths[name].read_text(encoding="utf-8") for name in ("README.md", "requirements.txt", "app.py")}
    except (KeyError, OSError, ValueError):
        return False
    title = re.search(r"^# (.*)$", texts["README.md"], re.MULTILINE)
    gradio = re.search(r"^sdk_version: (.*)$", texts["README.md"], re.MULTILINE)
    model = re.search(r'"SHOWO_MODEL": "([^"]*)"', texts["app.py"])
    wheel = re.search(r"([^/]+\.whl)", texts["requirements.txt"])
    space = re.search(r"/spaces/(.+)/resolve/", texts["requirements.txt"])
    if title is None or gradio is None or wheel is None:
        return False
    model_name, space_name = (found[1] if found else None for found in (model, space))
    written = texts_of(title[1], model_name, wheel[1], space_name, gradio[1])
    return texts == written and paths.keys() == {*written, wheel[1]}


def checkout() -> Path:
    """The root of the source, if this package was installed from a checkout."""
    return Path(__file__).resolve().parents[3]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the checkout: a build writes into its source folder."""
    say("building the wheel of this package")
    source = folder / "source"
    for name in SOURCES:
        path = checkout() / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("*.pyc", "*.egg-info", "*.pyi"))
        elif path.is_file():
            source.mkdir(exist_ok=True)
            shutil.copyfile(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if result.returncode or not found:
        lines = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise CommandError(f"the wheel cannot be built: {lines[-1]}")
    return found[0]


def texts_of(title: str, model: str | None, wheel: str, space: str | None, gradio: str | None) -> dict[str, str]:
    """The files beside the wheel. `gradio` is the version that the Hub installs."""
    return {
        "README.md": readme(title, model, gradio),
        "requirements.txt": requirements(wheel, space),
        "app.py": app(model),
    }


def readme(title: str, model: str | None, gradio: str | None) -> str:
    """The README with the head that the Hub reads."""
    models = f"models:\n- {model}\n" if model else ""
    return README.format(title=title, quoted=json.dumps(title), gradio=gradio, models=models)


def requirements(wheel: str, space: str | None) -> str:
    """The requirements. The Hub installs them before it has the files of the Space, so they name the wheel's address."""
    if space is None:
        return f"./{wheel}[app]\n"
    return f"showo-hf[app] @ https://huggingface.co/spaces/{space}/resolve/main/{wheel}\n"


def app(model: str | None) -> str:
    """The program. Spaces stand behind a proxy, which names the visitor's address."""
    variables = {"SHOWO_FORWARDED_HEADER": "X-Forwarded-For", **({"SHOWO_MODEL": model} if model else {})}
    return APP.format(variables=json.dumps(variables))


def push(folder: Path, name: str) -> None:
    """Create the Space if there is none, and upload the folder."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    say(f"uploading {quoted(folder)}")
    try:
        api = HfApi()
        url = api.create_repo(name, repo_type="space", space_sdk="gradio", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, repo_type="space")
    except (HfHubHTTPError, OSError) as error:
        raise CommandError(f"the Space '{name}' cannot be pushed: {error}") from error
    print(url)
