"""
Wrong values for every argument of every public call: the grid that the modules `test_hostile_*` share.

Each call has arguments that work. One of them at a time gets each hostile value. The call refuses it with a `ValueError` or
a `TypeError` that names the argument, before the model runs. Or the test states a plain value for it. Then the result is
right, and equals the result of the plain value.
"""

import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from showo_hf import ShowoForCausalLM


HOSTILE: dict[str, Any] = {
    "none": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "fraction": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "huge float": 1e308,
    "2**63": 2**63,
    "5000 digits": 10**5000,
    "empty text": "",
    "text": "nonsense",
    "half a surrogate": "\ud800",
    "bytes": b"\xff\xd8\xff",
    "empty list": [],
    "list of none": [None],
    "empty dict": {},
    "object": object(),
    "complex": 1j,
    "function": lambda: None,
    "array": np.array([[-1.0, 2.0], [3.0, np.nan]]),
    "tensor": torch.tensor([1, 2]),
}

#: For a value that is as plain as another: only its result is looked at.
ITSELF = object()
#: By label of `HOSTILE`, the plain value with the same result.
Plain = Mapping[str, Any]
ANY_TEXT: Plain = {"empty text": ITSELF, "text": ITSELF}
NO_OTHERS: Plain = {}


class Runs:
    """Counts how often the networks of a model run, while it is entered."""

    def __init__(self, *networks: torch.nn.Module):
        self.count, self.networks = 0, networks

    def __enter__(self) -> "Runs":
        self.hooks = [network.register_forward_pre_hook(self.add) for network in self.networks]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def add(self, *_):
        self.count += 1


def networks_of(model: ShowoForCausalLM) -> tuple[torch.nn.Module, ...]:
    return model.model, model.image_tokenizer.encoder, model.image_tokenizer.decoder


def try_all(
    call: Callable,
    valid: Mapping[str, Any],
    name: str,
    is_right: Callable[[Any], bool],
    plain: Plain = NO_OTHERS,
    networks: Iterable[torch.nn.Module] = (),
) -> None:
    """
    Call with each hostile value of one argument; raise `AssertionError` that lists all that goes wrong.

    Args:
        is_right: whether the result of an accepted value is right, as far as it can be said without its argument.
        plain: the labels that are accepted, with the plain value that gives the same result. All others are refused.
        networks: what must not run before a refusal.
    """
    wrong = []

    def result_of(value: Any) -> Any:
        torch.manual_seed(0)
        if isinstance(value, torch.Generator):
            value.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(**{**valid, name: value})

    with Runs(*networks) as runs:
        for label, value in HOSTILE.items():
            before = runs.count
            try:
                result = result_of(value)
            except (ValueError, TypeError) as error:
                if not re.search(rf"[`'\[.]{name}s?[`'\]\[=.]", str(error)):
                    wrong.append(f"{label}: the message does not name `{name}`: {error!r:.300}")
                elif len(str(error)) > 1000:
                    wrong.append(f"{label}: a message of {len(str(error))} characters")
                elif runs.count > before:
                    wrong.append(f"{label}: refused after the model ran: {error!r:.200}")
                elif label in plain:
                    wrong.append(f"{label}: refused, and {plain[label]!r:.60} was said to be the same: {error!r:.200}")
            except Exception as error:
                wrong.append(f"{label}: {error!r:.300}")
            else:
                if label not in plain:
                    wrong.append(f"{label}: accepted, and no plain value is stated; the result is {result!r:.100}")
                elif not is_right(result):
                    wrong.append(f"{label}: accepted, with the result {result!r:.100}")
                elif plain[label] is not ITSELF and not same(result, result_of(plain[label])):
                    wrong.append(f"{label}: not the result of {plain[label]!r:.100}: {result!r:.100}")
    assert not wrong, f"{name}:\n" + "\n".join(wrong)


def same(one: Any, other: Any) -> bool:
    """Whether two results of a call are equal, down to each pixel and number."""
    if dataclasses.is_dataclass(one) and not isinstance(one, Mapping):
        one, other = vars(one), vars(other)
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Image.Image):
        return one.size == other.size and one.tobytes() == other.tobytes()
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def parameters_of(call: Callable) -> set[str]:
    """The names of a call's parameters, except `self` and those that stand for any others."""
    parameters = inspect.signature(call).parameters.items()
    return {name for name, one in parameters if name != "self" and one.kind is not one.VAR_KEYWORD}


#: By class and name of a call, the arguments that a module `test_hostile_*` tries. Each such module has them as `TRIED`.
Tried = Mapping[type, Mapping[str, Iterable[str]]]


def assert_complete(tried: Tried):
    """Raise `AssertionError` unless every argument of these calls is tried."""
    for kind, calls in tried.items():
        for call, arguments in calls.items():
            assert parameters_of(getattr(kind, call)) == {*arguments}, f"{kind.__name__}.{call}"
