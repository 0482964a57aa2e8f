"""Both training commands on a few images."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageDraw

from recipes.emoji import train_image_tokenizer, train_showo
from recipes.emoji.emoji import EmojiRecord, load_emoji
from recipes.emoji.text_tokenizer import train_text_tokenizer
from recipes.emoji.train_image_tokenizer import augment, multi_scale_loss, to_pixel_values
from recipes.emoji.train_showo import move
from showo_hf import ShowoLFQTokenizer, ShowoT2IPipeline


SIZE = 32
COLOURS = ("red", "green", "blue", "orange")


def record(unified, name):
    return EmojiRecord(unified, unified, "noto", name, (), None, "Objects", "tool", held_out=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set of discs in four colours, and a text tokenizer."""
    root = tmp_path_factory.mktemp("training")
    (root / "data").mkdir()
    images, records = [], []
    for i, colour in enumerate(COLOURS * 4):
        image = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(image).ellipse((4, 4, 12 + i, 12 + i), fill=colour)
        images.append(np.asarray(image))
        records.append(record(f"{i:04X}", f"{colour} disc"))
    np.save(root / "data" / "images.npy", np.stack(images))
    lines = [json.dumps(dataclasses.asdict(one)) for one in records]
    (root / "data" / "records.jsonl").write_text("\n".join(lines) + "\n")
    texts = [f"a {colour} disc, noto style" for colour in COLOURS] * 10
    train_text_tokenizer(texts, vocab_size=360).save_pretrained(root / "text")
    return root


@pytest.mark.slow
def test_both_trainers_end_to_end(folders):
    loop = ["--batch-size", "2", "--warmup-steps", "1", "--save-every", "100", "--log-every", "1"]
    data = ["--data", str(folders / "data")]
    tokenizer = str(folders / "image")
    train_image_tokenizer.main([*data, "--output", tokenizer, "--steps", "2", "--codebook-bits", "6", *loop])
    assert ShowoLFQTokenizer.from_pretrained(tokenizer).config.codebook_size == 64

    wider = str(folders / "wider")
    start = ["--init-from", tokenizer, "--codebook-bits", "7"]
    train_image_tokenizer.main([*data, "--output", wider, "--steps", "1", *start, *loop])
    assert ShowoLFQTokenizer.from_pretrained(wider).config.codebook_size == 128

    output = str(folders / "showo")
    inputs = ["--image-tokenizer", tokenizer, "--text-tokenizer", str(folders / "text")]
    train_showo.main([*data, *inputs, "--output", output, "--steps", "2", "--tasks", "images", *loop])
    pipe = ShowoT2IPipeline.from_pretrained(output)
    assert pipe.model.dtype == torch.bfloat16 or pipe.model.dtype == torch.float32
    image = pipe("a red disc", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (SIZE, SIZE)

    assert str(folders) not in Path(output, "model", "config.json").read_text()

    further = str(folders / "further")
    compiled = ["--compile"] if shutil.which("g++") else []  # torch.compile needs a compiler on a CPU
    further_options = ["--init-from", output, "--output", further, "--steps", "4", "--views", "1"]
    train_showo.main([*data, *inputs, *further_options, *loop, *compiled])
    rows = [json.loads(line) for line in Path(f"{further}-log.jsonl").read_text().splitlines()]
    assert all({"t2i", "lm", "mmu", "mixed"} <= row.keys() for row in rows)
    one, other = (ShowoT2IPipeline.from_pretrained(folder).model.lm_head.weight for folder in (output, further))
    assert 0 < (one - other).abs().max() < 0.02  # a few small steps from its initial weights


def test_the_data_set_is_loaded(folders):
    data = load_emoji(folders / "data")
    assert len(data.records) == len(data.images) == 16
    assert to_pixel_values(data.images[:2]).shape == (2, 3, SIZE, SIZE)


def test_augmented_views_keep_their_size_and_get_white_borders():
    black = torch.full((20, 3, 32, 32), -1.0)
    moved = move(black, torch.Generator().manual_seed(0))
    assert moved.shape == black.shape and moved.min() == -1 and moved.max() == 1
    assert torch.equal(moved, move(black, torch.Generator().manual_seed(0)))
    white = torch.ones(2, 3, 32, 32)
    torch.testing.assert_close(move(white, torch.Generator().manual_seed(0)), white)


def test_the_training_set_excludes_held_out_images(folders):
    data = load_emoji(folders / "data")
    data.records[3] = dataclasses.replace(data.records[3], held_out=True)
    made = train_showo.training_set(data, tiny.lfq(sample_size=SIZE), views=2)
    assert len(made.records) == 15 and made.views.shape == (3, 15, 8, 8)
    assert made.colours[0] == "red" and made.colours[2] == "blue"
    assert not torch.equal(made.views[0], made.views[1])


def test_tokens_are_cached_for_a_resumed_run(folders, tmp_path):
    data, cache = load_emoji(folders / "data"), tmp_path / "run" / "tokens.safetensors"
    tokenizers = [tiny.lfq(seed, sample_size=SIZE) for seed in (0, 1)]
    first = train_showo.training_set(data, tokenizers[0], 1, cache)
    written = cache.stat().st_mtime_ns
    again = train_showo.training_set(data, tokenizers[0], 1, cache)
    assert torch.equal(first.views, again.views) and cache.stat().st_mtime_ns == written
    other = train_showo.training_set(data, tokenizers[1], 1, cache)
    assert not torch.equal(first.views, other.views), "another tokenizer gives other tokens"
    assert train_showo.training_set(data, tokenizers[1], 0, cache).views.shape[0] == 1


def test_augmented_images_keep_their_size_and_get_white_borders():
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    moved = augment(images, torch.Generator().manual_seed(0), max_shift=2)
    assert moved.shape == images.shape and set(np.unique(moved)) == {0, 255}
    again = augment(images, torch.Generator().manual_seed(0), max_shift=2)
    assert np.array_equal(moved, again)


def test_the_reconstruction_loss_of_equal_images_is_zero():
    one = torch.rand(2, 3, 16, 16) * 2 - 1
    assert multi_scale_loss(one, one) == 0
