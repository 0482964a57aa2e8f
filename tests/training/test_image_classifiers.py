"""Classifiers of images, from labelled folders to a perceptual loss."""

import json

import pytest
import small_run
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModelForImageClassification

from showo_hf.cli import main
from showo_hf.training.image_classifiers import ImageClassifierTrainer, classes_of, classifier_config
from showo_hf.training.perceptual import load_perceptual
from showo_hf.training.run import Unfinished


COLOURS = ("blue", "green", "red")
ENTRIES = {
    "kind": "image-classifier",
    "model": None,
    "image_size": 16,
    "batch_size": 6,
    "architecture": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def disc(colour, number):
    image = Image.new("RGB", (16, 16), "white")
    ImageDraw.Draw(image).ellipse([number % 5, number % 3, 10 + number % 4, 12], fill=colour)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One sub-folder for each class."""
    root = tmp_path_factory.mktemp("classes")
    for colour in COLOURS:
        (root / colour).mkdir()
        for number in range(5):
            disc(colour, number).save(root / colour / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The same images with a `metadata.jsonl` and its column `label`."""
    root = tmp_path_factory.mktemp("table")
    rows = []
    for number in range(15):
        name, colour = f"{number}.png", COLOURS[number % 3]
        disc(colour, number // 3).save(root / name)
        rows.append({"file_name": name, "label": colour})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def run(tmp_path, data, **changes):
    return small_run.run(tmp_path, **{**ENTRIES, "data": data, **changes})


@pytest.mark.parametrize("kind", ["folders", pytest.param("table", marks=pytest.mark.slow)])
def test_labelled_images_become_a_classifier(tmp_path, folder, table, kind):
    data = str(folder) if kind == "folders" else {"path": str(table), "text_column": "label"}
    output = run(
        tmp_path, data, steps=50, learning_rate=5e-3, ema_decay=None, validation_data=data, eval_steps=25,
        logging_steps=10,
    )  # fmt: skip
    model = AutoModelForImageClassification.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    assert [model.config.id2label[number] for number in range(3)] == list(COLOURS)
    pixels = processor([disc(colour, 2) for colour in COLOURS], return_tensors="pt")["pixel_values"]
    assert model(pixels).logits.argmax(-1).tolist() == [0, 1, 2]
    rows = small_run.log_rows(tmp_path)
    assert rows[-1]["eval_accuracy"] > 0.9 and "eval_loss_class" in rows[-1]
    assert {"accuracy", "loss_class", "images_per_second"} <= rows[0].keys()
    loss = load_perceptual(str(output))
    assert loss(pixels, pixels) == 0 and loss(pixels, pixels.flip(0)) > 0.01


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, folder):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, str(folder), steps=3)
    for _ in range(2):
        with pytest.raises(Unfinished):
            run(stopped, str(folder), steps=3, max_minutes=1e-9)
    run(stopped, str(folder), steps=3)
    one, other = (folder / "out" / "model.safetensors" for folder in (whole, stopped))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_skipped_step_leaves_the_losses_of_the_steps_before_it(tmp_path, folder, monkeypatch):
    """The images of the second step are not finite. The losses are logged after it."""
    losses, steps = ImageClassifierTrainer.losses, []

    def poisoned(self, model, images, sums):
        steps.append(len(images.pixel_values))
        if len(steps) == 2:
            images.pixel_values.fill_(float("nan"))
        return losses(self, model, images, sums)

    run(tmp_path / "whole", str(folder), steps=2)
    monkeypatch.setattr(ImageClassifierTrainer, "losses", poisoned)
    run(tmp_path / "skipped", str(folder), steps=2, logging_steps=2, bad_step="skip")
    (first, _), (logged,) = (
        [row for row in small_run.log_rows(tmp_path / name) if "loss" in row] for name in ("whole", "skipped")
    )
    assert logged["skipped_steps"] == 1 and len(steps) == 2
    assert logged["loss_class"] == first["loss_class"] and logged["accuracy"] == first["accuracy"]


def test_the_plan_names_the_classes(tmp_path, folder, capsys):
    arguments = [f"data={folder}", f"output={tmp_path / 'out'}", "steps=5", "image_size=16", "batch_size=2"]
    assert main(["train", "image-classifier", *arguments, "--dry-run"]) == 0
    assert "16 x 16 pixels in 3 classes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_held_out_classes_are_left_out_of_validation(tmp_path, folder, table):
    rows = [{"file_name": "0.png", "text": "purple"}, {"file_name": "1.png", "text": "red"}]
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for row in rows:
        disc(row["text"], 0).save(held_out / row["file_name"])
    (held_out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path, str(folder), steps=1, validation_data=str(held_out), eval_steps=1)
    assert "eval_accuracy" in small_run.log_rows(tmp_path)[-1]


def test_wrong_classes_and_architectures_are_refused(tmp_path, folder):
    one = tmp_path / "one"
    one.mkdir()
    disc("red", 0).save(one / "0.png")
    (one / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "red"}) + "\n")
    with pytest.raises(ValueError, match="at least two classes, got 1: red"):
        run(tmp_path, str(one))
    config = small_run.config(tmp_path, **{**ENTRIES, "data": str(folder), "architecture": {"hidden_size": 8}})
    with pytest.raises(
        ValueError, match="entries of `ConvNextConfig`, got 'hidden_size'; did you mean 'hidden_sizes'"
    ):
        classifier_config(config, classes_of(config))


def test_a_classifier_of_other_classes_is_refused(tmp_path, folder):
    config = small_run.config(tmp_path, **ENTRIES, data=str(folder))
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(classifier_config(config, ["a", "b"]))
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="`model` must have the classes of `data`"):
        run(tmp_path, str(folder), model=str(tmp_path / "start"))
