"""The model in the package: what its text tokenizer takes as the same words."""

import pytest

from showo_hf import EMBEDDED_MODEL, ShowoProcessor


@pytest.fixture(scope="module", params=["processor", "model"])
def processor(request):
    return ShowoProcessor.from_pretrained(EMBEDDED_MODEL, subfolder=request.param)


def ids(processor, text):
    return processor.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("words", ["A Red Apple, Flat Style", "A RED APPLE, FLAT STYLE", "a Red apple, flat style"])
def test_case_does_not_matter_in_a_prompt(processor, words):
    assert ids(processor, words) == ids(processor, "a red apple, flat style")


@pytest.mark.parametrize(
    ("american", "british"),
    [
        ("what is the main color?", "what is the main colour?"),
        ("Which Colors are there?", "which colours are there?"),
        ("a gray cat", "a grey cat"),
    ],
)
def test_american_spelling_does_not_matter(processor, american, british):
    assert ids(processor, american) == ids(processor, british)


@pytest.mark.parametrize("word", ["colorado", "grayling", "discolor"])
def test_other_words_stay(processor, word):
    assert processor.tokenizer.decode(ids(processor, word)).strip() == word


def conversation(question, answer):
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]


def test_case_does_not_matter_in_a_conversation_and_its_marks_stay(processor):
    def tokens(*texts):
        text = processor.apply_chat_template(conversation(*texts), add_generation_prompt=True, tokenize=False)
        return processor.tokenizer.tokenize(text)

    made = tokens("What Is This?", "A Pear.")
    assert made == tokens("what is this?", "a pear.")
    assert (made.count(" USER"), made.count(" ASSISTANT")) == (2, 2)  # as in the training of the model
