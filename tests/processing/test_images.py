"""Loading input images of every kind."""

import base64
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from hostile import ITSELF, try_all
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from showo_hf.processing.image_reader import read_image_content, read_image_file
from showo_hf.processing.images import MAX_ASPECT, flatten_images, is_token_grid, load_grey, load_image


RED = Image.new("RGB", (6, 4), "red")


def png(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))


def test_every_kind_of_input_gives_the_same_image(tmp_path):
    RED.save(tmp_path / "red.png")
    array = np.asarray(RED)
    floats = torch.from_numpy(array / 255.0)
    text = base64.b64encode(png(RED)).decode()
    sources = [RED, array, tmp_path / "red.png", str(tmp_path / "red.png"), array.transpose(2, 0, 1), floats]
    sources += [floats.movedim(-1, 0), torch.from_numpy(array.copy()), text, f"data:image/png;base64,{text}"]
    assert all(same(load_image(source), RED) for source in sources)


def test_a_url_is_fetched(tmp_path):
    RED.save(tmp_path / "red.png")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert same(load_image(f"{url}/red.png"), RED)
        with pytest.raises(ValueError, match="cannot be read"):
            load_image(f"{url}/missing.png")
        server.shutdown()


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert same(load_image(clear), Image.new("RGB", (3, 3), "white"))
    half = Image.new("RGBA", (3, 3), (255, 0, 0, 128))
    assert load_image(half).getpixel((1, 1)) == (255, 127, 127)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert load_image(base64_text(png(palette, transparency=0))).getpixel((0, 0)) == (255, 255, 255)


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr", "1", "P", "LA", "HSV", "LAB", "F"])
def test_other_modes_are_read(mode):
    image = Image.new("L", (5, 5), 255).convert("RGB").convert(mode) if mode not in ("LAB", "F") else None
    image = image or Image.new(mode, (5, 5), 255)
    assert load_image(image).mode == "RGB"
    if mode not in ("LAB",):
        assert load_image(image).getpixel((2, 2)) == (255, 255, 255)


def test_16_bit_images_are_scaled(tmp_path):
    ramp = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert [load_image(tmp_path / "deep.png").getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_dark_16_bit_images_stay_dark(tmp_path):
    dark = Image.fromarray(np.array([[0, 130, 200]], dtype=np.uint16))
    dark.save(tmp_path / "dark.png")
    assert dark.mode == "I;16"
    for image in (dark, tmp_path / "dark.png"):
        assert [load_image(image).getpixel((x, 0))[0] for x in range(3)] == [0, 1, 1]
        assert load_grey(image, "mask").getextrema() == (0, 1)
    shallow = Image.fromarray(np.array([[0, 130, 200]], dtype=np.int32))
    assert shallow.mode == "I" and load_image(shallow).getpixel((2, 0)) == (200, 200, 200)


def test_the_transparent_value_of_a_16_bit_png_is_transparent(tmp_path):
    values = Image.fromarray(np.array([[257 * 100, 257 * 100 + 1, 65535]], dtype=np.uint16))
    values.save(tmp_path / "clear.png", transparency=257 * 100)
    with Image.open(tmp_path / "clear.png") as file:
        assert file.mode == "I;16" and file.info["transparency"] == 257 * 100
        for image in (tmp_path / "clear.png", file):
            assert [load_image(image).getpixel((x, 0))[0] for x in range(3)] == [255, 100, 255], "white where clear"
            assert [load_grey(image, "mask").getpixel((x, 0)) for x in range(3)] == [0, 100, 255], "black where clear"


def test_float_grayscale_is_scaled():
    image = Image.fromarray(np.array([[0, 0.2, 1]], "float32"))
    assert image.mode == "F" and [load_image(image).getpixel((x, 0))[0] for x in range(3)] == [0, 51, 255]
    for wrong in (-1, 300, np.nan):
        with pytest.raises(ValueError, match="`image` must have floats from 0 to 1, or to 255, got"):
            load_image(Image.fromarray(np.full((1, 1), wrong, "float32")))


@pytest.mark.parametrize("mode", ["F", "I", "RGB"])
def test_an_empty_image_is_refused(mode):
    with pytest.raises(ValueError, match=f"`image` holds an empty image: a 0x3 {mode} image"):
        load_image(Image.new(mode, (0, 3)))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    RED.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (4, 6)


def test_a_very_wide_image_is_cropped_to_its_center():
    wide = Image.new("RGB", (20_000, 2), "white")
    wide.paste("red", (9_990, 0, 10_010, 2))
    kept = load_image(wide)
    assert kept.size == (2 * MAX_ASPECT, 2)
    assert kept.getpixel((MAX_ASPECT, 1)) == (255, 0, 0)
    assert load_image(Image.new("RGB", (1, 1), "red")).size == (1, 1)


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(2, 7), st.integers(2, 7), st.sampled_from([3]))))
def test_pixels_are_not_changed(array):
    assert np.array_equal(np.asarray(load_image(array)), array)
    assert np.array_equal(np.asarray(load_image(torch.from_numpy(array.astype(np.float32) / 255))), array)


