"""The script without torch, as far as it needs no graphs: schedules, random numbers, prompts and arguments."""

import argparse
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from showo_hf import MaskGITScheduler
from showo_hf.conversion import onnx_generate
from showo_hf.processing.images import load_image


SCHEDULES = ("arccos", "cosine", "linear", "sigmoid", "pow2", "pow0.5", "pow3")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_number_of_masked_tokens_equals_the_scheduler_s(schedule):
    scheduler = MaskGITScheduler(masking_schedule=schedule)
    for steps in (1, 2, 3, 6, 12, 18, 24, 50):
        scheduler.set_timesteps(steps)
        for num_tokens in (16, 144, 256, 1024):
            masked = torch.tensor([[num_tokens * 4]])  # so many that only the schedule decides
            for step in range(steps):
                expected = int(scheduler.num_masked_after(step, masked, num_tokens))
                share = onnx_generate.masked_share(schedule, (step + 1) / steps)
                assert max(int(np.float32(num_tokens) * share), 1) == expected, (steps, num_tokens, step)


@pytest.mark.parametrize("rule", ["compound", "linear"])
def test_the_temperatures_equal_the_scheduler_s(rule):
    scheduler = MaskGITScheduler(temperature_rule=rule)
    scheduler.set_timesteps(7, temperature=1.3)
    assert onnx_generate.temperatures(1.3, 7, rule) == pytest.approx(scheduler.temperatures, rel=1e-12)


@pytest.mark.parametrize("schedule", ["quadratic", "pow", "pow0", "pow-1", "powinf", "linearly", "2", ""])
def test_an_unknown_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match=f"`masking_schedule` must be .* got '{schedule}'"):
        onnx_generate.masked_share(schedule, 0.5)


def test_an_unknown_temperature_rule_is_refused():
    with pytest.raises(ValueError, match="`temperature_rule` must be 'compound' or 'linear', got 'constant'"):
        onnx_generate.temperatures(1.0, 3, "constant")


def test_tokens_are_drawn_with_their_probabilities():
    probabilities = np.array([[0.1, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0, 1.0]], np.float32)
    drawn = onnx_generate.Draws(0).tokens(np.broadcast_to(probabilities, (20000, 2, 4)))
    assert drawn.shape == (20000, 2)
    for position in range(2):
        shares = np.bincount(drawn[:, position], minlength=4) / len(drawn)
        assert shares == pytest.approx(probabilities[position], abs=0.02)
        assert not shares[probabilities[position] == 0].any()


def test_the_same_seed_draws_the_same():
    one, same, other = (onnx_generate.Draws(seed).uniform((3, 4)) for seed in (5, 5, 6))
    assert (one == same).all() and (one != other).any()
    assert one.dtype == np.float32 and 0 <= one.min() and one.max() < 1


@pytest.mark.parametrize("published", [False, True])
def test_prompt_ids_equal_the_processor_s(published, processor, reference_processor, tmp_path):
    processor = reference_processor if published else processor
    processor.save_pretrained(tmp_path)
    names = ("max_text_length", "t2i_token_id", "sot_token_id", "eot_token_id")
    (tmp_path / "onnx_config.json").write_text(json.dumps({name: getattr(processor, name) for name in names}))
    runner = onnx_generate.OnnxShowo(tmp_path)
    for text in ("", "owl", "A,\n  B", " é ", "<|soi|>", "[PAD]"):
        (expected,) = processor.text_to_image_prefix([text])["input_ids"].tolist()
        assert runner.prompt_ids(text) == expected, text
    long = "a green pear on a table " * 30
    with pytest.warns(UserWarning, match=f"ids was cut to {processor.max_text_length - 2}: 'a green pear"):
        ids = runner.prompt_ids(long)
    with pytest.warns(UserWarning, match="was cut"):
        assert [ids] == processor.text_to_image_prefix([long])["input_ids"].tolist()


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_steps_than_one_are_refused(steps, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "onnx_config.json").write_text(json.dumps({"downsampling": 4, "grid": [4, 4], "steps": 3}))
    with pytest.raises(ValueError, match=f"`steps` must be at least 1, got {steps}"):
        onnx_generate.OnnxShowo(tmp_path)(["owl"], steps=steps)


def test_images_are_read_as_by_the_package(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 4), "uint8")
    Image.fromarray(colours[..., :3]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        found = onnx_generate.to_rgb(turned)
        assert found.size == (4, 6) and np.array_equal(np.asarray(found), np.asarray(load_image(turned)))
    palette = Image.fromarray(colours[..., :3]).quantize(8)
    palette.info["transparency"] = 0
    for image in (
        Image.fromarray(colours),
        Image.fromarray(colours).convert("LA"),
        palette,
        Image.new("1", (2, 2), 1),
    ):
        found = onnx_generate.to_rgb(image)
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(load_image(image)))
    assert onnx_generate.to_rgb(Image.new("RGBA", (1, 1))).getpixel((0, 0)) == (255, 255, 255)


def test_a_folder_without_graphs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"`folder` must contain onnx_config.json .* got '{tmp_path}'"):
        onnx_generate.OnnxShowo(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--num", "-1"], "--num: must be at least 1, got -1"),
        (["--threads", "0"], "--threads: must be at least 1, got 0"),
        (["--guidance", "nan"], "--guidance: must be a finite number"),
        (["--temperature", "-1"], "--temperature: must be a finite number, at least 0, got -1"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["-o", "apple.txt"], "--output: must end in .png, .jpg, .jpeg, .webp, got 'apple.txt'"),
        (["-o", "nowhere/apple.png"], "--output: the folder must exist, got 'nowhere'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        onnx_generate.main(["a red apple", "-o", "apple.png", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_name_of_an_image_is_printed_in_any_encoding(tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    values = dict.fromkeys(("negative_prompt", "size", "steps", "guidance", "temperature"))
    options = argparse.Namespace(prompt="a", num=2, seed=0, output=tmp_path / "größe.png", **values)
    onnx_generate.write_images(lambda *arguments: [Image.new("RGB", (4, 4))], options)
    printed = stdout.buffer.getvalue().decode("ascii").splitlines()
    assert [line.rpartition("gr\\xf6\\xdfe")[2] for line in printed] == ["-0.png", "-1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["größe-0.png", "größe-1.png"]


def test_the_script_names_a_missing_folder(capsys, tmp_path):
    assert onnx_generate.main(["a red apple", "-o", str(tmp_path / "apple.png")]) == 1
    assert "error: `folder` must contain onnx_config.json" in capsys.readouterr().err
