"""The cards of image tokenizers, diffusion decoders and image classifiers: their header, and that their first call works."""

import re

import pytest
import tiny
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ConvNextConfig, ConvNextForImageClassification

from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.image_card import write_image_card
from showo_hf.training.training_card import DataSource, RunSummary


SIZE = tiny.SIDE * tiny.FACTOR
LOG = [
    {"step": 1, "loss": 3.0, "psnr": 11.0, "learning_rate": 0.1, "seconds_per_step": 1.0},
    {"step": 2, "eval_psnr": 12.25, "eval_runtime": 1.0},
    {"step": 2, "loss": 2.0, "psnr": 12.5, "learning_rate": 0.1},
]


def summary(kind: str, **options) -> RunSummary:
    facts = {
        "recipe": "vq-tokenizer",
        "settings": {"steps": 2, "output": "/home/me/out", "data": {"image": [{"path": "/home/me/pictures"}]}},
        "base_model": "",
        "steps": 2,
        "samples_seen": 16,
        "seconds": 5.0,
        "device": "CPU, 1 threads",
        "dtype": "float32",
        "data": [DataSource("/home/me/pictures")],
    }
    return RunSummary(**(facts | options), kind=kind)


def run_snippet(card: str, folder, **replaced: str):
    """Run the card's Python in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for name, path in {"folder-or-repository": folder, **replaced}.items():
        code = code.replace(name, str(path))
    found: dict = {}
    exec(code, found)
    return found


@pytest.mark.parametrize("tokenizer", [tiny.lfq, tiny.vq], ids=["LFQ", "VQ"])
def test_the_card_of_a_tokenizer(tmp_path, tokenizer):
    model = tokenizer()
    model.save_pretrained(tmp_path)
    card = write_image_card(
        tmp_path, summary("image-tokenizer", licence="MIT"), type(model).__name__, SIZE, LOG
    ).read_text()
    found = run_snippet(card, tmp_path)
    assert found["tokens"].shape == (1, tiny.SIDE, tiny.SIDE) and found["pixels"].shape == (1, 3, SIZE, SIZE)
    header = ModelCard(card).data
    assert header.license == "mit" and {"show-o", "image-tokenizer"} <= set(header.tags)
    assert "| loss | 2.000 |  |" in card and "| psnr | 12.500 | 12.250 |" in card
    assert "learning_rate |" not in card and "/home/me" not in card and "pictures" in card


@pytest.mark.parametrize("where", ["local", "embedded"])
def test_the_card_of_a_decoder(tmp_path, monkeypatch, processor, where):
    monkeypatch.chdir(tmp_path)
    tiny.image_decoder().save_pretrained(tmp_path / "decoder")
    tiny.pipeline(processor).save_pretrained(tmp_path / "pipe")
    from showo_hf import EMBEDDED_MODEL

    base = {"local": str(tmp_path / "pipe"), "embedded": EMBEDDED_MODEL}[where]
    card = write_image_card(
        tmp_path / "decoder", summary("diffusion-decoder", base_model=base), "ShowoDiffusionDecoder", SIZE
    ).read_text()
    assert str(tmp_path) not in card and EMBEDDED_MODEL not in card
    if where == "local":
        run_snippet(card, tmp_path / "decoder", **{"folder-of-the-model": tmp_path / "pipe"})
        with Image.open("image.png") as image:
            assert image.size == (SIZE, SIZE)
    else:
        assert "from_pretrained(EMBEDDED_MODEL, image_decoder=decoder)" in card
    assert "## Measures" not in card


def test_the_card_of_a_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ConvNextConfig(
        image_size=SIZE, patch_size=2, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3, num_stages=2
    )
    ConvNextForImageClassification(config).save_pretrained(tmp_path / "model")
    showo_image_processor(SIZE).save_pretrained(tmp_path / "model")
    Image.new("RGB", (SIZE, SIZE), "red").save("image.png")
    card = write_image_card(
        tmp_path / "model", summary("image-classifier"), "ConvNextForImageClassification", SIZE
    ).read_text()
    run_snippet(card, tmp_path / "model")
    assert ModelCard(card).data.pipeline_tag == "image-classification"
