"""What the schedulers of discrete diffusion share: their output, their random draws, and their input checks."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..utils.validation import check_count, is_number


NOISE_ROWS = 64  # tokens whose noise is drawn at a time on a CPU

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


@dataclass
class TokenSchedulerOutput(BaseOutput):
    """
    Output of `step`.

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch, tokens)`): codes, and the mask id where a token is unknown
            still; the input of the next step.
        pred_original_sample (`torch.LongTensor` of shape `(batch, tokens)`): the guess at the whole image.
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

    @property
    def needs_all_logits(self) -> bool:
        """Whether `step` looks at the logits of tokens that are known by now. The pipeline computes none without need."""
        return False

    def initial_sample(self, sample: torch.LongTensor, generator: Generators = None) -> torch.LongTensor:
        """What the first step begins with where `sample`, (batch, tokens), has the mask id; most begin with the mask."""
        return sample

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """Whether a step would leave `sample` as it is, whatever the model says. Its random draws are still to be made."""
        return False

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """
        Make the random draws of a step, and nothing else: one that [`is_noop`], or one behind an image that is done. What
        is drawn next is then what it would be, had the step been made. A scheduler that is never idle, nor finished before
        its last step, needs none.
        """

    def __bool__(self) -> bool:
        return True  # though its length is 0 before `set_timesteps`

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """All discrete schedulers: diffusers then ignores, without a warning, what another one's config has more."""
        kinds = all_subclasses(DiscreteSchedulerMixin)
        return [kind for kind in kinds if kind is not cls and issubclass(kind, SchedulerMixin)]

    def register_to_config(self, **kwargs: Any):
        """
        As in diffusers, which notes the entries that were not named, and gives another scheduler its own defaults there.

        An entry that was given by its position is noted as named here, and `mask_token_id` always is: it is the
        codebook's, so that no other scheduler may have another default. NumPy's numbers become Python's, which can be saved.
        """
        kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
        if "_use_default_values" in kwargs:
            parameters = inspect.signature(type(self).__init__).parameters
            kwargs["_use_default_values"] = [
                name
                for name in kwargs["_use_default_values"]
                if name != "mask_token_id" and kwargs[name] == parameters[name].default
            ]
        super().register_to_config(**kwargs)  # type: ignore[misc]  # ConfigMixin's


def all_subclasses(kind: type) -> list[type]:
    """Subclasses of a class and theirs."""
    children: list[type] = kind.__subclasses__()
    return [found for child in children for found in (child, *all_subclasses(child))]


def check_step_inputs(
    model_output: torch.Tensor,
    sample: torch.LongTensor,
    num_inference_steps: int | None,
    num_codes: int | None = None,
):
    """
    Raise `ValueError` unless `step` was given (batch, tokens, codebook) and (batch, tokens) after `set_timesteps`.

    The codebook's size is looked at where `num_codes` says it.
    """
    if num_inference_steps is None:
        raise ValueError("Call `set_timesteps` before `step`.")
    if model_output.ndim != 3 or sample.shape != model_output.shape[:2]:
        raise ValueError(
            "`model_output` must be (batch, tokens, codebook) and `sample` (batch, tokens), "
            f"got {tuple(model_output.shape)} and {tuple(sample.shape)}."
        )
    if num_codes is not None and model_output.shape[-1] != num_codes:
        raise ValueError(
            f"`model_output` must hold logits of {num_codes} codes, as `mask_token_id` says, got {model_output.shape[-1]}."
        )
    if sample.is_floating_point():
        raise ValueError(f"`sample` must hold integer codes, got {sample.dtype}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]):
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        listed = f"{', '.join(repr(choice) for choice in choices[:-1])} or {choices[-1]!r}"
        raise ValueError(f"`{name}` must be {listed}, got {value!r}.")


def check_filter(top_k: int | None, top_p: float | None):
    """Raise `ValueError` unless `top_k` is None or at least 1, and `top_p` None or above 0 and at most 1."""
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"`top_p` must be above 0 and at most 1, or None, got {top_p!r}.")


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


def sample_wanted(probabilities: torch.Tensor, wanted: torch.BoolTensor, generator: Generators = None) -> torch.Tensor:
    """
    [`sample_categorical`] for some tokens: the same codes, and a generator is left as if all tokens had been drawn.

    `torch.multinomial` gives the code of the largest `p / q` with standard exponential q (an exponential race). So the
    distributions of the other tokens are not needed, only their share of the q.

    Args:
        probabilities (`torch.Tensor` of shape `(number of wanted tokens, codes)`, float32): they need not sum to 1.
        wanted (`torch.BoolTensor` of shape `(batch, tokens)`): the tokens that they belong to, in order.

    Returns:
        codes, `torch.LongTensor` of shape `(number of wanted tokens,)`.
    """
    check_generators(generator, wanted.shape[0])
    if isinstance(generator, list):
        parts = probabilities.split(wanted.sum(-1).tolist())
        rows = zip(parts, wanted, generator, strict=True)
        return torch.cat([sample_wanted(part, row[None], one) for part, row, one in rows])
    device = wanted.device if generator is None else generator.device
    at_hand, codes, first = probabilities.detach().to(device, torch.float32), [], 0
    for rows, noise in exponential_noise(wanted, probabilities.shape[-1], generator):
        noise = noise if bool(rows.all()) else noise[rows]
        part = at_hand[first : first + len(noise)]
        codes.append(torch.div(part, noise, out=noise).argmax(-1))
        first += len(noise)
    return torch.cat(codes).to(probabilities.device)


def exponential_noise(
    like: torch.Tensor, num_codes: int, generator: torch.Generator | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    What `torch.multinomial` draws for `like`, (batch, tokens), on the generator's device.

    Yields:
        some entries of `like` in turn, (rows,), and their noise, (rows, codes), to be used before the next. On a CPU, where
        draws follow one another, these are few at a time: that needs little memory, and is faster.
    """
    like = like.flatten().to(like.device if generator is None else generator.device)
    at_once = NOISE_ROWS if like.device.type == "cpu" else like.numel()
    noise = torch.empty(min(at_once, like.numel()), num_codes, device=like.device)
    for rows in like.split(at_once):
        yield rows, noise[: len(rows)].exponential_(generator=generator)


def skip_categorical(like: torch.Tensor, num_codes: int, generator: Generators = None):
    """Leave a generator as [`sample_categorical`] leaves it, for (batch, tokens) distributions over `num_codes`."""
    check_generators(generator, like.shape[0])
    pairs = zip(like, generator, strict=True) if isinstance(generator, list) else [(like, generator)]
    for rows, one in pairs:
        for _ in exponential_noise(rows, num_codes, one):
            pass


def keep_likely(probabilities: torch.Tensor, top_k: int | None = None, top_p: float | None = None) -> torch.Tensor:
    """
    Probabilities (..., codes) with 0 for unlikely codes; what is left is not scaled to sum to 1.

    Args:
        top_k: the `top_k` likeliest codes stay, and any as likely as the last of them.
        top_p: the likeliest codes stay until their sum, the one that crosses included, reaches `top_p` of what `top_k` left
            (nucleus sampling, arXiv:1904.09751).
    """
    if top_k is not None and top_k < probabilities.shape[-1]:
        least = probabilities.topk(top_k, -1).values[..., -1:]
        probabilities = torch.where(probabilities < least, 0.0, probabilities)
    if top_p is not None and top_p < 1:
        ordered, places = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        unlikely = before >= top_p * ordered.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(torch.zeros_like(unlikely).scatter(-1, places, unlikely), 0.0)
    return probabilities


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
