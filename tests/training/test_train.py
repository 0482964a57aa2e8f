"""Both trainers from their commands, on a few pictures: data in, a pipeline out."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageDraw

from showo_hf import ShowoLFQTokenizer, ShowoT2IPipeline
from showo_hf.training import train_image_tokenizer, train_showo
from showo_hf.training.emoji import EmojiRecord, load_emoji
from showo_hf.training.text_tokenizer import train_text_tokenizer
from showo_hf.training.train_image_tokenizer import augment, multi_scale_loss, psnr, to_pixel_values
from showo_hf.training.train_showo import draw_weights


SIZE = 32
COLOURS = ("red", "green", "blue", "orange")


def record(unified, style="noto", tone=None, name="thing"):
    return EmojiRecord(
        unified=unified,
        code=unified,
        style=style,
        name=name,
        synonyms=(),
        tone=tone,
        category="Objects",
        subcategory="tool",
        held_out=False,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared data set of discs in four colours, and a text tokenizer."""
    root = tmp_path_factory.mktemp("training")
    (root / "data").mkdir()
    pictures, records = [], []
    for i, colour in enumerate(COLOURS * 4):
        picture = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(picture).ellipse((4, 4, 12 + i, 12 + i), fill=colour)
        pictures.append(np.asarray(picture))
        records.append(record(f"{i:04X}", name=f"{colour} disc"))
    np.save(root / "data" / "pictures.npy", np.stack(pictures))
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
    train_showo.main([*data, *inputs, "--output", output, "--steps", "2", *loop])
    pipe = ShowoT2IPipeline.from_pretrained(output)
    assert pipe.model.dtype == torch.bfloat16 or pipe.model.dtype == torch.float32
    image = pipe("a red disc", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (SIZE, SIZE)

    assert str(folders) not in Path(output, "model", "config.json").read_text()

    further = str(folders / "further")
    compiled = ["--compile"] if shutil.which("g++") else []  # what torch compiles with on a CPU
    train_showo.main([*data, *inputs, "--init-from", output, "--output", further, "--steps", "4", *loop, *compiled])
    one, other = (ShowoT2IPipeline.from_pretrained(folder).model.lm_head.weight for folder in (output, further))
    assert 0 < (one - other).abs().max() < 0.02  # a few small steps away from where it started


def test_loaded_pictures_are_those_that_were_written(folders):
    data = load_emoji(folders / "data")
    assert len(data.records) == len(data.pictures) == 16
    assert to_pixel_values(data.pictures[:2]).shape == (2, 3, SIZE, SIZE)


def test_augmented_pictures_keep_their_size_and_get_white_borders():
    pictures = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    moved = augment(pictures, torch.Generator().manual_seed(0), max_shift=2)
    assert moved.shape == pictures.shape and set(np.unique(moved)) == {0, 255}
    again = augment(pictures, torch.Generator().manual_seed(0), max_shift=2)
    assert np.array_equal(moved, again)


def test_losses_are_zero_for_equal_pictures_and_psnr_matches_its_formula():
    one = torch.rand(2, 3, 16, 16) * 2 - 1
    assert multi_scale_loss(one, one) == 0
    other = one + 0.2
    assert torch.allclose(psnr(other, one), torch.full((2,), 20.0), atol=1e-3)  # 10 log10(4 / 0.04)


def test_each_emoji_counts_alike_however_many_tones_it_has():
    records = [record("A"), record("B"), *(record("B", tone=t) for t in ("light", "dark")), record("B", "twemoji")]
    weights = draw_weights(records).tolist()
    assert weights == [1.0, 0.5, 0.25, 0.25, 1.0]


@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_are_widened_without_a_change_of_what_they_say(multiple):
    processor = tiny.processor()
    codes = torch.arange(16).repeat(4, 1)
    records = [record(f"{i:04X}", name=f"thing {i}") for i in range(4)]
    make_batch = train_showo.BatchMaker(records, codes, processor, 6, pad_to_multiple_of=multiple)
    batch = make_batch(torch.Generator().manual_seed(0))
    ids, labels = batch["picture_ids"], batch["picture_labels"]
    assert ids.shape == labels.shape and ids.shape[0] == 6 and ids.shape[1] % multiple == 0
    assert batch["text_ids"].shape == batch["text_labels"].shape and batch["text_ids"].shape[0] == 2
    picture, scored = ids[:, -17:-1], labels[:, -17:-1] != -100
    assert torch.equal(scored, picture == processor.mask_token_id) and scored.any(1).all()
    assert not (labels[:, :-17] != -100).any() and not (labels[:, -1] != -100).any()
    assert torch.equal(labels[:, -17:-1][scored], (codes[:1] + processor.image_token_offset).expand(6, -1)[scored])
