"""Wrong values for every argument of the schedulers' calls; see `hostile.try_all`."""

import inspect
from typing import Any

import pytest
import torch
from hostile import ITSELF, NO_OTHERS, Plain, parameters_of, try_all

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
@pytest.mark.parametrize("name", ["num_inference_steps", "device", "grid_size", "temperature"])
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
@pytest.mark.parametrize("name", ["model_output", "timestep", "sample", "generator"])
def test_step(kind, name):
    def call(**arguments):
        scheduler = kind(mask_token_id=8)
        scheduler.set_timesteps(1)
        valid = {"model_output": LOGITS, "timestep": scheduler.timesteps[0], "sample": TOKENS, "generator": None}
        return scheduler.step(**(valid | arguments)).prev_sample

    plain: dict[str, Plain] = {"timestep": {"zero": torch.tensor(0)}, "generator": {"none": torch.Generator()}}
    if kind is MaskAndReplaceScheduler:  # its one step begins at the last of the trained timesteps
        plain["timestep"] = NO_OTHERS
    try_all(call, {}, name, is_filled, plain.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["original_samples", "timesteps", "generator"])
def test_add_noise(kind, name):
    scheduler = kind(mask_token_id=8)
    scheduler.set_timesteps(1)
    valid = {"original_samples": TOKENS - 1, "timesteps": scheduler.timesteps[0], "generator": None}
    plain = {"timesteps": {"zero": torch.tensor(0)}, "generator": {"none": torch.Generator()}}
    if kind is MaskAndReplaceScheduler:  # any of the trained timesteps, one for each row
        plain["timesteps"] = {**plain["timesteps"], "tensor": ITSELF}

    def is_noised(sample: torch.LongTensor) -> bool:
        return sample.shape == (2, 4) and bool(((sample >= 0) & (sample <= 8)).all())

    try_all(scheduler.add_noise, valid, name, is_noised, plain.get(name, NO_OTHERS))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_argument_is_in_the_grid(kind):
    assert parameters_of(kind.step) - {"return_dict"} == {"model_output", "timestep", "sample", "generator"}
    assert parameters_of(kind.add_noise) == {"original_samples", "timesteps", "generator"}
    assert parameters_of(kind.set_timesteps) <= {"num_inference_steps", "device", "grid_size", "temperature"}
