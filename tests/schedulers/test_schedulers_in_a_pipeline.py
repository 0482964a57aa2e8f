"""Each scheduler in a small text-to-image pipeline, and in its saved folder."""

import pytest
import tiny
import torch
from filling import KINDS

from showo_hf import ShowoT2IPipeline


PROMPTS = ["owl", "a green pear"]


def with_scheduler(pipe, kind):
    cls, options = KINDS[kind]
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **options)
    return pipe


def tokens(pipe, **kwargs):
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    options = {"num_inference_steps": 5, "generator": generators, "output_type": "latent"}
    return pipe(PROMPTS, **(options | kwargs)).images


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_filled_in_and_what_is_given_stays(pipe, kind):
    latents = torch.randint(tiny.CODES, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    latents[0, 1:, 1:], latents[1, :3] = tiny.CODES, tiny.CODES
    grids = tokens(with_scheduler(pipe, kind), latents=latents)
    assert grids.max() < tiny.CODES
    assert torch.equal(grids[latents < tiny.CODES], latents[latents < tiny.CODES])


@pytest.mark.parametrize("kind", ["halton, roll", "entropy bound", "mask-predict", "remdm, cap"])
def test_a_saved_pipeline_has_its_scheduler(pipe, kind, tmp_path):
    with_scheduler(pipe, kind).save_pretrained(tmp_path)
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is KINDS[kind][0]
    assert torch.equal(tokens(loaded), tokens(pipe))


@pytest.mark.parametrize("kind", ["halton", "entropy bound"])
def test_the_temperature_of_the_call_is_that_of_the_tokens(pipe, kind):
    with_scheduler(pipe, kind)
    cold = [tokens(pipe, temperature=0.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert torch.equal(*cold), "each step takes the likeliest codes"
    assert not torch.equal(tokens(pipe), cold[0])
