"""A model that knows few words says so: prompts without any of them get a warning."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from showo_hf import MaskGITScheduler, ShowoProcessor, ShowoT2IPipeline
from showo_hf.processing.known_words import without_known_words


KNOWN = {"things": ["owl", "piece of cheese"], "colours": ["red"]}


@pytest.mark.parametrize("text", ["An OWL!", "two red things", "a piece of  cheese", "", "...", "the-owl"])
def test_a_known_word_is_found(text):
    assert without_known_words([text], KNOWN) == []


@pytest.mark.parametrize("text", ["a bowl", "owls", "cheese", "a piece, cheese of"])
def test_other_words_are_not_known(text):
    assert without_known_words([text, "owl"], KNOWN) == [text]


@given(st.text(), st.text())
def test_a_known_word_is_found_anywhere(before, after):
    assert without_known_words([f"{before} OWL {after}"], KNOWN) == []


@pytest.mark.parametrize("wrong", [["owl"], {"things": "owl"}, {1: ["owl"]}, {"things": 3}, "owl"])
def test_a_wrong_type_is_refused(wrong):
    with pytest.raises(TypeError, match="`known_words` must"):
        tiny.processor(known_words=wrong)


@pytest.mark.parametrize("wrong", ["", "!", 3, None])
def test_a_word_must_be_a_word(wrong):
    with pytest.raises(ValueError, match="`known_words` must contain words"):
        tiny.processor(known_words={"things": ["owl", wrong]})


def test_known_words_are_saved(tmp_path):
    tiny.processor(known_words=KNOWN).save_pretrained(tmp_path)
    assert ShowoProcessor.from_pretrained(tmp_path).known_words == KNOWN
    tiny.processor().save_pretrained(tmp_path / "none")
    assert ShowoProcessor.from_pretrained(tmp_path / "none").known_words is None


def test_a_pipeline_warns_of_prompts_without_known_words(caplog):
    processor = tiny.processor(known_words=KNOWN | {"many": [f"word{number}" for number in range(20)]})
    model = tiny.showo("llama", text_ids=processor.pad_token_id)
    pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe(["an owl", "a cat", "a cat"], negative_prompt="a dog", num_inference_steps=1, output_type="latent")
    (record,) = caplog.records
    message = record.getMessage()
    assert "'a cat'" in message and "things: owl, piece of cheese" in message and "word7 and 12 more" in message
    assert "word8" not in message and "a dog" not in message
