"""The embedded model is made by its recipe, in small: every command of docs/embedded_model.md on a few scenes."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerFast

from recipes import fresh_model
from recipes.image_tokens import encode_images
from recipes.world import captions, images, rows, text_tokenizer
from recipes.world.drawing import draw
from recipes.world.held_out import DEFAULT_STYLE, SPLITS
from recipes.world.objects import save_objects
from showo_hf import ShowoDiffusionDecoder, ShowoT2IPipeline, ShowoVQTokenizer
from showo_hf.cli import main
from showo_hf.training.image_tokenizers import tokenizer_config
from showo_hf.training.recipe_files import load_recipe


ROOT = Path(__file__).parents[3]
RECIPES = (
    *("image_tokenizer", "image_tokenizer_decoder", "diffusion_decoder", "diffusion_decoder_distilled"),
    *("showo-images", "showo", "showo-again", "showo-questions", "showo-checks", "showo-wordings", "showo-codes"),
    *("showo-places", "showo-redrawn"),
)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one precision per process, but every test here is a separate run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def root(monkeypatch):
    """The commands run in the root of the repository, where recipes name others by path."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def data(objects, tmp_path):
    (tmp_path / "objects").mkdir()
    save_objects(objects, tmp_path / "objects")
    return tmp_path / "objects"


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_world_are_valid(root, name):
    config = load_recipe(f"recipes/world/{name}.yaml")
    decay = config.training.get("lr_scheduler_kwargs", {}).get("num_decay_steps", 0)
    rate_falls_from = config.steps - decay
    if name == "showo-redrawn":
        assert config.training["warmup_steps"] == rate_falls_from, "it has no constant phase"
    else:
        assert config.training["warmup_steps"] < rate_falls_from


def test_negative_numbers_of_scenes_are_refused(objects, tmp_path):
    with pytest.raises(ValueError, match="`four_things` must be an integer of at least 0, got -1"):
        images.write_images(objects, tmp_path / "scenes", {"train": 1}, four_things=-1)


def test_scenes_of_four_things_are_training_images_of_their_own(objects, tmp_path):
    images.write_images(objects, tmp_path / "world", dict.fromkeys(SPLITS, 2), four_things=3)
    found = {split: sorted(file.name for file in (tmp_path / "world" / split).iterdir()) for split in SPLITS}
    scenes, four = [f"{number:06}.png" for number in range(2)], [f"four-{number:06}.png" for number in range(3)]
    assert found == {"train": [*scenes, *four], "validation": scenes, "test": scenes}
    with pytest.raises(ValueError, match="`counts` must have 'train' with `four_things`"):
        images.write_images(objects, tmp_path / "other", {"test": 1}, four_things=1)
    assert not (tmp_path / "other").exists()


def test_the_image_tokenizer_sees_the_grid_of_the_scenes(root):
    config = load_recipe("recipes/world/image_tokenizer.yaml")
    made = tokenizer_config(config)
    assert made.sample_size == 96 and made.downsampling == 8
    assert made.codebook_size == 2048 and not made.encoder_context
    assert config.shift == 0 and not config.mirror


def test_the_distilled_decoder_takes_half_of_its_teachers_steps(root):
    plain, distilled = (load_recipe(f"recipes/world/diffusion_decoder{name}.yaml") for name in ("", "_distilled"))
    assert distilled.teacher == distilled.decoder == plain.output
    assert 2 * distilled.decoder_steps == plain.decoder_steps
    assert distilled.model == plain.model and distilled.output != plain.output


def test_rows_hold_images_and_texts_and_come_out_the_same_again(objects):
    encode = rows.SceneEncoder(objects, tiny.lfq(stages=4, sample_size=96, encoder_context=False))
    found = [list(rows.made_rows(task, 6, encode, 0)) for task in ("t2i", "mmu", "mixed")]
    assert found == [list(rows.made_rows(task, 6, encode, 0)) for task in ("t2i", "mmu", "mixed")]
    t2i, mmu, mixed = found
    assert all(len(row["text"]) == rows.CAPTIONS and len(row["image_tokens"]) == 12 for row in t2i)
    assert all(row["messages"][0]["content"][0]["type"] == "image" for row in mmu)
    assert any(part["type"] == "image" for row in mixed for message in row["messages"] for part in message["content"])


