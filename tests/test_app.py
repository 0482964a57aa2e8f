"""The Gradio app with the embedded model, served locally and called with gradio_client."""

import importlib.util
from pathlib import Path

import pytest
import torch

from showo_hf import MaskAndReplaceScheduler, ShowoMMUPipeline


gr = pytest.importorskip("gradio")

from gradio_client import Client, handle_file  # noqa: E402 - comes with gradio
from gradio_client.exceptions import AppError  # noqa: E402
from PIL import Image  # noqa: E402


ROOT = Path(__file__).resolve().parents[1]
REQUEST = {
    "prompt": "a red apple, flat style",
    "steps": 4,
    "guidance": 3.0,
    "temperature": 1.0,
    "seed": 7,
    "count": 2,
}


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("app", ROOT / "app.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pipe(app):
    """The embedded model. A test that changes it must restore it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SHOWO_MODEL", raising=False)
        return app.load_pipeline()


@pytest.fixture(scope="module")
def client(app, pipe):
    demo = app.build_demo(pipe)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield Client(url, verbose=False)
    demo.close()


def make(client, **changed):
    """Request images. Returns ([(image, caption)], seed)."""
    gallery, seed = client.predict(*{**REQUEST, **changed}.values(), api_name="/generate")
    images = []
    for entry in gallery:
        with Image.open(entry["image"]) as file:
            images.append((file.convert("RGB"), entry["caption"]))
    return images, seed


def test_images_and_seeds(client, pipe):
    images, seed = make(client)
    assert seed == 7
    assert [caption for _, caption in images] == ["seed 7", "seed 8"]
    assert images[0][0].tobytes() != images[1][0].tobytes()
    again, _ = make(client)
    assert [image.tobytes() for image, _ in again] == [image.tobytes() for image, _ in images]


def test_without_a_seed_every_image_is_different(client):
    (one, first), (two, second) = make(client, seed=None, count=1), make(client, seed=None, count=1)
    assert first != second
    repeated, _ = make(client, seed=first, count=1)
    assert repeated[0][0].tobytes() == one[0][0].tobytes() != two[0][0].tobytes()


def test_a_scheduler_without_a_temperature_makes_images(client, pipe):
    pipe.scheduler = MaskAndReplaceScheduler.from_config(pipe.scheduler.config, mask_share=1.0)
    images, _ = make(client, count=1)
    options = {"num_inference_steps": REQUEST["steps"], "guidance_scale": REQUEST["guidance"]}
    generator = torch.Generator().manual_seed(REQUEST["seed"])
    (expected,) = pipe(REQUEST["prompt"], generator=generator, **options).images
    assert images[0][0].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "  "},
        {"prompt": None},
        {"prompt": "apple " * 100},
        {"steps": 0},
        {"steps": 10_000},
        {"guidance": 1e9},
        {"temperature": -1.0},
        {"count": 1000},
        {"seed": -1},
        {"seed": 2**70},
    ],
)
def test_values_out_of_range_are_refused(client, changed):
    with pytest.raises(AppError) as refusal:
        make(client, **changed)
    assert_reveals_nothing(str(refusal.value))


def test_a_failure_reveals_nothing_about_the_machine(client, pipe, app, caplog, monkeypatch):
    monkeypatch.setattr(pipe, "scheduler", None)  # makes the pipeline fail
    with pytest.raises(AppError) as failure:
        make(client)
    assert str(failure.value) == app.FAILED
    assert_reveals_nothing(str(failure.value))
    assert any(record.exc_info for record in caplog.records)  # the log has the traceback


def ask(client, path, question="what is this?") -> str:
    return client.predict(handle_file(path), question, api_name="/ask")


def test_a_question_is_answered(client, pipe, tmp_path):
    image = pipe("a red apple, flat style", num_inference_steps=8, generator=torch.Generator().manual_seed(7)).images[
        0
    ]
    image.save(tmp_path / "apple.png")
    asking = ShowoMMUPipeline(**pipe.components)
    assert ask(client, tmp_path / "apple.png") == asking(image, "what is this?").texts[0] != ""


@pytest.mark.parametrize(
    "content, question, message",
    [
        (b"no image", "what is this?", "This file cannot be read as an image."),
        (b"no image", " ", "Please write a question."),
        (b"no image", "what? " * 100, "Please use at most 300 characters."),
    ],
)
def test_invalid_questions_are_refused(client, tmp_path, content, question, message):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(AppError) as refusal:
        ask(client, tmp_path / "file.png", question)
    assert str(refusal.value) == message


def assert_reveals_nothing(message: str):
    assert message.strip()
    assert "\n" not in message
    for word in ("Traceback", "File ", str(ROOT), str(Path.home()), ".py"):
        assert word not in message


def test_the_examples_are_within_the_limits(app):
    for prompt in app.EXAMPLES:
        assert app.check_prompt(prompt) == prompt


def test_showo_model_selects_the_model(app, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOWO_MODEL", str(tmp_path / "missing"))
    with pytest.raises(Exception, match="missing"):
        app.load_pipeline()
