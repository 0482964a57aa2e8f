"""Messages for a terminal, and how they show names out of files."""

import sys
from collections.abc import Iterable


LONGEST_MESSAGE = 500  # characters
LONGEST_NAME = 100
EXAMPLES = 5


def one_sentence(error: BaseException) -> str:
    """The message of an error for the terminal: one line, no control characters, and cut if it is very long."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"


def for_stdout(text: str) -> str:
    """Escape the characters of `text` that the encoding of stdout lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(name: object, longest: int = LONGEST_NAME) -> str:
    """
    A name out of a file for a message: control characters and line breaks are escaped, and a long name is cut.

    A name could otherwise change the colours of a terminal, or look like a message of ours.
    """
    text = str(name)
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def examples(names: Iterable[object], most: int = EXAMPLES, longest: int = LONGEST_NAME) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    listed = ", ".join(printable(name, longest) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most:,} more"
