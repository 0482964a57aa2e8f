"""Every kind of source, from real files."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from small_data import drawing, image_folder, write_lines

from showo_hf.training.data.examples import BrokenExample
from showo_hf.training.data.sources import DataSource, open_source


def examples(opened):
    """All examples of an opened source, in the order of its rows."""
    rows = opened.stream if opened.table is None else (opened.table[index] for index in range(len(opened.table)))
    return [opened.example(row, opened.key(row, f"row {number}"), 0) for number, row in enumerate(rows)]


def is_drawing(image: Image.Image, number: int) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(drawing(number)))


def png(number: int) -> bytes:
    file = io.BytesIO()
    drawing(number).save(file, "PNG")
    return file.getvalue()


def image_table(file: Path, numbers) -> Path:
    """A parquet file with the images in it."""
    content = {"image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]}
    table = datasets.Dataset.from_dict(content | {"text": [f"drawing {number}" for number in numbers]})
    table.cast_column("image", datasets.Image()).to_parquet(file)
    return file


def tar(file: Path, numbers, texts="txt") -> Path:
    with tarfile.open(file, "w") as archive:
        for number in numbers:
            text = f"drawing {number}"
            members = {
                "png": png(number),
                texts: text.encode() if texts == "txt" else json.dumps({"text": text}).encode(),
            }
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file


def test_a_folder_of_images_with_texts(tmp_path):
    opened = open_source(DataSource(str(image_folder(tmp_path / "images", 3))), "t2i")
    assert opened.size == 3
    found = examples(opened)
    assert [one.text for one in found] == ["drawing 0", ["drawing 1", "picture 1"], "drawing 2"]
    assert [one.key for one in found] == ["row 0 (0.png)", "row 1 (1.png)", "row 2 (2.png)"]
    assert all(is_drawing(one.image, number) for number, one in enumerate(found))


def test_a_folder_with_splits(tmp_path):
    image_folder(tmp_path / "images" / "train", 2)
    image_folder(tmp_path / "images" / "test", 1)
    for split, size in (("train", 2), ("test", 1)):
        assert open_source(DataSource(str(tmp_path / "images"), split), "t2i").size == size


def test_a_folder_of_images_in_streaming(tmp_path):
    folder = image_folder(tmp_path / "images", 3)
    write_lines(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"drawing {n}"} for n in range(3)])
    found = examples(open_source(DataSource(str(folder), streaming=True), "t2i"))
    assert sorted(one.text for one in found) == ["drawing 0", "drawing 1", "drawing 2"]
    assert all(is_drawing(one.image, int(one.text[-1])) for one in found)


def test_metadata_as_a_table(tmp_path):
    folder = image_folder(tmp_path / "images", 3)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\n2.png,two\n0.png,zero\n")
    found = examples(open_source(DataSource(str(folder)), "t2i"))
    assert sorted(one.text for one in found) == ["two", "zero"]
    assert all(is_drawing(one.image, {"two": 2, "zero": 0}[one.text]) for one in found)


def test_a_folder_of_classes_gives_the_class_names(tmp_path):
    for name, numbers in (("green_square", (1, 3)), ("disc", (0,))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in numbers:
            drawing(number).save(tmp_path / "classes" / name / f"{number}.png")
    found = examples(open_source(DataSource(str(tmp_path / "classes")), "t2i"))
    assert sorted((one.text, one.key.split("(")[1]) for one in found) == [
        ("disc", "0.png)"),
        ("green square", "1.png)"),
        ("green square", "3.png)"),
    ]


@pytest.mark.parametrize("names", [("bullet_train", "steam train", "disc"), ("train", "disc"), ("test_tube", "disc")])
def test_classes_with_the_name_of_a_split_in_theirs_are_classes(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / "classes" / name).mkdir(parents=True)
        drawing(number).save(tmp_path / "classes" / name / f"{number}.png")
    found = examples(open_source(DataSource(str(tmp_path / "classes")), "t2i"))
    assert sorted(one.text for one in found) == sorted(name.replace("_", " ") for name in names)


def test_images_with_the_name_of_a_split_in_theirs_are_not_the_only_ones(tmp_path):
    for number, name in enumerate(("train.png", "steam_train_1.png", "disc.png")):
        drawing(number).save(tmp_path / name)
    assert open_source(DataSource(str(tmp_path)), "image").size == 3


def test_labels_that_name_no_class_are_broken_rows(tmp_path):
    labels = datasets.ClassLabel(names=["disc", "bar"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    rows = {"image": [drawing(number) for number in range(4)], "label": [0, 1, -1, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    opened = open_source(DataSource(str(tmp_path)), "t2i")
    found = []
    for index in range(4):
        try:
            found.append(opened.example(opened.table[index], "row", 0).text)
        except BrokenExample as error:
            found.append(str(error))
    assert found[:2] == ["disc", "bar"]
    assert found[2:] == [f"the label must be an integer from 0 to 1, got {label}" for label in (-1, None)]


def test_a_first_row_that_is_broken_or_lacks_the_text_is_one_of_several(tmp_path):
    for first in ("{broken", '{"other": 1}'):
        file = tmp_path / "rows.jsonl"
        file.write_text(first + '\n{"text": "a disc"}\n{"text": "a bar"}\n')
        opened = open_source(DataSource(str(file)), "lm")
        assert opened.size == 3 and "text" in opened.columns


@pytest.mark.parametrize("streaming", [None, True])
def test_parquet_files(tmp_path, streaming):
    for part, numbers in enumerate(((0, 1), (2, 3, 4))):
        image_table(tmp_path / f"{part}.parquet", numbers)
    opened = open_source(DataSource(str(tmp_path), streaming=streaming), "t2i")
    assert opened.size == (2 if streaming else 5)
    found = examples(opened)
    assert [one.text for one in found] == [f"drawing {number}" for number in range(5)]
    assert all(is_drawing(one.image, number) for number, one in enumerate(found))


@pytest.mark.parametrize("streaming", [None, True])
def test_json_lines_with_the_names_of_images_in_another_folder(tmp_path, streaming):
    folder = image_folder(tmp_path / "elsewhere" / "images", 2)
    file = write_lines(tmp_path / "rows.jsonl", [{"picture": f"{n}.png", "caption": f"no {n}"} for n in range(2)])
    source = DataSource(
        str(file), text_column="caption", image_column="picture", streaming=streaming, image_folder=str(folder)
    )
    found = examples(open_source(source, "mmu"))
    assert [one.text for one in found] == ["no 0", "no 1"]
    assert is_drawing(found[1].image, 1)


@pytest.mark.parametrize("texts", ["txt", "json"])
def test_tars_are_streams(tmp_path, texts):
    tar(tmp_path / "a.tar", (0, 1), texts)
    tar(tmp_path / "b.tar", (2,), texts)
    opened = open_source(DataSource(str(tmp_path)), "t2i")
    assert opened.stream.num_shards == 2
    found = examples(opened)
    assert [one.text for one in found] == ["drawing 0", "drawing 1", "drawing 2"]
    assert [one.key for one in found] == ["row 0 (000.png)", "row 1 (001.png)", "row 2 (002.png)"]
    assert all(is_drawing(one.image, number) for number, one in enumerate(found))
    with pytest.raises(ValueError, match="`streaming` must not be False for tars"):
        open_source(DataSource(str(tmp_path), streaming=False), "t2i")


@pytest.mark.parametrize("streaming", [None, True])
def test_plain_texts(tmp_path, streaming):
    (tmp_path / "a.txt").write_text("one line\n\n  \nanother\n")
    (tmp_path / "b.txt").write_text("third\n")
    found = examples(open_source(DataSource(str(tmp_path), streaming=streaming), "lm"))
    assert [one.text for one in found] == ["one line", "another", "third"]
    assert found[0].image is None


def llava_rows() -> list[dict]:
    return [
        {
            "id": 1,
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": "A disc."},
                {"from": "human", "value": "Which colour?"},
                {"from": "gpt", "value": "Red."},
            ],
        },
        {
            "id": "two",
            "image": "1.png",
            "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A square."}],
        },
        {"id": 3, "conversations": [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Hello."}]},
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_llava_conversations_become_messages(tmp_path, kind, processor):
    image_folder(tmp_path / "data" / "images", 2)
    file = tmp_path / "data" / f"llava.{kind}"
    if kind == "json":
        file.write_text(json.dumps(llava_rows()))
    else:
        write_lines(file, llava_rows())
    found = [one.messages for one in examples(open_source(DataSource(str(file)), "mmu"))]
    assert [part["type"] for part in found[0][0]["content"]] == ["image", "text"]
    assert is_drawing(found[0][0]["content"][0]["image"], 0)
    assert found[0][0]["content"][1]["text"] == "What is this?"
    assert found[0][1:] == [
        {"role": "assistant", "content": "A disc."},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Red."},
    ]
    assert [part["type"] for part in found[1][0]["content"]] == ["image", "text"]
    assert found[2][0] == {"role": "user", "content": "Hello!"}
    text = processor.apply_chat_template(found[0])
    assert text.startswith("<|mmu|><|sov|>")
    assert "USER: \nWhat is this? ASSISTANT: A disc." in text


def test_messages_with_several_images_and_token_grids(tmp_path):
    image_folder(tmp_path / "images", 3)
    rows = [
        {
            "images": ["images/2.png", "images/1.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}],
                },
                {"role": "assistant", "content": "They differ."},
            ],
        },
        {
            "messages": [
                {"role": "user", "content": "Draw."},
                {"role": "assistant", "content": [{"type": "image", "image_tokens": [[1, 2], [3, 4]]}]},
            ]
        },
    ]
    first, second = examples(open_source(DataSource(str(write_lines(tmp_path / "m.jsonl", rows))), "mixed"))
    assert is_drawing(first.messages[0]["content"][0]["image"], 2)
    assert is_drawing(first.messages[0]["content"][1]["image"], 1)
    grid = second.messages[1]["content"][0]["image"]
    assert grid.dtype == torch.int64
    assert grid.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "`messages` must be a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a message must have a `role`"),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of a message"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a content part must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "there is no image"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": [[0.5]]}]}]}, "image tokens must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": [[1], [2, 3]]}]}]}, "rows of integers"),
        ({"conversations": [{"from": "cat", "value": "x"}]}, "a turn of `conversations`"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "there is no image"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "a turn of `conversations`"),
        ({"conversations": [{"from": "gpt", "value": "x"}, {"from": "system", "value": "x"}]}, "must be the first"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, "must be the first"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "the text must be valid Unicode"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "<|sov|>"}]}]},
            "special token '<.sov.>'",
        ),
        ({"text": "\ud800", "image": "0.png"}, "the text must be valid Unicode"),
        ({"text": ["x", "\udfff"], "image": "0.png"}, "the text must be valid Unicode"),
        ({"text": 3, "image": "0.png"}, "the text must be a string"),
        ({"text": [], "image": "0.png"}, "the text must be a string or a list"),
        ({"text": "x", "image": "none.png"}, "no such file: none.png"),
    ],
)
def test_rows_of_another_form_are_broken(tmp_path, row, reason):
    folder = image_folder(tmp_path / "images", 1)
    good = {"messages": [{"role": "user", "content": "x"}], "conversations": [], "text": "x", "image": "0.png"}
    columns = {name: good[name] for name in ("text", "image")} if "text" in row else {name: good[name] for name in row}
    file = write_lines(tmp_path / "rows.jsonl", [columns, row])
    opened = open_source(DataSource(str(file), image_folder=str(folder)), "mmu")
    with pytest.raises(BrokenExample, match=reason):
        opened.example(opened.table[1], "key", 0)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("t2i", {}, r"must have a column 'text' for t2i, but its columns are caption, picture. `text_column` names"),
        ("lm", {}, "must have a column 'text' for lm"),
        ("mmu", {"text_column": "caption"}, "column 'image' for mmu, .* `image_column` names another one"),
        ("mixed", {}, "must have a column 'messages' for mixed"),
    ],
)
def test_missing_columns_are_named(tmp_path, task, options, message):
    file = write_lines(tmp_path / "rows.jsonl", [{"picture": "a.png", "caption": "a"}])
    with pytest.raises(ValueError, match=message):
        open_source(DataSource(str(file), **options), task)


def test_paths_that_hold_no_data_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a file, a folder, or a data set on the Hub"):
        open_source(DataSource(str(tmp_path / "nothing")), "lm")
    with pytest.raises(ValueError, match="holds none of them"):
        open_source(DataSource(str(tmp_path)), "lm")
    drawing(1).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="`path` must have a metadata.jsonl with the texts"):
        open_source(DataSource(str(tmp_path)), "t2i")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="files of one kind, but .* holds parquet, text"):
        open_source(DataSource(str(tmp_path)), "lm")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_source(DataSource(str(tmp_path / "a.parquet")), "lm")
    with pytest.raises(ValueError, match="`task` must be one of"):
        open_source(DataSource(str(tmp_path / "a.txt")), "video")
    with pytest.raises(ValueError, match="`weight` must be a positive number"):
        DataSource("x", weight=0)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"text": "x"}\nnot json', b"[1, 2", b"\xff\xfe", b"[" * 9999, b'{"a":' * 9999]
)
def test_files_that_are_no_json_are_refused(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="rows.jsonl"):
        examples(open_source(DataSource(str(tmp_path / "rows.jsonl")), "lm"))


def test_a_pickle_in_a_data_set_is_not_read(tmp_path):
    (tmp_path / "data.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match="holds none of them"):
        open_source(DataSource(str(tmp_path)), "lm")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("form", ["folder", "table", "conversations", "parquet"])
def test_images_outside_of_the_folder_are_not_read(tmp_path, form, absolute):
    """A data set of a stranger must not teach the model other images of this machine."""
    drawing(1).save(tmp_path / "secret.png")
    folder = image_folder(tmp_path / "data", 1)
    name = str(tmp_path / "secret.png") if absolute else "../secret.png"
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    path = folder
    if form == "folder":
        write_lines(folder / "metadata.jsonl", [{"file_name": name, "text": "x"}])
    elif form == "parquet":
        (folder / "metadata.jsonl").unlink()
        path = folder / "rows.parquet"
        datasets.Dataset.from_dict({"image": [{"bytes": None, "path": name}], "text": ["x"]}).to_parquet(path)
    else:
        row = {"image": name, **({"text": "x"} if form == "table" else {"conversations": turns})}
        path = write_lines(folder / "rows.jsonl", [row])
    opened = open_source(DataSource(str(path)), "mmu")
    with pytest.raises(BrokenExample, match="must lie in the folder of the data: .*secret.png"):
        opened.example(opened.table[0], "key", 0)
    if absolute and form != "parquet":  # the user's own choice
        opened = open_source(
            DataSource(str(path), image_folder=str(tmp_path)), "t2i" if form != "conversations" else "mmu"
        )
        assert opened.example(opened.table[0], "key", 0)


def test_a_link_to_a_folder_of_images_is_read(tmp_path):
    image_folder(tmp_path / "images", 1)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for streaming in (None, True):
        assert len(examples(open_source(DataSource(str(tmp_path / "link"), streaming=streaming), "t2i"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": 5}, "`text_column` must be a text, got 5"),
        ({"streaming": "no"}, "`streaming` must be true or"),
        ({"revision": 1}, "`revision` must be a text, got 1"),
    ],
)
def test_options_of_other_types_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataSource("x", **options)


def test_a_revision_of_local_data_is_refused(tmp_path):
    folder = image_folder(tmp_path / "images", 1)
    with pytest.raises(ValueError, match="`revision` is for data sets on the Hub, but .*images"):
        open_source(DataSource(str(folder), revision="v1"), "t2i")
