"""`--model org/name`: one question to the Hub, without the retries of a download, and what the cache says of a model."""

import json
import socket
import time
from pathlib import Path

import pytest
from hub_server import Fault
from huggingface_hub import constants
from huggingface_hub.utils import close_session, http_backoff
from PIL import Image

from showo_hf import cli
from showo_hf.commands.errors import UsageError
from showo_hf.commands.hub_names import check_hub_model
from showo_hf.commands.saved_model import SavedModel, read_saved_model
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.sources import local_source


NAME = "someone/small"


@pytest.fixture
def nobody(hub_here, monkeypatch) -> str:
    """The address of a Hub that does not answer. A retry, before which the libraries sleep, fails the test."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"a retry after {seconds} s"))
    close_session()
    return address


#: A model of 256 x 256 pixels in 64 tokens.
CONFIG = {
    "num_image_tokens": 64,
    "codebook_size": 512,
    "image_tokenizer_config": {"encoder_block_out_channels": [32] * 6},
}
SCHEDULER = {"_class_name": "HaltonScheduler", "temperature": 0.375}


def download(name: str = NAME) -> Path:
    """Put a model into the cache, as a download does. Returns its folder."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    files = {"model_index.json": {}, "model/config.json": CONFIG, "scheduler/scheduler_config.json": SCHEDULER}
    for path, content in files.items():
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).write_text(json.dumps(content))
    return snapshot


def models_asked_for(hub) -> list[str]:
    """The requests that are about models: huggingface_hub may ask once in a process for facts about itself."""
    return [request for request in hub.requests if "/models/" in request]


def test_a_model_of_the_hub_is_asked_for_once(hub_here):
    hub_here.repositories[NAME] = {"model_index.json": b"{}"}
    check_hub_model(NAME)
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


def test_a_name_that_the_hub_does_not_have(hub_here, refused):
    refused(["generate", "owl", "-o", "a.png", "--model", NAME], f"no folder '{NAME}', and the Hub has no such model")
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


@pytest.mark.parametrize("name", ["a--b/c", "models/nope.git", "a/b.."])
def test_names_that_no_model_can_have_are_not_asked_for(hub_here, name):
    with pytest.raises(UsageError, match="it is no name of a model"):
        check_hub_model(name)
    assert models_asked_for(hub_here) == []


def test_the_model_of_a_recipe_is_asked_for_before_its_code_is_loaded(hub_here, refused):
    refused(
        ["train", "lora", "data=.", "output=y", "steps=1", f"model={NAME}"], "`model` must be a folder, or a model on"
    )
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


def test_a_retry_is_seen(nobody):
    with pytest.raises(pytest.fail.Exception, match="a retry after"):
        http_backoff("GET", nobody)


def test_without_network_there_are_no_retries(nobody, refused):
    Image.new("RGB", (8, 8)).save("a.png")
    for command in (["caption", "a.png"], ["vary", "a.png", "owl", "-o", "b.png"]):
        refused([*command, "--model", NAME], f"no folder '{NAME}', and {nobody} cannot be reached")


def test_without_network_a_downloaded_model_is_used(nobody, capsys):
    download()
    check_hub_model(NAME)
    assert capsys.readouterr().err == f"showo-hf: warning: {nobody} cannot be reached; the downloaded model is used\n"
    assert constants.is_offline_mode()
    check_hub_model(NAME)  # the Hub is not asked any more
    assert capsys.readouterr().err == ""


def test_offline_only_what_was_downloaded_can_be_used(hub_here, monkeypatch, refused):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(["chat", "--model", NAME], "no model of this name was downloaded before HF_HUB_OFFLINE was set")
    download()
    check_hub_model(NAME)
    assert models_asked_for(hub_here) == []


def test_other_answers_are_left_to_the_download(hub_here):
    hub_here.faults.append(Fault("GET /api/models", 503))
    check_hub_model(NAME)


# The sources of a conversion, and recipes


CONVERT = ["convert", "--image-tokenizer", "a.png", "--text-tokenizer", "a.png", "-o", "out", "--showo"]


