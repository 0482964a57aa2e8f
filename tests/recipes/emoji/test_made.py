"""The embedded model is made by its recipe, in small: every command of docs/embedded_model.md on a few images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from recipes import fresh_model
from recipes.emoji import image_files, rows, text_tokenizer
from recipes.emoji.emoji import STYLES, EmojiRecord
from showo_hf import EMBEDDED_MODEL, ShowoLFQTokenizer, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.cli import main
from showo_hf.training.image_tokenizers import tokenizer_config
from showo_hf.training.recipe_files import load_recipe


ROOT = Path(__file__).parents[3]
RECIPES = ("image_tokenizer", "showo-images", "showo")
SIZE = 32
COLOURS = ("red", "green", "blue", "orange", "purple", "brown")


def write_data(folder: Path) -> list[EmojiRecord]:
    """Discs in six colours and three styles, some of them held out."""
    folder.mkdir()
    images, records = [], []
    for number, colour in enumerate(COLOURS):
        for style in STYLES:
            image = Image.new("RGB", (SIZE, SIZE), "white")
            ImageDraw.Draw(image).ellipse((4, 4, 14 + number, 20), fill=colour)
            images.append(np.asarray(image))
            code = f"{number:04X}"
            held_out = style == STYLES[number % 3] and number < 2
            records.append(EmojiRecord(code, code, style, f"{colour} disc", (), None, "Objects", "tool", held_out))
    np.save(folder / "images.npy", np.stack(images))
    (folder / "records.jsonl").write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in records))
    return records


@pytest.fixture
def root(monkeypatch):
    """The commands run in the root of the repository, where recipes name others by path."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_valid(root, name):
    config = load_recipe(f"recipes/emoji/{name}.yaml")
    decay = config.training["lr_scheduler_kwargs"]["num_decay_steps"]
    assert config.training["warmup_steps"] + decay < config.steps


def test_the_recipe_makes_the_architecture_of_the_embedded_model(root):
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    made = tokenizer_config(load_recipe("recipes/emoji/image_tokenizer.yaml")).to_dict()
    embedded = pipe.image_tokenizer.config.to_dict()
    free = ("entropy_weight", "dtype", "architectures", "_name_or_path", "transformers_version")
    assert {k: v for k, v in made.items() if k not in free} == {k: v for k, v in embedded.items() if k not in free}
    text = pipe.model.config.text_config.to_dict()
    fresh = fresh_model.small_config(pipe.processor).text_config.to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    assert {name: fresh[name] for name in sizes} == {name: text[name] for name in sizes}


def test_both_recipes_of_the_transformer_share_their_options(root):
    first, second = (yaml.safe_load(Path(f"recipes/emoji/{name}.yaml").read_text()) for name in RECIPES[1:])
    assert second["model"] == first["output"] and second["base"] == "recipes/emoji/showo-images.yaml"


@pytest.mark.slow
def test_the_commands_make_a_model(root, tmp_path, capsys):
    records = write_data(tmp_path / "data")
    data, files, text = (str(tmp_path / name) for name in ("data", "files", "text"))
    image, fresh, lines = (str(tmp_path / name) for name in ("image", "fresh", "rows"))
    text_tokenizer.main(["--data", data, "--output", text, "--vocab-size", "380"])
    assert len(PreTrainedTokenizerFast.from_pretrained(text)) == 380

    image_files.main(["--data", data, "--output", files])
    held_out = sum(record.held_out for record in records)
    assert len(list(Path(files, "train").iterdir())) == len(records) - held_out
    assert len(list(Path(files, "held-out").iterdir())) == held_out > 0

    def train(recipe, output, *entries, schedule=("lr_scheduler_kwargs.num_decay_steps=1",)):
        common = ["steps=2", "warmup_steps=1", "logging_steps=1", "report_to=none", *schedule]
        arguments = [f"recipes/emoji/{recipe}.yaml", f"output={output}", *common, *entries]
        assert main(["train", *arguments]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in Path(f"{output}-log.jsonl").read_text().splitlines()]

    images = [f"data={files}/train", f"validation_data={files}/held-out", f"image_size={SIZE}", "shift=2"]
    train("image_tokenizer", image, *images, "batch_size=2", "codebook_bits=6", "eval_steps=2")
    assert ShowoLFQTokenizer.from_pretrained(image).config.codebook_size == 64
    wider = str(tmp_path / "wider")
    constant = ("lr_scheduler_type=constant_with_warmup", "lr_scheduler_kwargs=null")
    options = ("batch_size=2", "codebook_bits=7", f"model={image}", "eval_steps=2")
    log = train("image_tokenizer", wider, *images, *options, schedule=constant)
    assert [row["learning_rate"] for row in log if "learning_rate" in row] == [0, 6e-4]
    assert ShowoLFQTokenizer.from_pretrained(wider).config.codebook_size == 128

    tokenizers = ["--image-tokenizer", wider, "--text-tokenizer", text]
    rows.main(["--data", data, "--image-tokenizer", wider, "--output", lines, "--rows", "4", "--views", "1"])
    fresh_model.main([*tokenizers, "--output", fresh])

    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    sources = [f"data.{task}={lines}/{file}.jsonl" for task, file in (("t2i", "t2i"), ("lm", "t2i"))]
    rate = "learning_rate=1e-3"
    train("showo-images", first, f"model={fresh}", *sources, "batch_size={t2i: 2, lm: 1}", rate)
    sources += [f"data.{task}={lines}/{task}.jsonl" for task in ("mmu", "mixed")]
    log = train("showo", second, f"model={first}", *sources, "batch_size={t2i: 2, lm: 1, mmu: 2, mixed: 1}", rate)
    assert {"loss_t2i", "loss_lm", "loss_mmu"} <= log[-1].keys()
    one, other = (ShowoT2IPipeline.from_pretrained(folder).model.lm_head.weight for folder in (first, second))
    assert 0 < (one - other).abs().max() < 0.02  # a few small steps from the weights of the first part

    pipe = ShowoT2IPipeline.from_pretrained(second)
    made = pipe("a red disc", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == (SIZE, SIZE)
    answer = ShowoMMUPipeline.from_pretrained(second)(made, "what is this?", max_new_tokens=3)
    assert answer is not None
    assert str(tmp_path) not in Path(second, "model", "config.json").read_text()
