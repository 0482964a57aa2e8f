"""Running a recipe: from a typed config to a folder that `from_pretrained` loads."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..utils.atomic_folder import locked
from .arguments import training_arguments
from .callbacks import StopSignals, step_callbacks
from .checkpoints import clean, system_errors
from .configs import FinetuneConfig, RunConfig
from .data.loader import merge_states
from .decoder_config import DiffusionDecoderConfig
from .diffusion_decoder import diffusion_decoder_trainer, load_models, save_decoder
from .errors import TrainingError
from .image_classifiers import image_classifier_trainer, load_classifier, save_image_classifier
from .image_configs import ImageClassifierConfig, ImageRunConfig, ImageTokenizerConfig
from .image_tokenizers import image_tokenizer_trainer, load_image_tokenizer, save_image_tokenizer
from .image_trainer import ImageTrainer
from .output_folders import check_replaced, checkpoint_root
from .parallel import check_deepspeed, check_sharding, distribute, from_first, processes, together
from .results import check_push, save_result, shipped_settings
from .resumable_trainer import ResumableTrainer, Settings
from .run_checks import (
    check_data,
    check_model,
    check_output,
    options_of,
    resume_folder,
    rows_factor,
    warn_of_short_runs,
    warn_of_slow_bf16,
)
from .saved_progress import saved_position, saved_since, saved_state, saved_step
from .showo_training import build_trainer, load_pipeline, prepare_model
from .trainer import ShowoTrainer


#: What builds the Trainer of a kind of recipe, and the function that saves its result.
Build = Callable[..., tuple[ResumableTrainer, Callable[[], None]]]
#: What loads the model of a kind of recipe that trains on images alone, what builds its Trainer, and what saves it.
IMAGE_RUNS: dict[type[ImageRunConfig], tuple[Callable, Callable, Callable]] = {
    ImageTokenizerConfig: (load_image_tokenizer, image_tokenizer_trainer, save_image_tokenizer),
    ImageClassifierConfig: (load_classifier, image_classifier_trainer, save_image_classifier),
    DiffusionDecoderConfig: (load_models, diffusion_decoder_trainer, save_decoder),
}


class Unfinished(Exception):
    """
    A run that stopped before its last step and can be resumed.

    Args:
        step: the step that the last checkpoint was written after.
        signal: the signal that stopped it, or None if its time was over.
    """

    def __init__(self, step: int, signal: int | None):
        super().__init__(f"The run stopped after step {step}. The same command continues it.")
        self.step, self.signal = step, signal


def run_recipe(config: RunConfig) -> Path:
    """
    Train, save and publish what a recipe describes.

    Returns:
        the output folder.

    Raises:
        TrainingError: if the run cannot start or go on; the message says why.
        ValueError: if data or model do not fit the config.
        Unfinished: if a signal or `max_minutes` stopped the run.
    """
    with processes():
        return run_processes(config)


def run_processes(config: RunConfig) -> Path:
    """What each process of a run does; see [`run_recipe`]."""
    root = checkpoint_root(Path(config.output))
    check_sharding(config)
    check_deepspeed(config)
    args = training_arguments(config, root)
    warn_of_slow_bf16(args)
    warn_of_short_runs(args, config)
    if isinstance(config, FinetuneConfig):
        check_model(config)
    check_data(config, args)
    with ExitStack() as stack:
        with together():
            if args.should_save:
                check_output(Path(config.output), root)
                try:
                    stack.enter_context(locked(root))
                except BlockingIOError as error:
                    message = f"Another run is writing to '{config.output}'. Give another `output`."
                    raise TrainingError(message) from error
                check_push(config)
        resumed = from_first(lambda: start_folder(config, args, root))
        signals = stack.enter_context(StopSignals())
        step = 0 if resumed is None else saved_step(resumed)
        build: Build = image_run if isinstance(config, ImageRunConfig) else showo_run
        trainer, save = build(config, args, root, resumed, signals)
        stop_before_training(args, step, signals)
        if resumed is not None and is_finished(config, step, saved_since(resumed, trainer.settings.validation)):
            if args.process_index == 0:
                message = (
                    f"the run had ended at step {step}, so no more steps are trained; another `output` trains anew"
                )
                print(f"showo-hf: {message}", file=sys.stderr, flush=True)
            trainer.load_weights(str(resumed))
            trainer.state = saved_state(resumed)
        else:
            args.eval_on_start = args.eval_on_start and resumed is None
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
            if not is_finished(config, trainer.state.global_step, trainer.best["since"]):
                raise Unfinished(trainer.state.global_step, signals.received)
        trainer.finish()
        with system_errors(Path(config.output)):
            save()
    return Path(config.output)


def start_folder(config: RunConfig, args: TrainingArguments, root: Path) -> Path | None:
    """Clean up after killed runs, and return the checkpoint that the run continues from. One process calls it."""
    clean(root)
    resumed = resume_folder(config, args, root)
    check_replaced(Path(config.output), config.model, resumed)
    return resumed


def showo_run(
    config: FinetuneConfig, args: TrainingArguments, root: Path, resumed: Path | None, signals: StopSignals
) -> tuple[ShowoTrainer, Callable[[], None]]:
    """The Trainer of a Show-o model, and what saves its result."""
    pipe = load_pipeline(config)
    if config.fsdp_size > 1 or config.tp_size > 1:
        distribute(pipe.model.to(args.device), config.fsdp_size, config.tp_size)
    prepare_model(config, pipe)
    stop_before_training(args, 0 if resumed is None else saved_step(resumed), signals)
    trainer = build_trainer(config, args, pipe, settings_of(config, args, root), resumed, signals)
    return trainer, lambda: save_result(config, pipe, trainer)


def image_run(
    config: ImageRunConfig, args: TrainingArguments, root: Path, resumed: Path | None, signals: StopSignals
) -> tuple[ImageTrainer, Callable[[], None]]:
    """The Trainer of a model that sees images alone, and what saves its result."""
    load, build, save = next(functions for kind, functions in IMAGE_RUNS.items() if isinstance(config, kind))
    model = load(config)
    callbacks, _ = step_callbacks(config, args, 0 if resumed is None else saved_step(resumed), signals)
    position = None
    if resumed is not None:
        position = merge_states(saved_position(resumed), args.process_index, args.world_size)
    trainer = build(config, args, model, settings_of(config, args, root), position, callbacks)
    for callback in callbacks:
        callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer, lambda: save(config, trainer)


def is_finished(config: RunConfig, step: int, since: int) -> bool:
    """Whether a run is over after a step, `since` validations after the best one."""
    return step >= config.steps or (config.early_stop is not None and since >= config.early_stop)


def stop_before_training(args: TrainingArguments, step: int, signals: StopSignals):
    """Raise `Unfinished` if a signal came before the first step. Of several processes, all do that step first."""
    if signals.received is not None and args.world_size == 1:
        raise Unfinished(step, signals.received)


def settings_of(config: RunConfig, args: TrainingArguments, root: Path) -> Settings:
    """The settings of a [`ResumableTrainer`]."""
    return Settings(
        root=root,
        settings=options_of(config, rows_factor(config, args)),
        validation={"validation_data": config.validation_data, "validation_rows": config.validation_rows},
        shipped=shipped_settings(config),
        muon=config.muon,
        ema_decay=config.ema_decay,
        bad_step=config.bad_step,
        bad_step_norm=config.bad_step_norm,
        bad_step_limit=config.bad_step_limit,
        keep_best=config.keep_best,
        early_stop=config.early_stop,
    )
