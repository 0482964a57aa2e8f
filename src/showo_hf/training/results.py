"""The result of a run: a pipeline folder or the folder of an adapter, with its card, and its way to the Hub."""

import contextlib
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from showo_hf import EMBEDDED_MODEL
from showo_hf.pipelines import ShowoT2IPipeline

from ..utils.atomic_folder import atomic_folder
from ..utils.messages import one_sentence
from ..utils.module_copies import copy_on_cpu
from . import shards
from .code_embeddings import plain_embeddings
from .configs import ConceptConfig, FinetuneConfig, LoraConfig, RunConfig
from .parallel import together, whole_pipeline
from .periodic_publishing import PeriodicPublisher
from .publishing import check_destination, publish
from .recipe_entries import read_recipe, shipped_recipes
from .recipe_files import build_config
from .resumable_trainer import ResumableTrainer
from .samples import Samples, blind_guesses
from .trainer import ShowoTrainer
from .training_card import DataSource, FinalLoss, RunSummary, write_training_card


def check_push(config: RunConfig):
    """
    Check, before the training, that the result can be pushed. A Hub that cannot be reached is a warning.

    Raises:
        ValueError, PublishError: if the name is wrong or may not be written to.
    """
    if config.push_to_hub is None:
        return
    warning = check_destination(config.push_to_hub, config.training.get("hub_token")).warning
    if warning is not None:
        print(f"showo-hf: {warning}", file=sys.stderr, flush=True)


def write_result(config: FinetuneConfig, pipe: ShowoT2IPipeline, folder: Path):
    """Write the trained pipeline, or its adapter, into an empty folder."""
    if isinstance(config, LoraConfig) and not config.merge:
        from .adapters import save_adapter

        base = EMBEDDED_MODEL if config.model == "embedded" else config.model
        save_adapter(pipe.model, folder, base, overwrite=True)
        return
    pipe.save_pretrained(folder)
    tidy_pipeline(folder)


def save_result(config: FinetuneConfig, pipe: ShowoT2IPipeline, trainer: ShowoTrainer):
    """Write the output folder with its card, and push it."""
    if trainer.samples is not None:
        trainer.samples.make_of_result(trainer.result_step, write=trainer.is_world_process_zero())
    if config.embed_codes:
        plain_embeddings(pipe.model)
    summary = None
    if trainer.is_world_process_zero():
        with without_card():
            summary = run_summary(config, pipe, trainer)  # before a merge, after which nothing is trained
    if isinstance(config, LoraConfig) and config.merge:
        from .adapters import merge_adapter

        merge_adapter(pipe.model)
    pipe = whole_pipeline(pipe)
    if not trainer.is_world_process_zero():
        return
    if not isinstance(config, LoraConfig) or config.merge:
        cast_weights(pipe, getattr(torch, config.save_dtype))
    output = Path(config.output)
    with atomic_folder(output, overwrite=True) as folder:
        write_result(config, pipe, folder)
        with without_card():
            if summary is not None:
                write_training_card(folder, summary, config.push_to_hub, log_file(config))
    publish_result(config, trainer.state.global_step)


@contextlib.contextmanager
def without_card() -> Iterator[None]:
    """A context for what a card needs. An error is a warning, because it must not cost the result of a training."""
    try:
        yield
    except Exception as error:  # a card shows files of the user, such as samples and a log
        message = f"README.md of the result could not be written: {one_sentence(error)}"
        print(f"showo-hf: {message}", file=sys.stderr, flush=True)


def cast_weights(pipe: ShowoT2IPipeline, dtype: torch.dtype):
    """Cast the weights of a pipeline, but those of the image tokenizer: rounded, it would give other tokens."""
    image_tokenizer, pipe.model.image_tokenizer = pipe.model.image_tokenizer, None
    pipe.to(dtype)
    pipe.model.image_tokenizer = image_tokenizer


