"""Argument checks of pipelines and schedulers."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


#: Limits that no useful value exceeds. Beyond them float32 overflows, or a call would never end.
MAX_COUNT = 100_000
MAX_SCALE = 10_000.0
ASPECT_TOLERANCE = 0.02  # of a mask, for rounding to whole pixels


def shown(value: Any) -> str:
    """A short `repr` for error messages. Values whose `repr` fails, such as an integer of 5,000 digits, give their type."""
    try:
        text = repr(value)
    except Exception:  # `__repr__` of any type
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def numpy_types(*names: str) -> tuple[type, ...]:
    """Types of NumPy, by name. None before it is imported: no value has them then, and commands need no NumPy to start."""
    numpy = sys.modules.get("numpy")
    return () if numpy is None else tuple(getattr(numpy, name) for name in names)


def is_number(value: Any) -> bool:
    """Whether a value is a Python or NumPy number. Excludes `bool` and types torch cannot multiply, such as `Fraction`."""
    return is_integer(value) or isinstance(value, float) or isinstance(value, numpy_types("floating"))


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer. Excludes `bool`."""
    return not isinstance(value, bool) and (isinstance(value, int) or isinstance(value, numpy_types("integer")))


def check_number(name: str, value, most: float | None = None):
    """Raise `ValueError` unless `value` is a finite, non-negative number, and at most `most`."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number that is not negative, got {shown(value)}.")
    if most is not None and value > most:
        raise ValueError(f"`{name}` must be at most {most:,g}, got {shown(value)}.")


def check_positive(name: str, value, most: float | None = None):
    """Raise `ValueError` unless `value` is a finite number above 0, and at most `most`."""
    check_number(name, value, most)
    if not value > 0:
        raise ValueError(f"`{name}` must be greater than 0, got {shown(value)}.")


def check_count(name: str, value, least: int = 1, most: int | None = None):
    """Raise `ValueError` unless `value` is an integer from `least` to `most`."""
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {shown(value)}.")
    if most is not None and value > most:
        raise ValueError(f"`{name}` must be at most {most:,}, got {shown(value)}.")


def check_sampling(
    kind: str, most_steps: float, takes_temperature: bool, num_inference_steps: int, temperature: float | None
):
    """
    Raise `ValueError` for more steps than a scheduler has, and for a temperature that it does not take.

    Args:
        kind: the class of the scheduler.
        most_steps: its `num_train_timesteps`; infinity for one that has none.
        takes_temperature: whether its `set_timesteps` has the argument.
    """
    if num_inference_steps > most_steps:
        raise ValueError(
            f"`num_inference_steps` must be at most the `num_train_timesteps` of this {kind}, {most_steps}, "
            f"got {num_inference_steps}."
        )
    if temperature is not None and not takes_temperature:
        raise ValueError(f"`temperature` is not an option of {kind}, got {temperature}.")


def check_share(name: str, value):
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1, got {shown(value)}.")


def check_same_aspect(name: str, size: tuple[int, int], image_size: tuple[int, int]):
    """Raise `ValueError` unless a mask of `size` has the aspect ratio of its image. Both sizes are (height, width)."""
    (rows, columns), (height, width) = size, image_size
    # Rounding changes a side by up to one pixel of the coarser resolution.
    slack = max(ASPECT_TOLERANCE, 1 / min(height, width, rows, columns))
    ratio = (columns / rows) / (width / height)
    if not 1 / (1 + slack) <= ratio <= 1 + slack:
        raise ValueError(
            f"`{name}` must have the aspect ratio of its image, {width}x{height} (width x height), "
            f"got {columns}x{rows}."
        )


def check_flag(name: str, value):
    """Raise `TypeError` unless `value` is True or False."""
    if not isinstance(value, bool) and not isinstance(value, numpy_types("bool_")):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}.")


def check_list(name: str, value: Any):
    """Raise `TypeError` unless `value` is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"`{name}` must be a list, got {shown(value)}.")


def check_choice(name: str, value: Any, choices: Iterable[str]):
    """Raise `ValueError` unless `value` is one of `choices`."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        listed = f"{', '.join(repr(choice) for choice in choices[:-1])} or {choices[-1]!r}"
        raise ValueError(f"`{name}` must be {listed}, got {shown(value)}.")


def check_callable(name: str, value: Any, *arguments: str):
    """Raise `TypeError` unless `value` can be called with as many positional arguments as `arguments` names."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"`{name}` must be callable or None, got {shown(value)}.")
    if not takes(value, len(arguments)):
        raise TypeError(f"`{name}` must take the arguments ({', '.join(arguments)}), got {shown(value)}.")


def takes(function: Callable, count: int) -> bool:
    """Whether a function takes `count` positional arguments. True for those that do not say what they take."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def check_unicode(name: str, texts: Iterable[str]):
    """Raise `ValueError` for half of a surrogate pair, which no tokenizer takes."""
    for text in texts:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"`{name}` must be valid Unicode, got half of a surrogate pair in {shown(text)}.")


def check_sizes(config: Any, limits: Mapping[str, int], what: str | None = None):
    """
    Raise `ValueError` if an entry of a config, a number or a list of them, exceeds its limit in `limits`.

    A model's layers are built before its weights are read, so a config alone could take any memory and time.

    Args:
        config: a config, or the entries of one that is not built yet.
        what: the name of the config in the message; by default its class.
    """
    for name, most in limits.items():
        sizes = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        for size in sizes if isinstance(sizes, (list, tuple)) else [sizes]:
            if is_number(size) and size > most:
                raise ValueError(
                    f"`{name}` of a {what or type(config).__name__} must be at most {most:,}, got {shown(sizes)}."
                )


def check_parameters(what: str, count: int, most: int):
    """Raise `ValueError` if the sizes of a config, each allowed alone, ask for more than `most` parameters together."""
    if count > most:
        raise ValueError(f"`{what}` asks for {count:,} parameters or more, and at most {most:,} are allowed.")


def check_texts(name: str, texts) -> list[str]:
    """One or several texts as a list; `TypeError` or `ValueError` for anything else."""
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`{name}` must be a text or a list of texts, got {type(texts).__name__}: {shown(texts)}.")
    if not texts:
        raise ValueError(f"`{name}` must hold at least one text, got an empty list.")
    check_unicode(name, texts)
    return list(texts)


def check_equal_length(**named: Sequence):
    """Raise `ValueError` unless the two named sequences are equally long."""
    (first, one), (second, other) = named.items()
    if len(one) != len(other):
        raise ValueError(f"`{first}` and `{second}` must be equally many, got {len(one)} and {len(other)}.")
