"""`--decoder-steps` of the commands that make images, and what `showo-hf info` says of a diffusion decoder."""

import io
import json
from pathlib import Path

import pytest
import tiny
import torch
from chats import paint, pixels

from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline, ShowoT2IPipeline, cli
from showo_hf.commands import chat, image_generation
from showo_hf.commands.info import model_facts
from showo_hf.commands.saved_model import SavedModel, read_saved_model


FAST = ("--seed", "7", "--device", "cpu", "--quiet")
COMMANDS = {
    "generate": ["generate", "an owl"],
    "inpaint": ["inpaint", "photo.png", "an owl", "--box", "0,0,8,16"],
    "extend": ["extend", "photo.png", "an owl"],
    "vary": ["vary", "photo.png", "an owl"],
}


@pytest.fixture(scope="module")
def model(taught_folder, tmp_path_factory) -> str:
    """A saved pipeline whose diffusion decoder takes 2 steps."""
    folder = tmp_path_factory.mktemp("models") / "decoded"
    pipe = ShowoT2IPipeline.from_pretrained(taught_folder)
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5))
    pipe.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_steps_are_those_of_the_pipeline(model, command):
    paint("photo.png")
    images = {}
    for steps in ([], ["--decoder-steps", "0"], ["--decoder-steps", "1"], ["--decoder-steps", "2"]):
        arguments = [*COMMANDS[command], "-o", "out.png", "--model", model, "--steps", "2", *FAST, *steps]
        assert cli.main(arguments) == cli.GOOD
        images["".join(steps[1:])] = pixels("out.png").tobytes()
    assert images.pop("") == images["2"]
    assert len(set(images.values())) == 3
    if command == "generate":
        pipe = ShowoT2IPipeline.from_pretrained(model)
        generator = torch.Generator().manual_seed(7)
        (image,) = pipe("an owl", num_inference_steps=2, generator=generator, decoder_steps=1).images
        assert image.tobytes() == images["1"]


def test_a_chat_takes_them(model, monkeypatch):
    for steps in (0, 1):
        monkeypatch.setattr("sys.stdin", io.StringIO("two hearts\n"))
        arguments = ["chat", "--model", model, "--decoder-steps", str(steps), *FAST]
        assert cli.main(arguments) == cli.GOOD
        pipe = ShowoAnyToAnyPipeline.from_pretrained(model)
        answer = pipe("two hearts", generator=torch.Generator().manual_seed(7), decoder_steps=steps)
        images = [part["image"] for part in answer.content if part["type"] == "image"]
        for number, image in enumerate(images, start=len(images) * steps):
            assert pixels(f"image-{number}.png").tobytes() == image.tobytes()
    assert pixels("image-0.png").tobytes() != pixels("image-2.png").tobytes()


def test_they_are_among_the_settings_of_a_folder_of_images(model, taught_folder, refused, capsys):
    Path("prompts.txt").write_text("an owl\n", encoding="utf-8")
    arguments = ["generate", "--prompts", "prompts.txt", "--steps", "2", *FAST]
    for folder, name, steps, recorded in (
        ("own", model, [], 2), ("one", model, ["--decoder-steps", "1"], 1), ("none", taught_folder, [], None)
    ):  # fmt: skip
        assert cli.main([*arguments, "-o", folder, "--model", name, *steps]) == cli.GOOD
        (line,) = Path(folder, "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["decoder_steps"] == recorded
        settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
        assert settings["decoder_steps"] == (int(steps[1]) if steps else None)
    assert pixels("own/000000.png").tobytes() != pixels("one/000000.png").tobytes()
    capsys.readouterr()
    refused([*arguments, "-o", "one", "--model", model], "holds images with decoder_steps '1', and 'None'")


@pytest.mark.parametrize("command", [*COMMANDS.values(), ["chat"]], ids=lambda words: words[0])
def test_a_model_without_a_decoder_takes_no_steps(command, taught_folder, refused):
    paint("photo.png")
    output = ["-o", "."] if command == ["chat"] else ["-o", "out.png"]
    refused(
        [*command, *output, "--model", taught_folder, "--decoder-steps", "3", "--device", "cpu"],
        "`--decoder-steps` must be 0 for a model without a diffusion decoder, got 3",
    )
    for wrong in ("-1", "1001", "two"):
        refused([*command, *output, "--decoder-steps", wrong], "--decoder-steps")


@pytest.mark.parametrize("command", ["generate", "prompts", "chat"])
def test_what_the_files_do_not_tell_the_pipeline_does(command, taught_folder, refused, monkeypatch):
    for module in (chat, image_generation):
        monkeypatch.setattr(module, "read_saved_model", lambda model: SavedModel())
    Path("prompts.txt").write_text("an owl\n", encoding="utf-8")
    words = {
        "generate": ["generate", "an owl", "-o", "out.png"],
        "prompts": ["generate", "--prompts", "prompts.txt", "-o", "out"],
        "chat": ["chat"],
    }[command]
    options = ["--model", taught_folder, "--device", "cpu", "--quiet", "--decoder-steps", "3"]
    refused([*words, *options], "`--decoder-steps` must be 0 for a model without a diffusion decoder, got 3")


@pytest.mark.parametrize("found", ["3", "[]", "[null, null]", '"showo_hf"', '{"a": 1}'])
def test_files_that_name_no_decoder(found, tmp_path):
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "ShowoT2IPipeline", "image_decoder": {found}}}')
    assert read_saved_model(str(tmp_path)).has_image_decoder is False


def test_info_names_the_decoder(model, taught_folder):
    facts = model_facts(Path(model))
    assert (facts["image_decoder"], facts["decoder_steps"]) == ("ShowoDiffusionDecoder", 2)
    assert read_saved_model(model).has_image_decoder is True
    assert model_facts(Path(EMBEDDED_MODEL))["image_decoder"] == "ShowoDiffusionDecoder"
    assert "image_decoder" not in model_facts(Path(taught_folder))
