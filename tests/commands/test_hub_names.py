"""`--model org/name`: one question to the Hub, without the retries of a download."""

import socket
import time
from pathlib import Path

import pytest
from hub_server import Fault
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from PIL import Image

from showo_hf.commands.errors import UsageError
from showo_hf.commands.hub_names import check_hub_model


NAME = "someone/small"


@pytest.fixture
def nobody(hub_here, monkeypatch) -> str:
    """The address of a Hub that does not answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    close_session()
    return address


def download(name: str = NAME) -> None:
    """Put a model into the cache, as a download does."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "model_index.json").write_text("{}")


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
        ["train", "lora", "data=x", "output=y", "steps=1", f"model={NAME}"], "`model` must be a folder, or a model on"
    )
    assert models_asked_for(hub_here) == [f"GET /api/models/{NAME}"]


def test_without_network_there_are_no_retries(nobody, refused):
    Image.new("RGB", (8, 8)).save("a.png")
    start = time.process_time()
    for command in (["caption", "a.png"], ["vary", "a.png", "owl", "-o", "b.png"]):
        refused([*command, "--model", NAME], f"no folder '{NAME}', and {nobody} cannot be reached")
    assert time.process_time() - start < 1


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
