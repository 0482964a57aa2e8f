"""`showo-hf space`: the folder of a Space, and the app that starts from it."""

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from showo_hf.cli import main


pytest.importorskip("gradio")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "showo_hf-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("showo_hf/__init__.py", "")
    return path


def test_the_folder_holds_what_the_hub_needs(tmp_path, wheel, capsys):
    folder = tmp_path / "space"
    assert main(["space", str(folder), "--wheel", str(wheel), "--model", "org/model", "--title", 'My "Space"']) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt", wheel.name]
    assert capsys.readouterr().out.split() == [
        str(folder / name) for name in ("README.md", "requirements.txt", "app.py", wheel.name)
    ]
    _, head, _ = (folder / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["sdk"] == "gradio" and values["app_file"] == "app.py" and values["license"] == "apache-2.0"
    assert values["models"] == ["org/model"] and values["title"] == 'My "Space"'
    assert (folder / "requirements.txt").read_text() == f"./{wheel.name}[app]\n"
    program = (folder / "app.py").read_text()
    compile(program, "app.py", "exec")
    assert "'SHOWO_MODEL': 'org/model'" in program.replace('"', "'")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "no name"], "--model"),
        (["--push", "name"], "--push"),
        (["--wheel", "missing.whl"], "--wheel"),
        (["--title", "two\nlines"], "--title"),
    ],
)
def test_wrong_options_write_nothing(tmp_path, wheel, capsys, arguments, message):
    folder = tmp_path / "space"
    given = [] if "--wheel" in arguments else ["--wheel", str(wheel)]
    assert main(["space", str(folder), *given, *arguments]) == 2
    assert message in capsys.readouterr().err and not folder.exists()


def test_a_folder_that_is_in_use_is_refused(tmp_path, wheel, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["space", str(tmp_path), "--wheel", str(wheel)]) == 2
    assert "new or empty" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def test_the_folder_is_pushed_and_pushed_again(tmp_path, wheel, hub_here, capsys):
    for turn, model in enumerate(("org/one", "org/two")):
        folder = tmp_path / f"space-{turn}"
        asked = ["--wheel", str(wheel), "--model", model, "--push", "someone/show"]
        assert main(["space", str(folder), *asked]) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[-1].endswith("someone/show") and printed.err == ""
        pushed = hub_here.repositories["someone/show"]
        assert pushed == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert model in pushed["README.md"].decode() and model in pushed["app.py"].decode()
    created = hub_here.created["someone/show"]
    assert created["type"] == "space" and created["sdk"] == "gradio"
    address = pushed["requirements.txt"].decode().split(" @ ")[1].strip()
    assert address == f"https://huggingface.co/spaces/someone/show/resolve/main/{wheel.name}"


def test_a_push_that_the_hub_refuses_is_one_sentence_and_the_folder_stays(tmp_path, wheel, hub_here, capsys):
    folder = tmp_path / "space"
    assert main(["space", str(folder), "--wheel", str(wheel), "--push", "other/show"]) == 1
    error = capsys.readouterr().err
    assert "the Space 'other/show' cannot be pushed" in error and "Traceback" not in error
    assert "other/show" not in hub_here.repositories and (folder / wheel.name).is_file()
    newer = wheel.rename(wheel.with_name("showo_hf-0.2.0-py3-none-any.whl"))
    assert main(["space", str(folder), "--wheel", str(newer), "--push", "someone/show"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt", newer.name]
    assert hub_here.repositories["someone/show"] == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("changed", ["README.md", "requirements.txt", "app.py", "mine.txt", "mine.whl"])
def test_a_folder_of_an_earlier_call_is_replaced_unless_it_was_changed(tmp_path, wheel, capsys, changed):
    folder = tmp_path / "space"
    asked = ["space", str(folder), "--wheel", str(wheel)]
    assert main([*asked, "--title", 'My "Space"', "--model", "org/model"]) == 0
    assert main(asked) == 0, "also with other options"
    with open(folder / changed, "a") as file:
        file.write("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(asked) == 2
    assert "without changes" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_an_earlier_gradio_is_replaced(tmp_path, wheel):
    folder = tmp_path / "space"
    assert main(["space", str(folder), "--wheel", str(wheel)]) == 0
    written = (folder / "README.md").read_text()
    version = yaml.safe_load(written.split("---\n")[1])["sdk_version"]
    (folder / "README.md").write_text(written.replace(f"sdk_version: {version}", "sdk_version: 5.0.1"))
    assert main(["space", str(folder), "--wheel", str(wheel)]) == 0
    assert (folder / "README.md").read_text() == written


@pytest.mark.slow
def test_the_app_starts_from_the_folder_in_an_environment_of_its_own(tmp_path):
    """The environment has this one's packages, but showo-hf only from the wheel in the folder."""
    folder, environment = tmp_path / "space", tmp_path / "environment"
    assert main(["space", str(folder)]) == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (wheel,) = folder.glob("*.whl")
    (site,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as file:  # what pip does with a wheel of plain files
        file.extractall(site)
    packages = Path(httpx.__file__).parents[1]
    (site / "packages.pth").write_text(f"{packages}\n")
    log = (tmp_path / "log").open("w")
    variables = {"GRADIO_SERVER_PORT": "7977", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [environment / "bin" / "python", "app.py"], cwd=folder, env=variables, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                assert httpx.get("http://127.0.0.1:7977/health", timeout=5).json() == {"status": "ok"}
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.5)
        assert "Show-o" in httpx.get("http://127.0.0.1:7977/", timeout=30).text
    finally:
        process.terminate()
        process.wait(30)
