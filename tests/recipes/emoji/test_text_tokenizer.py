"""The text tokenizer: its size, its tokens, and lossless decoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recipes.byte_pairs import END_OF_TEXT, train_text_tokenizer
from recipes.emoji.captions import text_corpus
from recipes.emoji.emoji import STYLES, EmojiRecord
from recipes.emoji.text_tokenizer import main


NAMES = ("red apple", "green pear", "smiling cat with heart-eyes", "clock showing half past two", "owl", "two hearts")


def corpus():
    records = [
        EmojiRecord("1F34E", "1F34E", style, name, (), None, "Food & Drink", "food-fruit", False)
        for name in NAMES
        for style in STYLES
    ]
    return text_corpus(records * 10)


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(corpus(), vocab_size=600)


def test_the_vocabulary_has_the_given_size(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))


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
    assert len(loaded) == 600 and loaded.eos_token_id == 0


def test_training_is_deterministic(tokenizer):
    assert train_text_tokenizer(corpus(), vocab_size=600).get_vocab() == tokenizer.get_vocab()


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="`vocab_size` must be at least 352, got 300"):
        train_text_tokenizer(["a"], vocab_size=300)
    with pytest.raises(ValueError, match="`texts` have only"):
        train_text_tokenizer(["a red apple"], vocab_size=2048)


def test_the_command_needs_a_prepared_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="`folder` must contain images.npy"):
        main(["--data", str(tmp_path), "--output", str(tmp_path / "out")])


_trained = []


def _shared():
    """One tokenizer for all Hypothesis examples, which cannot use function-scoped fixtures."""
    if not _trained:
        _trained.append(train_text_tokenizer(corpus(), vocab_size=600))
    return _trained[0]
