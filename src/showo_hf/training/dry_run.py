"""`showo-hf train ... --dry-run`: what a run would do, without doing it. It writes no files."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from showo_hf.pipelines import ShowoT2IPipeline

from ..processing.processing_showo import showo_image_processor
from .arguments import training_arguments
from .configs import FinetuneConfig, RunConfig
from .decoder_config import DiffusionDecoderConfig
from .diffusion_decoder import batch_losses, load_models
from .image_batches import ImageBuilder, first_images
from .image_classifiers import load_classifier
from .image_configs import LAST_LAYER, ImageClassifierConfig, ImageRunConfig, ImageTokenizerConfig
from .image_tokenizers import load_image_tokenizer, tokenizer_losses
from .losses import LossSums, backward_by_part, step_counts
from .optimizers import MuonWithAdamW, inner_kernels, inner_matrices
from .output_folders import checkpoint_root
from .parallel import check_sharding
from .plan import MemoryOptions, ModelSizes, TaskRows, format_plan, parameter_counts
from .rows import IGNORED, Part, RowBuilder
from .run_checks import check_data, check_model
from .showo_training import load_pipeline, objective_of, open_rows, prepare_model, row_builder
from .step_time import measure_step_time


#: Numbers that optimizers keep for each parameter, by the name in a recipe. Other optimizers keep two, as AdamW does.
#: Those of Adafactor are the sums of rows and columns, which are few.
OPTIMIZER_STATES = {"adafactor": 0, "adagrad": 1, "lion_32bit": 1, "rmsprop": 1, "sgd": 0}


def plan_of(config: RunConfig) -> str:
    """
    The plan of a run, as text: parameters, tokens, memory, devices, and the time of a step, which is measured on this
    machine with the run's first rows. The weights that it changes are thrown away.
    """
    check_sharding(config)
    args = training_arguments(config, checkpoint_root(Path(config.output)))
    if isinstance(config, FinetuneConfig):
        check_model(config)
    check_data(config, args)
    plans: dict[type[RunConfig], Callable[..., str]] = {
        FinetuneConfig: plan_of_showo,
        ImageTokenizerConfig: plan_of_image_tokenizer,
        ImageClassifierConfig: plan_of_image_classifier,
        DiffusionDecoderConfig: plan_of_diffusion_decoder,
    }
    return next(plan for kind, plan in plans.items() if isinstance(config, kind))(config, args)


def plan_of_showo(config: FinetuneConfig, args: TrainingArguments) -> str:
    """The plan of a Show-o model's training."""
    pipe = load_pipeline(config)
    prepare_model(config, pipe)
    builder = row_builder(config, pipe)
    parts = first_parts(config, pipe, builder)
    complete = completed(parts, builder, pipe)
    sizes = ModelSizes.of(pipe.model.config)
    strategy, ranks = strategy_of(config, args.world_size)
    options = MemoryOptions(
        compute_bytes=2 if args.bf16 or args.fp16 else 4,
        optimizer_states=optimizer_states(config, pipe.model, args),
        ema=config.ema_decay is not None,
        checkpointing=bool(args.gradient_checkpointing),
        strategy=strategy,
        ranks=ranks,
        device=args.device.type,
    )
    return format_plan(
        parameter_counts(pipe.model),
        sizes,
        [rows_of(part) for part in complete.values()],
        options,
        accumulation=args.gradient_accumulation_steps,
        data_ranks=args.world_size // config.tp_size,
        steps=config.steps,
        step_time=measure_step_time(
            *training_step(config, pipe, parts, builder, args), args.gradient_accumulation_steps
        ),
    )


def strategy_of(config: FinetuneConfig, devices: int) -> tuple[str, int]:
    """How the devices share the work, and how many of them share the weights; the others have replicas."""
    if devices == 1:
        return "none", 1
    if config.tp_size > 1:
        return "tp", config.tp_size
    return ("fsdp", config.fsdp_size) if config.fsdp_size > 1 else ("ddp", devices)


