"""The emoji data set, prepared from tiny archives with the layout of the real packages."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from recipes.emoji.emoji import (
    IMAGE_PACKAGES,
    NAME_PACKAGE,
    base_names,
    draw_image,
    is_held_out,
    load_emoji,
    main,
    prepare_emoji,
)
from recipes.emoji.emoji_names import readable_name, readable_synonyms, readable_tone
from recipes.npm_packages import fetch_package, read_json


APPLE = {
    "name": "RED APPLE",
    "unified": "1F34E",
    "short_names": ["apple"],
    "category": "Food & Drink",
    "subcategory": "food-fruit",
}
HAND = {
    "name": "VICTORY HAND",
    "unified": "270C-FE0F",
    "short_names": ["v"],
    "category": "People & Body",
    "subcategory": "hand-fingers-partial",
    "skin_variations": {"1F3FB": {"unified": "270C-1F3FB"}, "1F3FF": {"unified": "270C-1F3FF"}},
}


def image_file(colour, side, kind="PNG", box=None):
    """A transparent square (transparent black) with a filled rectangle."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    image.paste(colour, box or (0, 0, side, side))
    content = io.BytesIO()
    image.save(content, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return content.getvalue()


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def cache(tmp_path):
    """A cache folder with all four archives, so that nothing is downloaded."""
    folder = tmp_path / "npm"
    folder.mkdir()
    entries = json.dumps([APPLE, HAND]).encode()
    for style, vendor in (("noto", "google"), ("twemoji", "twitter")):
        files = {"emoji.json": entries, "LICENSE": b"MIT"}
        for code in ("1f34e", "270c-fe0f", "270c-1f3fb", "270c-1f3ff"):
            files[f"img/{vendor}/64/{code}.png"] = image_file((200, 0, 0, 255), 64)
        package, version, _, _ = IMAGE_PACKAGES[style]
        write_archive(folder / f"{package}-{version}.tgz", files)
    fluent = {
        "assets/1f34e.webp": image_file((0, 0, 200, 255), 256, "WEBP"),
        "assets/270c.webp": image_file((0, 200, 0, 255), 256, "WEBP"),
        "assets/270c-fe0f.webp": image_file((0, 0, 200, 255), 256, "WEBP"),
        "assets/1f9ff_unknown.webp": image_file((0, 0, 200, 255), 256, "WEBP"),
        "README.md": b"MIT licensed",
    }
    write_archive(folder / f"lobehub-fluent-emoji-3d-{IMAGE_PACKAGES['fluent3d'][1]}.tgz", fluent)
    names = {"\U0001f34e": {"name": "red apple"}, "\u270c\ufe0f": {"name": "victory hand"}}
    write_archive(folder / "{}-{}.tgz".format(*NAME_PACKAGE), {"data-by-emoji.json": json.dumps(names).encode()})
    return folder


def test_preparing_and_loading(cache, tmp_path):
    output = prepare_emoji(tmp_path / "data" / "emoji", size=32, cache=cache)
    dataset = load_emoji(output)
    assert [(record.style, record.code) for record in dataset.records] == [
        ("noto", "1F34E"),
        ("noto", "270C-1F3FB"),
        ("noto", "270C-1F3FF"),
        ("noto", "270C-FE0F"),
        ("twemoji", "1F34E"),
        ("twemoji", "270C-1F3FB"),
        ("twemoji", "270C-1F3FF"),
        ("twemoji", "270C-FE0F"),
        ("fluent3d", "1F34E"),
        ("fluent3d", "270C-FE0F"),
    ]
    apple, light, dark, plain = dataset.records[:4]
    assert (apple.name, apple.synonyms, apple.tone) == ("red apple", ("apple",), None)
    assert (light.unified, light.tone, dark.tone, plain.tone) == ("270C-FE0F", "light", "dark", None)
    assert dataset.images.shape == (10, 32, 32, 3) and dataset.images.dtype == np.uint8
    assert isinstance(dataset.images, np.memmap)
    assert dataset.images[0, 16, 16].tolist() == [200, 0, 0]
    assert dataset.images[9, 16, 16].tolist() == [0, 0, 200]  # the file with the variation selector
    assert (output / "licences" / "emoji-datasource-google-16.0.0" / "LICENSE").read_bytes() == b"MIT"
    assert [path.name for path in output.parent.iterdir()] == ["emoji"]


def test_train_and_held_out_rows_are_a_partition(cache, tmp_path):
    dataset = load_emoji(prepare_emoji(tmp_path / "emoji", size=8, cache=cache))
    rows = np.concatenate([dataset.train_indices, dataset.held_out_indices])
    assert sorted(rows.tolist()) == list(range(10))
    for row in dataset.held_out_indices:
        assert is_held_out(dataset.records[row].unified, dataset.records[row].style)


def test_a_second_run_replaces_the_first(cache, tmp_path, capsys):
    for size in (8, 12):
        main(["--output", str(tmp_path / "emoji"), "--size", str(size), "--cache", str(cache)])
    assert load_emoji(tmp_path / "emoji").images.shape == (10, 12, 12, 3)
    assert "fluent3d        2 images" in capsys.readouterr().out


def test_a_broken_image_leaves_the_old_folder_unchanged(cache, tmp_path):
    output = prepare_emoji(tmp_path / "emoji", size=8, cache=cache)
    package, version, folder, extension = IMAGE_PACKAGES["twemoji"]
    path = folder.removeprefix("package/") + "1f34e" + extension
    write_archive(cache / f"{package}-{version}.tgz", {path: b"GIF89a, not allowed"})
    with pytest.raises(OSError):
        prepare_emoji(output, size=16, cache=cache)
    assert load_emoji(output).images.shape[1] == 8
    assert not list(tmp_path.glob(".emoji*"))


@pytest.mark.parametrize(
    "unified, style, expected",
    [  # from the definition: CRC-32 of "unified|style", a multiple of 20
        ("1F1E6-1F1F9", "noto", True),
        ("1F1E8-1F1FE", "noto", True),
        ("1F34E", "noto", False),
        ("1F469-200D-1F52C", "twemoji", False),
    ],
)
def test_held_out_rule(unified, style, expected):
    assert is_held_out(unified, style) is expected


def test_a_cached_archive_is_not_fetched(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert fetch_package(*NAME_PACKAGE, cache).parent == cache


def test_without_npm_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs the command `npm`"):
        fetch_package("some-package", "1.0.0", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_argument_and_its_value(cache, tmp_path):
    with pytest.raises(ValueError, match="`size` must be a positive number of pixels, got 0"):
        prepare_emoji(tmp_path / "emoji", size=0, cache=cache)
    with pytest.raises(FileNotFoundError, match="`folder` must contain images.npy"):
        load_emoji(tmp_path)
    with pytest.raises(ValueError, match="has no file package/missing.json"):
        read_json(next(cache.iterdir()), "package/missing.json")
    with pytest.raises(ValueError, match="1F3FA"):
        readable_tone("1F3FA")


def test_records_and_images_must_match(cache, tmp_path):
    output = prepare_emoji(tmp_path / "emoji", size=8, cache=cache)
    lines = (output / "records.jsonl").read_text().splitlines()
    (output / "records.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="9 records but 10 images"):
        load_emoji(output)


def test_two_emoji_with_one_name_are_refused():
    with pytest.raises(ValueError, match="red apple"):
        base_names([APPLE, {**APPLE, "unified": "1F34F"}], {})


def test_margin_and_white_background():
    image = draw_image(image_file((0, 0, 0, 255), 64), 64)
    dark_columns = np.flatnonzero((image < 128).all(axis=(0, 2)) | (image.min(axis=(0, 2)) < 128))
    assert (dark_columns[0], dark_columns[-1]) == (4, 59)  # 56 of 64: seven eighths
    assert (image[:4] == 255).all() and (image[:, 60:] == 255).all()


def test_small_images_are_not_enlarged():
    image = draw_image(image_file((0, 0, 0, 255), 64, box=(24, 24, 40, 40)), 64)
    assert (image[..., 0] < 128).sum() == 16 * 16


def test_no_dark_fringe_from_transparent_black():
    image = draw_image(image_file((255, 255, 0, 255), 64, box=(16, 16, 48, 48)), 40)
    assert image[..., :2].min() >= 253  # between yellow and white, red and green stay full


def test_an_empty_image_is_white():
    assert (draw_image(image_file((0, 0, 0, 0), 16), 8) == 255).all()


@pytest.mark.parametrize(
    "cldr_name, subcategory, expected",
    [
        ("flag France", "country-flag", "flag of france"),
        ("flag United Kingdom", "country-flag", "flag of the united kingdom"),
        ("flag Côte d’Ivoire", "country-flag", "flag of cote d'ivoire"),
        ("man technologist", "person-role", "male technologist"),
        ("man in tuxedo", "person-role", "man in tuxedo"),
        ("woman curly hair", "person", "woman with curly hair"),
        ("man bald", "person", "bald man"),
        ("family man, woman, girl, boy", "family", "family of a man, a woman, a girl and a boy"),
        ("family woman, woman, boy, boy", "family", "family of two women and two boys"),
        ("kiss man, man", "family", "two men kissing"),
        ("kiss mark", "emotion", "kiss mark"),
        ("two-thirty", "time", "clock showing half past two"),
        ("AB button (blood type)", "alphanum", "blood type ab button"),
        ("Aries", "zodiac", "aries zodiac sign"),
        ("no smoking", "warning", "no smoking sign"),
        ("piñata", "game", "pinata"),
    ],
)
def test_names_read_as_english(cldr_name, subcategory, expected):
    assert readable_name(cldr_name, subcategory, {"technologist"}) == expected


def test_synonyms():
    assert readable_synonyms("red apple", ["apple"], "Food & Drink", "food-fruit") == ["apple"]
    assert readable_synonyms("hot dog", ["hotdog"], "Food & Drink", "food-prepared") == []
    assert readable_synonyms("framed picture", ["frame_with_picture"], "Activities", "arts & crafts") == []
    assert readable_synonyms("dog", ["dog2"], "Animals & Nature", "animal-mammal") == []
    assert readable_synonyms("thumbs up", ["+1", "thumbsup"], "People & Body", "hand-fingers-closed") == []


def test_tones():
    assert readable_tone("1F3FC") == "medium-light"
    assert readable_tone("1F3FB-1F3FE") == "light and medium-dark"
    assert readable_tone("1F3FD-1F3FD") == "medium"
