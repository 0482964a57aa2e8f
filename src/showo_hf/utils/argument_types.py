"""Argument types for argparse. Each parses a string, or raises `ArgumentTypeError` with the allowed values."""

import argparse
import math
import re


DTYPES = ("float32", "bfloat16", "float16")  # the choices of a `--dtype`


def positive_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def non_negative_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"must be a non-negative integer, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    # torch takes seeds up to 2**64 - 1. `--num` adds to the seed.
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return number


def non_negative_number(text: str) -> float:
    number = finite_number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be a non-negative number, got {text!r}")
    return number


def fraction(text: str) -> float:
    number = finite_number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return number


def image_size(text: str) -> tuple[int, int]:
    """Parse "256" or "256x384" to (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH in pixels, such as 256x384, or one number, got {text!r}"
        )
    return int(match[1]), int(match[2] or match[1])


def shard_size(text: str) -> str:
    """Check a size with a unit, in the format of huggingface_hub."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a number with KB, MB, GB or TB, such as 2GB, got {text!r}")
    return text.upper()