def plan_of_image_tokenizer(config: ImageTokenizerConfig, args: TrainingArguments) -> str:
    """The plan of an image tokenizer's training. Its memory is not estimated."""
    model = load_image_tokenizer(config)
    builder = ImageBuilder(showo_image_processor(model.config.sample_size), config.mirror, config.shift)
    pixels = first_images(config, builder).pixel_values.to(args.device)
    start_training(model, args)
    objective = tokenizer_losses(config, args.device, args.learning_rate)
    autocast = partial(torch.autocast, args.device.type, dtype_of(args), enabled=args.bf16 or args.fp16)
    optimizer = new_optimizer(config, model, args)

    @autocast()
    def forward(*inputs, **options):  # accelerate uses autocast for forward passes alone
        return model(*inputs, **options)

    def batch():
        made = objective.of(forward, pixels)
        if objective.adversary is not None:
            objective.add_adversarial(made, pixels, model.get_parameter(LAST_LAYER), autocast)
        if config.loss_weights["token_cycle"]:
            objective.add_token_cycle(model, made, autocast)
        sum(made.losses.values()).backward()
        if objective.adversary is not None:
            objective.adversary.learn(pixels, made.sample, forward_context=nullcontext if args.fp16 else autocast)

    def update():
        if objective.adversary is not None:
            objective.adversary.step(schedule=1.0)
        optimizer.step()
        optimizer.zero_grad()

    size, side = model.config.sample_size, model.config.sample_size // model.config.downsampling
    what = f"{size} x {size} pixels as {side} x {side} tokens of {model.config.codebook_size:,} codes"
    return plan_of_images(config, args, model, what, batch, update)


def plan_of_image_classifier(config: ImageClassifierConfig, args: TrainingArguments) -> str:
    """The plan of an image classifier's training. Its memory is not estimated."""
    model = load_classifier(config)
    classes = dict(model.config.label2id)
    builder = ImageBuilder(showo_image_processor(config.image_size), config.mirror, config.shift, classes)
    images = first_images(config, builder)
    pixels, labels = images.pixel_values.to(args.device), images.labels.to(args.device)
    start_training(model, args)
    optimizer = new_optimizer(config, model, args)

    def batch():
        with torch.autocast(args.device.type, dtype_of(args), enabled=args.bf16 or args.fp16):
            loss = torch.nn.functional.cross_entropy(model(pixels).logits.float(), labels)
        loss.backward()

    what = f"{config.image_size} x {config.image_size} pixels in {len(classes):,} classes"
    return plan_of_images(config, args, model, what, batch, update_of(optimizer))


def plan_of_images(
    config: ImageRunConfig,
    args: TrainingArguments,
    model: torch.nn.Module,
    what: str,
    batch: Callable[[], None],
    update: Callable[[], None],
) -> str:
    """
    The lines of a plan for a model that sees images alone.

    Args:
        what: tells about the images.
        batch, update: what is measured; see [`measure_step_time`].
    """
    seconds = measure_step_time(batch, update, args.gradient_accumulation_steps).median
    count = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    images = config.batch_size * args.gradient_accumulation_steps * args.world_size
    lines = [
        f"parameters      {count:,}, {'all' if trained == count else f'{trained:,}'} trained",
        f"images          {what}",
        f"images a step   {images:,}",
        f"devices         {args.world_size}",
        f"time of a step  {seconds:.3g} s on this machine",
        f"time of the run {seconds * config.steps / 3600:.3g} h for {config.steps:,} steps",
    ]
    return "\n".join(lines)


