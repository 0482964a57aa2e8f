"""Argument checks of pipelines and schedulers."""

import math
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether a value is a Python or NumPy number. Excludes `bool` and types torch cannot multiply, such as `Fraction`."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer. Excludes `bool`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_number(name: str, value):
    """Raise `ValueError` unless `value` is a finite, non-negative number."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number that is not negative, got {value!r}.")


def check_count(name: str, value, least: int = 1):
    """Raise `ValueError` unless `value` is an integer `>= least`."""
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_share(name: str, value):
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1, got {value!r}.")
