"""
Training against a discriminator: hinge losses, LeCAM regularisation, and the adaptive weight of VQGAN.

The generator makes images that the discriminator takes for real ones. The discriminator has its own optimizer, and
learns after each backward pass of the generator.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from . import checkpoints
from .discriminator import PatchDiscriminator
from .discriminator_shape import DiscriminatorShape
from .parallel import gradient_norm, process_count


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss of logits of real and of generated images, `E[(1 - D(x))+] / 2 + E[(1 + D(G))+] / 2`."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """The generator's loss of the logits of its images, `-E[D(G)]`."""
    return -fake.mean()


def lecam_loss(real: torch.Tensor, fake: torch.Tensor, mean_real: torch.Tensor, mean_fake: torch.Tensor):
    r"""
    LeCAM regularisation of logits, `E[(D(x) - mean_fake)+^2] + E[(mean_real - D(G))+^2]` (arXiv:2104.03310, eq. 4).

    It holds the discriminator back where data is scarce: logits of real images may not rise far above the average logit
    of generated ones, nor the other way round. The paper's text has squares; its code, which this follows, has squares
    of what is above zero.
    """
    return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()


def feature_matching_loss(fake: Iterable[torch.Tensor], real: Iterable[torch.Tensor]) -> torch.Tensor:
    """
    The mean absolute difference of a discriminator's features of generated and of real images, averaged over its levels
    (pix2pixHD, arXiv:1711.11585). Each level is divided by the mean size of its real features, so that all count alike.
    """
    losses = []
    for own, other in zip(fake, real, strict=True):
        own, other = own.float(), other.detach().float()
        losses.append(F.l1_loss(own, other) / other.abs().mean().clamp(min=1e-6))
    return torch.stack(losses).mean()