def publish_result(config: RunConfig, step: int):
    """Push the output folder, if the recipe says so."""
    if config.push_to_hub is None:
        return
    result = publish(Path(config.output), config.push_to_hub, **hub_options(config), commit_message=f"Step {step}")
    print(f"showo-hf: {result.message}", file=sys.stderr, flush=True)


def hub_options(config: RunConfig) -> dict[str, Any]:
    """The options of a push that `TrainingArguments` names."""
    training = config.training
    return {
        "private": bool(training.get("hub_private_repo")),
        "token": training.get("hub_token"),
        "revision": training.get("hub_revision"),
    }


def log_file(config: RunConfig) -> Path:
    """The log of a run, beside its output."""
    return beside_output(config, "-log.jsonl")


def beside_output(config: RunConfig, ending: str) -> Path:
    """The path beside the output of a run whose name is the output's with an ending."""
    output = Path(config.output)
    return output.with_name(output.name + ending)


class PushResults(TrainerCallback):
    """Pushes the result so far in the background, every `push_steps`. Only the first process does."""

    def __init__(self, config: FinetuneConfig, pipe: ShowoT2IPipeline):
        self.config, self.pipe = config, pipe
        self.publisher = PeriodicPublisher(config.push_to_hub, config.output, **hub_options(config))
        self.trainer: Any = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.config.push_steps or state.global_step >= state.max_steps:
            return
        message = f"Step {state.global_step}"
        with contextlib.ExitStack() as stack:
            try:
                with together():
                    stack.enter_context(self.weights_of_result())
            except Exception as error:  # the best weights cannot be read, and the training goes on
                self.publisher.failed(error, message)
                return
            whole = whole_pipeline(self.pipe)
            if not state.is_world_process_zero:
                return
            try:
                with self.publisher.new(message) as folder:
                    write_result(self.config, self.result_so_far(whole), folder)
                    summary = run_summary(self.config, self.pipe, self.trainer)
                    write_training_card(folder, summary, self.config.push_to_hub, log_file(self.config))
            except Exception as error:  # a full disk has another type in each library, and the training goes on
                self.publisher.failed(error, message)

    @contextlib.contextmanager
    def weights_of_result(self) -> Iterator[None]:
        """A context in which the model has the weights that would be the result now: the best, or the averaged ones."""
        if not self.trainer.best_is_result:
            with self.trainer.averaged_weights():
                yield
            return
        tensors = [shards.local(tensor) for tensor in self.trainer.changing_tensors().values()]
        kept = [tensor.cpu().clone() for tensor in tensors]
        try:
            self.trainer.load_best()
            yield
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)

    def result_so_far(self, pipe: ShowoT2IPipeline) -> ShowoT2IPipeline:
        """
        What is written: the pipeline of an adapter, or a copy with the weights of the result, merged and in `save_dtype`.

        Args:
            pipe: the trained pipeline, or one whose model was gathered from all processes.
        """
        config, model, decoder = self.config, pipe.model, pipe.image_decoder
        if isinstance(config, LoraConfig):
            if not config.merge:
                return pipe
            from .adapters import merged_copy

            model = merged_copy(model)
        elif config.save_dtype == "float32" and not config.embed_codes:
            return pipe
        elif pipe is self.pipe:
            model = copy_on_cpu(model)
        if config.embed_codes:
            plain_embeddings(model)
        if decoder is not None:
            decoder = copy_on_cpu(decoder)
        written = type(pipe)(**{**pipe.components, "model": model, "image_decoder": decoder})
        cast_weights(written, getattr(torch, config.save_dtype))
        return written

    def on_train_end(self, args, state, control, **kwargs):
        self.publisher.close()


