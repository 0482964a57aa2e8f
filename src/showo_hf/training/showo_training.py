"""The training of a Show-o model: its pipeline, its data, and its Trainer."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from transformers import AutoModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from showo_hf import EMBEDDED_MODEL
from showo_hf.pipelines import ShowoT2IPipeline

from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_showo import ShowoForCausalLM
from ..processing.processing_showo import showo_image_processor
from ..schedulers import MaskAndReplaceScheduler, MaskGITScheduler
from ..schedulers.masking_schedules import get_masking_schedule
from .bound import bound_objective
from .callbacks import StopSignals, reports, step_callbacks
from .code_embeddings import embed_codes
from .concepts import concept_source
from .configs import ConceptConfig, FinetuneConfig, LoraConfig, StageConfig
from .data.examples import Example
from .data.loader import Collate, StepLoader, TaskData, merge_states
from .data.sources import DataSource, OpenedSource
from .data.token_shards import StoredTokens, image_tokenizer_checksum
from .losses import Objective
from .parallel import keep_whole
from .results import PushResults, beside_output
from .resumable_trainer import Settings
from .rows import Part, RowBuilder
from .samples import LogSamples, blind_guesses
from .saved_progress import saved_position, saved_step
from .text_models import start_from_text_model
from .trainer import ShowoTrainer


def load_pipeline(config: FinetuneConfig) -> ShowoT2IPipeline:
    """
    The pipeline that is trained, with weights in float32. Of a quantized model, the layers that are trained through are
    quantized.
    """
    if isinstance(config, StageConfig) and config.text_model is not None:
        image_tokenizer = AutoModel.from_pretrained(config.image_tokenizer, dtype=torch.float32, use_safetensors=True)
        if not isinstance(image_tokenizer, ShowoImageTokenizer):
            raise ValueError(
                f"`image_tokenizer` must be a folder or a Hub name of a ShowoLFQTokenizer or a ShowoVQTokenizer, got "
                f"'{config.image_tokenizer}', a {type(image_tokenizer).__name__}."
            )
        generator = torch.Generator().manual_seed(config.seed)
        model, processor = start_from_text_model(
            config.text_model, image_tokenizer=image_tokenizer, generator=generator
        )
        return ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=processor.codebook_size))
    source = EMBEDDED_MODEL if config.model == "embedded" else config.model
    quantization = {}
    if isinstance(config, LoraConfig) and config.quantize is not None:
        from .adapters import quantization_config

        quantization["quantization_config"] = PipelineQuantizationConfig(
            quant_mapping={"model": quantization_config(config.quantize)}
        )
    return ShowoT2IPipeline.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **quantization)


def prepare_model(config: FinetuneConfig, pipe: ShowoT2IPipeline):
    """
    Set up the model for training: the size of its images, attention, adapters, what is trained, and compilation.

    Raises:
        ValueError: if the model cannot do what the recipe asks for.
    """
    model: ShowoForCausalLM = pipe.model
    read = [task for task in ("mmu", "mixed") if task in config.data]
    if read and model.mm_projector is not None:
        raise ValueError(
            f"`data.{read[0]}` must be left out, because `model` reads images as continuous features, and training "
            "gives it image tokens."
        )
    if config.image_size is not None:
        set_image_size(pipe, config.image_size)
    if config.objective == "mask_and_replace":
        pipe.register_modules(
            scheduler=MaskAndReplaceScheduler(
                mask_token_id=pipe.processor.codebook_size, masking_schedule=config.masking_schedule
            )
        )
    if config.attention is not None:
        model.set_attn_implementation(config.attention)
    if isinstance(config, LoraConfig):
        from .adapters import adapter_config, add_adapter, word_token_ids

        tokens: list[int] = []
        if isinstance(config, ConceptConfig) and config.train_word:
            tokens = word_token_ids(pipe.processor.tokenizer, config.word)
        lora = adapter_config(
            model,
            rank=config.rank,
            alpha=config.alpha,
            dora=config.dora,
            dropout=config.dropout,
            targets=config.targets,
            trained_tokens=tokens,
        )
        add_adapter(model, lora, seed=config.seed)
    if config.embed_codes:
        embed_codes(model, config.seed)
    if config.trained is not None:
        pattern = re.compile(config.trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and bool(pattern.search(name)))
    if config.torch_compile:
        for layer in model.model.layers:  # one by one, so that they share one compiled graph
            layer.compile(dynamic=True)
    model.train()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"`trained` must match the name of a parameter, got {config.trained!r}.")


def set_image_size(pipe: ShowoT2IPipeline, size: int):
    """Let a model and its processor have square images of `size` pixels, in training, in samples and in the result."""
    if pipe.model.image_tokenizer is None:
        raise ValueError(f"`image_size` needs a model with an image tokenizer, got {size}.")
    factor = pipe.model.image_tokenizer.config.downsampling
    if size % factor:
        raise ValueError(f"`image_size` must be a multiple of {factor}, got {size}.")
    pipe.processor.image_processor = showo_image_processor(size)
    pipe.processor.num_image_tokens = pipe.model.config.num_image_tokens = (size // factor) ** 2


def row_builder(config: FinetuneConfig, pipe: ShowoT2IPipeline, training: bool = True) -> RowBuilder:
    """Builds the rows of training, or those of validation, which have neither dropout."""
    return RowBuilder(
        pipe.processor,
        condition_dropout=config.condition_dropout if training else 0.0,
        image_dropout=config.image_dropout if training else 0.0,
        schedule=get_masking_schedule(config.masking_schedule),
        masked=config.objective == "masked",
        max_length=getattr(pipe.model.config.text_config, "max_position_embeddings", None),
    )


def objective_of(config: FinetuneConfig, pipe: ShowoT2IPipeline) -> Objective | None:
    """The loss of text-to-image rows, if it is another one than the cross-entropy of masked tokens."""
    if config.objective == "masked":
        return None
    return bound_objective(pipe.scheduler, pipe.processor.image_token_offset, pipe.processor.mask_token_id)


def data_of(config: FinetuneConfig, sources: dict[str, list[dict[str, Any]]]) -> dict[str, TaskData]:
    """The data of each task."""

    def opened(task: str, source: dict[str, Any]) -> DataSource | OpenedSource:
        return concept_source(config, task, source) if isinstance(config, ConceptConfig) else DataSource(**source)

    return {
        task: TaskData(tuple(opened(task, one) for one in listed), config.batch_size.get(task, 8))
        for task, listed in sources.items()
    }


def open_rows(
    config: FinetuneConfig,
    pipe: ShowoT2IPipeline,
    sources: dict[str, list[dict[str, Any]]],
    collate: Collate,
    **options,
) -> StepLoader:
    """
    What loads the rows of `data` or of `validation_data`.

    Args:
        collate, options: see [`StepLoader`].

    Raises:
        ValueError: if data cannot be opened, or if stored tokens do not fit the model.
    """
    loader = StepLoader(
        data_of(config, sources),
        collate,
        seed=config.seed,
        max_broken=config.max_broken,
        tokenizer_checksum=image_tokenizer_checksum(pipe.model) if pipe.model.image_tokenizer is not None else None,
        **options,
    )
    check_stored_grids(loader, pipe)
    return loader


def build_trainer(
    config: FinetuneConfig,
    args: TrainingArguments,
    pipe: ShowoT2IPipeline,
    settings: Settings,
    resumed: Path | None,
    signals: StopSignals,
) -> ShowoTrainer:
    """The Trainer of a run."""
    builder = row_builder(config, pipe)
    tp_size = config.tp_size
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = pipe.model.mm_projector is not None  # training uses all other parameters
    position = None
    if resumed is not None:
        position = merge_states(saved_position(resumed), args.process_index, args.world_size)
    data = open_rows(
        config,
        pipe,
        config.data,
        builder,
        rank=args.process_index // tp_size,
        world_size=args.world_size // tp_size,
        num_workers=args.dataloader_num_workers,
        state=position,
    )
    step = 0 if resumed is None else saved_step(resumed)
    first_row = {"blind_guess": blind_guesses(config.objective, pipe)} if args.should_save else None
    callbacks, writer = step_callbacks(config, args, step, signals, first_row)
    samples = LogSamples(
        pipe,
        beside_output(config, "-samples"),
        config.prompts,
        config.questions,
        config.sample_steps,
        config.sample_guidance,
        config.seed,
        writer,
        trackers=tuple(reports(config)),
    )
    callbacks.append(samples)
    if config.push_to_hub is not None and config.push_steps is not None:
        callbacks.append(PushResults(config, pipe))
    trainer = ShowoTrainer(
        pipe.model,
        args,
        settings,
        data,
        builder,
        config.loss_weights,
        objective_of(config, pipe),
        validation=validation_parts(config, pipe),
        callbacks=callbacks,
    )
    trainer.samples = samples
    if config.embed_codes and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # the launcher's choice
        raise ValueError("`embed_codes` needs the whole model on each device, got FSDP or DeepSpeed.")
    if trainer.is_fsdp_enabled:  # by arguments of transformers
        keep_whole(trainer.accelerator.state.fsdp_plugin, pipe.model)
    for callback in callbacks:
        callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer


def check_stored_grids(loader: StepLoader, pipe: ShowoT2IPipeline):
    """Raise `ValueError` if stored tokens are of images of another size than the model's."""
    side = math.isqrt(pipe.model.config.num_image_tokens)
    for task, sources in loader.sources.items():
        for opened in sources:
            if isinstance(opened.table, StoredTokens) and opened.table.grid_size != (side, side):
                height, width = opened.table.grid_size
                raise ValueError(
                    f"`data.{task}` '{opened.name}' holds images of {height} x {width} tokens, but those of the run "
                    f"have {side} x {side}. Give another `image_size`, or run `showo-hf tokenize` with another `--size`."
                )


@torch.no_grad()
def validation_parts(config: FinetuneConfig, pipe: ShowoT2IPipeline) -> list[Part] | None:
    """
    The rows that validation computes the losses of: the first ones of each task, each once and with its own fixed noise.

    With several sources there may be fewer than `validation_rows`: they end before the first batch of repeated rows alone.
    """
    if config.validation_data is None:
        return None
    builder = row_builder(config, pipe, training=False)
    parts: list[Part] = []
    for task, sources in config.validation_data.items():
        seen: set[str] = set()
        for batch, _ in open_rows(config, pipe, {task: sources}, lambda examples: examples):
            unseen: dict[str, Example] = {}
            for example in batch[task]:
                if example.key not in seen:
                    unseen.setdefault(example.key, example)
            if batch[task] and not unseen:
                break
            part = builder.part(task, list(unseen.values())[: config.validation_rows - len(seen)])
            if not part.complete:
                part = builder.finish(part, pipe.model.encode_images(part.pixel_values.to(pipe.model.device)).cpu())
            seen.update(part.keys)
            if part.keys:
                parts.append(part)
            if len(seen) >= config.validation_rows:
                break
    return parts
