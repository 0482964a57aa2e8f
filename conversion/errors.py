"""The errors of conversions and exports, and how they show names out of files."""

from collections.abc import Iterable


LONGEST_NAME = 100
EXAMPLES = 5


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message names the file or the tensors; nothing was written."""


class UploadError(RuntimeError):
    """The output folder is complete, but it could not be uploaded."""


def printable(name: object) -> str:
    """
    A name out of a file for a message: control characters and line breaks are escaped, and a long name is cut.

    A name could otherwise change the colours of a terminal, or look like a message of ours.
    """
    text = str(name)
    if len(text) > LONGEST_NAME:
        text = text[: LONGEST_NAME - 3] + "..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def examples(names: Iterable[object], most: int = EXAMPLES) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    listed = ", ".join(printable(name) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most:,} more"
