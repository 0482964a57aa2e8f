"""Shared by all schedulers: the output, the config, random draws and input checks."""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..utils.private_interfaces import default_config_entries
from ..utils.tensor_checks import check_generators, check_tensor
from ..utils.validation import MAX_COUNT, check_count, is_integer, is_number, shown


NOISE_ROWS = 64  # number of tokens for which noise is drawn at a time on a CPU

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


@dataclass
class TokenSchedulerOutput(BaseOutput):
    """
    Output of a scheduler's `step`.

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids after the step, `mask_token_id` where a
            token is still masked. Pass it to the next step.
        pred_original_sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids of the predicted image, none of
            them masked.
        finished (`bool`): whether no further step would change a token.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor
    finished: bool = False


class DiscreteSchedulerMixin:
    """
    Mixin with the interface that pipelines use, common to all schedulers of discrete diffusion.

    A scheduler also has the config entry `mask_token_id` and the methods `set_timesteps`, `step` and `add_noise`. Any
    scheduler can replace any other with `from_config`.

    List this mixin before `SchedulerMixin` and `ConfigMixin`. Each scheduler's module must import these two, because
    diffusers looks them up in that module when it loads a pipeline.
    """

    order = 1

    @property
    def needs_all_logits(self) -> bool:
        """Whether `step` reads the logits of known tokens. If not, the pipeline does not compute them."""
        return False

    def initial_sample(self, sample: torch.LongTensor, generator: Generators = None) -> torch.LongTensor:
        """
        Return the sample that the first step starts from.

        Args:
            sample (`torch.LongTensor` of shape `(batch, tokens)`): token ids, `mask_token_id` where masked. Most
                schedulers return it unchanged.
        """
        return sample

    def is_noop(self, timestep: int | torch.Tensor, sample: torch.LongTensor) -> bool:
        """
        Whether `step` would return `sample` unchanged, whatever the logits are.

        Call `advance_generator` instead of such a step, because the step would still draw random numbers.
        """
        return False

    def advance_generator(self, timestep: int | torch.Tensor, sample: torch.LongTensor, generator: Generators = None):
        """
        Consume the random numbers `step` would draw, leaving `sample` unchanged.

        Call it in place of a step that [`is_noop`], and of the steps after `finished`. Later draws are then the same
        as if all steps had run. A scheduler that never skips a step does not need it.
        """

    def __bool__(self) -> bool:
        return True  # `len` is 0 before `set_timesteps`

    @property
    def compatibles(self) -> list[type]:
        """All other discrete schedulers. Each can be made from this scheduler's config with `from_config`."""
        classes = all_subclasses(DiscreteSchedulerMixin)
        return [cls for cls in classes if cls is not type(self) and issubclass(cls, SchedulerMixin)]

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs: Any):
        """
        Create a scheduler from the config of a scheduler of any class, without a warning.

        - Entries that both classes have are kept if they were passed to the other scheduler, or read from its file.
        - All other arguments take the defaults of this class.
        - Entries that only the other class has stay in the config unused, so that swapping back restores them.

        Args:
            config (`dict`): a scheduler's `config`.
            return_unused_kwargs (`bool`): also return the entries and `kwargs` that this class does not use.
            kwargs: arguments of this class, which replace entries of `config`.
        """
        if not isinstance(config, dict):  # a path, which diffusers deprecates
            return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]
        parameters = inspect.signature(cls.__init__).parameters
        own = {name: value for name, value in config.items() if name in parameters or name.startswith("_")}
        unused_defaults = default_config_entries(config)
        others = {name: value for name, value in config.items() if name not in own and name not in unused_defaults}
        scheduler, unused = super().from_config(own, return_unused_kwargs=True, **kwargs)  # type: ignore[misc]
        scheduler.register_to_config(**others)
        return (scheduler, unused | others) if return_unused_kwargs else scheduler


def register_arguments(init: Any) -> Any:
    """
    Decorate a scheduler's `__init__` to keep its arguments in `config`, as diffusers' `register_to_config` does.

    In addition:
    - Positional arguments count as explicit, so that `from_config` keeps them.
    - `mask_token_id` always counts as explicit, because it must equal the codebook size of the model.
    - NumPy numbers become Python numbers, which can be saved as JSON.
    """
    signature, registered_init = inspect.signature(init), register_to_config(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        _, *arguments = signature.bind(self, *args, **kwargs).arguments.items()
        named = {"mask_token_id": signature.parameters["mask_token_id"].default, **dict(arguments)}
        check_count("mask_token_id", named["mask_token_id"], most=2**31 - 1)
        registered_init(
            self, **{name: value.item() if isinstance(value, np.generic) else value for name, value in named.items()}
        )

    return wrapper


def all_subclasses(cls: type) -> list[type]:
    """Direct and indirect subclasses of a class."""
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *all_subclasses(child))]


