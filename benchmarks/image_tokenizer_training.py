"""What does the Trainer cost in the training of an image tokenizer? Prints one table. Run as

    OMP_NUM_THREADS=1 python benchmarks/image_tokenizer_training.py

Compares a step of `showo-hf train` with a step of a plain loop that does the same: losses, discriminator, LeCAM, clipping,
two optimizers and averaged weights, without checkpoints, guards and logs. Both have the same weights and see the same
images in turn, in one process, so that other work on the machine changes the ratio little. On a CPU, time is that of the
main thread. The losses of both are equal, which the script checks.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import median_ratio, print_table, wait_for
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from showo_hf.training.adversarial import LogitAverages, generator_loss, hinge_loss, lecam_loss
from showo_hf.training.arguments import training_arguments
from showo_hf.training.callbacks import StopSignals
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import image_run


#: The embedded model's architecture, in a size that a CPU trains.
ARCHITECTURE = """{encoder_block_out_channels: [32, 48, 96, 128], decoder_block_out_channels: [32, 48, 96, 160],
encoder_layers_per_block: [1, 1, 1, 1], decoder_layers_per_block: [1, 1, 2, 2], norm_num_groups: 16}"""
CASES = {"without discriminator": "discriminator=null", "with discriminator": "discriminator={start: 0, channels: 32}"}


class PlainLoop:
    """The same training by hand, from copies of a Trainer's model and discriminator."""

    def __init__(self, trainer: Any):
        args, objective = trainer.args, trainer.objective
        self.args, self.weights, self.decay = args, objective.weights, trainer.settings.ema_decay
        self.model = copy.deepcopy(trainer.model).train()
        self.averaged = [weight.detach().clone() for weight in self.model.parameters()]
        groups = [
            {"params": [w for w in self.model.parameters() if (w.ndim >= 2) == large], "weight_decay": decay}
            for large, decay in ((True, args.weight_decay), (False, 0.0))
        ]
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = torch.optim.AdamW(
            groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True
        )
        self.discriminator = None
        if objective.adversary is not None:
            self.discriminator = copy.deepcopy(objective.adversary.discriminator)
            self.lecam = LogitAverages(objective.adversary.averages.decay).to(args.device)
            self.adam = torch.optim.Adam(self.discriminator.parameters(), lr=args.learning_rate, betas=(0.5, 0.9))
        self.steps = 0

    def step(self, pixels: torch.Tensor) -> torch.Tensor:
        """One step on images (batch, 3, H, W). Returns the tokenizer's loss."""
        output = self.model(pixels)
        loss = F.l1_loss(output.sample, pixels) + output.commitment_loss + output.entropy_loss
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            loss = loss + self.weights["generator"] * generator_loss(self.discriminator(output.sample).logits)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.discriminator is not None:
            self.learn(pixels, output.sample.detach())
        self.steps += 1
        decay = min(self.decay, (1 + self.steps - 1) / (10 + self.steps - 1))
        for average, weight in zip(self.averaged, self.model.parameters(), strict=True):
            average.lerp_(weight.detach(), 1 - decay)
        return loss.detach()

    def learn(self, real: torch.Tensor, fake: torch.Tensor):
        """The discriminator's part of a step."""
        self.discriminator.requires_grad_(True)
        on_real, on_fake = (self.discriminator(images).logits for images in (real, fake))
        loss = hinge_loss(on_real, on_fake)
        if self.lecam.known:
            loss = loss + self.weights["lecam"] * lecam_loss(on_real, on_fake, *self.lecam.means)
        loss.backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.args.max_grad_norm)
        self.adam.step()
        self.adam.zero_grad()
        self.lecam.update(torch.stack([on_real.mean(), on_fake.mean()]).detach())


class Compare(TrainerCallback):
    """Takes the time of each of the Trainer's steps, and of the plain loop's step on the same images."""

    def __init__(self, trainer: Any, plain: PlainLoop):
        self.trainer, self.plain = trainer, plain
        self.times: dict[str, list[float]] = {"trainer": [], "plain": []}
        self.losses: list[tuple[float, float]] = []
        self.pixels: torch.Tensor | None = None
        losses = trainer.losses

        def kept(model, images, sums):
            self.pixels = images.pixel_values
            found = losses(model, images, sums)
            self.loss = sum(found.values()).detach()
            return found

        trainer.losses = kept

    def now(self) -> float:
        device = self.trainer.args.device.type
        wait_for(device)
        return time.thread_time() if device == "cpu" else time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        middle = self.now()
        loss = self.plain.step(self.pixels.to(args.device))
        end = self.now()
        self.times["trainer"].append(middle - self.start)
        self.times["plain"].append(end - middle)
        self.losses.append((self.loss.item(), loss.item()))


def compare(folder: Path, case: str, size: int, rows: int, steps: int) -> Compare:
    """Train for some steps on random images."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        generator = torch.Generator().manual_seed(0)
        for number in range(rows):
            small = torch.rand(1, 3, 8, 8, generator=generator)
            pixels = F.interpolate(small, (size, size), mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
            Image.fromarray((pixels * 255).byte().numpy()).save(images / f"{number}.png")
    entries = [f"data={images}", f"output={folder / case.replace(' ', '-')}", f"steps={steps}", f"image_size={size}"]
    entries += [f"architecture={ARCHITECTURE}", "codebook_bits=10", f"batch_size={rows}", CASES[case]]
    entries += ["lr_scheduler_type=constant", "warmup_steps=0", "report_to=none", "save_steps=100000"]
    config = load_recipe("lfq-tokenizer", entries)
    root = folder / f"{case}-checkpoints"
    args = training_arguments(config, root)
    trainer, _ = image_run(config, args, root, None, StopSignals())
    watch = Compare(trainer, PlainLoop(trainer))
    trainer.add_callback(watch)
    trainer.train()
    return watch


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    if not torch.accelerator.is_available():
        torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            watch = compare(Path(folder), case, options.size, options.rows, options.steps)
            worst = max(abs(one - other) / abs(other) for one, other in watch.losses)
            if worst > 0.01:
                sys.exit(f"The losses differ by {worst:.1%}: {watch.losses}")
            ours, plain = (watch.times[name][2:] for name in ("trainer", "plain"))
            middle = sorted(plain)[len(plain) // 2]
            rows.append([case, f"{median_ratio(ours, plain):.2f}", f"{middle:.3f} s", f"{worst:.1e}"])
    print_table(["training", "step / plain step", "plain step", "largest difference of losses"], rows)


if __name__ == "__main__":
    main()
