"""The small text tokenizer: its size, its tokens, and lossless decoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recipes.byte_pairs import END_OF_TEXT, train_text_tokenizer


SIZE = 530
THINGS = (
    *(
        "a red apple",
        "a green pear",
        "an owl",
        "two hearts",
        "three blue cars",
        "a bunch of grapes",
        "a slice of pizza",
    ),
    *("a dog on the grass", "a bicycle at night", "a fire engine above a castle", "an umbrella below a crescent moon"),
)
FORMS = (
    *(
        "{}",
        "{}, flat style",
        "{} in noto style",
        "please draw {}.",
        "can you show me {}?",
        "I would like a picture of {}",
    ),
    *("USER: what is in this image? ASSISTANT: {}.", "USER: where does it stand? ASSISTANT: beside {}, on the left."),
)


def corpus():
    return [form.format(thing) for thing in THINGS for form in FORMS] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(corpus(), vocab_size=SIZE)


def test_the_vocabulary_has_the_given_size(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))


def test_end_of_text_is_the_only_special_token(tokenizer):
    assert tokenizer.all_special_tokens == [END_OF_TEXT]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.pad_token is None
    assert 0 not in tokenizer("a red apple")["input_ids"]
    assert tokenizer(f"apple{END_OF_TEXT}")["input_ids"][-1] == 0


def test_a_frequent_word_is_one_token_at_every_position(tokenizer):
    assert tokenizer.tokenize("a red apple, flat style") == [" a", " red", " apple", ",", " flat", " style"]
    assert tokenizer.tokenize("red") == [" red"]


def test_digits_are_separate_tokens(tokenizer):
    assert tokenizer.tokenize("x123")[-3:] == ["1", "2", "3"]


@given(st.text())
def test_decoding_restores_every_string(text):
    tokenizer = _shared()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "Crème brûlée",
        "日本語の絵",
        "🍎👩‍🔬",
        "a\n\n\tb\r\n",
        "\u2581x \u2581",
        "<0x41>",
        "\x00",
        "no .",
    ],
)
def test_decoding_restores_unusual_strings(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "USER: \nwhat is this? ASSISTANT: 2 brûlées."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert len(loaded) == SIZE and loaded.eos_token_id == 0


def test_training_is_deterministic(tokenizer):
    assert train_text_tokenizer(corpus(), vocab_size=SIZE).get_vocab() == tokenizer.get_vocab()


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="`vocab_size` must be at least 352, got 300"):
        train_text_tokenizer(["a"], vocab_size=300)
    with pytest.raises(ValueError, match="`texts` have only"):
        train_text_tokenizer(["a red apple"], vocab_size=2048)


_trained = []


def _shared():
    """One tokenizer for all Hypothesis examples, which cannot use function-scoped fixtures."""
    if not _trained:
        _trained.append(train_text_tokenizer(corpus(), vocab_size=SIZE))
    return _trained[0]
