"""Messages for a terminal."""

LONGEST_MESSAGE = 500  # characters


def one_sentence(error: BaseException) -> str:
    """The message of an error for the terminal: one line, no control characters, and cut if it is very long."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"
