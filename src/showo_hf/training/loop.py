"""One training loop for both models, on accelerate: the same command on a CPU or on GPUs, and it resumes."""

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
    What both trainers let a user choose; see [`add_loop_arguments`] for the meanings.

    The learning rate rises over `warmup_steps`, stays, and falls to zero over the last `decay_share` of the steps; a
    warm-up that leaves no room for that cuts the fall short.
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
    """Add the options of [`LoopOptions`] to `parser`; `defaults` replace the ones written there."""
    add = parser.add_argument
    add("--output", required=True, help="folder for the trained model; checkpoints and the log lie beside it")
    add("--steps", type=int, required=True, help="optimizer steps in all, those before a resume counted in")
    add("--batch-size", type=int, default=16, help="images a step and process")
    add("--learning-rate", type=float, default=1e-3)
    add("--weight-decay", type=float)
    add("--optimizer", choices=OPTIMIZERS, help="muon: for the matrices inside the network; AdamW for the rest")
    add("--warmup-steps", type=int)
    add("--decay-share", type=float, help="share of the steps over which the rate falls to zero")
    add("--max-grad-norm", type=float)
    add("--ema-decay", type=float, help="decay of the averaged weights, which are what is saved")
    add("--mixed-precision", choices=("no", "bf16", "fp16"))
    add("--seed", type=int)
    add("--save-every", type=int, help="steps between checkpoints")
    add("--log-every", type=int)
    add("--max-minutes", type=float, help="stop with a checkpoint after so long; resume later")
    written = {field.name: field.default for field in fields(LoopOptions) if field.default is not MISSING}
    parser.set_defaults(**(written | defaults))


def loop_options(arguments: argparse.Namespace) -> LoopOptions:
    """The [`LoopOptions`] among parsed arguments."""
    return LoopOptions(**{field.name: getattr(arguments, field.name) for field in fields(LoopOptions)})


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """
    The random numbers of one step of one process.

    They depend on nothing else, so a resumed run sees the same batches as one that never stopped.
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
        model: the module; it is returned with the averaged weights in place.
        options: see [`LoopOptions`]. A checkpoint that lies beside the output is taken up by itself.
        make_batch: random numbers of the step to a batch of CPU tensors.
        compute_loss: the module and a batch to the loss and named parts of it for the log.
        save: writes the finished module to a folder; `save_pretrained` by default.
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
    average.to(accelerator.device)  # after the loading, which leaves it on the CPU

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
    """The count of steps done, kept in the checkpoint."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]):
        self.step = state["step"]


def build_optimizers(model: nn.Module, options: LoopOptions) -> list[torch.optim.Optimizer]:
    """
    AdamW for everything; or Muon for the matrices inside the network, and AdamW for what is left.

    Muon (https://kellerjordan.github.io/posts/muon) makes each matrix's momentum orthogonal before it is applied. Its
    steps are scaled to AdamW's size (arXiv:2502.16982), so that one learning rate serves both.
    Weight decay is on matrices and kernels alone, not on biases and norms.
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
    """The trained weights of linear layers, without those that stand for a vocabulary: embeddings and tied heads."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        embeddings.add(id(head.weight))
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in linear if weight.requires_grad and id(weight) not in embeddings]


def build_schedule(optimizer: torch.optim.Optimizer, options: LoopOptions) -> torch.optim.lr_scheduler.LRScheduler:
    """Rise, plateau and fall of the learning rate, as [`LoopOptions`] tells."""
    return get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=options.steps,
        scheduler_specific_kwargs={"num_decay_steps": max(1, int(options.steps * options.decay_share))},
    )


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a run go: beside its output, which holds the finished model alone."""
    return output.with_name(output.name + "-checkpoint")


def log_row(file: Path, row: dict[str, float]):
    """Print a row of the log and append it to `file` as a line of JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    rest = (f"{name} {value:.4g}" for name, value in row.items() if name != "step")
    print(f"step {row['step']}", *rest, sep="  ", flush=True)


def has_time(accelerator: Accelerator, started: float, max_minutes: float) -> bool:
    """Whether there is time for another step; the first process decides for all, since clocks differ."""
    if max_minutes == float("inf"):
        return True
    return broadcast_object_list([time.monotonic() - started < max_minutes * 60])[0]


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run; the one before it where a run was killed while they changed places."""
    return next((path for path in (folder, name_of_old(folder)) if path.is_dir()), None)


def save_checkpoint(accelerator: Accelerator, folder: Path):
    """Write the whole state beside `folder`, then put it in its place, so that no half-written one is ever found."""
    if accelerator.is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
    # Every process writes into it, so all must know its name.
    (fresh,) = broadcast_object_list([temporary_name(folder)])
    accelerator.save_state(str(fresh))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sync_folder(fresh)
        put_in_place(fresh, folder)
    accelerator.wait_for_everyone()