def adaptive_weight(
    reconstruction: torch.Tensor, generator: torch.Tensor, last: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    r"""
    The weight of the generator's loss that makes its gradient as large as that of the reconstruction,
    `|grad reconstruction| / (|grad generator| + 1e-4)` at the last layer of the decoder, at most 10,000 (VQGAN,
    arXiv:2012.09841, eq. 7; the limits are those of its code).

    Args:
        reconstruction, generator: the two losses, of shape `()`. Their graphs are kept.
        last: the weights of the last layer.
        scale: factor of the losses in the backward passes, which float16 needs: it loses small gradients. It is lowered
            for a gradient that float16 cannot hold.
    """
    sizes = [gradient_size(loss, last, scale) for loss in (reconstruction, generator)]
    return (sizes[0] / (sizes[1] + 1e-4)).clamp(max=1e4).detach()


def gradient_size(loss: torch.Tensor, weights: torch.Tensor, scale: float) -> torch.Tensor:
    """The norm of a loss's gradient. The backward pass multiplies the loss by `scale`, or by less if that overflows."""
    while True:
        size = torch.autograd.grad(scale * loss, weights, retain_graph=True)[0].float().norm() / scale
        if scale <= 1 or torch.isfinite(size):
            return size
        scale = max(scale / 16, 1.0)


class LogitAverages(nn.Module):
    """
    Running averages of the mean logits of real and of generated images, without the bias of their start at zero.

    Args:
        decay: how much of an average stays after an update.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("weight", torch.zeros(()))

    def update(self, means: torch.Tensor):
        """Take the mean logits of a step (2,): real, generated."""
        self.sums.mul_(self.decay).add_((1 - self.decay) * means.to(self.sums))
        self.weight.mul_(self.decay).add_(1 - self.decay)

    @property
    def known(self) -> bool:
        """Whether there was an update."""
        return bool(self.weight > 0)

    @property
    def means(self) -> torch.Tensor:
        """The averages (2,) in float32: real, generated."""
        return self.sums / self.weight


class Adversary(nn.Module):
    """
    A discriminator that learns beside a generator.

    In a step it gives the generator its losses, learns from each batch with [`learn`], and ends the step with
    [`gather`] and then [`step`] or [`forget`]. Several processes have equal discriminators: their gradients are averaged
    in `gather`, which all processes call.

    Args:
        shape: the size of the discriminator.
        seed: of its random weights.
        learning_rate: the highest learning rate.
        betas: of Adam.
        lecam_weight: weight of [`lecam_loss`].
        lecam_decay: decay of the logits' averages.
    """

    def __init__(
        self,
        shape: DiscriminatorShape,
        seed: int,
        learning_rate: float,
        betas: tuple[float, float] = (0.5, 0.9),
        lecam_weight: float = 0.05,
        lecam_decay: float = 0.999,
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(shape)
        self.averages = LogitAverages(lecam_decay)
        self.learning_rate, self.lecam_weight = learning_rate, lecam_weight
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, betas=betas)
        #: Sums of the logits of a step, of real and of generated images, and their number.
        self.logit_sums: torch.Tensor | None = None

    # The generator's side

    def generator_losses(
        self,
        fake: torch.Tensor,
        real: torch.Tensor | None = None,
        forward_context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> dict[str, torch.Tensor]:
        """
        The losses of a generator's images (batch, 3, H, W) by name: "generator", and "feature_matching" if `real` gives
        the images that they should be. The discriminator gets no gradient.

        `forward_context` is entered for each forward pass, such as autocast.
        """
        self.discriminator.requires_grad_(False)
        with forward_context():
            judged = self.discriminator(fake)
        losses = {"generator": generator_loss(judged.logits.float())}
        if real is not None:
            with torch.no_grad(), forward_context():
                expected = self.discriminator(real).features
            losses["feature_matching"] = feature_matching_loss(judged.features, expected)
        return losses

    # The discriminator's side

    def learn(
        self,
        real: torch.Tensor,
        fake: torch.Tensor,
        share: float = 1.0,
        forward_context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> dict[str, torch.Tensor]:
        """
        Add the gradient of a batch.

        Args:
            real, fake: images (batch, 3, H, W).
            share: of the batch in its step.
            forward_context: entered for the forward pass, such as autocast.

        Returns:
            "discriminator", the loss; "lecam", its regularisation with its weight; "logits_real" and "logits_fake".
        """
        self.discriminator.requires_grad_(True)
        with forward_context():
            logits = self.discriminator(torch.cat([real, fake.detach()])).logits
        judged_real, judged_fake = logits.float().chunk(2)
        loss = hinge_loss(judged_real, judged_fake)
        named = {"discriminator": loss, "logits_real": judged_real.mean(), "logits_fake": judged_fake.mean()}
        if self.lecam_weight and self.averages.known:
            mean_real, mean_fake = self.averages.means
            named["lecam"] = self.lecam_weight * lecam_loss(judged_real, judged_fake, mean_real, mean_fake)
            loss = loss + named["lecam"]
        (share * loss).backward()
        with torch.no_grad():
            one = judged_real.new_tensor([judged_real.sum(), judged_fake.sum(), judged_real.numel()])
            self.logit_sums = one if self.logit_sums is None else self.logit_sums + one
        return {name: value.detach() for name, value in named.items()}

    def gather(self) -> torch.Tensor:
        """Average the gradients, and add up the logits, of all processes. Returns the norm of the gradient."""
        parameters = list(self.discriminator.parameters())
        if self.logit_sums is None:  # this process had no images
            self.logit_sums = parameters[0].new_zeros(3)
        if process_count() > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([parameter.grad.flatten() for parameter in parameters] + [self.logit_sums])
            dist.all_reduce(flat)
            self.logit_sums = flat[-3:].clone()
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, part in zip(parameters, (flat[:-3] / process_count()).split(sizes), strict=True):
                parameter.grad.copy_(part.view_as(parameter))
        return gradient_norm(parameters)

    def step(self, schedule: float, max_norm: float = 0.0):
        """
        Change the discriminator by its gradient.

        Args:
            schedule: the part of the highest learning rate that is used now.
            max_norm: larger gradients are clipped to it; 0 clips none.
        """
        if max_norm > 0:
            nn.utils.clip_grad_norm_(self.discriminator.parameters(), max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule
        self.optimizer.step()
        if self.logit_sums is not None and bool(self.logit_sums[2] > 0):
            self.averages.update(self.logit_sums[:2] / self.logit_sums[2])
        self.forget()

    def forget(self):
        """Drop what was learned in this step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.logit_sums = None

    # Checkpoints

    def parameter_names(self) -> list[str]:
        """The names of the optimizer's parameters."""
        return [name for name, _ in self.discriminator.named_parameters()]

    def saved(self) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
        """The state as groups of tensors and as JSON documents, by file name."""
        tensors, document = checkpoints.optimizer_tensors(self.optimizer, self.parameter_names())
        groups = {"discriminator": self.state_dict(), "discriminator-optimizer": tensors}
        return groups, {"discriminator-optimizer": document}

    def load(self, folder: Path):
        """
        Load what [`saved`] gave.

        Raises:
            DamagedCheckpointError: if it is missing or does not fit.
        """
        with checkpoints.loading(folder / "discriminator.safetensors"):
            values = checkpoints.read_tensors(folder / "discriminator.safetensors")
            checkpoints.load_parameters(self.state_dict(), values, "The discriminator")
        file = folder / "discriminator-optimizer.safetensors"
        with checkpoints.loading(file, file.with_suffix(".json")):
            tensors, document = checkpoints.read_tensors(file), checkpoints.read_json(file.with_suffix(".json"))
            checkpoints.load_optimizer(self.optimizer, self.parameter_names(), tensors, document)
