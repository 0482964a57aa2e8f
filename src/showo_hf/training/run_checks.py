"""What is checked before a run: its model, its data, its folders, and the options of the checkpoint it continues from."""

import re
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..utils.argument_types import HUB_NAME
from ..utils.cpu_features import computes_bfloat16
from ..utils.messages import examples, printable
from .checkpoints import checkpoint_folders, loading, newest_intact, read_json
from .concepts import concept_source
from .configs import ConceptConfig, FinetuneConfig, RunConfig
from .data.sources import DataSource, open_source, unused_images
from .errors import TrainingError
from .recipe_entries import nearest


#: Options that a resumed run may change, because they do not change the weights of the next step.
FREE_OPTIONS = frozenset(
    "recipe output resume push_to_hub push_steps max_minutes prompts questions sample_steps sample_guidance max_broken"
    " bad_step bad_step_norm bad_step_limit save_dtype fsdp_size tp_size merge validation_data validation_rows"
    " keep_best early_stop licence torch_compile".split()
)
FREE_ARGUMENTS = re.compile(
    r"(gradient_accumulation_steps|logging|save|report|hub|eval|dataloader|log_|disable|run_name|project|trackio|debug"
    r"|ddp|fsdp|deepspeed|parallelism|use_cpu)"
)

#: Options that checkpoints of earlier versions lack, and what their runs had.
LATER_OPTIONS = {"embed_codes": False}


def check_model(config: FinetuneConfig):
    """Raise `ValueError` if `model` is neither a pipeline folder nor a name on the Hub."""
    folder = Path(config.model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(f"`model` must be a folder with a model_index.json, but '{folder}' has none.")
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", config.model):
        raise ValueError(f"`model` must be a pipeline folder, a name on the Hub, or 'embedded', got '{config.model}'.")


def warn_of_slow_bf16(args: TrainingArguments):
    """Say on stderr that `bf16` is slow, if it is on and this CPU has no fast products in bfloat16."""
    if args.bf16 and args.device.type == "cpu" and not computes_bfloat16() and args.process_index == 0:
        print(
            "showo-hf: `bf16` is on, but this CPU has no instructions for it: bf16=false is many times faster.",
            file=sys.stderr,
            flush=True,
        )


def warn_of_short_runs(args: TrainingArguments, config: RunConfig):
    """Say on stderr if a run ends before it logs a loss, before its learning rate has risen, or before an entry begins."""
    if args.process_index > 0:
        return
    steps, warmup = args.max_steps, args.get_warmup_steps(args.max_steps)
    if args.logging_strategy == "steps" and args.logging_steps > steps:
        message = f"logging_steps={args.logging_steps:g} and steps={steps}: no loss is logged."
        print(f"showo-hf: {message}", file=sys.stderr, flush=True)
    if args.lr_scheduler_type != "constant" and warmup >= steps:
        message = f"warmup_steps={warmup} and steps={steps}: the learning rate stays below `learning_rate`."
        print(f"showo-hf: {message}", file=sys.stderr, flush=True)
    for entry in config.never_reached(steps):
        print(f"showo-hf: {entry} and steps={steps}: the run ends before it.", file=sys.stderr, flush=True)


def check_data(config: RunConfig, args: TrainingArguments):
    """
    Open the data that lies on this machine, before a model is loaded. Say on stderr which images have no text.

    Raises:
        FileNotFoundError, ValueError: if it does not exist, or lacks a column.
    """
    known = {one.name for one in fields(DataSource)}
    unused: dict[str, list[str]] = {}  # by folder: several tasks may read one
    for name, sources in (("data", config.data), ("validation_data", config.validation_data or {})):
        for task, listed in sources.items():
            for one in listed:
                for key in one:
                    if key not in known:
                        raise ValueError(f"There is no key `{name}.{key}`{nearest(str(key), known)}")
                source = DataSource(**one)
                if isinstance(config, ConceptConfig):
                    concept_source(config, task, one)
                    continue
                is_name = HUB_NAME.fullmatch(source.path) is not None
                if Path(source.path).exists() or not is_name:
                    opened = open_source(source, task)
                    if task != "image" and args.process_index == 0 and source.path not in unused:
                        unused[source.path] = unused_images(opened)
    for path, images in unused.items():
        if images:
            message = (
                f"{len(images):,} images in '{printable(path)}' have no row in its metadata.jsonl and are not used"
            )
            print(f"showo-hf: {message}: {examples(images)}", file=sys.stderr, flush=True)


def check_output(output: Path, root: Path):
    """Create the folder of the checkpoints, and raise `TrainingError` if the results of a run cannot be written."""
    for folder in (output, root):
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"`output` must be a folder, but '{folder}' is a file.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for folder in (root, output.parent):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise TrainingError(
            f"`output` must be in a folder that can be written to; '{output.parent}' cannot ({error.strerror})."
        ) from error


def resume_folder(config: RunConfig, args: TrainingArguments, root: Path) -> Path | None:
    """The checkpoint that the run continues from, or None for a new run."""
    if not config.resume:
        if checkpoint_folders(root):
            raise TrainingError(
                f"'{root.name}' holds checkpoints, and `resume` is false. Delete that folder, or give another `output`."
            )
        return None
    folder = newest_intact(root)
    if folder is not None:
        saved = read_json(folder / "settings.json")
        with loading(folder / "settings.json"):
            saved = dict(saved)
        check_same_options(saved, options_of(config, rows_factor(config, args)))
    return folder


def rows_factor(config: RunConfig, args: TrainingArguments) -> int:
    """How many times `batch_size` the rows of a step are: the groups of devices with data of their own, accumulated."""
    return args.world_size // getattr(config, "tp_size", 1) * args.gradient_accumulation_steps


def options_of(config: RunConfig, factor: int = 1) -> dict[str, Any]:
    """
    The options of a run that decide its weights, as JSON holds them.

    Args:
        factor: see [`rows_factor`]. `batch_size` tells the rows of a whole step, so that a run can go on with another
            number of devices.
    """
    own = {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS and name != "training"}
    rows = config.batch_size
    own["batch_size"] = {task: n * factor for task, n in rows.items()} if isinstance(rows, dict) else rows * factor
    training = {name: value for name, value in config.training.items() if not FREE_ARGUMENTS.match(name)}
    return {**own, **training}


def check_same_options(saved: dict[str, Any], current: dict[str, Any]):
    """Raise `TrainingError` unless a run has the options of its checkpoint."""
    saved = {name: value for name, value in LATER_OPTIONS.items() if name in current} | saved
    differing = [
        f"`{name}` was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differing:
        steps = " The learning rate depends on `steps`." if saved.get("steps") != current.get("steps") else ""
        raise TrainingError(
            f"The checkpoint was made with other options: {'; '.join(differing)}.{steps} Give these options again, or "
            "another `output`."
        )