def test_unreadable_images_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(png(Image.effect_noise((64, 64), 50))[:900])
    for name, message in (
        ("text.png", "`image` holds an image that cannot be read: 'text.png'"),
        ("cut.png", "`image` holds an image that cannot be read: 'cut.png'"),
        ("missing.png", "'missing.png' .*no such file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_pillows_own_limit_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (30, 30)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="'bomb.png' .its pixels are more than the 20 that"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "image, error, message",
    [
        (np.zeros((2, 2, 5), np.uint8), ValueError, r"1, 3 or 4 channels, got shape \(2, 2, 5\)"),
        (np.zeros((0, 2, 3), np.uint8), ValueError, r"got shape \(0, 2, 3\)"),
        (np.zeros((4, 4, 3), np.int32), ValueError, "uint8 or floats, got int32"),
        (torch.full((3, 4, 4), -1.0), ValueError, r"floats must be in \[0, 1\], got -1 to -1"),
        (np.full((4, 4, 3), np.nan), ValueError, r"floats must be in \[0, 1\], got nan"),
        (5, TypeError, "PIL images, arrays, tensors, paths or URLs, got int: 5"),
    ],
)
def test_wrong_arrays_and_types_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        load_image(image)


def test_lists_are_flattened_and_token_grids_recognized():
    grid = torch.zeros(4, 4, dtype=torch.int64)
    batch = np.zeros((2, 4, 4, 3), np.uint8)
    assert len(flatten_images([[RED], [grid, [batch]]])) == 4
    assert flatten_images(None) == [] and flatten_images(RED) == [RED]
    assert is_token_grid(grid) and not is_token_grid(torch.zeros(4, 4)) and not is_token_grid(RED)


@pytest.mark.parametrize("kind", ["image", "array", "file", "content", "text"])
@pytest.mark.parametrize("limit", ["max_pixels", "max_aspect"])
def test_limits_that_are_none_are_refused_by_name(limit, kind, tmp_path):
    RED.save(tmp_path / "red.png")
    text = base64.b64encode(png(RED)).decode()
    sources = {"image": RED, "array": np.asarray(RED), "file": tmp_path / "red.png", "content": png(RED), "text": text}
    plain = dict.fromkeys(["2**63", "5000 digits"], ITSELF)
    if limit == "max_aspect":  # the image has 6 x 4 pixels
        plain |= dict.fromkeys(["fraction", "infinity", "huge float"], ITSELF)
    try_all(load_image, {"image": sources[kind]}, limit, lambda image: same(image, RED), plain)


def test_every_reader_refuses_limits_that_are_none(tmp_path):
    RED.save(tmp_path / "red.png")
    calls = {read_image_content: {"content": png(RED)}, read_image_file: {"path": tmp_path / "red.png"}}
    calls[load_grey] = {"image": tmp_path / "red.png", "name": "mask_image"}
    plain = dict.fromkeys(["2**63", "5000 digits"], ITSELF)
    for call, valid in calls.items():
        try_all(call, valid, "max_pixels", lambda image: image.size == RED.size, plain)


@pytest.mark.parametrize("most", [1, 1.3, 2.7, np.float32(1.3), np.int64(2)])
def test_no_image_is_longer_than_the_limit(most):
    for size in ((2, 10), (10, 3), (7, 50)):
        cropped = load_image(Image.new("RGB", size), max_aspect=most)
        assert min(cropped.size) == min(size) and max(cropped.size) == int(most * min(size))
