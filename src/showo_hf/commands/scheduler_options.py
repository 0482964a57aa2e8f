"""`--scheduler` and `--scheduler-option`, for every command that makes images."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import quoted
from ..utils.masking_schedule_names import schedule_exponent
from ..utils.validation import check_sampling
from .errors import UsageError
from .model_loading import check_model
from .saved_model import read_saved_model
from .texts import with_option_names


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


HELP = "help"  # `--scheduler help` lists the names
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number"}  # for error messages
FILTER = {"top_k": None, "top_p": None}

#: What the schedulers allow, as far as a typing error can be told from it; a test compares them with the classes, which
#: check everything.
CHOICES = {
    "temperature_rule": ("compound", "linear"),
    "sort_by": ("entropy", "confidence"),
    "rule": ("mask_predict", "remdm"),
    "sigma_rule": ("cap", "rescale"),
}
SCALES = ("temperature", "token_temperature", "entropy_bound", "purity_weight", "auxiliary_weight")
MOST_SCALE = 10_000.0
SHARES = ("eta", "mask_share", "top_p")


@dataclass(frozen=True)
class KnownScheduler:
    """A scheduler of this package: its class, the first sentence of its documentation, and its settings."""

    name: str
    summary: str
    settings: dict[str, Any]

    @property
    def takes_temperature(self) -> bool:
        """Whether the temperature of a call replaces the one in the settings."""
        return not {"temperature", "token_temperature"}.isdisjoint(self.settings)


#: The schedulers by their names on the command line, as in `showo_hf.schedulers.SCHEDULERS`. Importing the classes
#: would import torch, so what help and usage errors need is repeated here; a test compares the two.
KNOWN = {
    "maskgit": KnownScheduler(
        "MaskGITScheduler",
        "Unmask the tokens with the highest confidence in each step, with noise (MaskGIT, arXiv:2202.04200, section 3.2).",
        {"masking_schedule": "cosine", "temperature": 1.0, "temperature_rule": "compound", **FILTER},
    ),
    "halton": KnownScheduler(
        "HaltonScheduler",
        "Unmask tokens in the order of a Halton sequence (Halton-MaskGIT, arXiv:2503.17076, section 4).",
        {"masking_schedule": "arccos", "token_temperature": 1.0, **FILTER, "roll": False},
    ),
    "entropy-bound": KnownScheduler(
        "EntropyBoundScheduler",
        "Unmask as many tokens per step as an entropy bound allows (EB-Sampler, arXiv:2505.24857, section 4).",
        {
            "entropy_bound": 4.0,
            "sort_by": "entropy",
            "masking_schedule": "cosine",
            "token_temperature": 1.0,
            **FILTER,
        },
    ),
    "remasking": KnownScheduler(
        "RemaskingScheduler",
        "Mask tokens of earlier steps again, so that the model can correct them (Mask-Predict, ReMDM).",
        {
            "rule": "mask_predict",
            "masking_schedule": "cosine",
            "temperature": 1.0,
            "temperature_rule": "compound",
            "sigma_rule": "cap",
            "eta": 0.05,
            **FILTER,
        },
    ),
    "mask-and-replace": KnownScheduler(
        "MaskAndReplaceScheduler",
        "Discrete diffusion that keeps a token, replaces it with a uniformly random one, or masks it (VQ-Diffusion).",
        {
            "num_train_timesteps": 100,
            "masking_schedule": "linear",
            "mask_share": 0.9,
            "truncation_rate": 1.0,
            "purity": False,
            "purity_weight": 0.0,
            "auxiliary_weight": 5e-4,
            "adaptive_auxiliary": True,
        },
    ),
}


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Add `--scheduler` and `--scheduler-option`; see [`check_scheduler`] and [`set_scheduler`]."""
    add = parser.add_argument
    add(
        "--scheduler",
        action=SchedulerName,
        metavar="NAME",
        help=f"the scheduler; '{HELP}' lists all of them (default: the model's)",
    )
    add(
        "--scheduler-option",
        action="append",
        type=name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the scheduler; can be repeated",
    )


class SchedulerName(argparse.Action):
    """Stores the name of a scheduler, or prints all names and exits, as `--help` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values == HELP:
            print(scheduler_list(), end="")
            parser.exit(0)
        setattr(namespace, self.dest, values)


def scheduler_list() -> str:
    """All schedulers with their summaries, one per line."""
    width = max(map(len, KNOWN))
    return "".join(f"{name:<{width}}  {known.summary}\n" for name, known in KNOWN.items())


def name_and_value(text: str) -> tuple[str, str]:
    """Split "name=value". Raises `ArgumentTypeError` for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {quoted(text)}")
    return name, value


def check_model_and_scheduler(options: argparse.Namespace) -> None:
    """
    Raise `UsageError` for a model that is not there, see [`check_model`], and for wrong scheduler options.

    What depends on the model's own scheduler comes last: the Hub says whether the downloaded model is the newest one.
    """
    if options.scheduler is not None:
        check_scheduler(options)
    check_model(options.model)
    if options.scheduler is None:
        check_scheduler(options)
    check_steps_and_temperature(options)