def plan_of_diffusion_decoder(config: DiffusionDecoderConfig, args: TrainingArguments) -> str:
    """
    The plan of a diffusion decoder's training. Its memory is not estimated. With `cached_images`, a step finds
    all its images in memory.
    """
    decoder, tokenizer, teacher = load_models(config)
    if tokenizer.capacity:
        tokenizer.capacity = len(tokenizer.known) + config.batch_size
    builder = ImageBuilder(showo_image_processor(decoder.config.sample_size), config.mirror, config.shift)
    images = first_images(config, builder)
    pixels = images.pixel_values.to(args.device)
    tokenizer.tokenizer.to(args.device)
    start_training(decoder, args)
    if teacher is not None:
        teacher.to(args.device)
    optimizer = new_optimizer(config, decoder, args)

    @torch.autocast(args.device.type, dtype_of(args), enabled=args.bf16 or args.fp16)
    def forward(*inputs):  # accelerate uses autocast for forward passes alone
        return decoder(*inputs)

    def batch():
        losses, _ = batch_losses(config, forward, decoder, tokenizer, pixels, images.noise_seeds, teacher)
        sum(losses.values()).backward()

    size, side = decoder.config.sample_size, decoder.config.sample_size // decoder.config.downsampling
    what = f"{size} x {size} pixels from {side} x {side} tokens, residual scale {decoder.config.residual_scale:g}"
    return plan_of_images(config, args, decoder, what, batch, update_of(optimizer))


def first_parts(config: FinetuneConfig, pipe: ShowoT2IPipeline, builder: RowBuilder) -> dict[str, Part]:
    """The first rows of the run. `ValueError` if data of the run does not fit the model."""
    if config.validation_data is not None:
        open_rows(config, pipe, config.validation_data, builder)
    parts, _ = next(iter(open_rows(config, pipe, config.data, builder)))
    return parts


@torch.no_grad()
def completed(parts: dict[str, Part], builder: RowBuilder, pipe: ShowoT2IPipeline) -> dict[str, Part]:
    """Rows with the images as tokens, as a step of the run makes them. The given rows stay as they are."""
    model = pipe.model
    return {
        task: part
        if part.complete
        else builder.finish(copy.copy(part), model.encode_images(part.pixel_values.to(model.device)).cpu())
        for task, part in parts.items()
    }


def rows_of(part: Part) -> TaskRows:
    """The sizes of a part."""
    rows, length = part.input_ids.shape
    return TaskRows(part.task, rows, length, int((part.labels != IGNORED).sum()))


def new_optimizer(config: RunConfig, model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of the run."""
    if config.muon:
        return MuonWithAdamW(model, lr=args.learning_rate, weight_decay=args.weight_decay)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return optimizer_class([weight for weight in model.parameters() if weight.requires_grad], **options)


def optimizer_states(config: RunConfig, model: torch.nn.Module, args: TrainingArguments) -> float:
    """How many numbers the optimizer of the run keeps for each trained parameter, on average."""
    if not config.muon:
        return OPTIMIZER_STATES.get(OptimizerNames(args.optim).value, 2)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    matrices = sum(weight.numel() for weight in inner_matrices(model) + inner_kernels(model))
    return 2 - matrices / max(1, trained)  # Muon keeps the momentum alone


def dtype_of(args: TrainingArguments) -> torch.dtype:
    """The dtype of mixed precision, if it is on."""
    return torch.bfloat16 if args.bf16 else torch.float16


def start_training(model: torch.nn.Module, args: TrainingArguments):
    """Prepare a model on its device as the Trainer does."""
    model.to(args.device).train()
    if args.activation_checkpointing:
        options = dict(args.activation_checkpointing_kwargs or {})
        which = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **which)


def update_of(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What changes the weights at the end of a step."""

    def update():
        optimizer.step()
        optimizer.zero_grad()

    return update


def training_step(
    config: FinetuneConfig,
    pipe: ShowoT2IPipeline,
    parts: dict[str, Part],
    builder: RowBuilder,
    args: TrainingArguments,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """What runs a batch, on the same rows each time, and what changes the weights after it."""
    start_training(pipe.model, args)
    objective, sums = objective_of(config, pipe), LossSums()
    autocast = partial(torch.autocast, args.device.type, dtype_of(args), enabled=args.bf16 or args.fp16)

    def batch():
        rows = completed(parts, builder, pipe)
        counts = step_counts([rows])
        backward_by_part(
            pipe.model,
            rows,
            counts,
            config.loss_weights,
            args.device,
            sums,
            objective=objective,
            forward_context=autocast,
        )

    return batch, update_of(new_optimizer(config, pipe.model, args))
