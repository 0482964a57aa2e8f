"""What does the Trainer cost in the training of image tokenizers and diffusion decoders? Prints one table. Run as

    OMP_NUM_THREADS=1 python benchmarks/image_tokenizer_training.py

Compares a step of `showo-hf train` with a step of a plain loop that does the same: losses, discriminator, LeCAM, codebook,
clipping, optimizers and averaged weights, without checkpoints, guards and logs. Both have the same weights and see the
same images in turn, in one process, so that other work on the machine changes the ratio little. On a CPU, only the
main thread's time counts. The losses of both are equal, which the script checks.
"""

import argparse
import copy
import json
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

from showo_hf.training.adversarial import (
    LogitAverages,
    feature_matching_loss,
    generator_loss,
    hinge_loss,
    lecam_loss,
)
from showo_hf.training.arguments import training_arguments
from showo_hf.training.callbacks import StopSignals
from showo_hf.training.data.order import stable_hash
from showo_hf.training.diffusion_decoder import draw_noise
from showo_hf.training.image_batches import Images
from showo_hf.training.image_tokenizers import load_image_tokenizer
from showo_hf.training.masking import row_generator
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import image_run


#: The architecture of a small image tokenizer, which a CPU trains.
ARCHITECTURE: dict[str, Any] = {
    "encoder_block_out_channels": [32, 48, 96, 128],
    "decoder_block_out_channels": [32, 48, 96, 160],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 2, 2],
    "norm_num_groups": 16,
}
VQ: dict[str, Any] = {
    **ARCHITECTURE,
    "latent_channels": 64,
    **{f"{part}_block_attention": [False] * 4 for part in ("encoder", "decoder")},
}
LFQ_TOKENIZER = {"kind": "lfq-tokenizer", "codebook_bits": 10, "architecture": ARCHITECTURE}
VQ_TOKENIZER = {"kind": "vq-tokenizer", "codebook_size": 1024, "codebook_dim": 16, "architecture": VQ}
DISCRIMINATOR = {"start": 0, "channels": 32}
#: The recipe of each case. The diffusion decoder has the size of the small world's.
CASES: dict[str, dict[str, Any]] = {
    "lfq": {**LFQ_TOKENIZER, "discriminator": None},
    "lfq with discriminator": {**LFQ_TOKENIZER, "discriminator": DISCRIMINATOR},
    "vq": {**VQ_TOKENIZER, "discriminator": None},
    "vq with discriminator": {**VQ_TOKENIZER, "discriminator": DISCRIMINATOR},
    "diffusion-decoder": {
        "kind": "diffusion-decoder",
        "architecture": {"patch_size": 4, "block_out_channels": [64, 208], "norm_num_groups": 16},
    },
}


class PlainLoop:
    """
    Training by hand, from a copy of a Trainer's model. A subclass computes the loss, and makes the arguments of `step`
    from a batch, which takes no time of the step's.
    """

    def __init__(self, trainer: Any):
        args = trainer.args
        self.args, self.decay = args, trainer.settings.ema_decay
        self.model = copy.deepcopy(trainer.model).train()
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.averaged = [weight.detach().clone() for weight in self.trained]
        groups = [
            {"params": [w for w in self.trained if (w.ndim >= 2) == large], "weight_decay": decay}
            for large, decay in ((True, args.weight_decay), (False, 0.0))
        ]
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = torch.optim.AdamW(
            groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True
        )
        self.steps = 0

    def inputs(self, images: Images) -> tuple[torch.Tensor, ...]:
        """The arguments of `step`."""
        return (images.pixel_values.to(self.args.device),)

    def minimise(self, loss: torch.Tensor):
        """Change the weights by the gradient of a loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def average(self):
        """Update the averaged weights."""
        self.steps += 1
        decay = min(self.decay, self.steps / (9 + self.steps))
        for average, weight in zip(self.averaged, self.trained, strict=True):
            average.lerp_(weight.detach(), 1 - decay)


class PlainTokenizerLoop(PlainLoop):
    """An image tokenizer's training by hand, with a copy of the discriminator."""

    def __init__(self, trainer: Any):
        super().__init__(trainer)
        objective = trainer.objective
        self.weights, self.seed, self.learns_codes = objective.weights, trainer.config.seed, trainer.learns_codes
        self.discriminator = None
        if objective.adversary is not None:
            self.discriminator = copy.deepcopy(objective.adversary.discriminator)
            self.lecam = LogitAverages(objective.adversary.averages.decay).to(self.args.device)
            self.adam = torch.optim.Adam(self.discriminator.parameters(), lr=self.args.learning_rate, betas=(0.5, 0.9))

    def step(self, pixels: torch.Tensor) -> torch.Tensor:
        """One step on images (batch, 3, H, W). Returns the tokenizer's loss."""
        output = self.model(pixels)
        loss = F.l1_loss(output.sample, pixels) + output.commitment_loss
        if output.entropy_loss is not None:
            loss = loss + output.entropy_loss
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            judged = self.discriminator(output.sample)
            with torch.no_grad():
                expected = self.discriminator(pixels).features
            loss = loss + self.weights["generator"] * generator_loss(judged.logits)
            loss = loss + self.weights["feature_matching"] * feature_matching_loss(judged.features, expected)
        self.minimise(loss)
        if self.learns_codes:
            generator = row_generator(stable_hash(self.seed, f"codebook {self.steps}"))
            self.model.update_codebook(output.latents.detach(), output.image_tokens, generator)
        if self.discriminator is not None:
            self.learn(pixels, output.sample.detach())
        self.average()
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


