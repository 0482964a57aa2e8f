"""Image files of strangers: refused before they are decoded, or read as they are."""

import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cpu_time
import hostile_images
import numpy as np
import pytest
from PIL import Image

import showo_hf
from showo_hf import ShowoImg2ImgPipeline
from showo_hf.processing import image_reader
from showo_hf.processing.image_reader import read_image_content, read_image_file
from showo_hf.processing.images import load_image
from showo_hf.training.data.examples import BrokenExample, decode_image


SECONDS, MEGABYTES = 1.0, 200
HOSTILE = hostile_images.make()
PICTURE = Image.effect_noise((40, 24), 60).convert("RGB")


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def saved(image: Image.Image, format: str, **options) -> bytes:
    return hostile_images.saved(image, format, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict]:
    """What reading each hostile file takes and gives, in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in HOSTILE.items():
        (folder / name).write_bytes(content)
    script = Path(__file__).parent / "measured_reading.py"
    files = [str(folder / name) for name in HOSTILE]
    done = subprocess.run(
        [sys.executable, script, *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {record["file"]: record for record in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_nearly_nothing(name, measured):
    record, (_, message) = measured[name], HOSTILE[name]
    assert cpu_time.within(record["seconds"], SECONDS) and record["megabytes"] < MEGABYTES, record
    if message is None:  # what is hostile in it is left out, and the picture is there
        assert record["size"] == [16, 16]
    else:
        assert message in record["message"], record


@pytest.mark.parametrize("name", ["size.png", "scans.jpg", "frame.gif", "other.eps"])
def test_every_way_to_the_reader_refuses(name, tmp_path):
    content = HOSTILE[name][0]
    (tmp_path / name).write_bytes(content)
    for source in (content, tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ValueError, match="^`image` holds an image that cannot be read: "):
            load_image(source, "image")
    for value in (content, {"bytes": content, "path": None}, name):
        with pytest.raises(BrokenExample, match="cannot be read"):
            decode_image(value, tmp_path)


def test_the_caller_can_raise_the_limit(tmp_path):
    Image.new("1", (5000, 4000), 1).save(tmp_path / "large.png")
    with pytest.raises(
        ValueError, match="'large.png' .its 5000x4000 pixels are more than the 16,000,000 that are read"
    ) as caught:
        showo_hf.load_image(tmp_path / "large.png")
    (note,) = caught.value.__notes__
    assert "showo_hf.load_image(file, max_pixels=...)" in note and "PIL.Image.open" in note
    assert load_image(tmp_path / "large.png", max_pixels=20_000_000).size == (5000, 4000)
    assert load_image(Image.open(tmp_path / "large.png")).size == (5000, 4000)
    with pytest.raises(ValueError, match="its 6x4 pixels are more than the 23"):
        load_image(saved(Image.new("L", (6, 4)), "PNG"), max_pixels=23)


def test_the_pipelines_and_the_processor_take_a_larger_image_that_the_caller_loaded(processor, pipe, tmp_path):
    Image.new("1", (5000, 4000), 1).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="`images` holds .* 16,000,000 that are read"):
        processor(images=tmp_path / "large.png")
    large = showo_hf.load_image(tmp_path / "large.png", max_pixels=20_000_000)
    assert processor(images=large)["pixel_values"].shape[0] == 1
    with pytest.raises(ValueError, match="`image` holds .* 16,000,000 that are read"):
        ShowoImg2ImgPipeline(**pipe.components).load_images(tmp_path / "large.png", None, None)
    assert ShowoImg2ImgPipeline(**pipe.components).load_images(large, None, None)[0].size == (5000, 4000)


def test_a_large_file_and_what_is_no_file_are_not_read(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="its 1,099,511,627,776 bytes are more than"):
        read_image_file(tmp_path / "sparse.png")
    with pytest.raises(FileNotFoundError):
        read_image_file("/dev/zero")
    with pytest.raises(ValueError, match="bytes are more than the 1,048,656 that are read"):
        load_image("data:image/png;base64," + "A" * 2_000_000, max_pixels=10)


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_plain_files_give_what_pillow_gives(format, mode):
    content = saved(PICTURE.convert(mode), format, **({"lossless": True} if format == "WEBP" else {}))
    assert same(read_image_content(content), Image.open(io.BytesIO(content)))


@pytest.mark.parametrize(
    "format, mode, options",
    [
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"comment": "a comment", "icc_profile": b"profile" * 20_000, "dpi": (72, 72)}),
        ("JPEG", "RGB", {"restart_marker_blocks": 1}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "YCbCr", {"subsampling": 0}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        ("GIF", "P", {"transparency": 3, "comment": "a comment"}),
        ("GIF", "P", {"save_all": True, "append_images": [PICTURE.convert("P")], "disposal": 2}),
        ("WEBP", "RGBA", {"lossless": True, "save_all": True, "append_images": [PICTURE]}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "RGB", {"compression": "packbits"}),
        ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "P", {}),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "1", {"compression": "group3"}),
        ("TIFF", "F", {}),
        ("TIFF", "RGB", {"save_all": True, "append_images": [PICTURE.rotate(90)]}),
    ],
)
def test_every_kind_of_file_gives_what_pillow_gives(format, mode, options):
    content = saved(PICTURE.convert(mode), format, **options)
    found, plain = read_image_content(content), Image.open(io.BytesIO(content))
    assert found.mode == plain.mode and np.array_equal(np.asarray(found), np.asarray(plain))
    assert found.info.get("transparency") == plain.info.get("transparency")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_exif_orientation_is_applied(format, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[image_reader.ORIENTATION] = orientation
    exif[0x010E] = "a description"
    content = saved(PICTURE, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    method = image_reader.TRANSPOSED.get(orientation)
    plain = read_image_content(saved(PICTURE, format, **({"lossless": True} if format == "WEBP" else {})))
    assert same(read_image_content(content), plain if method is None else plain.transpose(method))


def test_deep_grey_takes_no_floats():
    deep = np.random.default_rng(0).integers(0, 2**16, (500, 1000), dtype=np.uint16)
    content = saved(Image.fromarray(deep), "PNG")
    tracemalloc.start()
    image = load_image(content, "image")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(np.asarray(image)[..., 0], (deep / 257).round())
    assert peak - len(content) < 10 * deep.size, f"{peak / deep.size:.1f} bytes per pixel"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_no_part_of_a_file_ends_in_another_error(format):
    content = saved(PICTURE, format)
    noise = np.random.default_rng(0)
    for length in {*range(0, 60), *noise.integers(60, len(content), 20).tolist()}:
        for part in (content[:length], content[:length] + noise.bytes(4) + content[length + 4 :]):
            try:
                load_image(part, "image")
            except ValueError as error:
                assert "`image` " in str(error)
