"""The table of tokenizers' quality on a few images."""

import image_tokenizer_quality as quality
import pytest
import tiny
import torch
from PIL import Image, ImageDraw

from recipes.image_tokens import as_in_a_file


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    for number in range(6):
        image = Image.new("RGB", (20, 20), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((2, 3, 9 + number, 14), fill=("red", "green", "blue")[number % 3])
        draw.line((0, number, 19, 19 - number), fill="black")
        image.save(folder / f"{number}.png")
    return folder


def test_there_is_a_row_for_each_tokenizer_and_its_baselines(images, tmp_path, model):
    tiny.vq().save_pretrained(tmp_path / "vq")
    rows = quality.table([model, str(tmp_path / "vq")], images, 16, None)
    assert [len(row) for row in rows] == [len(quality.HEADER)] * len(rows)
    named = {row[0]: row for row in rows}
    assert {model, str(tmp_path / "vq")} <= set(named)
    for row in (named[model], named[str(tmp_path / "vq")]):
        assert float(row[1]) > 0 and float(row[2]) < 1 and 0 <= float(row[6].rstrip("%")) <= 100
        assert 0 <= float(row[7].split(" of ")[0]) <= float(row[7].split(" of ")[1]) == 6.0
    more = float(named[str(tmp_path / "vq")][3]) > float(rows[0][3])
    assert len(rows) == (4 if more else 2)


def test_perfect_images_have_perfect_numbers(images):
    originals = quality.load_images(images, 16, None)
    assert originals.shape == (6, 3, 16, 16)
    exact = as_in_a_file(originals)
    torch.testing.assert_close(exact, originals, rtol=0, atol=1e-6)
    row = quality.quality(originals, originals)
    assert row[1:] == ["1.000", "1.000", "1.000", "0.000"]
    blurred = quality.quality(quality.blurred(originals), originals)
    assert float(blurred[2]) < 0.5 and 0.3 < float(blurred[4]) < 1
    assert quality.band_error(originals.mean((2, 3), keepdim=True).expand_as(originals), originals) == pytest.approx(1)


def test_baselines_have_the_detail_that_is_asked_for(images):
    originals = quality.load_images(images, 16, None)
    plain = quality.blurred(originals)
    for change in (quality.unsharp, quality.noisy):
        changed = quality.as_detailed(change, plain, originals, 0.7)
        assert quality.detail_ratios(changed, originals).mean().item() == pytest.approx(0.7, rel=0.05)
    noisy = quality.as_detailed(quality.noisy, plain, originals, 0.7)
    sharp = quality.as_detailed(quality.unsharp, plain, originals, 0.7)
    assert quality.band_error(sharp, originals) < quality.band_error(noisy, originals)


def test_code_use():
    assert quality.code_use(torch.tensor([0, 0, 1, 1]), 8) == ["25.0%", "1.00 of 3.00"]


@pytest.mark.parametrize("option", ["--count", "--size"])
@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_numbers_are_checked_before_work_starts(images, option, value, capsys):
    with pytest.raises(SystemExit):
        quality.main(["no-tokenizer", "--images", str(images), f"{option}={value}"])
    assert f"argument {option}: must be an integer from 1 to" in capsys.readouterr().err
