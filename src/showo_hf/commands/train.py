"""`showo-hf train`: train a model with a recipe."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.errors import TrainingError
from ..training.output_folders import check_replaced, checkpoint_root
from ..training.recipe_entries import RecipeError, shipped_recipes
from ..utils.argument_types import HUB_NAME, quoted, user_name
from ..utils.messages import for_stdout
from ..utils.progress_bars import hide_progress_bars
from .errors import CommandError, UsageError
from .files import check_folder, check_new_folder
from .hub_names import check_hub_model, check_repository
from .model_loading import load_package, say_loading
from .processes import first_process
from .texts import exists


if TYPE_CHECKING:
    from ..training.configs import RunConfig


EXAMPLES = """\
examples:
  the shipped recipes
    showo-hf train --list

  an adapter from a folder of images with a metadata.jsonl
    showo-hf train lora data=my-images output=my-lora steps=500

  what a run would do, without running it
    showo-hf train lora data=my-images output=my-lora steps=500 --dry-run

  several processes
    accelerate launch -m showo_hf_command train finetune data=my-images output=my-model steps=500

A run that was stopped continues from its last checkpoint when the same command is given again. The exit code is then
75, or 130 after Ctrl-C.
"""
UNFINISHED, INTERRUPTED = 75, 130
DATA = ("data", "validation_data")
MODELS = ("model", "text_model", "image_tokenizer", "decoder", "teacher")  # the entries that may name one on the Hub


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "train",
        help="train a model with a recipe",
        description="Train a Show-o model, or an adapter for one, with a recipe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", type=user_name, metavar="RECIPE", help="a shipped recipe, or a YAML file")
    parser.add_argument("entries", nargs="*", metavar="KEY=VALUE", help="entries of the recipe")
    parser.add_argument("--list", action="store_true", help="list the shipped recipes")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run, and do not run it")
    parser.intermixed = True  # `showo_hf.cli.Parser`: options may stand between the entries
    parser.entry_names = entry_names
    return parser


def entry_names() -> set[str]:
    """The names that an entry of any recipe may have."""
    from ..training.kinds import KINDS, config_keys  # here, because every command imports this module
    from ..training.trainer_arguments import trainer_arguments

    return {"kind", *trainer_arguments()}.union(*map(config_keys, KINDS))


def run(options: argparse.Namespace) -> int:
    """Run the recipe. The folder's name goes to stdout, everything else to stderr."""
    if options.list:
        recipes = shipped_recipes()
        width = max(map(len, recipes))
        for name, description in recipes.items():
            print(f"{name:{width}}  {description}")
        return 0
    config = checked_recipe(options)
    say_loading("the training code", quiet=False)
    load_package()
    check_installed()
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()
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
        print(for_stdout(str(output)))
    return 0


def checked_recipe(options: argparse.Namespace) -> RunConfig:
    """
    The config of the recipe. Needs no torch.

    Raises:
        UsageError: unless the recipe is shipped or a file, its entries are allowed, its output can be written, and the
            models that it names exist.
    """
    if options.recipe is None:
        raise UsageError("give a recipe; `showo-hf train --list` lists them")
    from ..training.recipe_files import load_recipe  # here, because every command imports this module

    try:
        config = load_recipe(options.recipe, options.entries)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    if not options.dry_run and first_process():  # which writes the output
        check_output(config)
    check_sources(config)
    return config


def check_output(config: RunConfig):
    """Raise `UsageError` for an `output` that cannot be written or replaced, and for a wrong name of a repository."""
    output = Path(config.output)
    root = checkpoint_root(output)
    check_new_folder("output", output, overwrite=True)
    check_folder("output", root)
    if not (config.resume and exists(root) and any(root.iterdir())):  # else the checkpoints tell whose result it is
        try:
            check_replaced(output, config.model, resumed=None)
        except TrainingError as error:
            raise UsageError(str(error)) from error
    if config.push_to_hub is not None:
        check_repository("push_to_hub", config.push_to_hub)


def check_sources(config: RunConfig):
    """Raise `UsageError` for data and models of a recipe that are neither on this machine nor on the Hub."""
    tasks = [(f"{key}.{task}", sources) for key in DATA for task, sources in (getattr(config, key) or {}).items()]
    for name, path in [(name, str(source["path"])) for name, sources in tasks for source in sources]:
        if not exists(Path(path)) and not HUB_NAME.fullmatch(path):
            raise UsageError(
                f"`{name}` must be a file, a folder, or a data set on the Hub; there is no {quoted(path)}"
            )
    for key in MODELS:
        value = getattr(config, key, None)
        if isinstance(value, str) and value != "embedded" and not exists(Path(value)):
            if HUB_NAME.fullmatch(value):
                check_hub_model(value, key)
            elif key != "text_model":  # some of the oldest models on the Hub have a name without an owner
                raise UsageError(f"`{key}` must be a folder, or a model on the Hub; there is no {quoted(value)}")
    perceptual = getattr(config, "perceptual", None)
    if perceptual is not None and not exists(Path(perceptual)):
        raise UsageError(f"`perceptual` must be a file or a folder; there is no {quoted(perceptual)}")


def check_installed():
    """Raise `CommandError` if the packages that training needs are not installed."""
    for name in ("datasets", "peft"):
        if find_spec(name) is None:
            raise CommandError(f"training needs the package '{name}': pip install 'showo-hf[train]'")
