"""A training loop on accelerate: runs on a CPU or on GPUs, and resumes from checkpoints."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import get_scheduler

from ..utils.atomic_folder import atomic_folder, name_of_old, put_in_place, recover, sync_folder, temporary_name


Batch = dict[str, torch.Tensor]

OPTIMIZERS = ("adamw", "muon")


@dataclass
class LoopOptions:
    """
    The options of a training run; see [`add_loop_arguments`] for their meanings.

    The learning rate rises over `warmup_steps`, stays constant, and falls to zero over the last `decay_share` of the
    steps. If the warm-up leaves too few steps, the decay is shorter.
    """

    output: str
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    optimizer: str = "adamw"
    warmup_steps: int = 200
    decay_share: float = 0.3
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "bf16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    max_minutes: float = float("inf")


def add_loop_arguments(parser: argparse.ArgumentParser, **defaults):
    """Add the options of [`LoopOptions`] to `parser`. `defaults` override the defaults of the class."""
    add = parser.add_argument
    add("--output", required=True, help="folder for the trained model; checkpoints and the log are written beside it")
    add("--steps", type=int, required=True, help="total number of optimizer steps, including those before a resume")
    add("--batch-size", type=int, default=16, help="images per step and process")
    add("--learning-rate", type=float, default=1e-3)
    add("--weight-decay", type=float)
    add("--optimizer", choices=OPTIMIZERS, help="muon: Muon for the matrices inside the network, AdamW for the rest")
    add("--warmup-steps", type=int)
    add("--decay-share", type=float, help="share of the steps over which the learning rate falls to zero")
    add("--max-grad-norm", type=float)
    add("--ema-decay", type=float, help="decay of the averaged weights; the averaged weights are saved")
    add("--mixed-precision", choices=("no", "bf16", "fp16"))
    add("--seed", type=int)
    add("--save-every", type=int, help="steps between checkpoints")
    add("--log-every", type=int)
    add("--max-minutes", type=float, help="save a checkpoint and stop after this time; resume later")
    written = {field.name: field.default for field in fields(LoopOptions) if field.default is not MISSING}
    parser.set_defaults(**(written | defaults))


def loop_options(arguments: argparse.Namespace) -> LoopOptions:
    """The [`LoopOptions`] of parsed arguments."""
    return LoopOptions(**{field.name: getattr(arguments, field.name) for field in fields(LoopOptions)})


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """
    The random number generator of one step of one process.

    It depends on nothing else, so a resumed run sees the same batches as an uninterrupted one.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + process)


def train(
    model: nn.Module,
    options: LoopOptions,
    make_batch: Callable[[torch.Generator], Batch],
    compute_loss: Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    save: Callable[[nn.Module, Path], None] | None = None,
) -> nn.Module:
    """
    Train `model` and save its averaged weights to `options.output`.

    Args:
        model: the module to train.
        options: see [`LoopOptions`]. A checkpoint beside the output is resumed automatically.
        make_batch: maps the generator of a step to a batch of CPU tensors.
        compute_loss: maps the module and a batch to the loss, and to named parts of the loss for the log.
        save: writes the trained module to a folder; `save_pretrained` by default.

    Returns:
        `model` with the averaged weights.
    """
    accelerator = Accelerator(mixed_precision=options.mixed_precision, cpu=not torch.cuda.is_available())
    output = Path(options.output)
    optimizers = build_optimizers(model, options)
    schedules = [build_schedule(optimizer, options) for optimizer in optimizers]
    wrapped, *optimizers = accelerator.prepare(model.train(), *optimizers)
    average = EMAModel(model.parameters(), decay=options.ema_decay, foreach=True)
    progress = Progress()
    accelerator.register_for_checkpointing(*schedules, average, progress)
    checkpoint = checkpoint_folder(output)
    if (found := find_checkpoint(checkpoint)) is not None:
        accelerator.load_state(str(found))
        accelerator.print(f"resumed at step {progress.step}", flush=True)
    average.to(accelerator.device)  # loading a checkpoint leaves it on the CPU

    started = logged = time.monotonic()
    while progress.step < options.steps and has_time(accelerator, started, options.max_minutes):
        generator = step_generator(options.seed, progress.step, accelerator.process_index)
        batch = {name: value.to(accelerator.device) for name, value in make_batch(generator).items()}
        with accelerator.autocast():
            loss, parts = compute_loss(wrapped, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        progress.step += 1
        if progress.step % options.log_every == 0 and accelerator.is_main_process:
            now = time.monotonic()
            row = {"step": progress.step, "loss": loss.item(), **{name: part.item() for name, part in parts.items()}}
            row["lr"] = schedules[0].get_last_lr()[0]
            row["seconds_per_step"] = (now - logged) / options.log_every
            logged = now
            log_row(output.with_name(output.name + "-log.jsonl"), row)
        if progress.step % options.save_every == 0:
            save_checkpoint(accelerator, checkpoint)
    save_checkpoint(accelerator, checkpoint)

    average.copy_to(model.parameters())
    model.eval()
    if accelerator.is_main_process:
        with atomic_folder(output, overwrite=True) as folder:
            (save or (lambda module, folder: module.save_pretrained(folder)))(model, folder)
    accelerator.wait_for_everyone()
    return model


class Progress:
    """The number of completed steps. Part of the checkpoint."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]):
        self.step = state["step"]


def build_optimizers(model: nn.Module, options: LoopOptions) -> list[torch.optim.Optimizer]:
    """
    AdamW for all parameters; or Muon for the matrices inside the network and AdamW for the rest.

    Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each matrix before the update. Its
    updates are scaled to the size of AdamW's (arXiv:2502.16982), so that both use one learning rate.
    Weight decay applies to matrices and kernels, not to biases and norms.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = inner_matrices(model) if options.optimizer == "muon" else []
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers, except output heads and weights tied to embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        embeddings.add(id(head.weight))
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in linear if weight.requires_grad and id(weight) not in embeddings]


def build_schedule(optimizer: torch.optim.Optimizer, options: LoopOptions) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate schedule that [`LoopOptions`] describes."""
    return get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=options.steps,
        scheduler_specific_kwargs={"num_decay_steps": max(1, int(options.steps * options.decay_share))},
    )


def checkpoint_folder(output: Path) -> Path:
    """The checkpoint folder of a run, beside its output folder."""
    return output.with_name(output.name + "-checkpoint")


def log_row(file: Path, row: dict[str, float]):
    """Print a log row, and append it to `file` as a JSON line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    rest = (f"{name} {value:.4g}" for name, value in row.items() if name != "step")
    print(f"step {row['step']}", *rest, sep="  ", flush=True)


def has_time(accelerator: Accelerator, started: float, max_minutes: float) -> bool:
    """Whether there is time for another step. The main process decides for all processes, because clocks differ."""
    if max_minutes == float("inf"):
        return True
    return broadcast_object_list([time.monotonic() - started < max_minutes * 60])[0]


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run; the previous one if the run was killed while the new one replaced it."""
    return next((path for path in (folder, name_of_old(folder)) if path.is_dir()), None)


def save_checkpoint(accelerator: Accelerator, folder: Path):
    """Save the training state atomically: write it beside `folder`, then rename it."""
    if accelerator.is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
    # All processes write into the folder, so all must know its name.
    (fresh,) = broadcast_object_list([temporary_name(folder)])
    accelerator.save_state(str(fresh))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sync_folder(fresh)
        put_in_place(fresh, folder)
    accelerator.wait_for_everyone()
