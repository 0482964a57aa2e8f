"""The finished model of the world, as a folder with a model card."""

import json

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from recipes.world import publish
from recipes.world.known_words import known_words
from recipes.world.words import THINGS
from showo_hf import MaskGITScheduler, ShowoT2IPipeline
from showo_hf.app.model_card import listed


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


def results(folder):
    """Results as benchmarks.world writes them."""
    folder.mkdir()
    for split, share in (("validation", "50%"), ("test", "93%")):
        tables = {
            "Images": {"head": ["kind", "right"], "rows": [["single", share]], "settings": {}},
            "Questions": {"head": ["question", "model"], "rows": [["how many", share]], "settings": {}},
        }
        (folder / f"tables-{split}.json").write_text(json.dumps(tables))
    return folder


def test_the_folder_is_a_pipeline_with_a_card(model, tmp_path, capsys):
    output = tmp_path / "showo-world"
    decoder, figures = model.parent / "decoder", results(tmp_path / "results")
    arguments = {"--model": model, "--output": output, "--decoder": decoder, "--results": figures}
    arguments |= {"--steps": 2, "--guidance": 1.5}
    publish.main([str(word) for pair in arguments.items() for word in pair])
    assert "showo-world: " in capsys.readouterr().out
    pipe = ShowoT2IPipeline.from_pretrained(output)
    assert pipe.image_decoder is not None and pipe.processor.known_words == known_words()
    assert pipe.with_defaults(None, None) == (2, 1.5)
    assert pipe("a dog", num_inference_steps=1).images[0].size == (tiny.SIDE * tiny.FACTOR,) * 2
    stored = load_file(output / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    for part in (pipe.model, pipe.image_decoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}, "they are stored in less"
    card = ModelCard.load(output / "README.md")
    assert card.text.lstrip().startswith("# showo-world") and all(map(len, listed(card.data.widget)))
    words = " ".join(card.text.split())
    assert f"draws {len(THINGS)} things" in words
    assert all(f"{thing}" in words for thing in THINGS) and "at night" in words
    assert "**Images**\n\n| kind | right |\n| --- | --- |\n| single | 93% |\n" in card.text
    assert "| how many | 93% |" in card.text
    assert "50%" not in card.text, "the test split is there, so the validation split is not shown"
    assert all(len(line) <= 125 or line.startswith("|") for line in card.text.splitlines())


def test_a_card_without_decoder_and_results(model, tmp_path):
    publish.publish(model, tmp_path / "showo-world")
    text = (tmp_path / "showo-world" / "README.md").read_text()
    assert "diffusion decoder" not in text and "unseen combinations" not in text


def test_a_model_without_known_words_is_refused(tmp_path):
    tiny.pipeline(tiny.processor()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`model` must have a processor with `known_words`"):
        publish.publish(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