# Input checks


def check_step_inputs(
    model_output: torch.Tensor, sample: torch.LongTensor, num_inference_steps: int | None, mask_token_id: int
):
    """
    Raise `ValueError` unless `set_timesteps` was called, shapes fit, and `sample` holds ids up to the mask id.

    `TypeError` for what is no tensor.
    """
    check_tensor("model_output", model_output)
    check_token_ids("sample", sample)
    if num_inference_steps is None:
        raise ValueError("Call `set_timesteps` before `step`.")
    if model_output.ndim != 3 or sample.shape != model_output.shape[:2]:
        raise ValueError(
            "`model_output` must be (batch, tokens, codebook) and `sample` (batch, tokens), "
            f"got {tuple(model_output.shape)} and {tuple(sample.shape)}."
        )
    if model_output.shape[-1] != mask_token_id:
        raise ValueError(
            f"`model_output` must have {mask_token_id} logits per token, one for each id below `mask_token_id`, "
            f"got {model_output.shape[-1]}."
        )
    if not model_output.is_floating_point():
        raise ValueError(f"`model_output` must hold floats, got {model_output.dtype}.")
    check_id_range("sample", sample, mask_token_id, "`mask_token_id`, ")


def check_token_ids(name: str, value: Any):
    """Raise `TypeError` unless `value` is a tensor, `ValueError` unless it holds integers as (batch, tokens)."""
    check_tensor(name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"`{name}` must hold integer token ids, got {value.dtype}.")
    if value.ndim != 2:
        raise ValueError(f"`{name}` must be (batch, tokens), got {tuple(value.shape)}.")


def check_id_range(name: str, ids: torch.Tensor, most: int, limit: str = ""):
    """Raise `ValueError` for ids below 0 or above `most`. The message has `limit` before this number."""
    lowest, highest = torch.stack(ids.aminmax()).tolist() if ids.numel() > 0 else (0, 0)
    if lowest < 0 or highest > most:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"`{name}` must hold token ids from 0 to {limit}{most}, got {wrong}.")


