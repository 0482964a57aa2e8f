"""Argument types for argparse. Each parses a string, or raises `ArgumentTypeError` with the allowed values."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path


DTYPES = ("float32", "bfloat16", "float16")  # the choices of a `--dtype`
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # of a model or a data set: "org/name"
LARGEST_INTEGER = 999_999_999
LARGEST_SIDE = 16_384  # pixels of an image
LARGEST_GRID = 2**20  # tokens of an image
MAX_PIXELS = 16_000_000  # of an image file that is read, unless the caller raises it
LARGEST_SCALE = 1000.0  # of guidance and temperatures: logits times this stay finite in float16


def quoted(text: object, longest: int = 60) -> str:
    """A text of the user for a message: in quotes, with control characters escaped, and its middle cut out if long."""
    shown = repr(str(text))
    if len(shown) <= longest:
        return shown
    half = longest // 2
    return f"{shown[: half - 3]} ... {shown[3 - half :]}"


def user_path(text: str) -> Path:
    """Parse a path: `~` stands for the home folder, also where the shell did not expand it."""
    path = Path(text)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # no such user
        return path


def user_name(text: str) -> str:
    """Parse what may be a path, a URL or a name on the Hub: `~` stands for the home folder."""
    return str(user_path(text)) if text.startswith("~") else text


def integer(lowest: int, highest: int = LARGEST_INTEGER) -> Callable[[str], int]:
    """The type of integers from `lowest` to `highest`."""

    def parse(text: str) -> int:
        # int() refuses thousands of digits with another error, and takes spaces and underscores.
        if not re.fullmatch(r"[0-9]{1,20}", text) or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"must be an integer from {lowest} to {highest}, got {quoted(text)}")
        return int(text)

    return parse


positive_integer = integer(1)
non_negative_integer = integer(0)
# torch takes seeds up to 2**64 - 1. Each further image adds 1 to the seed.
seed_number = integer(0, 2**63 - 1)


def square_number(text: str) -> int:
    """Parse the number of tokens of a square image."""
    number = integer(1, LARGEST_GRID)(text)
    if math.isqrt(number) ** 2 != number:
        raise argparse.ArgumentTypeError(f"must be a square number such as 256 or 1024, got {number}")
    return number


def finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {quoted(text)}")
    return number


def scale_number(text: str) -> float:
    """Parse a guidance scale or a temperature."""
    number = finite_number(text)
    if not 0 <= number <= LARGEST_SCALE:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {LARGEST_SCALE:g}, got {quoted(text)}")
    return number


def fraction(text: str) -> float:
    number = finite_number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {quoted(text)}")
    return number


def image_size(text: str) -> tuple[int, int]:
    """Parse "256" or "256x384" to (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if match is None or max(height, width) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH in pixels, such as 256x384, or one number, each at most {LARGEST_SIDE}, "
            f"got {quoted(text)}"
        )
    return height, width


def shard_size(text: str) -> str:
    """Check a size with a unit, in the format of huggingface_hub."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a number with KB, MB, GB or TB, such as 2GB, got {quoted(text)}")
    return text.upper()
