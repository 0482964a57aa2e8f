"""The benchmark of diffusion decoders: its measures, and its table."""

import sys

import pytest
import tiny
import torch
from benchmarks import image_decoders

from showo_hf.models.modeling_diffusion_decoder import gaussian_blur


def noise(seed=0, batch=2) -> torch.Tensor:
    return (torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) / 3).clamp(-1, 1)


def test_detail_of_an_image_is_one_of_a_blurred_one_less_and_of_twice_the_contrast_four():
    images = noise()
    torch.testing.assert_close(image_decoders.detail(images, images), torch.ones(2))
    assert bool((image_decoders.detail(gaussian_blur(images, 1.0), images) < 0.1).all())
    torch.testing.assert_close(image_decoders.detail(2 * images, images), torch.full((2,), 4.0))


def test_error_of_a_shade_is_not_in_the_high_band_and_that_of_noise_is():
    images = noise()
    assert image_decoders.high_band_error(images + 0.3, images) == pytest.approx(0, abs=1e-9)
    error = 0.1 * noise(1)
    assert image_decoders.high_band_error(images + error, images) > 0.8 * error.square().mean().item()


def test_changes_of_equal_detail_have_that_detail():
    images = noise()
    blurred = gaussian_blur(images, 0.6)
    for change in (
        lambda strength: image_decoders.unsharp_mask(blurred, strength),
        lambda strength: blurred + strength * noise(2),
    ):
        found = image_decoders.of_equal_detail(change, images, 0.8)
        assert image_decoders.detail(found, images).mean().item() == pytest.approx(0.8, abs=0.02)


def test_the_table_of_a_small_model(folder, tmp_path, monkeypatch, capsys):
    tiny.showo("llama").save_pretrained(tmp_path / "model")
    tiny.image_decoder().save_pretrained(tmp_path / "decoder")
    arguments = ["--data", folder, "--model", tmp_path / "model", "--decoder", tmp_path / "decoder"]
    arguments += ["--steps", "1", "2", "--classifier", tmp_path / "names.safetensors", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["image_decoders", *map(str, arguments), "--sheets", str(tmp_path / "sheets")])
    monkeypatch.setattr(image_decoders.train_classifier, "__defaults__", (4, 0))
    image_decoders.main()
    printed = capsys.readouterr().out
    for name in ("original", "plain decoder", "diffusion, 1 steps", "noise as diffusion, 2 steps"):
        assert f"| {name} |" in printed
    original = next(line for line in printed.splitlines() if "| original |" in line)
    assert original.count("| 1.00") >= 2 and "MB in bfloat16" in printed
    assert {file.name for file in (tmp_path / "sheets").iterdir()} == {"true-size.png", "enlarged.png"}
