"""What the schedulers of discrete diffusion share: their output, their random draws, and their input checks."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers.utils import BaseOutput


Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


@dataclass
class DiscreteSchedulerOutput(BaseOutput):
    """
    Output of `step`.

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch, tokens)`): codes, and the mask id where a token is unknown
            still; the input of the next step.
        pred_original_sample (`torch.LongTensor` of shape `(batch, tokens)`): the guess at the whole picture.
        finished (`bool`): no further step would change anything.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor
    finished: bool = False


class DiscreteSchedulerMixin:
    """
    Mixin of the schedulers of discrete diffusion: what a pipeline may ask of any of them.

    It stands before diffusers' `SchedulerMixin` and `ConfigMixin`, which diffusers looks for in a scheduler's module when
    it loads a pipeline. A scheduler has the config entry `mask_token_id`, `set_timesteps`, `step` and `add_noise`. Any of
    them takes the place of another by `from_config`, which keeps the entries that both have.
    """

    order = 1
    #: Whether `step` looks at the logits of tokens that are known by now. The pipeline computes no others than it needs.
    predicts_known_tokens = False

    def initial_sample(self, sample: torch.LongTensor, generator: Generators = None) -> torch.LongTensor:
        """What the first step begins with where `sample`, (batch, tokens), has the mask id; most begin with the mask."""
        return sample

    def is_idle(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether a step would leave `sample` as it is, whatever the model says. Its random draws are still to be made."""
        return False

    def skip_step(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """Make the random draws of a step that [`is_idle`], so that the next one draws as if it had been made."""

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """All discrete schedulers: diffusers then ignores, without a warning, what another one's config has more."""
        return [kind for kind in all_subclasses(DiscreteSchedulerMixin) if kind is not cls]


def all_subclasses(kind: type) -> list[type]:
    """Subclasses of a class and theirs."""
    return [found for child in kind.__subclasses__() for found in (child, *all_subclasses(child))]


def check_step_inputs(model_output: torch.Tensor, sample: torch.LongTensor, num_inference_steps: int | None):
    """Raise `ValueError` unless `step` was given (batch, tokens, codebook) and (batch, tokens) after `set_timesteps`."""
    if num_inference_steps is None:
        raise ValueError("Call `set_timesteps` before `step`.")
    if model_output.ndim != 3 or sample.shape != model_output.shape[:2]:
        raise ValueError(
            "`model_output` must be (batch, tokens, codebook) and `sample` (batch, tokens), "
            f"got {tuple(model_output.shape)} and {tuple(sample.shape)}."
        )
    if sample.is_floating_point():
        raise ValueError(f"`sample` must hold integer codes, got {sample.dtype}.")


def check_generators(generator: Generators, batch_size: int):
    """Raise `ValueError` or `TypeError` unless `generator` is one, None, or a list with one for each sample."""
    listed = generator if isinstance(generator, list) else [] if generator is None else [generator]
    for one in listed:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"`generator` must be a `torch.Generator` or a list of them, got {type(one).__name__}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` must be one or a list of {batch_size}, got a list of {len(generator)}.")


def sample_categorical(probabilities: torch.Tensor, generator: Generators = None) -> torch.LongTensor:
    """
    One draw from each distribution: (batch, tokens, codes) probabilities to (batch, tokens) codes.

    The draw happens on the generator's device, so a CPU generator gives the same codes on any device; with a list of
    generators each sample has its own draws, the same as it would have alone.
    """
    check_generators(generator, probabilities.shape[0])
    if isinstance(generator, list):
        return torch.cat([sample_categorical(p[None], g) for p, g in zip(probabilities, generator, strict=True)])
    device = generator.device if generator is not None else probabilities.device
    flat = probabilities.flatten(0, 1).to(device=device, dtype=torch.float32)
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:2]).to(probabilities.device)


def sample_uniform(like: torch.Tensor, generator: Generators = None) -> torch.Tensor:
    """Uniform noise in [0, 1) of the shape (batch, tokens) of `like`, in float32; devices and lists as above."""
    check_generators(generator, like.shape[0])
    if isinstance(generator, list):
        return torch.cat([sample_uniform(row[None], g) for row, g in zip(like, generator, strict=True)])
    device = generator.device if generator is not None else like.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


def gumbel_noise(like: torch.Tensor, generator: Generators = None) -> torch.Tensor:
    """Standard Gumbel noise `-log(-log u)` of the shape of `like`."""
    uniform = sample_uniform(like, generator)
    return -(-uniform.clamp(1e-20).log()).clamp(1e-20).log()
