"""The number of steps and the guidance scale that a model has of its own, for calls that say nothing else."""

import pytest
import tiny
import torch
from image_pipelines import EDIT_ARGUMENTS

from showo_hf import ShowoAnyToAnyPipeline, ShowoConfig, ShowoMMUPipeline, ShowoT2IPipeline


OWN = {"num_inference_steps": 3, "guidance_scale": 1.5}


@pytest.fixture
def pipe(processor):
    """A pipeline whose model has defaults of its own."""
    made = tiny.pipeline(processor)
    made.model.config.image_num_inference_steps = OWN["num_inference_steps"]
    made.model.config.image_guidance_scale = OWN["guidance_scale"]
    return made


def tokens(pipe, arguments, **options) -> torch.LongTensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red apple", **arguments, **options, generator=generator, output_type="latent").images


@pytest.mark.parametrize("kind", [ShowoT2IPipeline, *EDIT_ARGUMENTS])
def test_a_call_takes_the_defaults_of_its_model(pipe, kind):
    pipe = kind(**pipe.components)
    arguments = {"image": torch.zeros(1, tiny.SIDE, tiny.SIDE, dtype=torch.int64)} if kind in EDIT_ARGUMENTS else {}
    arguments |= EDIT_ARGUMENTS.get(kind, {})
    found = tokens(pipe, arguments)
    steps = pipe.num_timesteps
    assert pipe.guidance_scale == 1.5
    assert torch.equal(found, tokens(pipe, arguments, **OWN)) and pipe.num_timesteps == steps <= 3
    tokens(pipe, arguments, num_inference_steps=9, guidance_scale=2.0)
    assert pipe.num_timesteps > steps and pipe.guidance_scale == 2.0


def test_an_answer_takes_the_defaults_of_its_model(pipe):
    pipe = ShowoAnyToAnyPipeline(**pipe.components)
    params = pipe.answer_params(max_images=1)
    assert (params.num_inference_steps, params.guidance_scale) == (3, 1.5)
    assert pipe.answer_params(guidance_scale=4.0, num_inference_steps=None).guidance_scale == 4.0


def test_the_defaults_are_saved_with_the_model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for kind in (ShowoT2IPipeline, ShowoMMUPipeline):
        assert kind.from_pretrained(tmp_path).with_defaults(None, None) == (3, 1.5)


def test_other_models_have_those_of_the_published_ones(processor):
    assert tiny.pipeline(processor).with_defaults(None, None) == (18, 2.75)


@pytest.mark.parametrize("wrong", [{"image_num_inference_steps": 0}, {"image_guidance_scale": float("nan")}])
def test_wrong_defaults_of_a_model_are_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        ShowoConfig(**wrong)