def as_timestep(name: str, value: Any) -> int:
    """A timestep as an integer. `TypeError` unless it is an integer, or a tensor that holds one."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer or a tensor of one, got {shown(value)}.")
    return int(value)


def as_timesteps(name: str, values: Any, batch_size: int) -> list[int]:
    """Timesteps, one or one per sample, as integers. `TypeError` for other values, `ValueError` for another number."""
    flat = values.reshape(-1) if isinstance(values, torch.Tensor) else values
    flat = list(flat) if isinstance(flat, (list, tuple, torch.Tensor)) else [flat]
    if len(flat) not in (1, batch_size):
        raise ValueError(f"`{name}` must be one or {batch_size} integers, got {len(flat)}.")
    return [as_timestep(name, value) for value in flat]


def check_timestep_arguments(num_inference_steps: Any, device: Any, grid_size: Any):
    """Raise `ValueError` or `TypeError` for arguments of `set_timesteps` that no scheduler takes."""
    check_count("num_inference_steps", num_inference_steps, most=MAX_COUNT)
    if device is not None and not isinstance(device, (str, torch.device)):
        raise TypeError(f"`device` must be a device, its name or None, got {shown(device)}.")
    try:
        torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device of torch, got {shown(device)}.") from error
    if grid_size is None:
        return
    sides = list(grid_size) if isinstance(grid_size, (list, tuple, torch.Size)) else []
    if len(sides) != 2 or not all(is_integer(side) and 1 <= side <= MAX_COUNT for side in sides):
        raise ValueError(f"`grid_size` must be rows and columns, at least 1 each, got {shown(grid_size)}.")


def check_filter(top_k: int | None, top_p: float | None):
    """Raise `ValueError` unless `top_k` is None or at least 1, and `top_p` is None or in (0, 1]."""
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"`top_p` must be above 0 and at most 1, or None, got {shown(top_p)}.")


# Random draws
#
# All of them draw on the generator's device, so a CPU generator gives the same values for any device. With a list of
# generators, each row of the batch gets the values that it would get alone.


def sample_categorical(probabilities: torch.Tensor, generator: Generators = None) -> torch.LongTensor:
    """Draw from each distribution: (batch, tokens, codebook) probabilities to (batch, tokens) codebook indices."""
    check_generators(generator, probabilities.shape[0])
    if isinstance(generator, list):
        return torch.cat([sample_categorical(p[None], g) for p, g in zip(probabilities, generator, strict=True)])
    device = generator.device if generator is not None else probabilities.device
    flat = probabilities.flatten(0, 1).to(device=device, dtype=torch.float32)
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:2]).to(probabilities.device)


def sample_categorical_at(
    probabilities: torch.Tensor, positions: torch.BoolTensor, generator: Generators = None
) -> torch.LongTensor:
    """
    Draw from the distributions at some positions only. The indices are those that [`sample_categorical`] would give
    there, and the generator ends in the same state.

    `torch.multinomial` returns the index of the largest `p / q` with standard exponential noise q (an exponential
    race). So the other positions need their noise drawn, but not their distributions.

    Args:
        probabilities (`torch.Tensor` of shape `(selected positions, codebook)`, float32): need not sum to 1.
        positions (`torch.BoolTensor` of shape `(batch, tokens)`): the selected positions.

    Returns:
        `torch.LongTensor` of shape `(selected positions,)`: codebook indices, in the order of the positions.
    """
    check_generators(generator, positions.shape[0])
    if isinstance(generator, list):
        parts = probabilities.split(positions.sum(-1).tolist())
        rows = zip(parts, positions, generator, strict=True)
        return torch.cat([sample_categorical_at(part, row[None], one) for part, row, one in rows])
    device = positions.device if generator is None else generator.device
    weights, indices, first = probabilities.detach().to(device, torch.float32), [], 0
    for rows, noise in exponential_noise(positions, probabilities.shape[-1], generator):
        noise = noise if bool(rows.all()) else noise[rows]
        part = weights[first : first + len(noise)]
        indices.append(torch.div(part, noise, out=noise).argmax(-1))
        first += len(noise)
    return torch.cat(indices).to(probabilities.device)


def exponential_noise(
    like: torch.Tensor, codebook_size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Draw the noise that `torch.multinomial` draws for (batch, tokens) distributions, on the generator's device.

    A CPU generator draws values one after another, so a few rows at a time give the same noise. This needs less memory
    and is faster.

    Yields:
        the next rows of `like`, (rows,), and their noise, (rows, codebook). The next iteration overwrites the noise.
    """
    like = like.flatten().to(like.device if generator is None else generator.device)
    at_once = NOISE_ROWS if like.device.type == "cpu" else like.numel()
    noise = torch.empty(min(at_once, like.numel()), codebook_size, device=like.device)
    for rows in like.split(at_once):
        yield rows, noise[: len(rows)].exponential_(generator=generator)


def advance_categorical(like: torch.Tensor, codebook_size: int, generator: Generators = None):
    """Consume the random numbers that [`sample_categorical`] draws for (batch, tokens) distributions."""
    check_generators(generator, like.shape[0])
    pairs = zip(like, generator, strict=True) if isinstance(generator, list) else [(like, generator)]
    for rows, one in pairs:
        for _ in exponential_noise(rows, codebook_size, one):
            pass


def sample_uniform(like: torch.Tensor, generator: Generators = None) -> torch.Tensor:
    """Draw uniform noise in [0, 1), float32, of the shape (batch, tokens) of `like`."""
    check_generators(generator, like.shape[0])
    if isinstance(generator, list):
        return torch.cat([sample_uniform(row[None], g) for row, g in zip(like, generator, strict=True)])
    device = generator.device if generator is not None else like.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


def gumbel_noise(like: torch.Tensor, generator: Generators = None) -> torch.Tensor:
    """Draw standard Gumbel noise, `-log(-log u)`, of the shape (batch, tokens) of `like`."""
    uniform = sample_uniform(like, generator)
    return -(-uniform.clamp(1e-20).log()).clamp(1e-20).log()


def top_k_top_p_filtering(
    probabilities: torch.Tensor, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """
    Set unlikely entries of (..., codebook) probabilities to 0. The result is not normalized.

    Args:
        top_k: keep the `top_k` most likely entries, and ties with the last of them.
        top_p: of these, keep the most likely entries until their sum reaches `top_p` of the whole, including the entry
            that crosses it (nucleus sampling, arXiv:1904.09751).
    """
    if top_k is not None and top_k < probabilities.shape[-1]:
        least = probabilities.topk(top_k, -1).values[..., -1:]
        probabilities = torch.where(probabilities < least, 0.0, probabilities)
    if top_p is not None and top_p < 1:
        ordered, indices = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        unlikely = before >= top_p * ordered.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(torch.zeros_like(unlikely).scatter(-1, indices, unlikely), 0.0)
    return probabilities
