"""The finished model of the world, as a folder with a model card."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from recipes.world import publish
from recipes.world.known_words import known_words
from recipes.world.words import THINGS
from showo_hf import EMBEDDED_MODEL, MaskGITScheduler, ShowoDiffusionDecoder, ShowoT2IPipeline
from showo_hf.app.model_card import listed


STEPS, GUIDANCE = 2, 1.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    processor = tiny.processor(known_words=known_words())
    pipe = ShowoT2IPipeline(
        tiny.showo("llama", text_ids=processor.pad_token_id), processor, MaskGITScheduler(mask_token_id=tiny.CODES)
    )
    folder = tmp_path_factory.mktemp("trained") / "model"
    pipe.save_pretrained(folder)
    tiny.image_decoder().save_pretrained(folder.parent / "decoder")
    return folder


def publish_with(model, output, **options):
    """Publish with the decoder."""
    arguments = {"model": model, "output": output, "decoder": model.parent / "decoder"}
    arguments |= {"steps": STEPS, "guidance": GUIDANCE, **options}
    publish.main([word for name, value in arguments.items() for word in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    """The folder, before there are results."""
    output = tmp_path_factory.mktemp("published") / "showo-world"
    publish_with(model, output)
    return output


def write_results(folder, measured, **others):
    """Results of a published folder, as benchmarks.world writes them, some with other settings."""
    config = MaskGITScheduler(mask_token_id=tiny.CODES).config
    scheduler = {"name": "MaskGITScheduler", **{k: v for k, v in config.items() if not k.startswith("_")}}
    asked = {"count": 100, "seed": 0, "objects": "0123", "model_weights": publish.model_weights(measured)}
    judged = {**asked, "detector_weights": "4567", "found_above": 0.5, "clear_above": 0.5}
    decoded = {**judged, **publish.decoder_settings(measured)}
    drawn = {**decoded, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": scheduler}
    folder.mkdir(exist_ok=True)
    for split, share in (("validation", "50%"), ("test", "93%")):
        tables = {
            "Questions": {"head": ["question", "model"], "rows": [["how many", share]], "settings": asked},
            "Judge": {"head": ["kind", "real"], "rows": [["single", share]], "settings": judged},
            "Images": {"head": ["kind", "right"], "rows": [["single", share]], "settings": drawn | others},
        }
        (folder / f"tables-{split}.json").write_text(json.dumps(tables))
    return folder


def test_the_folder_is_a_pipeline_with_a_card(model, published, tmp_path, capsys):
    output = tmp_path / "showo-world"
    publish_with(model, output, results=write_results(tmp_path / "results", published))
    assert "showo-world: " in capsys.readouterr().out
    pipe = ShowoT2IPipeline.from_pretrained(output)
    assert pipe.image_decoder is not None and pipe.processor.known_words == known_words()
    assert pipe.with_defaults(None, None) == (STEPS, GUIDANCE)
    assert pipe("a dog", num_inference_steps=1).images[0].size == (tiny.SIDE * tiny.FACTOR,) * 2
    stored = load_file(output / "model" / "model.safetensors")
    own = {name: value for name, value in stored.items() if name.startswith("image_tokenizer.")}
    trained = load_file(model / "model" / "model.safetensors")
    assert own and all(torch.equal(value, trained[name]) for name, value in own.items()), (
        "rounded, it gives other tokens"
    )
    assert {value.dtype for name, value in stored.items() if name not in own} == {torch.bfloat16}
    assert not any(str(model.parent) in file.read_text() for file in output.rglob("*.json"))
    for part in (pipe.model, pipe.image_decoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}, "they are stored in less"
    card = ModelCard.load(output / "README.md")
    assert card.text.lstrip().startswith("# showo-world") and all(map(len, listed(card.data.widget)))
    words = " ".join(card.text.split())
    assert f"draws {len(THINGS)} things" in words
    assert all(f"{thing}" in words for thing in THINGS) and "at night" in words
    assert "**Images**\n\n| kind | right |\n| --- | --- |\n| single | 93% |\n" in card.text
    assert "| how many | 93% |" in card.text
    measured = 'on the split "test", with 2 steps, guidance scale 1.5 and MaskGITScheduler (masking_schedule: cosine, '
    assert measured in words and words.index(measured) < words.index("**Questions**")
    assert "50%" not in card.text, "the test split is there, so the validation split is not shown"
    assert all(len(line) <= 125 or line.startswith("|") for line in card.text.splitlines())


def test_the_card_says_that_images_had_the_decoder(model, published, tmp_path):
    publish_with(model, published, results=write_results(tmp_path / "results", published))
    text = " ".join((published / "README.md").read_text().split())
    assert "), with the diffusion decoder. An image is right" in text


def test_images_of_another_decoder_or_of_an_unknown_one_are_refused(model, published, tmp_path):
    results = write_results(tmp_path / "results", published)
    file = results / "tables-test.json"
    tables = json.loads(file.read_text())
    del tables["Images"]["settings"]["decoder_weights"]
    file.write_text(json.dumps(tables))
    with pytest.raises(ValueError, match="`decoder_weights` .*, but 'Images' in .* was measured with None"):
        publish_with(model, published, results=results)
    config = ShowoDiffusionDecoder.from_pretrained(model.parent / "decoder").config.num_inference_steps
    changed = tmp_path / "changed"
    shutil.copytree(model.parent, changed)
    decoder = json.loads((changed / "decoder" / "config.json").read_text()) | {"num_inference_steps": config + 1}
    (changed / "decoder" / "config.json").write_text(json.dumps(decoder))
    with pytest.raises(ValueError, match="with `decoder_config` "):
        publish_with(changed / "model", tmp_path / "other", results=write_results(results, published))
    assert not (tmp_path / "other").exists()


def test_the_tables_of_the_embedded_models_card_have_their_order():
    titles = re.findall(r"^\*\*(.+)\*\*$", (Path(EMBEDDED_MODEL) / "README.md").read_text(), re.MULTILINE)
    assert titles == list(publish.TABLES)


def test_the_image_of_the_card_is_drawn_by_the_published_model(published):
    widget = ModelCard.load(published / "README.md").data.widget
    assert {entry["src"] for entry in widget if "src" in entry} == {"scene.png"}
    pipe = ShowoT2IPipeline.from_pretrained(published)
    drawn = pipe(widget[0]["text"], generator=torch.Generator().manual_seed(0)).images[0]
    with Image.open(published / "scene.png") as scene:
        assert np.array_equal(scene, drawn)


@pytest.mark.parametrize(
    "other",
    [{"decoder_weights": "0123456789abcdef"}, {"decoder_weights": None},
     {"model_weights": "0123456789abcdef"}, {"model_weights": None}, {"num_inference_steps": 3},
     {"guidance_scale": 2.0}, {"scheduler": {"name": "HaltonScheduler"}}],
)  # fmt: skip
def test_results_of_another_model_are_refused(model, published, tmp_path, other):
    card = (published / "README.md").read_text()
    results = write_results(tmp_path / "results", published, **other)
    ((name, value),) = other.items()
    message = rf"`results` must hold .* with `{name}` .*, but 'Images' in tables-test.json was measured with {value!r}"
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        publish_with(model, published, results=results)
    assert (published / "README.md").read_text() == card


@pytest.mark.parametrize("name, other, first", [("count", 10, "Questions"), ("seed", 1, "Questions"),
    ("objects", "89", "Questions"), ("detector_weights", "ab", "Judge"), ("clear_above", 0.6, "Judge")])  # fmt: skip
def test_tables_that_were_measured_otherwise_than_each_other_are_refused(
    model, published, tmp_path, name, other, first
):
    results = write_results(tmp_path / "results", published, **{name: other})
    message = rf"tables-test.json `{name}` is .* for '{first}' and {other!r} for 'Images'"
    with pytest.raises(ValueError, match=message):
        publish.check_tables(results, {})


def test_a_folder_without_results_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`results` must be a folder with tables-test.json or tables-validation.json"):
        publish.publish(model, tmp_path / "showo-world", results=tmp_path)
    assert not (tmp_path / "showo-world").exists()


def test_a_card_without_decoder_and_results(model, tmp_path):
    publish.publish(model, tmp_path / "showo-world")
    text = (tmp_path / "showo-world" / "README.md").read_text()
    assert "diffusion decoder" not in text and "measured" not in text


def test_a_model_without_known_words_is_refused(tmp_path):
    tiny.pipeline(tiny.processor()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`model` must have a processor with `known_words`"):
        publish.publish(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
