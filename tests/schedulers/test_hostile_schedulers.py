"""Wrong values for every argument of the schedulers' calls; see `hostile.try_all`."""

import inspect
from typing import Any

import pytest
import torch
from hostile import ITSELF, NO_OTHERS, Plain, assert_complete, parameters_of, try_all

from showo_hf import (
    EntropyBoundScheduler,
    HaltonScheduler,
    MaskAndReplaceScheduler,
    MaskGITScheduler,
    RemaskingScheduler,
)


SCHEDULERS = (MaskGITScheduler, HaltonScheduler, RemaskingScheduler, EntropyBoundScheduler, MaskAndReplaceScheduler)
TOKENS = torch.full((2, 4), 8)
LOGITS = torch.zeros(2, 4, 8)
OFF_OR_ANY: Plain = {"zero": 0.0, "fraction": ITSELF}
#: The values that are accepted, by argument of a constructor.
PLAIN: dict[str, Plain] = {
    "temperature": OFF_OR_ANY,
    "token_temperature": OFF_OR_ANY,
    "top_k": {"none": 8, "2**63": 8, "5000 digits": 8},
    "top_p": {"none": 1.0},
    "roll": {"true": ITSELF},
    "eta": {"zero": 0.0},
    "entropy_bound": OFF_OR_ANY,
    "mask_share": {"zero": 0.0},
    "purity": {"true": ITSELF},
    "purity_weight": OFF_OR_ANY,
    "auxiliary_weight": OFF_OR_ANY,
    "adaptive_auxiliary": {"true": ITSELF},
}
TIMESTEPS = ("num_inference_steps", "device", "grid_size", "temperature")
STEP = {"model_output": LOGITS, "timestep": 0, "sample": TOKENS, "generator": None, "return_dict": True}
NOISE = {"original_samples": TOKENS - 1, "timesteps": 0, "generator": None}
SCHEDULER_ARGUMENTS = [(kind, name) for kind in SCHEDULERS for name in sorted(parameters_of(kind.__init__))]


def stepped(scheduler: Any) -> torch.LongTensor:
    """The sample after all steps of a scheduler with 8 codes."""
    sample = TOKENS
    for timestep in scheduler.timesteps:
        sample = scheduler.step(LOGITS, timestep, sample, torch.Generator().manual_seed(0)).prev_sample
    return sample


def is_filled(sample: torch.LongTensor) -> bool:
    return sample.shape == (2, 4) and bool(((sample >= 0) & (sample < 8)).all())


