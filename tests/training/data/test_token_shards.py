"""Stored image tokens: the same as computed ones, checked, and resumable."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tiny
import torch
from PIL import ImageOps
from small_data import drawing, image_folder, write_lines

from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.data.loader import StepLoader, TaskData
from showo_hf.training.data.sources import DataSource, open_source
from showo_hf.training.data.token_shards import (
    INDEX,
    StoredTokens,
    image_tokenizer_checksum,
    read_index,
    write_index,
)
from showo_hf.training.data.tokenizing import TokenizeOptions, store_tokens
from showo_hf.utils.atomic_folder import locked


SIZE = tiny.SIDE * tiny.FACTOR


def load(process=0, seed=0, size=SIZE):
    return tiny.lfq(seed), showo_image_processor(size)


def slow_load(process=0):
    tokenizer, processor = load()
    encode = tokenizer.encode

    def slow_encode(pixels):
        time.sleep(0.15)
        return encode(pixels)

    tokenizer.encode = slow_encode
    return tokenizer, processor


def tokens_of(image) -> torch.LongTensor:
    tokenizer, processor = load()
    with torch.inference_mode():
        return tokenizer.encode(processor([image], return_tensors="pt")["pixel_values"]).image_tokens[0]


def options(folder: Path, **changes) -> TokenizeOptions:
    return TokenizeOptions(DataSource(str(folder)), **({"shard_size": 2, "batch_size": 4} | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def stored(tmp_path) -> Path:
    """Seven images in four shards."""
    store_tokens(options(image_folder(tmp_path / "images", 7)), tmp_path / "tokens", load)
    return tmp_path / "tokens"


def test_stored_tokens_are_those_of_the_image_tokenizer(stored):
    opened = open_source(DataSource(str(stored)), "t2i", image_tokenizer_checksum(tiny.lfq()))
    assert opened.table.grid_size == (tiny.SIDE, tiny.SIDE)
    assert opened.size == 7
    for number in (6, 0, 3, 1, 2, 5, 4):
        example = opened.example(opened.table[number], "key", 0)
        assert example.image is None
        assert example.image_tokens.dtype == torch.int64
        assert torch.equal(example.image_tokens, tokens_of(drawing(number)))
        assert example.text == ([f"drawing {number}", f"picture {number}"] if number % 2 else f"drawing {number}")
    opened.table.check_all()


def test_workers_read_stored_tokens(stored):
    data = {"t2i": TaskData((DataSource(str(stored)),), 3)}
    batches = [next(iter(StepLoader(data, summary, seed=0, num_workers=workers)))[0] for workers in (0, 1)]
    assert batches[0] == batches[1]
    assert len(batches[0]) == 3
    table = StoredTokens(stored)
    row = table[3]
    assert torch.equal(pickle.loads(pickle.dumps(table))[3]["image_tokens"], row["image_tokens"])


def summary(examples):
    return [(one.key, one.text, one.image_tokens.tolist()) for one in examples["t2i"]]


def test_conversations_keep_their_images_in_place(tmp_path):
    image_folder(tmp_path / "images", 3)
    rows = [
        {"messages": [{"role": "user", "content": "Hello."}]},
        {
            "images": ["images/2.png", "images/1.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Now?"}, {"type": "image"}]}
            ],
        },
    ]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    store_tokens(TokenizeOptions(DataSource(str(file))), tmp_path / "tokens", load)
    opened = open_source(DataSource(str(tmp_path / "tokens")), "mixed")
    first, second = (opened.example(opened.table[index], "key", 0).messages for index in range(2))
    assert first == rows[0]["messages"]
    one, text, other = second[0]["content"]
    assert torch.equal(one["image"], tokens_of(drawing(2)))
    assert text == {"type": "text", "text": "Now?"}
    assert torch.equal(other["image"], tokens_of(drawing(1)))
    with pytest.raises(ValueError, match="must have a column 'text' for t2i"):
        open_source(DataSource(str(tmp_path / "tokens")), "t2i")


def test_mirrored_images_are_drawn_by_the_noise_of_a_sample(tmp_path):
    folder = tmp_path / "tokens"
    images = image_folder(tmp_path / "images", 1)
    ImageOps.expand(drawing(1), (0, 0, 20, 0), "red").save(images / "0.png")  # not symmetric
    store_tokens(options(images, flip=True), folder, load)
    image = ImageOps.expand(drawing(1), (0, 0, 20, 0), "red")
    expected = {str(tokens_of(one).tolist()) for one in (image, ImageOps.mirror(image))}
    assert len(expected) == 2
    opened = open_source(DataSource(str(folder)), "t2i")
    drawn = [str(opened.example(opened.table[0], "key", seed).image_tokens.tolist()) for seed in range(40)]
    assert set(drawn) == expected
    assert 8 < drawn.count(drawn[0]) < 32


def test_broken_samples_are_left_out_named_and_limited(tmp_path):
    images = image_folder(tmp_path / "images", 5)
    for number in (0, 3):
        (images / f"{number}.png").write_bytes(b"no image")
    with open(images / "metadata.jsonl", "a") as rows:
        rows.write("no JSON\n")
    stored = store_tokens(options(images), tmp_path / "tokens", load)
    assert [stored[index]["text"] for index in range(len(stored))] == [
        ["drawing 1", "picture 1"],
        "drawing 2",
        "drawing 4",
    ]
    broken = {key: reason for shard in stored.shards for key, reason in shard["broken"].items()}
    assert [key.rsplit(" ", 1)[1] for key in broken] == ["(0.png)", "(3.png)", "5"]
    with pytest.raises(ValueError, match=r"`max_broken` allows 1 .* \(0.png\): "):
        store_tokens(options(images), tmp_path / "other", load, max_broken=1)


def test_an_interrupted_run_goes_on_with_the_missing_shards(tmp_path, stored):
    whole = contents(stored)

    def interrupt(done, total):
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_tokens(options(tmp_path / "images"), tmp_path / "again", load, on_shard=interrupt)
    with pytest.raises(ValueError, match="is not complete. Run the `showo-hf tokenize` that wrote it again"):
        StoredTokens(tmp_path / "again")
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "again").glob("shard-*")}
    assert len(kept) == 6
    store_tokens(options(tmp_path / "images"), tmp_path / "again", load)
    assert contents(tmp_path / "again") == whole
    assert kept == {name: (tmp_path / "again" / name).stat().st_mtime_ns for name in kept}


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "shard-00002.jsonl", "shard-00003.json", INDEX])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_damage_is_found_named_and_mended(tmp_path, stored, name, damage):
    whole = contents(stored)
    changed = bytearray(whole[name])
    changed[len(changed) // 2] ^= 4
    if damage == "gone":
        (stored / name).unlink()
    else:
        (stored / name).write_bytes(changed if damage == "bit" else changed[: len(changed) // 2])
    if name == "shard-00003.json":  # the record of a shard, which only a resumed run reads
        StoredTokens(stored).check_all()
    elif name == INDEX and damage == "gone":
        with pytest.raises(ValueError, match="tokens"):
            open_source(DataSource(str(stored)), "t2i")
    else:
        with pytest.raises(ValueError, match=name):
            table = StoredTokens(stored)
            for index in range(len(table)):
                table[index]
    if name == INDEX and damage == "gone":
        return  # then it is a folder like any other, and nothing is written to it
    store_tokens(options(tmp_path / "images"), stored, load)
    assert contents(stored) == whole


def test_a_bit_that_flips_in_one_shard_leaves_the_others_readable(stored):
    file = stored / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    table = StoredTokens(stored)
    assert table[0]["key"].endswith("(0.png)")
    with pytest.raises(ValueError, match="shard-00001.safetensors` is damaged: its checksum"):
        table[2]
    with pytest.raises(ValueError, match="shard-00001"):
        table.check_all()


@pytest.mark.parametrize(
    "change",
    [
        {"grid": [0, 4]},
        {"grid": None},
        {"variants": 0},
        {"columns": ["key"]},
        {"image_tokenizer": None},
        {"shards": [3]},
        {"shards": {}},
    ],
    ids=str,
)
def test_an_index_of_another_form_is_refused(stored, change):
    write_index(stored, read_index(stored) | change)
    with pytest.raises(ValueError, match="image_tokens.json` is damaged: it has not the form of an index"):
        StoredTokens(stored)


@pytest.mark.parametrize("name", ["../elsewhere/shard-00000", "/shard-00000", "shard-00000/../../x"])
def test_an_index_cannot_name_files_of_other_folders(stored, name):
    index = read_index(stored)
    shard = index["shards"][0]
    shard["files"] = {f"{name}{suffix}": shard["files"].popitem()[1] for suffix in (".jsonl", ".safetensors")}
    shard["name"] = name
    write_index(stored, index)
    with pytest.raises(ValueError, match="has not the form of an index"):
        StoredTokens(stored)


@pytest.mark.parametrize("number", [-1, 99, "0", None])
def test_a_row_cannot_name_an_image_that_is_not_there(stored, number):
    index, file = read_index(stored), stored / "shard-00000.jsonl"
    lines = [json.dumps({**json.loads(line), "image": number}) + "\n" for line in file.read_text().splitlines()]
    file.write_text("".join(lines))
    content = file.read_bytes()
    sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index["shards"][0]["files"][file.name] = sums
    write_index(stored, index)
    with pytest.raises(ValueError, match="is damaged"):
        StoredTokens(stored)[0]


def test_tokens_of_another_image_tokenizer_are_refused(stored):
    other = tiny.lfq(seed=1)
    with pytest.raises(ValueError, match="holds tokens of another image tokenizer than the model's"):
        StoredTokens(stored, image_tokenizer_checksum(other))
    model = tiny.showo()
    assert image_tokenizer_checksum(model) == image_tokenizer_checksum(model.image_tokenizer)
    with pytest.raises(ValueError, match="`model` must have an image tokenizer"):
        image_tokenizer_checksum(tiny.showo(images=False))


def test_other_options_files_and_processes_are_refused(tmp_path, stored):
    images = tmp_path / "images"
    before = contents(stored)
    with pytest.raises(ValueError, match="holds tokens of other options: shard_size was 2, and is now 3"):
        store_tokens(options(images, shard_size=3), stored, load)
    with pytest.raises(ValueError, match="other options: image_tokenizer was"):
        store_tokens(options(images), stored, lambda process: load(seed=1))
    with pytest.raises(ValueError, match="other options: grid was .4, 4., and is now .8, 8."):
        store_tokens(options(images), stored, lambda process: load(size=2 * SIZE))
    with pytest.raises(ValueError, match="`size` must be a multiple of 4, got 18x18"):
        store_tokens(options(images), stored, lambda process: load(size=18))
    assert contents(stored) == before
    with pytest.raises(ValueError, match="`output` must be a new folder"):
        store_tokens(options(images), images, load)
    with locked(stored), pytest.raises(BlockingIOError):
        store_tokens(options(images), stored, load)


def test_a_stream_gives_one_shard_for_each_of_its_own(tmp_path):
    from test_sources import image_table

    for part, numbers in enumerate(((0, 1), (2, 3, 4))):
        image_table(tmp_path / f"{part}.parquet", numbers)
    source = DataSource(str(tmp_path), streaming=True)
    stored = store_tokens(TokenizeOptions(source), tmp_path / "tokens", load)
    assert [shard["rows"] for shard in stored.shards] == [2, 3]
    assert torch.equal(stored[4]["image_tokens"][0], tokens_of(drawing(4)))


def test_the_next_run_deletes_what_a_killed_one_left_half_written(stored):
    whole = contents(stored)
    for name in (".shard-00001.safetensors-4711", ".shard-00003.jsonl-4711", ".shard-00003.json-1", f".{INDEX}-4711"):
        (stored / name).write_bytes(b"half")
    (stored / ".notes-4711").write_bytes(b"of the user")
    store_tokens(options(stored.parent / "images"), stored, load)
    assert contents(stored) == whole | {".notes-4711": b"of the user"}


KILLED = """
    import sys
    sys.path[:0] = {paths!r}
    from test_token_shards import options, slow_load
    from showo_hf.training.data.tokenizing import store_tokens

    if __name__ == "__main__":
        store_tokens(options({images!r}, batch_size=2), {output!r}, slow_load, num_proc={num_proc})
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_killed_runs_end_in_the_same_files(tmp_path, num_proc):
    images, output = image_folder(tmp_path / "images", 40), tmp_path / "killed"
    tests = Path(__file__).parents[2]
    script = tmp_path / "run.py"
    paths = [str(tests), str(tests.parent), str(Path(__file__).parent)]
    script.write_text(
        textwrap.dedent(KILLED).format(paths=paths, images=str(images), output=str(output), num_proc=num_proc)
    )
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    end = time.monotonic() + 120
    while len(list(output.glob("shard-*.json"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while num_proc > 1 and time.monotonic() < end:  # the other processes end with the first
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert 3 <= len(list(output.glob("shard-*.json"))) < 20
    subprocess.run([sys.executable, str(script)], check=True, timeout=240)
    store_tokens(options(images, batch_size=2), tmp_path / "whole", load)
    assert contents(output) == contents(tmp_path / "whole")
    index = json.loads((output / INDEX).read_text())
    assert len(index["shards"]) == 20