def check_scheduler(options: argparse.Namespace) -> None:
    """
    Raise `UsageError` unless `--scheduler` exists and has the given options, of the right types.

    Needs neither torch nor the model. The options of a model's own scheduler are checked if its folder names one that
    this package knows.
    """
    if options.scheduler is not None and options.scheduler not in KNOWN:
        raise UsageError(f"`--scheduler` must be one of {', '.join(KNOWN)}, got {quoted(options.scheduler)}")
    known = known_scheduler(options)
    if known is not None:
        option_values(known.name, known.settings, options.scheduler_option)


def check_steps_and_temperature(options: argparse.Namespace) -> None:
    """Raise `UsageError` for more steps than the scheduler has, and for a `--temperature` that it does not take."""
    known = known_scheduler(options)
    if known is None:
        return
    values = option_values(known.name, known.settings, options.scheduler_option)
    most = most_steps(known, values, options.model)
    steps = options.steps or read_saved_model(options.model).steps or 1
    try:
        check_sampling(known.name, most, known.takes_temperature, steps, options.temperature)
    except ValueError as error:
        raise UsageError(with_option_names(error)) from error


def most_steps(known: KnownScheduler, values: dict[str, Any], model: str | None) -> float:
    """The most steps of a scheduler with these option values; infinity if there is no limit, or only the model tells."""
    name = "num_train_timesteps"
    if name not in known.settings or name in values:
        return values.get(name, math.inf)
    saved = read_saved_model(model)
    if saved.scheduler is None:
        return math.inf
    return saved.train_timesteps or known.settings[name]  # `set_scheduler` keeps the settings of the model's scheduler


def known_scheduler(options: argparse.Namespace) -> KnownScheduler | None:
    """The scheduler that the options set up, if it is one of this package; None if only the model can tell."""
    if options.scheduler is not None:
        return KNOWN[options.scheduler]
    own = read_saved_model(options.model).scheduler
    return next((known for known in KNOWN.values() if known.name == own), None)


def check_scheduler_values(options: argparse.Namespace) -> None:
    """Raise `UsageError` if the scheduler rejects a value. Imports torch, and needs no model."""
    known = known_scheduler(options)
    if known is None or not options.scheduler_option:
        return
    values = option_values(known.name, known.settings, options.scheduler_option)
    codebook_size = read_saved_model(options.model).codebook_size
    make_scheduler(
        scheduler_class(known), values | ({} if codebook_size is None else {"mask_token_id": codebook_size})
    )


def set_scheduler(pipe: DiffusionPipeline, options: argparse.Namespace) -> None:
    """
    Replace the scheduler of a pipeline as the options say. The new one inherits the settings that both have.

    Raises:
        UsageError: for options that the scheduler does not have, and for values that it rejects.
    """
    if options.scheduler is None and not options.scheduler_option:
        return
    kind = type(pipe.scheduler) if options.scheduler is None else scheduler_class(KNOWN[options.scheduler])
    values = option_values(kind.__name__, settings_of(kind), options.scheduler_option)
    if options.scheduler is not None:
        values["mask_token_id"] = pipe.mask_token_id  # the scheduler of the model may not have one
    pipe.scheduler = make_scheduler(lambda **settings: kind.from_config(pipe.scheduler.config, **settings), values)


def scheduler_class(known: KnownScheduler) -> type[Any]:
    from .. import schedulers

    return getattr(schedulers, known.name)


def make_scheduler(make: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Make a scheduler. Raises `UsageError` for values that it rejects."""
    with values_refused():
        return make(**values)


@contextmanager
def values_refused() -> Iterator[None]:
    """Raise `UsageError` for the errors of a scheduler within the block."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(f"`--scheduler-option` has a value that is not allowed: {error}") from error


def settings_of(kind: Callable) -> dict[str, Any]:
    """The settings of a scheduler with their defaults. `mask_token_id` is none, because the model gives it."""
    parameters = inspect.signature(kind).parameters.values()
    return {one.name: one.default for one in parameters if one.name != "mask_token_id"}


def option_values(scheduler: str, defaults: dict[str, Any], given: list[tuple[str, str]]) -> dict[str, Any]:
    """Parse option values by name. Raises `UsageError` for unknown names and for values of the wrong type."""
    for name, _ in given:
        if name not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise UsageError(f"`--scheduler-option` of {scheduler} must be among {allowed}; got {quoted(name)}")
    return {name: parse_value(name, text, defaults[name]) for name, text in given}


def parse_value(name: str, text: str, default: Any) -> Any:
    """Parse a value as JSON, else keep it as text. Raises `UsageError` if its type differs from the default's."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        value = text
    if not fits(value, default):
        raise UsageError(f"`--scheduler-option` {name} must be {TYPE_NAMES[type(default)]}, got {quoted(text)}")
    allowed = ""
    if name in CHOICES and value not in CHOICES[name]:
        allowed = f"one of {', '.join(CHOICES[name])}"
    elif type(value) in (int, float):
        most = MOST_SCALE if name in SCALES else 1 if name in SHARES else math.inf
        if name in (*SCALES, *SHARES, "top_k") and not 0 <= value <= most:
            allowed = f"a number from 0 to {most:g}" if most < math.inf else "positive"
    if allowed:
        raise UsageError(f"`--scheduler-option` {name} must be {allowed}, got {quoted(text)}")
    if name == "masking_schedule":
        with values_refused():
            schedule_exponent(value)
    return value


def fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default. Defaults of types not in `TYPE_NAMES` accept any value."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int
    if isinstance(default, float):
        # Integers of a file may exceed every float, and comparisons with nan are false.
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return True