def test_rows_in_more_wordings_are_asked_for_by_options(data, tmp_path, monkeypatch):
    """Requests that only the longer list has, in all captions, and no checks on what is not there."""
    tokenizer, made = tiny.lfq(stages=4, sample_size=96, encoder_context=False), {}
    monkeypatch.setattr(rows, "load_tokenizer", lambda name: tokenizer)
    for name, more in (("plain", []), ("more", ["--wordings", "more"])):
        options = ["--requests", "1", "--checks", "8", "--absent-share", "0", "--mixed", "1", *more]
        paths = ["--objects", str(data), "--image-tokenizer", "t", "--output", str(tmp_path / name)]
        rows.main([*paths, "--t2i", "20", "--mmu", "20", *options])
        lines = {task: (tmp_path / name / f"{task}.jsonl").read_text().splitlines() for task in ("t2i", "mmu")}
        made[name] = {task: [json.loads(line) for line in some] for task, some in lines.items()}
    known = [request.split("{}")[0] for request in captions.REQUESTS]
    share = {}
    for name, of_tasks in made.items():
        texts = [text for row in of_tasks["t2i"] for text in row["text"]]
        share[name] = sum(text.startswith(tuple(filter(None, known))) for text in texts) / len(texts)
        answers = [message["content"] for row in of_tasks["mmu"] for message in row["messages"]]
        assert not any(answer == "there is none." for answer in answers)
    assert share["more"] < 0.5 < share["plain"]


def test_scenes_with_captions_are_trained_and_come_with_their_trained_twins(objects):
    maker = rows.RowMaker(rows.SceneMaker(objects, random.Random(0)))
    scenes = []
    while len(scenes) < 300 or maker.waiting:
        scenes += maker.t2i()[0]
    assert {scene.split for scene in scenes} == {"train"}
    found: Counter = Counter()
    while scenes:
        scene = scenes.pop(0)
        for name, one in {"twin": rows.twin(scene), "colour twin": rows.colour_twin(scene, objects)}.items():
            if one is not None and one.split == "train" and maker.maker.fits(one):
                assert scenes.pop(0) == one, name
                found[name] += 1
            elif one is not None:
                found[f"no {name}"] += 1
    assert set(found) == {"twin", "no twin", "colour twin", "no colour twin"} and min(found.values()) > 2, found


