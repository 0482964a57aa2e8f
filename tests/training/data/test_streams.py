"""Streams of shards: shuffled, resumed exactly, each row once an epoch."""

import json

import datasets
import pytest
from small_data import text_stream

from showo_hf.training.data.streams import StreamReader


def reader(cursor=None, block=4, seed=7, sizes=(7, 5, 1, 9)):
    opened = text_stream(list(sizes))
    return StreamReader(opened.name, opened.stream, list(range(len(sizes))), seed, block, cursor)


def read(stream: StreamReader, start: int, end: int) -> list[str]:
    return [stream.read(position)[1]["text"] for position in range(start, end)]


@pytest.mark.parametrize("block", [1, 4, 100])
def test_each_epoch_has_each_row_once_in_another_order(block):
    rows = read(reader(block=block), 0, 66)
    epochs = [rows[start : start + 22] for start in (0, 22, 44)]
    assert all(len(set(epoch)) == 22 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows != read(reader(block=block, seed=8), 0, 66)


@pytest.mark.parametrize("block", [1, 4])
def test_a_cursor_resumes_at_every_position(block):
    whole = read(reader(block=block), 0, 50)
    for stop in range(1, 49):
        first = reader(block=block)
        read(first, 0, stop)
        second = reader(json.loads(json.dumps(first.cursor)), block)
        assert read(second, stop, 50) == whole[stop:]


@pytest.mark.parametrize("kind", ["parquet", "text", "table"])
def test_a_cursor_resumes_in_files(tmp_path, kind):
    """The readers of `datasets` keep their positions in different ways."""
    table = datasets.Dataset.from_dict({"text": [f"row {row}" for row in range(40)]})
    files = []
    for number in range(3):
        part = table.shard(3, number)
        files.append(str(tmp_path / f"{number}.{kind}"))
        if kind == "parquet":
            part.to_parquet(files[-1], batch_size=5)
        else:
            (tmp_path / f"{number}.{kind}").write_text("\n".join(part["text"]))
    stream = table.to_iterable_dataset(num_shards=3)
    if kind != "table":
        stream = datasets.load_dataset(kind, data_files=files, split="train", streaming=True)

    def opened(cursor=None):
        return StreamReader("files", stream, [0, 1, 2], 3, 6, cursor)

    whole = read(opened(), 0, 80)
    assert sorted(whole[:40]) == sorted(table["text"])
    for stop in range(1, 79, 3):
        first = opened()
        read(first, 0, stop)
        assert read(opened(json.loads(json.dumps(first.cursor))), stop, 80) == whole[stop:]


def test_rows_can_be_skipped_but_not_read_again():
    whole = read(reader(), 0, 60)
    stream = reader()
    assert stream.read(57)[1]["text"] == whole[57]
    with pytest.raises(ValueError, match="`position` must not be before 5[0-9], got 3"):
        stream.read(3)


def test_rows_are_named_by_shard_and_row():
    stream = reader()
    for position in range(44):
        name, row = stream.read(position)
        assert name == row["text"]
    resumed = reader(stream.cursor)
    name, row = resumed.read(43)
    assert name == row["text"]


def test_empty_shards_are_passed_and_a_stream_without_rows_is_refused():
    assert sorted(read(reader(sizes=(0, 2, 0, 1, 0)), 0, 3)) == [
        "stream shard 1 row 0",
        "stream shard 1 row 1",
        "stream shard 3 row 0",
    ]
    with pytest.raises(ValueError, match="`stream` has no rows in shard 0, 1"):
        reader(sizes=(0, 0)).read(0)
