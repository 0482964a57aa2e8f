"""
Wrong values for every argument of every public call.

Each call has arguments that work. One of them at a time gets each hostile value. Either the call refuses it with a
`ValueError` or a `TypeError` that names the argument, before the model runs; or its result is right.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conversations import PROCESSOR, grid, make_chat_pipeline, pixels
from image_pipelines import EDIT_ARGUMENTS, make_pipeline, shared_model
from PIL import Image

from showo_hf import (
    EntropyBoundScheduler,
    HaltonScheduler,
    MaskAndReplaceScheduler,
    MaskGITScheduler,
    RemaskingScheduler,
    ShowoExtrapolatePipeline,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
)


HOSTILE: dict[str, Any] = {
    "none": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "fraction": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "huge float": 1e308,
    "2**63": 2**63,
    "5000 digits": 10**5000,
    "empty text": "",
    "text": "nonsense",
    "half a surrogate": "\ud800",
    "bytes": b"\xff\xd8\xff",
    "empty list": [],
    "list of none": [None],
    "empty dict": {},
    "object": object(),
    "complex": 1j,
    "function": lambda: None,
    "array": np.array([[-1.0, 2.0], [3.0, np.nan]]),
    "tensor": torch.tensor([1, 2]),
}


class RanBeforeRefusal(AssertionError):
    """The model ran, and then the call was refused."""


@dataclass
class Runs:
    """Counts how often the modules of a model run."""

    count: int = 0

    def watch(self, module: torch.nn.Module):
        return module.register_forward_pre_hook(self.add)

    def add(self, *_):
        self.count += 1


@pytest.fixture(scope="module")
def runs() -> Runs:
    found = Runs()
    model = shared_model()
    hooks = [
        found.watch(model),
        found.watch(model.image_tokenizer.encoder),
        found.watch(model.image_tokenizer.decoder),
    ]
    yield found
    for hook in hooks:
        hook.remove()


def try_all(
    call: Callable, valid: dict[str, Any], name: str, is_right: Callable[[Any], bool], runs: Runs | None = None
) -> None:
    """Call with each hostile value of one argument; raise `AssertionError` that lists all that goes wrong."""
    wrong = []
    for label, value in HOSTILE.items():
        before = runs.count if runs else 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = call(**(valid | {name: value}))
        except (ValueError, TypeError) as error:
            if name not in str(error):
                wrong.append(f"{label}: the message does not name `{name}`: {error!r:.200}")
            elif len(str(error)) > 1000:
                wrong.append(f"{label}: a message of {len(str(error))} characters")
            elif runs and runs.count > before:
                wrong.append(f"{label}: refused after the model ran: {error!r:.200}")
        except Exception as error:
            wrong.append(f"{label}: {error!r:.200}")
        else:
            if not is_right(result):
                wrong.append(f"{label}: accepted, with the result {result!r:.100}")
    assert not wrong, f"{name}:\n" + "\n".join(wrong)


# Image pipelines

SHARED = {
    "prompt": "a red apple",
    "negative_prompt": None,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "guidance_schedule": "constant",
    "guidance_interval": (0.0, 1.0),
    "temperature": None,
    "num_images_per_prompt": 1,
    "generator": None,
    "output_type": "latent",
    "return_dict": False,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": ("latents",),
}
SIZES = {"height": None, "width": None}
CALLS = {
    ShowoT2IPipeline: SHARED | SIZES | {"latents": None},
    ShowoImg2ImgPipeline: SHARED | SIZES | {"image": grid(), "strength": 0.5, "remasking": "random"},
    ShowoInpaintPipeline: SHARED
    | SIZES
    | {"image": grid(), "strength": 0.5, "remasking": "random", "padding_mask_crop": None, "preserve_pixels": False}
    | EDIT_ARGUMENTS[ShowoInpaintPipeline],
    ShowoExtrapolatePipeline: SHARED
    | SIZES
    | {"image": grid(), "direction": "right", "extent": None, "rounds": 1, "preserve_pixels": False},
}
GRID = [(pipeline, name) for pipeline, valid in CALLS.items() for name in valid]


def are_images(result: Any) -> bool:
    """Whether the result of an image pipeline holds a batch of finished token grids, or of pictures."""
    images = result[0] if isinstance(result, tuple) else result.images
    if isinstance(images, torch.Tensor) and images.dtype == torch.int64:
        return images.ndim == 3 and len(images) > 0 and bool(((images >= 0) & (images < tiny.CODES)).all())
    return len(images) > 0


@pytest.mark.parametrize(("pipeline", "name"), GRID, ids=lambda value: getattr(value, "__name__", value))
def test_image_pipelines(pipeline, name, runs):
    try_all(make_pipeline(pipeline), CALLS[pipeline], name, are_images, runs)


@pytest.mark.parametrize("pipeline", [ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoExtrapolatePipeline])
@pytest.mark.parametrize("name", ["height", "width", "image", "preserve_pixels", "output_type", "padding_mask_crop"])
def test_editing_of_pictures(pipeline, name, runs):
    valid = CALLS[pipeline] | {"image": pixels(size=(16, 16))}
    if name in valid:
        try_all(make_pipeline(pipeline), valid, name, are_images, runs)


@pytest.mark.parametrize("pipeline", CALLS, ids=lambda value: value.__name__)
def test_every_argument_is_in_the_grid(pipeline):
    assert set(inspect.signature(pipeline.__call__).parameters) - {"self"} == set(CALLS[pipeline])


@pytest.mark.parametrize("pipeline", [ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoExtrapolatePipeline])
def test_a_sliver_does_not_become_thousands_of_tokens(pipeline, runs):
    sliver, before = Image.new("RGB", (1, 9999)), runs.count
    extra = {"mask_image": Image.new("L", (1, 9999), 255)} if pipeline is ShowoInpaintPipeline else {}
    with pytest.raises(ValueError, match="`image` must take at most 4,096 image tokens, got 39996x4"):
        make_pipeline(pipeline)("an owl", image=sliver, num_inference_steps=1, **extra)
    assert runs.count == before


def test_rounds_that_grow_too_large_are_refused(runs):
    before = runs.count
    with pytest.raises(ValueError, match="`rounds` must take at most 4,096 image tokens"):
        make_pipeline(ShowoExtrapolatePipeline)("an owl", image=pixels(), rounds=5000)
    assert runs.count == before


# Understanding and conversations

MMU = {
    "images": grid(),
    "prompts": "what?",
    "max_new_tokens": 2,
    "batch_size": 2,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "generator": None,
    "return_dict": False,
}
GENERATE_OPTIONS = ("num_beams", "num_return_sequences", "no_such_option", "attention_mask")
CHAT = {
    "messages": "an owl",
    "max_new_tokens": 2,
    "max_images": 1,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "temperature": None,
    "do_sample": False,
    "text_temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "generator": None,
    "output_type": "latent",
    "return_dict": True,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": ("latents",),
}


def are_texts(result: Any) -> bool:
    texts = result[0] if isinstance(result, tuple) else result.texts
    return len(texts) > 0 and all(isinstance(text, str) for text in texts)


def is_answer(result: Any) -> bool:
    if isinstance(result, tuple):
        return len(result) == 3
    return result.message["role"] == "assistant" and result.finish_reason in ("stop", "length")


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("name", [*MMU, *GENERATE_OPTIONS])
def test_understanding(name, do_sample, runs):
    pipe = make_pipeline(ShowoMMUPipeline)
    try_all(pipe, MMU | {"do_sample": do_sample}, name, are_texts, runs)


@pytest.mark.parametrize("name", ["images", "prompts", "answers", "batch_size"])
def test_scores(name, runs):
    valid = {"images": grid(), "prompts": "what?", "answers": ["owl"], "batch_size": 2}
    call = make_pipeline(ShowoMMUPipeline).score
    try_all(call, valid, name, lambda result: bool(result.log_likelihoods[0].isfinite().all()), runs)


@pytest.mark.parametrize("name", CHAT)
def test_conversations(name, runs):
    pipe = make_chat_pipeline(shared_model())
    try_all(pipe, CHAT, name, is_answer, runs)


def test_every_argument_of_text_is_in_the_grid():
    assert {*inspect.signature(ShowoMMUPipeline.__call__).parameters} - {"self", "generate_kwargs"} == set(MMU)
    assert {*inspect.signature(type(make_chat_pipeline(shared_model())).__call__).parameters} - {"self"} == set(CHAT)


def test_whole_numbers_are_temperatures():
    pipe = make_pipeline(ShowoMMUPipeline)
    options = {"max_new_tokens": 4, "do_sample": True, "return_dict": False}
    first, second = (
        pipe(grid(), "what?", temperature=one, generator=torch.Generator().manual_seed(3), **options)
        for one in (2, 2.0)
    )
    assert first == second


# Schedulers

SCHEDULERS = (MaskGITScheduler, HaltonScheduler, RemaskingScheduler, EntropyBoundScheduler, MaskAndReplaceScheduler)
TOKENS = torch.full((2, 4), 8)
LOGITS = torch.zeros(2, 4, 8)


def stepped(scheduler: Any) -> torch.LongTensor:
    """The sample after all steps of a scheduler with 8 codes."""
    sample = TOKENS
    for timestep in scheduler.timesteps:
        sample = scheduler.step(LOGITS, timestep, sample, torch.Generator().manual_seed(0)).prev_sample
    return sample


def is_filled(sample: torch.LongTensor) -> bool:
    return sample.shape == (2, 4) and bool(((sample >= 0) & (sample < 8)).all())


SCHEDULER_ARGUMENTS = [
    (kind, name) for kind in SCHEDULERS for name in inspect.signature(kind.__init__).parameters if name != "self"
]


@pytest.mark.parametrize(("kind", "name"), SCHEDULER_ARGUMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_constructors_of_schedulers(kind, name):
    def build(**arguments):
        scheduler = kind(**arguments)
        if scheduler.config.mask_token_id == 8:
            scheduler.set_timesteps(2 if kind is not MaskAndReplaceScheduler else 1)
            return is_filled(stepped(scheduler))
        return scheduler.config.mask_token_id > 0

    try_all(build, {"mask_token_id": 8}, name, bool)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["num_inference_steps", "device", "grid_size", "temperature"])
def test_set_timesteps(kind, name):
    if name not in inspect.signature(kind.set_timesteps).parameters:
        return

    def call(**arguments):
        scheduler = kind(mask_token_id=8)
        scheduler.set_timesteps(**arguments)
        return is_filled(stepped(scheduler))

    try_all(call, {"num_inference_steps": 2}, name, bool)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["model_output", "timestep", "sample", "generator"])
def test_step(kind, name):
    def call(**arguments):
        scheduler = kind(mask_token_id=8)
        scheduler.set_timesteps(1)
        valid = {"model_output": LOGITS, "timestep": scheduler.timesteps[0], "sample": TOKENS, "generator": None}
        return is_filled(scheduler.step(**(valid | arguments)).prev_sample)

    try_all(call, {}, name, bool)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["original_samples", "timesteps", "generator"])
def test_add_noise(kind, name):
    scheduler = kind(mask_token_id=8)
    scheduler.set_timesteps(1)
    valid = {"original_samples": TOKENS - 1, "timesteps": scheduler.timesteps[0], "generator": None}
    try_all(scheduler.add_noise, valid, name, lambda sample: sample.shape == (2, 4))


# The processor and `generate`


@pytest.mark.parametrize(
    "name", ["images", "text", "padding", "truncation", "max_length", "padding_side", "return_tensors"]
)
def test_processor(name):
    valid = {"text": "an owl", "images": None}
    try_all(PROCESSOR, valid, name, lambda data: len(data["input_ids"] if "input_ids" in data else data) > 0)


@pytest.mark.parametrize("name", ["inputs", "pixel_values", "max_new_tokens"])
def test_generate(name, runs):
    valid = {"inputs": PROCESSOR(text="an owl")["input_ids"], "max_new_tokens": 1, "do_sample": False}
    try_all(shared_model().generate, valid, name, lambda ids: ids.ndim == 2, runs)
