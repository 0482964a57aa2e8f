"""The words that a model knows, and the prompts that have none of them."""

import re
from collections.abc import Mapping, Sequence

from ..utils.validation import shown


def check_known_words(known_words: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
    """
    The words as plain dicts and lists.

    Args:
        known_words (`dict[str, list[str]]`, *optional*): words or phrases by group, such as `{"things": ["owl"]}`.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if known_words is None:
        return None
    if not isinstance(known_words, Mapping):
        raise TypeError(f"`known_words` must be a dict of lists of words, or None, got {type(known_words).__name__}.")
    for group, words in known_words.items():
        if not isinstance(group, str) or isinstance(words, str) or not isinstance(words, Sequence):
            raise TypeError(
                f"`known_words` must map names of groups to lists of words, got {shown(group)}: {shown(words)}."
            )
        for word in words:
            if not isinstance(word, str) or not words_of(word):
                raise ValueError(f"`known_words` must contain words or phrases, got {shown(word)} in {shown(group)}.")
    return {group: list(words) for group, words in known_words.items()}


def words_of(text: str) -> list[str]:
    """The words of a text, without regard to case."""
    return re.findall(r"\w+", text.casefold())


def without_known_words(texts: Sequence[str], known_words: Mapping[str, Sequence[str]]) -> list[str]:
    """
    The texts that have words, but none of the known ones.

    Args:
        texts (`list[str]`): prompts.
        known_words (`dict[str, list[str]]`): words or phrases by group. Case and punctuation do not matter. The words
            of a phrase must follow each other.
    """
    # Spaces at both ends keep "ant" from being found in "elephant".
    known = [f" {' '.join(words_of(phrase))} " for phrases in known_words.values() for phrase in phrases]
    spaced = {text: f" {' '.join(words_of(text))} " for text in texts if words_of(text)}
    return [text for text, words in spaced.items() if not any(phrase in words for phrase in known)]
