"""Types of arguments: a word of the command line to a value, or argparse's error that says what is allowed."""

import argparse
import math
import re


DTYPES = ("float32", "bfloat16", "float16")  # the choices of a `--dtype`


def positive_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    # torch takes seeds up to 2**64 - 1; `--num` counts up from here.
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return number


def number_from_zero(text: str) -> float:
    number = finite_number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text!r}")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    number = finite_number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text!r}")
    return number


def image_size(text: str) -> tuple[int, int]:
    """ "256" or "256x384" to (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH in pixels, such as 256x384, or one number, got {text!r}"
        )
    return int(match[1]), int(match[2] or match[1])


def shard_size(text: str) -> str:
    """A size with a unit, as huggingface_hub takes it."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a number with KB, MB, GB or TB, such as 2GB, got {text!r}")
    return text.upper()