def test_rows_have_as_many_questions_as_asked_for(objects):
    encode = rows.SceneEncoder(objects, tiny.lfq(stages=4, sample_size=96, encoder_context=False))
    most = {}
    for questions in (4, 8):
        found = rows.made_rows("mmu", 60, encode, 1, questions=questions)
        most[questions] = max(len(row["messages"]) // 2 for row in found)
    assert most == {4: 4, 8: 8}
    checked = list(rows.made_rows("mmu", 60, encode, 1, questions=2, checks=2))
    firsts = [row["messages"][1]["content"][0]["text"] for row in checked]
    assert max(len(row["messages"]) // 2 for row in checked) == 4
    assert 15 < sum(text in ("no.", "there is none.") for text in firsts) < 45


def test_wrong_styles_are_those_of_trained_scenes_and_never_the_default(objects):
    maker = rows.RowMaker(rows.SceneMaker(objects, random.Random(0)), wrong_styles=0.5)
    scenes = [maker.maker.scene() for _ in range(600)]
    named = [maker.perhaps_restyled(scene) for scene in scenes]
    changed = [(one, other) for one, other in zip(scenes, named, strict=True) if one != other]
    assert 150 < len(changed) < 300
    for one, other in changed:
        assert other == dataclasses.replace(one, style=other.style) and other.split == "train"
        assert other.style != DEFAULT_STYLE and maker.maker.fits(other)
    right = rows.RowMaker(rows.SceneMaker(objects, random.Random(0)))
    assert all(right.perhaps_restyled(scene) == scene for scene in scenes[:50])


def test_scenes_have_the_tokens_of_their_images(objects):
    image_tokenizer = tiny.lfq(stages=4, sample_size=96, encoder_context=False)
    maker = rows.SceneMaker(objects, random.Random(0))
    scenes = [maker.scene() for _ in range(5)]
    tokens = encode_images(image_tokenizer, np.stack([draw(scene, objects) for scene in scenes]))
    assert len(tokens.unique()) > 3
    found = rows.SceneEncoder(objects, image_tokenizer)([*scenes, scenes[0]])
    assert list(found) == scenes and list(found.values()) == tokens.tolist()
    with pytest.raises(ValueError, match="`image_tokenizer` must see cells of 8 x 8 pixels, each alone"):
        rows.SceneEncoder(objects, tiny.lfq(stages=4, sample_size=96))


def test_twins_differ_by_order_or_colours_alone(objects):
    maker, exchanges = rows.SceneMaker(objects, random.Random(0)), 0
    for _ in range(40):
        scene = maker.scene("train", "binding")
        swapped, exchanged = rows.twin(scene), rows.colour_twin(scene, objects)
        first = swapped.items[0]
        assert first.thing == scene.items[1].thing and first.column == scene.items[0].column
        if exchanged:
            exchanges += 1
            assert [item.colour for item in exchanged.items] == [item.colour for item in scene.items][::-1]
            assert [item.thing for item in exchanged.items] == [item.thing for item in scene.items]
    assert 0 < exchanges < 40, "some things are not given the other's colour"
    assert rows.twin(maker.scene("train", "single")) is None


def test_case_does_not_matter_to_the_text_tokenizer(objects, data, tmp_path, capsys):
    folder = str(tmp_path / "text")
    text_tokenizer.main(["--objects", str(data), "--output", folder, "--vocab-size", "400", "--scenes", "200"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer("A Blue Dog")["input_ids"] == tokenizer("a blue dog")["input_ids"]
    assert tokenizer.decode(tokenizer("A Blue Dog")["input_ids"]) == "a blue dog"
    assert "400 ids" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_make_a_world_model(root, data, tmp_path, capsys):
    folders = {name: str(tmp_path / name) for name in ("scenes", "text", "image", "fresh", "rows", "model")}
    images.main(["--objects", str(data), "--output", folders["scenes"], "--scenes", "4", "--held-out", "2"])
    text_tokenizer.main(
        ["--objects", str(data), "--output", folders["text"], "--vocab-size", "400", "--scenes", "200"]
    )

    def train(recipe, output, *entries):
        common = [
            "steps=2",
            "warmup_steps=1",
            "logging_steps=1",
            "report_to=none",
            "lr_scheduler_kwargs.num_decay_steps=1",
        ]
        arguments = [f"recipes/world/{recipe}.yaml", f"output={output}", *common, *entries]
        assert main(["train", *arguments]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in Path(f"{output}-log.jsonl").read_text().splitlines()]

    pictures = [f"data={folders['scenes']}/train", f"validation_data={folders['scenes']}/validation"]
    small = ["codebook_size=64", "batch_size=2", "eval_steps=2", "validation_rows=2"]
    first = str(tmp_path / "first")
    assert len(train("image_tokenizer", first, *pictures, *small)) >= 2
    train("image_tokenizer_decoder", folders["image"], f"model={first}", *pictures, *small)
    assert ShowoVQTokenizer.from_pretrained(folders["image"]).config.codebook_size == 64
    narrow = [
        "architecture.block_out_channels=[16, 16]",
        "cached_images=8",
        "batch_size=2",
        f"model={folders['image']}",
    ]
    decoders = [str(tmp_path / name) for name in ("decoder", "decoder-2")]
    once = ["eval_steps=2", "validation_rows=2"]
    train("diffusion_decoder", decoders[0], *pictures, *narrow, *once)
    train("diffusion_decoder_distilled", decoders[1], f"teacher={decoders[0]}", *pictures, *narrow, *once)
    decoder = ShowoDiffusionDecoder.from_pretrained(decoders[1])
    assert decoder.config.num_inference_steps == 3
    counts = ["--t2i", "4", "--mmu", "4", "--mixed", "4"]
    rows.main(["--objects", str(data), "--image-tokenizer", folders["image"], "--output", folders["rows"], *counts])
    tokenizers = ["--image-tokenizer", folders["image"], "--text-tokenizer", folders["text"]]
    fresh_model.main([*tokenizers, "--known-words", str(data / "known_words.json"), "--output", folders["fresh"]])
    names = {"t2i": "t2i", "lm": "t2i", "mmu": "mmu", "mixed": "mixed"}
    files = [f"data.{task}={folders['rows']}/{name}.jsonl" for task, name in names.items()]
    drawing, plain = str(tmp_path / "drawing"), "torch_compile=false"
    sizes = "batch_size={t2i: 2, lm: 1, mmu: 1}"
    train("showo-images", drawing, *files[:3], plain, sizes, f"model={folders['fresh']}")
    sizes = "batch_size={t2i: 2, lm: 1, mmu: 1, mixed: 1}"
    logged = train("showo", folders["model"], *files, plain, sizes, f"model={drawing}")
    assert {"loss_t2i", "loss_mmu"} <= set().union(*logged)
    pipe = ShowoT2IPipeline.from_pretrained(folders["model"], image_decoder=decoder)
    assert pipe("a dog", num_inference_steps=1).images[0].size == (96, 96)
    assert "dog" in pipe.processor.known_words["animals"]