@pytest.mark.parametrize(("kind", "name"), SCHEDULER_ARGUMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_constructors(kind, name):
    def build(**arguments):
        scheduler = kind(**arguments)
        scheduler.set_timesteps(2 if kind is not MaskAndReplaceScheduler else 1)
        return stepped(scheduler)

    try_all(build, {"mask_token_id": 8}, name, is_filled, PLAIN.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", TIMESTEPS)
def test_set_timesteps(kind, name):
    def call(**arguments):
        scheduler = kind(mask_token_id=8)
        scheduler.set_timesteps(**arguments)
        return stepped(scheduler)

    # The default temperature is 1, and four tokens are a grid of 2 x 2.
    plain = {"device": {"none": "cpu"}, "grid_size": {"none": (2, 2)}, "temperature": {"none": 1.0, **OFF_OR_ANY}}
    if name in inspect.signature(kind.set_timesteps).parameters:
        try_all(call, {"num_inference_steps": 2}, name, is_filled, plain.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", STEP)
def test_step(kind, name):
    def call(**arguments):
        scheduler = kind(mask_token_id=8)
        scheduler.set_timesteps(1)
        found = scheduler.step(**(STEP | {"timestep": scheduler.timesteps[0]} | arguments))
        return found[0] if isinstance(found, tuple) else found.prev_sample

    plain: dict[str, Plain] = {
        "timestep": {"zero": torch.tensor(0)},
        "generator": {"none": torch.Generator()},
        "return_dict": {"true": False},
    }
    if kind is MaskAndReplaceScheduler:  # its one step begins at the last of the trained timesteps
        plain["timestep"] = NO_OTHERS
    try_all(call, {}, name, is_filled, plain.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", NOISE)
def test_add_noise(kind, name):
    scheduler = kind(mask_token_id=8)
    scheduler.set_timesteps(1)
    valid = NOISE | {"timesteps": scheduler.timesteps[0]}
    plain = {"timesteps": {"zero": torch.tensor(0)}, "generator": {"none": torch.Generator()}}
    if kind is MaskAndReplaceScheduler:  # any of the trained timesteps, one for each row
        plain["timesteps"] = {**plain["timesteps"], "tensor": ITSELF}

    def is_noised(sample: torch.LongTensor) -> bool:
        return sample.shape == (2, 4) and bool(((sample >= 0) & (sample <= 8)).all())

    try_all(scheduler.add_noise, valid, name, is_noised, plain.get(name, NO_OTHERS))


# Training

#: Two rows of which no token is masked.
KNOWN = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
BOUND = {"model_output": LOGITS, "original_samples": KNOWN, "sample": TOKENS, "timesteps": torch.tensor([1, 2])}
TRAINING: dict[str, dict[str, Any]] = {
    "sample_timesteps": {"batch_size": 2, "generator": None, "importance": False},
    "bound_terms": BOUND,
    "training_loss": BOUND | {"probabilities": None},
    "update_history": {"timesteps": torch.tensor([1, 2]), "terms": torch.tensor([0.5, 1.5])},
}
TRAINING_PLAIN: dict[str, Plain] = {
    "generator": {"none": torch.Generator()},
    "importance": {"true": ITSELF},
    "timesteps": {"tensor": ITSELF},
    "probabilities": {"none": torch.full((2,), 0.01)},
}


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, valid in TRAINING.items() for name in valid])
def test_training(call, name):
    def run(**arguments):
        scheduler = MaskAndReplaceScheduler(mask_token_id=8)
        found = getattr(scheduler, call)(**arguments)
        return scheduler.squared_losses if found is None else found

    def is_right(found: Any) -> bool:
        tensors = found if isinstance(found, tuple) else [getattr(found, "loss", found)]
        return all(bool(tensor.isfinite().all()) and bool((tensor >= 0).all()) for tensor in tensors)

    try_all(run, TRAINING[call], name, is_right, TRAINING_PLAIN.get(name, NO_OTHERS))


@pytest.mark.parametrize("call", ["bound_terms", "training_loss"])
@pytest.mark.parametrize("token", [-1, 8])
def test_original_samples_are_not_masked(call, token):
    with pytest.raises(ValueError, match=f"`original_samples` must hold token ids from 0 to 7, got {token}"):
        getattr(MaskAndReplaceScheduler(mask_token_id=8), call)(**BOUND | {"original_samples": KNOWN * 0 + token})


@pytest.mark.parametrize("call", ["bound_terms", "training_loss", "update_history"])
@pytest.mark.parametrize(
    "timesteps", [torch.tensor([1, 0]), torch.tensor([101, 2]), torch.tensor([1, 2, 3]), [1.5, 2]]
)
def test_timesteps_of_training_are_checked(call, timesteps):
    with pytest.raises((ValueError, TypeError), match="`timesteps` must be"):
        getattr(MaskAndReplaceScheduler(mask_token_id=8), call)(**TRAINING[call] | {"timesteps": timesteps})


@pytest.mark.parametrize("shares", [[0.0, 0.5], [-0.5, 0.5], [1.5, 0.5], [float("nan"), 0.5], [0.5]])
def test_probabilities_of_timesteps_are_checked(shares):
    with pytest.raises(ValueError, match="`probabilities` must be"):
        MaskAndReplaceScheduler(mask_token_id=8).training_loss(**BOUND, probabilities=torch.tensor(shares))


TRIED: dict[type, dict[str, Any]] = {
    kind: {
        "__init__": [name for one, name in SCHEDULER_ARGUMENTS if one is kind],
        "set_timesteps": [name for name in TIMESTEPS if name in parameters_of(kind.set_timesteps)],
        "step": STEP,
        "add_noise": NOISE,
    }
    for kind in SCHEDULERS
}
TRIED[MaskAndReplaceScheduler] |= TRAINING


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
