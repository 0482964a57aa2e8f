"""Wrong values for every argument of the calls that make images; see `hostile.try_all`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conversations import grid, pixels
from hostile import ANY_TEXT, HOSTILE, ITSELF, NO_OTHERS, Plain, Runs, assert_complete, networks_of, same, try_all
from image_pipelines import EDIT_ARGUMENTS, make_pipeline
from PIL import Image

from showo_hf import (
    RegionalPrompt,
    ShowoExtrapolatePipeline,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoT2IPipeline,
)
from showo_hf.pipelines.showo_pipeline import ShowoPipeline


SIZE = tiny.SIDE * tiny.FACTOR  # pixels along each side at the trained size
MASKED_GRID = torch.full((1, tiny.SIDE, tiny.SIDE), tiny.CODES)


def do_nothing(pipe, step, timestep, tensors):
    """A callback that changes nothing."""


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
    "decoder_steps": None,
    "output_type": "latent",
    "return_dict": False,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": ("latents",),
}
SIZES = {"height": None, "width": None}
CALLS: dict[type, dict[str, Any]] = {
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
#: The values that are accepted, by argument.
PLAIN: dict[str, Plain] = {
    "prompt": ANY_TEXT,
    "negative_prompt": {"none": "", **ANY_TEXT},
    "num_inference_steps": {"none": 18},
    "guidance_scale": {"none": 2.75, "zero": 1.0, "fraction": ITSELF},
    "temperature": {"none": 1.0, "zero": 0.0, "fraction": ITSELF},
    "generator": {"none": torch.Generator()},
    "decoder_steps": {"none": 0, "zero": None},
    "return_dict": {"true": ITSELF},
    "callback_on_step_end": {"none": do_nothing},
    "callback_on_step_end_tensor_inputs": {"none": ("latents",), "empty list": ("latents",)},
    "height": {"none": SIZE},
    "width": {"none": SIZE},
    "latents": {"none": MASKED_GRID},
    "strength": {"zero": ITSELF},
    "padding_mask_crop": {"none": ITSELF},
    "extent": {"none": SIZE // 2},
}
GRID = [(pipeline, name) for pipeline, valid in CALLS.items() for name in valid]


def is_grid(result: Any, count: int = 1, size: tuple[int, int] = (tiny.SIDE, tiny.SIDE)) -> bool:
    """Whether the result of an image pipeline holds so many finished token grids of this size."""
    images = result[0] if isinstance(result, tuple) else result.images
    return (
        images.dtype == torch.int64
        and images.shape == (count, *size)
        and bool(((images >= 0) & (images < tiny.CODES)).all())
    )


#: Half of the image is added.
IS_RIGHT: dict[type, Callable[[Any], bool]] = {
    **dict.fromkeys(CALLS, is_grid),
    ShowoExtrapolatePipeline: partial(is_grid, size=(tiny.SIDE, tiny.SIDE * 3 // 2)),
}


def try_images(pipeline: type, valid: dict[str, Any], name: str):
    pipe, plain = make_pipeline(pipeline), PLAIN.get(name, NO_OTHERS)
    if name in SIZES and isinstance(valid.get("image"), torch.Tensor):
        plain = {"none": ITSELF}  # token grids have their own size
    try_all(pipe, valid, name, IS_RIGHT[pipeline], plain, networks_of(pipe.model))


@pytest.mark.parametrize(("pipeline", "name"), GRID, ids=lambda value: getattr(value, "__name__", value))
def test_image_pipelines(pipeline, name):
    try_images(pipeline, CALLS[pipeline], name)


@pytest.mark.parametrize("pipeline", [ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoExtrapolatePipeline])
@pytest.mark.parametrize("name", ["height", "width", "image", "preserve_pixels", "output_type", "padding_mask_crop"])
def test_editing_of_pictures(pipeline, name):
    valid = CALLS[pipeline] | {"image": pixels(size=(SIZE, SIZE))}
    if name in valid:
        try_images(pipeline, valid, name)


@pytest.mark.parametrize("count", [2, np.int64(2)])
def test_counts_and_sizes_come_out_as_asked(count):
    options = CALLS[ShowoT2IPipeline] | {"num_images_per_prompt": count, "height": count * SIZE, "width": SIZE}
    assert is_grid(make_pipeline(ShowoT2IPipeline)(**options), 2, (2 * tiny.SIDE, tiny.SIDE))


@pytest.mark.parametrize("pipeline", [ShowoImg2ImgPipeline, ShowoInpaintPipeline])
def test_without_strength_the_image_stays(pipeline):
    (images,) = make_pipeline(pipeline)(**CALLS[pipeline] | {"strength": 0})
    assert torch.equal(images[0], grid())


# Regional prompts


def regional(pipe) -> Callable:
    """A call with two regional prompts, the second with the given fields."""
    fields = {"text": "an owl", "weight": 1.0, "mask": None}

    def call(**changed):
        prompt = [RegionalPrompt("a red apple"), RegionalPrompt(**fields | changed)]
        return pipe(**CALLS[ShowoT2IPipeline] | {"prompt": prompt})

    return call


REGIONAL: dict[str, Plain] = {
    "text": ANY_TEXT,
    "weight": {"minus one": -1.0, "zero": 0.0, "fraction": ITSELF},
    "mask": {"none": torch.ones(tiny.SIDE, tiny.SIDE)},
}


@pytest.mark.parametrize("name", REGIONAL)
def test_regional_prompts(name):
    pipe = make_pipeline(ShowoT2IPipeline)
    try_all(regional(pipe), {}, name, is_grid, REGIONAL[name], networks_of(pipe.model))


# Parts of a call

ENCODING = {
    "prompt": "a red apple",
    "negative_prompt": None,
    "num_images_per_prompt": 1,
    "do_classifier_free_guidance": True,
    "grid_size": None,
}
ENCODING_PLAIN: dict[str, Plain] = PLAIN | {
    "do_classifier_free_guidance": {"true": ITSELF},
    "grid_size": {"none": (tiny.SIDE, tiny.SIDE)},
}
DECODING = {"latents": grid()[None], "output_type": "pt", "generator": None, "decoder_steps": None}


@pytest.mark.parametrize("name", ENCODING)
def test_encoding_of_prompts(name):
    pipe = make_pipeline(ShowoT2IPipeline)

    def call(**arguments):
        encoded = pipe.encode_prompt(**arguments)
        return [encoded.cache.layers[-1].keys, encoded.attention_mask, encoded.first_position, encoded.image_indices]

    try_all(
        call, ENCODING, name, lambda found: len(found[0]) == 2, ENCODING_PLAIN.get(name, {}), networks_of(pipe.model)
    )


@pytest.mark.parametrize("name", DECODING)
def test_decoding_of_latents(name):
    pipe = make_pipeline(ShowoT2IPipeline)
    plain = {} if name == "latents" else PLAIN.get(name, NO_OTHERS)
    try_all(
        pipe.decode_latents, DECODING, name, lambda x: x.shape == (1, 3, SIZE, SIZE), plain, networks_of(pipe.model)
    )


@pytest.mark.parametrize("latents", [torch.full((1, 4, 4), tiny.CODES + 1), torch.full((1, 4, 4), -1)])
def test_latents_out_of_range_are_not_decoded(latents):
    with pytest.raises(ValueError, match="`latents` must be image tokens from 0 to 63, or 64 where masked"):
        make_pipeline(ShowoT2IPipeline).decode_latents(latents)


TRIED: dict[type, dict[str, Any]] = {pipeline: {"__call__": valid} for pipeline, valid in CALLS.items()}
TRIED[ShowoPipeline] = {"encode_prompt": ENCODING, "decode_latents": DECODING}
TRIED[RegionalPrompt] = {"__init__": REGIONAL}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)


# The state that a callback changes


@pytest.mark.parametrize("label", HOSTILE)
def test_guidance_scales_of_callbacks(label):
    pipe, value = make_pipeline(ShowoT2IPipeline), HOSTILE[label]

    def change(pipe, step, timestep, tensors):
        pipe._guidance_scale = value

    def draw():
        torch.manual_seed(0)
        return pipe(**CALLS[ShowoT2IPipeline] | {"callback_on_step_end": change})

    if label in PLAIN["guidance_scale"] and value is not None:
        found = draw()
        value = 1.0 if label == "zero" else value
        assert is_grid(found) and same(found, draw())
        return
    with pytest.raises((ValueError, TypeError), match="`guidance_scale` must be"):
        draw()


# Sizes that are too large


def refused_without_a_run(pipeline: type, message: str, *args, **options):
    pipe = make_pipeline(pipeline)
    with Runs(*networks_of(pipe.model)) as runs, pytest.raises(ValueError, match=message):
        pipe(*args, **options)
    assert not runs.count


@pytest.mark.parametrize("pipeline", [ShowoImg2ImgPipeline, ShowoInpaintPipeline, ShowoExtrapolatePipeline])
def test_a_sliver_does_not_become_thousands_of_tokens(pipeline):
    options = {"image": Image.new("RGB", (1, 9999)), "num_inference_steps": 1}
    if pipeline is ShowoInpaintPipeline:
        options["mask_image"] = Image.new("L", (1, 9999), 255)
    message = "`image` must take at most 4,096 image tokens, got 39996x4"
    refused_without_a_run(pipeline, message, "an owl", **options)


def test_a_size_of_too_many_tokens_is_refused():
    message = "`height` and `width` must take at most 4,096 image tokens, got 1000x5"
    refused_without_a_run(ShowoT2IPipeline, message, "an owl", height=4000, width=20)


def test_rounds_that_grow_too_large_are_refused():
    message = "`rounds` must take at most 4,096 image tokens"
    refused_without_a_run(ShowoExtrapolatePipeline, message, "an owl", image=pixels(), rounds=5000)
