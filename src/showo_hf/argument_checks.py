"""Checks of the arguments of pipelines and schedulers."""

import math
from numbers import Integral, Real


def check_number(name: str, value):
    """Raise `ValueError` unless `value` is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"`{name}` must be a finite number that is not negative, got {value!r}.")


def check_count(name: str, value, least: int = 1):
    """Raise `ValueError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_share(name: str, value):
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1, got {value!r}.")
