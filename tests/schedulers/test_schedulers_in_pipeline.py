"""Each scheduler in a small text-to-image pipeline and in its saved folder."""

import pytest
import tiny
import torch
from masked_schedulers import KINDS

from showo_hf import MaskGITScheduler, ShowoT2IPipeline
from showo_hf.schedulers import SCHEDULERS


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
def test_all_tokens_are_unmasked_and_given_tokens_stay(pipe, kind):
    latents = torch.randint(tiny.CODES, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    latents[0, 1:, 1:], latents[1, :3] = tiny.CODES, tiny.CODES
    grids = tokens(with_scheduler(pipe, kind), latents=latents)
    assert grids.max() < tiny.CODES
    assert torch.equal(grids[latents < tiny.CODES], latents[latents < tiny.CODES])


@pytest.mark.parametrize("kind", ["halton, roll", "entropy bound", "mask-predict", "remdm, cap"])
def test_a_saved_pipeline_keeps_its_scheduler(pipe, kind, tmp_path):
    with_scheduler(pipe, kind).save_pretrained(tmp_path)
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is KINDS[kind][0]
    assert torch.equal(tokens(loaded), tokens(pipe))


@pytest.mark.parametrize("kind", ["halton", "entropy bound"])
def test_the_temperature_argument_is_the_softmax_temperature(pipe, kind):
    with_scheduler(pipe, kind)
    cold = [tokens(pipe, temperature=0.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert torch.equal(*cold), "each step takes the most likely tokens"
    assert not torch.equal(tokens(pipe), cold[0])


def test_loading_with_another_scheduler(pipe, tmp_path):
    """Any class can load the scheduler of a saved pipeline. Saving that pipeline keeps all settings."""
    with_scheduler(pipe, "maskgit, top_k").save_pretrained(tmp_path)
    for cls in SCHEDULERS.values():
        scheduler = cls.from_pretrained(tmp_path, subfolder="scheduler")
        loaded = ShowoT2IPipeline.from_pretrained(tmp_path, scheduler=scheduler)
        assert type(loaded.scheduler) is cls and loaded.scheduler.config.mask_token_id == tiny.CODES
        loaded.save_pretrained(tmp_path / cls.__name__)
        again = ShowoT2IPipeline.from_pretrained(tmp_path / cls.__name__)
        assert type(again.scheduler) is cls
        back = MaskGITScheduler.from_config(again.scheduler.config)
        assert (back.config.top_k, back.config.mask_token_id) == (3, tiny.CODES)
