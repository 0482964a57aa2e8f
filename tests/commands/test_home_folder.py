"""`~` stands for the home folder in every path, also where the shell did not expand it."""

from pathlib import Path

import pytest

from showo_hf import cli
from showo_hf.commands.ask import images_and_questions
from showo_hf.commands.chat import image_name
from showo_hf.commands.saved_model import asked_model
from showo_hf.training.recipe_files import load_recipe


MAKE = ["-o", "~/out.png"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["generate", "owl", "-o", "~/x"], "output"),
        (["generate", "owl", *MAKE, "--save-steps", "~/x"], "save_steps"),
        (["generate", "owl", *MAKE, "--model", "~/x"], "model"),
        (["generate", "--prompts", "~/x", "-o", "y"], "prompts"),
        (["vary", "~/x", "owl", *MAKE], "image"),
        (["extend", "~/x", "owl", *MAKE], "image"),
        (["inpaint", "~/x", "owl", *MAKE, "--box", "0,0,1,1"], "image"),
        (["inpaint", "y", "owl", *MAKE, "--mask", "~/x"], "mask"),
        (["caption", "y", "-o", "~/x"], "output"),
        (["chat", "-o", "~/x"], "output"),
        (["chat", "--load", "~/x"], "load"),
        (["train", "~/x"], "recipe"),
        (["tokenize", "~/x", "-o", "y"], "data"),
        (["tokenize", "y", "-o", "~/x"], "output"),
        (["tokenize", "y", "-o", "y", "--image-folder", "~/x"], "image_folder"),
        (["convert", "--image-tokenizer", "y", "-o", "~/x"], "output"),
        (["export", "~/x", "-o", "y"], "folder"),
        (["space", "~/x"], "folder"),
        (["space", "y", "--wheel", "~/x"], "wheel"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else value,
)
def test_the_home_folder_in_an_option(words, option, home):
    options = cli.build_parser().parse_args(words)
    assert str(getattr(options, option)) == str(home / "x")


def test_the_home_folder_in_images(home):
    options = cli.build_parser().parse_args(["caption", "~/x", "y", "https://a.org/~b/c.png"])
    assert options.images == [str(home / "x"), "y", "https://a.org/~b/c.png"]
    assert images_and_questions(["~/x", "y", "~ what?"], None) == ([str(home / "x"), "y"], ["~ what?"])
    assert images_and_questions(["~/x"], ["what?"]) == ([str(home / "x")], ["what?"])
    (home / "x").touch()
    with pytest.raises(cli.UsageError, match="is an image"):
        images_and_questions(["y", "~/x"], None)
    assert image_name("~/x") == image_name("'~/x'") == str(home / "x")


def test_the_home_folder_in_the_model_of_the_help():
    assert asked_model(["generate", "--model", "~/x", "--help"]) == asked_model(["generate", "--model=~/x", "--help"])
    assert asked_model(["generate", "--model=~/x"]) == cli.build_parser().parse_args(["chat", "--model=~/x"]).model


def test_the_home_folder_in_a_recipe(home):
    paths = ["output=~/out", "model=~/model", "validation_data=~/held"]
    config = load_recipe("lora", [*paths, "steps=5", "data=[~/a, {path: ~/b, image_folder: ~/c, text_column: d}]"])
    assert (config.output, config.model) == (f"{home}/out", f"{home}/model")
    assert config.validation_data == {"t2i": [{"path": f"{home}/held"}]}
    sources = [{"path": f"{home}/a"}, {"path": f"{home}/b", "image_folder": f"{home}/c", "text_column": "d"}]
    assert config.data == {"t2i": sources}
    (home / "mine.yaml").write_text("base: finetune\noutput: ~/o\nsteps: 3\ndata: {t2i: ~/a, lm: ~nobody-here/b}\n")
    Path("other.yaml").write_text("base: ~/mine.yaml\n")
    for recipe in ("~/mine.yaml", "other.yaml"):
        config = load_recipe(recipe)
        assert config.output == f"{home}/o"
        assert config.data == {"t2i": [{"path": f"{home}/a"}], "lm": [{"path": "~nobody-here/b"}]}


@pytest.mark.parametrize("name", ["~nobody-here/x", "~\0/x", "x~", "./~/x"])
def test_a_name_without_a_home_folder_stays(name):
    assert cli.build_parser().parse_args(["vary", name, "owl", *MAKE]).image == name
