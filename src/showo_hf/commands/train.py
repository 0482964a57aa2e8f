"""`showo-hf train`: train a model with a recipe."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..utils.argument_types import quoted
from .errors import CommandError, UsageError
from .hub_names import HUB_NAME, check_hub_model
from .model_loading import load_package, say_loading
from .recipe_keys import check_entries
from .texts import exists


EXAMPLES = """\
examples:
  the shipped recipes
    showo-hf train --list

  an adapter from a folder of images with a metadata.jsonl
    showo-hf train lora data=my-images output=my-lora steps=500

  what a run would do, without running it
    showo-hf train lora data=my-images output=my-lora steps=500 --dry-run

  several processes
    accelerate launch -m showo_hf.training finetune data=my-images output=my-model steps=500

A run that was stopped continues from its last checkpoint when the same command is given again. The exit code is then
75, or 130 after Ctrl-C.
"""
UNFINISHED, INTERRUPTED = 75, 130
RECIPES = Path(__file__).parents[1] / "training" / "recipes"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "train",
        help="train a model with a recipe",
        description="Train a Show-o model, or an adapter for one, with a recipe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a shipped recipe, or a YAML file")
    parser.add_argument("entries", nargs="*", metavar="KEY=VALUE", help="entries of the recipe")
    parser.add_argument("--list", action="store_true", help="list the shipped recipes")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run, and do not run it")
    parser.intermixed = True  # `showo_hf.cli.Parser`: options may stand between the entries
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the recipe. The folder's name goes to stdout, everything else to stderr."""
    check_recipe(options)
    say_loading("the training code", quiet=False)
    load_package()
    check_installed()
    from showo_hf.training.recipe_files import RecipeError, load_recipe, shipped_recipes

    if options.list:
        recipes = shipped_recipes()
        width = max(map(len, recipes))
        for name, description in recipes.items():
            print(f"{name:{width}}  {description}")
        return 0
    try:
        config = load_recipe(options.recipe, options.entries)
    except RecipeError as error:
        raise UsageError(str(error)) from error

    if not sys.stderr.isatty():
        hide_progress_bars()
    if options.dry_run:
        from showo_hf.training.dry_run import plan_of

        print(plan_of(config))
        return 0

    from showo_hf.training.run import TrainingError, Unfinished, run_recipe

    try:
        output = run_recipe(config)
    except Unfinished as error:
        print(f"showo-hf: {error}", file=sys.stderr)
        return INTERRUPTED if error.signal == signal.SIGINT else UNFINISHED
    except TrainingError as error:
        raise CommandError(str(error)) from error
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first one
        print(output)
    return 0


def check_recipe(options: argparse.Namespace):
    """Raise `UsageError` unless the recipe is shipped or a file. Needs no torch."""
    if options.list:
        return
    if options.recipe is None:
        raise UsageError("give a recipe; `showo-hf train --list` lists them")
    shipped = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if options.recipe in shipped:
        check_values(options.entries)
        return
    if not options.recipe.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(options.recipe, shipped, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"There is no recipe {quoted(options.recipe)}{hint}. Shipped recipes: {', '.join(shipped)}. "
            "Others are the paths of YAML files."
        )
    if not exists(Path(options.recipe)):
        raise UsageError(f"The recipe {quoted(options.recipe)} cannot be read: there is no such file")
    check_values(options.entries)


def check_values(entries: list[str]):
    """Raise `UsageError` for entries that no recipe can have, and for a `model` that the Hub does not have."""
    check_entries(entries)
    for entry in entries:
        key, _, value = entry.partition("=")
        if key == "model" and HUB_NAME.fullmatch(value) and not exists(Path(value)):
            check_hub_model(value, "model")


def check_installed():
    """Raise `CommandError` if the packages that training needs are not installed."""
    for name in ("datasets", "peft"):
        if find_spec(name) is None:
            raise CommandError(f"training needs the package '{name}': pip install 'showo-hf[train]'")


def hide_progress_bars():
    """Switch off the progress bars of all libraries: in a file or a pipe they are lines without a meaning."""
    import datasets
    import diffusers
    import transformers

    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
