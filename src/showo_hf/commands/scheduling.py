"""How images are filled in: `--scheduler` and its options, for every command that makes images."""

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


HELP = "help"  # in place of a name: what names there are
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}  # how errors call values of a type


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Add `--scheduler` and `--scheduler-option`; see [`check_scheduler`] and [`set_scheduler`]."""
    add = parser.add_argument
    add(
        "--scheduler",
        action=SchedulerName,
        metavar="NAME",
        help=f"how images are filled in, '{HELP}' for a list (default: the model's)",
    )
    add(
        "--scheduler-option",
        action="append",
        type=name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the scheduler; may be given again",
    )


class SchedulerName(argparse.Action):
    """Keeps the name of a scheduler, or prints all names and leaves, as argparse's own `--help` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values == HELP:
            print(scheduler_list(), end="")
            parser.exit(0)
        setattr(namespace, self.dest, values)


def scheduler_list() -> str:
    """All schedulers, one a line, with what they do."""
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
    """What can be checked without the model: `UsageError` unless `--scheduler` exists and has the options given."""
    if options.scheduler is not None:
        option_values(named_scheduler(options.scheduler), options.scheduler_option)


def set_scheduler(pipe: DiffusionPipeline, options: argparse.Namespace) -> None:
    """
    Put the scheduler that was asked for into a pipeline, with the settings of its own one that both have.

    Raises:
        UsageError: for options that the scheduler does not have, and for values that it refuses.
    """
    if options.scheduler is None and not options.scheduler_option:
        return
    kind = type(pipe.scheduler) if options.scheduler is None else named_scheduler(options.scheduler)
    values = option_values(kind, options.scheduler_option)
    if options.scheduler is not None:
        values["mask_token_id"] = pipe.mask_token_id  # the model's scheduler may have none
    try:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"`--scheduler-option` has a value that {kind.__name__} refuses: {error}") from error


def named_scheduler(name: str) -> type[Any]:
    """The scheduler of that name. `UsageError` if there is none."""
    from ..schedulers import SCHEDULERS

    if name not in SCHEDULERS:
        raise UsageError(f"`--scheduler` must be one of {', '.join(SCHEDULERS)}, got '{name}'")
    return SCHEDULERS[name]


def option_values(kind: Callable, given: list[tuple[str, str]]) -> dict[str, Any]:
    """The values of options, by name. `UsageError` for names that the scheduler does not have, and for wrong types."""
    parameters = list(inspect.signature(kind).parameters.values())
    # The code of an unknown token is the model's own.
    defaults = {one.name: one.default for one in parameters if one.name != "mask_token_id"}
    for name, _ in given:
        if name not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise UsageError(f"`--scheduler-option` of {kind.__name__} must be among {allowed}; got '{name}'")
    return {name: parse_value(name, text, defaults[name]) for name, text in given}


def parse_value(name: str, text: str, default: Any) -> Any:
    """A value as JSON, or as text where it is none. `UsageError` if it is no value of the default's type."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        value = text
    if not fits(value, default):
        raise UsageError(f"`--scheduler-option` {name} must be {KINDS[type(default)]}, got '{text}'")
    return value


def fits(value: Any, default: Any) -> bool:
    """Whether a value is of the default's type, where that is one of `KINDS`; else any value may do."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return True