def test_the_source_of_a_conversion_is_asked_for(hub_here, refused):
    Path("a.png").touch()
    refused([*CONVERT, NAME], "`--showo` must be a folder, or a model on the Hub; there is no folder")
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


def test_without_network_there_are_no_retries_for_the_source_of_a_conversion(nobody, refused):
    Path("a.png").touch()
    refused([*CONVERT, NAME], f"no folder '{NAME}', and {nobody} cannot be reached")


def test_offline_the_source_of_a_conversion_is_what_was_downloaded(hub_here, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match=f"'{NAME}' is not on this machine"):
        local_source("--showo", NAME)
    folder = download()
    assert local_source("--showo", NAME, weights=False) == local_source("--showo", NAME) == folder
    assert models_asked_for(hub_here) == []


@pytest.mark.parametrize("key", ["model", "image_tokenizer"])
def test_the_models_of_a_recipe_file_are_asked_for(hub_here, refused, key):
    entries = f"{key}: {NAME}\n" + ("text_model: gpt2\n" if key == "image_tokenizer" else "")
    Path("below.yaml").write_text(f"base: stage1\noutput: out\ndata: {{t2i: ., lm: ., mmu: .}}\n{entries}")
    Path("mine.yaml").write_text("base: below.yaml\nsteps: 1\n")
    refused(["train", "mine.yaml"], f"`{key}` must be a folder, or a model on the Hub")
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]
    hub_here.requests.clear()
    Path("out").mkdir()
    with pytest.raises(UsageError, match="`steps` must be"):  # an entry replaces what the file says
        cli.train.checked_recipe(cli.build_parser().parse_args(["train", "mine.yaml", f"{key}=out", "steps=no"]))
    assert models_asked_for(hub_here) == []


# What the cache says


def test_the_help_names_the_numbers_of_a_downloaded_model(hub_here, capsys):
    hub_here.repositories[NAME] = {"model_index.json": b"{}"}
    helps = []
    for step in (lambda: None, download):
        step()
        with pytest.raises(SystemExit):
            cli.main(["generate", "--help", "--model", NAME])
        helps.append(" ".join(capsys.readouterr().out.split()))
    assert "a multiple of the model's patch (default: the model's)" in helps[0]
    assert "a multiple of 32 (default: 256x256)" in helps[1] and "(default: 0.375)" in helps[1]
    assert hub_here.requests == []


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["generate", "owl", "--size", "48"], "`--size` must be multiples of 32 pixels for this model, got 48x48"),
        (["extend", "a.png", "owl", "--extent", "48"], "`--extent` must be a multiple of 32 pixels from 32 to 224"),
        (
            ["generate", "owl", "--scheduler-option", "eta=0.5"],
            "`--scheduler-option` of HaltonScheduler must be among",
        ),
    ],
    ids=["size", "extent", "scheduler"],
)
def test_options_are_checked_by_a_downloaded_model(hub_here, refused, command, named):
    hub_here.repositories[NAME] = {"model_index.json": b"{}"}
    download()
    Image.new("RGB", (96, 96)).save("a.png")
    refused([*command, "-o", "b.png", "--model", NAME], named)
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


def test_a_downloaded_model_that_is_not_the_newest_says_nothing(hub_here):
    download()
    assert read_saved_model(NAME).patch == 32
    hub_here.repositories[NAME] = {"model_index.json": b"{}"}
    hub_here.commits[NAME] = [("a new model", "main", hub_here.repositories[NAME])]
    check_hub_model(NAME)
    assert read_saved_model(NAME) == SavedModel()
    hub_here.commits.clear()
    check_hub_model(NAME)
    assert read_saved_model(NAME).patch == 32


@pytest.mark.parametrize("name", ["a--b/c", "models/nope.git", "a/b..", "./nope", "a/" + "b" * 5000, "a\0/b", "nope"])
def test_names_that_no_model_can_have_say_nothing(hub_here, name):
    assert read_saved_model(name) == SavedModel()
