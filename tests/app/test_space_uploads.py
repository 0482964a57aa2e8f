"""Uploads: what is read, what is refused, and settings inside of PNGs."""

import io
import time

import cpu_time
import numpy as np
import pytest
from PIL import Image


pytest.importorskip("gradio")

from showo_hf.app.settings import PNG_KEY, DrawSettings, Refusal  # noqa: E402
from showo_hf.app.uploads import (  # noqa: E402
    MAX_SIDE,
    open_checked,
    read_masked,
    read_painting,
    read_settings,
    read_upload,
    with_settings,
)


LIMIT = 1_000_000


def data_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_are_read_from_files_and_from_bytes(tmp_path, kind):
    image = Image.new("RGB", (20, 10), "red")
    (tmp_path / "image").write_bytes(data_of(image, kind))
    for source in (tmp_path / "image", str(tmp_path / "image"), data_of(image, kind)):
        found = read_upload(source, LIMIT)
        assert found.mode == "RGB" and found.size == (20, 10)
        assert np.abs(np.array(found).astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize(
    "data, message",
    [
        (b"no image", "cannot be read as an image"),
        (b"", "Please choose an image"),
        (data_of(Image.new("1", (5000, 5000))), "at most 16 million pixels"),
        (data_of(Image.new("RGB", (64, 64)))[:60], "cannot be read as an image"),
        (b"x" * (LIMIT + 1), "at most 1 MB"),
        (data_of(Image.new("RGB", (8, 8)), "EPS"), "cannot be read as an image"),
        (
            data_of(Image.new("RGB", (8, 8)), "JPEG", progressive=True)[:-2] + b"\xff\xda" * 65,
            "cannot be read as an image",
        ),
    ],
)
def test_other_files_are_refused_at_once(data, message):
    start = time.process_time()
    with pytest.raises(Refusal, match=message):
        read_upload(data, LIMIT)
    assert cpu_time.within(time.process_time() - start, 0.5)


def test_a_turned_photograph_is_turned_once():
    for kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = 6
        found = read_upload(data_of(Image.new("RGB", (20, 10)), kind, exif=exif), LIMIT)
        assert found.size == (10, 20), kind


def test_a_missing_file_tells_no_path(tmp_path):
    with pytest.raises(Refusal) as refusal:
        open_checked(tmp_path / "missing.png", LIMIT)
    assert str(tmp_path) not in str(refusal.value)


def test_large_and_long_images_are_made_smaller():
    assert max(read_upload(data_of(Image.new("L", (3000, 2000))), LIMIT).size) == MAX_SIDE
    assert read_upload(data_of(Image.new("RGB", (1, 900))), LIMIT).size == (1, 2)


def painting(size, box):
    layer = Image.new("RGBA", size)
    layer.paste((255, 0, 128, 255), box)
    return data_of(layer)


def test_the_mask_of_a_painting_lies_where_it_was_painted():
    background = data_of(Image.new("RGB", (40, 40), "white"))
    value = {"background": background, "layers": [painting((40, 40), (5, 10, 20, 30)), None]}
    image, mask = read_painting(value, LIMIT)
    assert image.size == mask.size == (40, 40)
    assert mask.mode == "L" and mask.getbbox() == (5, 10, 20, 30)


def test_several_layers_are_one_mask():
    layers = [painting((40, 40), (0, 0, 5, 5)), painting((40, 40), (30, 30, 40, 40))]
    _, mask = read_painting({"background": data_of(Image.new("RGB", (40, 40))), "layers": layers}, LIMIT)
    assert np.array(mask)[2, 2] == np.array(mask)[35, 35] == 255 and np.array(mask)[20, 20] == 0


def test_the_mask_of_a_long_image_is_cropped_with_it():
    value = {"background": data_of(Image.new("RGB", (100, 20))), "layers": [painting((100, 20), (40, 0, 60, 20))]}
    image, mask = read_painting(value, LIMIT)
    assert image.size == mask.size == (40, 20)
    assert mask.getbbox() == (10, 0, 30, 20)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_mask_is_cropped_with_its_long_image(factor):
    image = data_of(Image.new("RGB", (300, 100)))
    marked = Image.new("L", (300 * factor, 100 * factor))
    marked.paste(255, [factor * side for side in (50, 0, 100, 100)])  # the image is cropped to 50 to 250
    picture, mask = read_masked(image, data_of(marked), LIMIT)
    assert picture.size == mask.size == (200, 100)
    left, top, right, bottom = mask.point([0] * 128 + [255] * 128).getbbox()
    assert (left, top, bottom) == (0, 0, 100) and abs(right - 50) <= 1


def test_a_mask_outside_of_the_crop_marks_nothing():
    marked = Image.new("L", (300, 100))
    marked.paste(255, (0, 0, 50, 100))
    _, mask = read_masked(data_of(Image.new("RGB", (300, 100))), data_of(marked), LIMIT)
    assert mask.getbbox() is None


@pytest.mark.parametrize("size", [(100, 100), (200, 100), (100, 300)])
def test_a_mask_of_another_shape_is_refused(size):
    with pytest.raises(Refusal, match="shape of the image: that has 300 x 100 pixels, and the mask"):
        read_masked(data_of(Image.new("RGB", (300, 100))), data_of(Image.new("L", size)), LIMIT)
    with pytest.raises(Refusal, match="Please send a mask"):
        read_masked(data_of(Image.new("RGB", (300, 100))), None, LIMIT)


def test_a_mask_may_be_transparent_or_have_16_bits():
    image = data_of(Image.new("RGB", (40, 40)))
    clear = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (5, 10, 20, 30))
    deep = np.zeros((40, 40), np.uint16)
    deep[10:30, 5:20] = 2**16 - 1
    deep[:5] = 2**12  # dark; cut to 8 bits it would be white
    for marked in (clear, Image.fromarray(deep)):
        _, mask = read_masked(image, data_of(marked), LIMIT)
        assert mask.point([0] * 128 + [255] * 128).getbbox() == (5, 10, 20, 30)


def test_an_image_without_paint_has_no_mask():
    value = {"background": data_of(Image.new("RGB", (40, 40))), "layers": [data_of(Image.new("RGBA", (40, 40)))]}
    assert read_painting(value, LIMIT)[1] is None
    for empty in (None, {}, {"background": None, "layers": []}):
        with pytest.raises(Refusal, match="Please choose an image"):
            read_painting(empty, LIMIT)


def test_settings_travel_inside_of_a_png():
    settings = DrawSettings("a cat, “flat” style", negative_prompt="dogs", steps=7, guidance=3.5, seed=12)
    data = data_of(with_settings(Image.new("RGB", (8, 8)), settings))  # without pnginfo, Pillow writes no text
    with pytest.raises(Refusal, match="holds no settings"):
        read_settings(data, LIMIT)
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, settings.to_json())
    assert read_settings(data_of(Image.new("RGB", (8, 8)), pnginfo=info), LIMIT) == settings


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"prompt": 3}', '{"prompt": "a", "steps": "many"}', '{"prompt": "a"']
)
def test_other_texts_in_a_png_are_refused(text):
    with pytest.raises(Refusal):
        DrawSettings.from_json(text)