def run_summary(config: FinetuneConfig, pipe: ShowoT2IPipeline, trainer: ShowoTrainer) -> RunSummary:
    """What the card of a Show-o model tells about its run."""
    samples = trainer.samples.last if trainer.samples is not None and trainer.samples.last else Samples(0)
    return RunSummary(
        **run_facts(config, trainer, pipe.model, trainer.args.world_size // config.tp_size),
        kind="adapter" if isinstance(config, LoraConfig) and not config.merge else "pipeline",
        base_model=EMBEDDED_MODEL if config.model == "embedded" else config.model,
        losses=final_losses(trainer, blind_guesses(config.objective, pipe)),
        samples=samples.images,
        answers=[(question, text) for _, question, text in samples.answers],
        tasks=tuple(config.data),
    )


def run_facts(config: RunConfig, trainer: ResumableTrainer, model: nn.Module, ranks: int) -> dict[str, Any]:
    """
    What the card of any model tells about its run, as arguments of [`RunSummary`].

    Args:
        ranks: processes that see different data.
    """
    args = trainer.args
    settings = {**asdict(config), **config.training}
    del settings["training"]
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    threads = f", {torch.get_num_threads()} threads" if args.device.type == "cpu" else ""
    rows = config.rows_per_step * args.gradient_accumulation_steps
    return {
        "recipe": config.recipe,
        "settings": settings,
        "steps": trainer.state.global_step,
        "samples_seen": trainer.state.global_step * rows * ranks,
        "seconds": trainer.seconds,
        "device": f"{args.world_size} x {device}{threads}" if args.world_size > 1 else f"{device}{threads}",
        "dtype": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "data": [
            DataSource(str(source["path"]), task=task) for task, listed in config.data.items() for source in listed
        ],
        "shipped_settings": trainer.settings.shipped,
        "licence": config.licence,
        "seed": config.seed,
        "resumed": trainer.seconds_before > 0,
    }


def shipped_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a shipped recipe, without those that each run gives. Empty for a recipe of the user."""
    if config.recipe not in shipped_recipes():
        return {}
    recipe = read_recipe(config.recipe)
    rows = recipe.get("batch_size")
    tasks = rows if isinstance(rows, dict) else config.data  # a run may leave out tasks that the recipe names
    given = {"output": "out", "steps": 1, "data": dict.fromkeys(tasks, "x"), "word": "x"}
    entries = given | {name: value for name, value in recipe.items() if name != "output"}
    if not isinstance(config, ConceptConfig):
        del entries["word"]
    shipped = asdict(build_config(config.recipe, entries))
    return {
        name: value for name, value in {**shipped, **shipped["training"]}.items() if name not in (*given, "training")
    }


def final_losses(trainer: ShowoTrainer, guesses: dict[str, float]) -> list[FinalLoss]:
    """The last logged losses of training and validation."""
    train: dict[str, float] = {}
    validation: dict[str, float] = {}
    for row in copy.copy(trainer.state.log_history):
        train |= {name: value for name, value in row.items() if name in guesses}
        validation |= {name[5:]: value for name, value in row.items() if name.removeprefix("eval_") in guesses}
    validation = {name: value for name, value in validation.items() if name in guesses}
    return [FinalLoss(name, train.get(name), validation.get(name), guesses[name]) for name in guesses if name in train]


def tidy_pipeline(folder: Path):
    """Tidy the configs of a saved pipeline as [`tidy_config`] does, and remove paths of this machine from its index."""
    for file in folder.glob("*/config.json"):
        tidy_config(file)
    change_config(folder / "model_index.json", {})


def tidy_config(file: Path):
    """
    Set the dtype to load in to float32, which is fast on any CPU, whatever dtype the weights are stored in. Remove paths
    of this machine.
    """
    change_config(file, {"dtype": "float32"})


def change_config(file: Path, entries: dict[str, Any]):
    """Set entries of a JSON file, and remove paths of this machine."""
    without_folders = json.loads(
        file.read_text(encoding="utf-8"),
        object_hook=lambda config: {name: value for name, value in config.items() if name != "_name_or_path"},
    )
    file.write_text(json.dumps(without_folders | entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
