"""Images of data sets: every format as RGB, and what cannot be read as `BrokenExample`."""

import io

import numpy as np
import pytest
from PIL import Image
from small_data import drawing

from showo_hf.training.data.examples import BrokenExample, BrokenExamples, decode_image


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour_at(image: Image.Image, place) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel(place)


def test_bytes_paths_and_the_dictionaries_of_datasets_are_the_same_image(tmp_path):
    content = encoded(drawing(1))
    (tmp_path / "a.png").write_bytes(content)
    expected = np.asarray(drawing(1))
    for value in (
        content,
        tmp_path / "a.png",
        {"bytes": content, "path": "b.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        drawing(1),
    ):
        assert np.array_equal(np.asarray(decode_image(value)), expected)
    assert np.array_equal(np.asarray(decode_image("a.png", tmp_path)), expected)


def test_transparency_is_white_and_modes_are_converted():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert colour_at(decode_image(encoded(clear)), (0, 0)) == (255, 255, 255)
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = colour_at(decode_image(encoded(cyan, "JPEG", quality=100)), (4, 4))
    assert red < 40
    assert min(green, blue) > 150
    deep = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert colour_at(decode_image(encoded(deep)), (0, 0)) == (128, 128, 128)


def test_the_orientation_of_a_photo_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo = Image.new("RGB", (6, 4), "black")
    photo.putpixel((0, 0), (255, 255, 255))
    loaded = decode_image(encoded(photo, "PNG", exif=exif))
    assert loaded.size == (4, 6)
    assert colour_at(loaded, (3, 0)) == (255, 255, 255)


def broken_values() -> dict[str, object]:
    png = encoded(drawing(1, (200, 200)))
    return {
        "truncated": png[: len(png) // 2],
        "no image": b"GIF89 is what it says, and no more",
        "empty": b"",
        "missing": None,
        "no file": "no-such-file.png",
        "null byte": "a\0b.png",
        "long name": "x" * 5000,
        "URL": "http://127.0.0.1:9/image.png",
        "no path": {"bytes": None, "path": None},
        "number": 3,
    }


@pytest.mark.parametrize("kind", list(broken_values()))
def test_what_cannot_be_read_is_broken(kind):
    with pytest.raises(BrokenExample) as caught:
        decode_image(broken_values()[kind])
    assert 5 < len(str(caught.value)) <= 200


def test_a_decompression_bomb_is_broken_and_is_not_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenExample, match="its pixels are more than the 2,000 that"):
        decode_image(encoded(Image.new("L", (100, 100))))


def test_broken_samples_count_once_up_to_the_limit():
    broken = BrokenExamples(2)
    for key in ("a", "b", "a"):
        broken.add(key, f"reason of {key}")
    assert broken.count == 2
    assert broken.keys == ["a", "b"]
    with pytest.raises(ValueError, match="allows 2 .* but there are 3. The first: a: reason of a; b: reason of b; c"):
        broken.add("c", "reason of c")
    with pytest.raises(ValueError, match="`max_broken`"):
        BrokenExamples(-1)
