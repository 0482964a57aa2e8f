"""`--scheduler` and `--scheduler-option`, for every command that makes images."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import UsageError


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


HELP = "help"  # `--scheduler help` lists the names
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number"}  # for error messages


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
    from ..schedulers import SCHEDULERS

    width = max(map(len, SCHEDULERS))
    summaries = {name: inspect.getdoc(kind).splitlines()[0] for name, kind in SCHEDULERS.items()}
    return "".join(f"{name:<{width}}  {summary}\n" for name, summary in summaries.items())


def name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def check_scheduler(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless `--scheduler` exists and has the given options. Needs no model."""
    if options.scheduler is not None:
        option_values(named_scheduler(options.scheduler), options.scheduler_option)


def set_scheduler(pipe: DiffusionPipeline, options: argparse.Namespace) -> None:
    """
    Replace the scheduler of a pipeline as the options say. The new one inherits the settings that both have.

    Raises:
        UsageError: for options that the scheduler does not have, and for values that it rejects.
    """
    if options.scheduler is None and not options.scheduler_option:
        return
    kind = type(pipe.scheduler) if options.scheduler is None else named_scheduler(options.scheduler)
    values = option_values(kind, options.scheduler_option)
    if options.scheduler is not None:
        values["mask_token_id"] = pipe.mask_token_id  # the scheduler of the model may not have one
    try:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"`--scheduler-option` has a value that {kind.__name__} rejects: {error}") from error


def named_scheduler(name: str) -> type[Any]:
    """The scheduler class of a name. Raises `UsageError` if there is none."""
    from ..schedulers import SCHEDULERS

    if name not in SCHEDULERS:
        raise UsageError(f"`--scheduler` must be one of {', '.join(SCHEDULERS)}, got '{name}'")
    return SCHEDULERS[name]


def option_values(kind: Callable, given: list[tuple[str, str]]) -> dict[str, Any]:
    """Parse option values by name. Raises `UsageError` for unknown names and for values of the wrong type."""
    parameters = list(inspect.signature(kind).parameters.values())
    # `mask_token_id` is given by the model.
    defaults = {one.name: one.default for one in parameters if one.name != "mask_token_id"}
    for name, _ in given:
        if name not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise UsageError(f"`--scheduler-option` of {kind.__name__} must be among {allowed}; got '{name}'")
    return {name: parse_value(name, text, defaults[name]) for name, text in given}


def parse_value(name: str, text: str, default: Any) -> Any:
    """Parse a value as JSON, else keep it as text. Raises `UsageError` if its type differs from the default's."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        value = text
    if not fits(value, default):
        raise UsageError(f"`--scheduler-option` {name} must be {TYPE_NAMES[type(default)]}, got '{text}'")
    return value


def fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default. Defaults of types not in `TYPE_NAMES` accept any value."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return True