class PlainDecoderLoop(PlainLoop):
    """A diffusion decoder's training by hand: flow matching in units of the residual, all noise levels alike."""

    def __init__(self, trainer: Any):
        super().__init__(trainer)
        self.tokenizer, self.scale = trainer.tokenizer.tokenizer, trainer.model.config.residual_scale

    def inputs(self, images: Images) -> tuple[torch.Tensor, ...]:
        """Images (batch, 3, H, W), and the times (batch, 1, 1, 1) and the noise that the Trainer draws for them."""
        (pixels,) = super().inputs(images)
        draws = draw_noise(self.model, torch.zeros_like(pixels), images.noise_seeds)
        return pixels, draws.timestep.view(-1, 1, 1, 1) / 1000, draws.noise

    def step(self, pixels: torch.Tensor, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """One step. Returns the loss. It draws times and noise at once, and uses the given ones to have equal losses."""
        with torch.no_grad():
            tokens = self.tokenizer.encode(pixels).image_tokens
            image = ((self.tokenizer.decode(tokens).sample + 1) * 127.5).round() / 127.5 - 1
        torch.rand(len(pixels), device=pixels.device), torch.randn_like(pixels)
        clean = (pixels - image) / self.scale
        noised = (1 - times) * clean + times * noise
        flow = self.model(noised, 1000 * times.flatten(), self.tokenizer.codes_of(tokens), image)
        loss = F.mse_loss(flow, noise - clean)
        self.minimise(loss)
        self.average()
        return loss.detach()


class Compare(TrainerCallback):
    """Takes the time of each of the Trainer's steps, and of the plain loop's step on the same images."""

    def __init__(self, trainer: Any, plain: PlainLoop):
        self.trainer, self.plain = trainer, plain
        self.times: dict[str, list[float]] = {"trainer": [], "plain": []}
        self.losses: list[tuple[float, float]] = []
        self.images: Images | None = None
        losses = trainer.losses

        def kept(model, images, sums):
            self.images = images
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
        self.times["trainer"].append(self.now() - self.start)
        inputs = self.plain.inputs(self.images)
        start = self.now()
        loss = self.plain.step(*inputs)
        self.times["plain"].append(self.now() - start)
        self.losses.append((self.loss.item(), loss.item()))


def untrained_tokenizer(folder: Path, size: int) -> str:
    """The folder of an image tokenizer with random weights."""
    target = folder / "tokenizer"
    entries = {"data": "none", "output": "none", "steps": 1, "image_size": size, "codebook_bits": 10}
    entries["architecture"] = ARCHITECTURE
    config = load_recipe("lfq-tokenizer", [f"{name}={json.dumps(value)}" for name, value in entries.items()])
    load_image_tokenizer(config).save_pretrained(target)
    return str(target)


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
    entries = {
        **CASES[case], "data": str(images), "output": str(folder / case.replace(" ", "-")), "steps": steps,
        "image_size": size, "batch_size": rows, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "report_to": "none", "save_steps": 100000,
    }  # fmt: skip
    kind = entries.pop("kind")
    if kind == "diffusion-decoder":
        entries["model"] = untrained_tokenizer(folder, size)
    config = load_recipe(kind, [f"{name}={json.dumps(value)}" for name, value in entries.items()])
    root = folder / f"{case}-checkpoints"
    args = training_arguments(config, root)
    trainer, _ = image_run(config, args, root, None, StopSignals())
    watch = Compare(trainer, (PlainDecoderLoop if kind == "diffusion-decoder" else PlainTokenizerLoop)(trainer))
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
