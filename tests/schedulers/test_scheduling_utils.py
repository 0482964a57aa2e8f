"""The draws that the schedulers share, and the swapping of one for another."""

import logging

import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from diffusers import schedulers as diffusers_schedulers
from filling import generator, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import showo_hf
from showo_hf.schedulers import SCHEDULERS
from showo_hf.schedulers.scheduling_utils import (
    NOISE_ROWS,
    keep_likely,
    sample_categorical,
    sample_wanted,
    skip_categorical,
)


# Draws


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70), st.booleans(), seeds)
def test_some_tokens_are_drawn_as_among_all(batch, tokens, codes, listed, seed):
    """Codes and generators as `torch.multinomial` gives and leaves them; also where nothing is drawn at all."""
    numbers = generator(seed)
    probabilities = torch.rand(batch, tokens, codes, generator=numbers).softmax(-1)
    wanted = torch.rand(batch, tokens, generator=numbers) < torch.rand((), generator=numbers)
    draws = [[generator(seed + i) for i in range(batch)] if listed else generator(seed) for _ in range(3)]
    expected = sample_categorical(probabilities, draws[0])
    assert torch.equal(sample_wanted(probabilities[wanted], wanted, draws[1]), expected[wanted])
    skip_categorical(wanted, codes, draws[2])
    states = [[one.get_state() for one in (some if listed else [some])] for some in draws]
    for first, *others in zip(*states, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("tokens", [40, NOISE_ROWS, 2 * NOISE_ROWS + 1])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_draws_at_the_size_of_the_published_models(tokens, every):
    probabilities = torch.randn(1, tokens, 8192, generator=generator(1)).softmax(-1)
    wanted, draws = torch.arange(tokens)[None] % every == 0, [generator() for _ in range(3)]
    expected = torch.multinomial(probabilities[0], 1, generator=draws[0])[:, 0]
    assert torch.equal(sample_wanted(probabilities[wanted], wanted, draws[1]), expected[wanted[0]])
    skip_categorical(wanted, 8192, draws[2])
    assert all(torch.equal(draws[0].get_state(), one.get_state()) for one in draws)


def test_the_default_generator_is_used_where_none_is_given():
    wanted = torch.tensor([[True, False, True]])
    torch.manual_seed(3)
    expected = sample_categorical(torch.full((1, 3, 5), 0.2))
    torch.manual_seed(3)
    assert torch.equal(sample_wanted(torch.full((2, 5), 0.2), wanted), expected[wanted])


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 30), st.integers(1, 40), st.floats(0.01, 1), seeds)
def test_the_likeliest_codes_are_kept(codes, top_k, top_p, seed):
    p = torch.randn(3, codes, generator=generator(seed)).mul(2).softmax(-1)
    by_count, by_sum = keep_likely(p, top_k=top_k), keep_likely(p, top_p=top_p)
    for row, counted, summed in zip(p, by_count, by_sum, strict=True):
        assert counted.count_nonzero() == min(top_k, codes)
        for kept in (counted, summed):
            assert torch.equal(kept[kept > 0], row[kept > 0])
            assert kept[kept > 0].min() >= row[kept == 0].max() if (kept == 0).any() else True
        assert summed.sum() >= top_p - 1e-5
        assert summed.sum() - summed[summed > 0].min() < top_p + 1e-5, "one code less would not do"
    assert torch.equal(keep_likely(p), p)


# Swapping


def settings_of(cls) -> dict:
    """Settings of a scheduler that are not its defaults, as far as several have them."""
    shared = {
        "mask_token_id": 64,
        "masking_schedule": "pow3",
        "temperature": 2.5,
        "temperature_rule": "linear",
        "token_temperature": 0.75,
        "top_k": 7,
        "top_p": 0.5,
    }
    names = cls._get_init_keys(cls)
    return {name: value for name, value in shared.items() if name in names}


@pytest.fixture
def warnings_of_diffusers():
    """Texts that diffusers' logger wrote."""

    class Texts(logging.Handler):
        def emit(self, record):
            self.texts.append(record.getMessage())

    handler = Texts(logging.WARNING)
    handler.texts = []
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield handler.texts
    logger.removeHandler(handler)


def same_entries(one, other, names) -> bool:
    return all(one.config[name] == other.config[name] for name in names)


@pytest.mark.parametrize("theirs", SCHEDULERS.values())
@pytest.mark.parametrize("ours", SCHEDULERS.values())
def test_each_takes_the_place_of_each(ours, theirs, tmp_path, warnings_of_diffusers):
    made = theirs(**settings_of(theirs))
    made.save_pretrained(tmp_path)
    shared = settings_of(ours).keys() & settings_of(theirs).keys()
    assert "mask_token_id" in shared
    for swapped in (ours.from_config(made.config), ours.from_pretrained(tmp_path)):
        assert type(swapped) is ours and same_entries(swapped, made, shared)
        back = theirs.from_config(swapped.config)
        assert same_entries(back, made, settings_of(theirs)), "what only one of them has is not lost on the way"
    assert warnings_of_diffusers == []
    assert set(made.compatibles) >= set(SCHEDULERS.values()) - {theirs}


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_the_mask_is_kept_however_it_was_given(cls):
    for made in (cls(64), cls(mask_token_id=64)):
        for other in SCHEDULERS.values():
            assert other.from_config(made.config).config.mask_token_id == 64
    assert AmusedScheduler.from_config(cls().config).config.mask_token_id == cls().config.mask_token_id


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_settings_of_numpy_can_be_saved(cls, tmp_path):
    plain = settings_of(cls)
    made = cls(**{name: value if isinstance(value, str) else np.array(value)[()] for name, value in plain.items()})
    made.save_pretrained(tmp_path)
    assert same_entries(cls.from_pretrained(tmp_path), cls(**plain), plain)


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_swapping_with_diffusers_schedulers(cls, tmp_path, warnings_of_diffusers):
    amused = AmusedScheduler(mask_token_id=64, masking_schedule="linear")
    amused.save_pretrained(tmp_path)
    for swapped in (cls.from_config(amused.config), cls.from_pretrained(tmp_path)):
        assert swapped.config.mask_token_id == 64
        assert swapped.config.masking_schedule == "linear"
        assert AmusedScheduler.from_config(swapped.config).config.mask_token_id == 64
    BlockRefinementScheduler(block_length=16).save_pretrained(tmp_path)
    assert isinstance(cls.from_pretrained(tmp_path, mask_token_id=64), cls)
    assert warnings_of_diffusers == []


def test_diffusers_entropy_bound_is_taken_over(tmp_path):
    theirs = diffusers_schedulers.scheduling_entropy_bound.EntropyBoundScheduler(entropy_bound=0.5)
    theirs.save_pretrained(tmp_path)
    for cls in SCHEDULERS.values():
        cls.from_pretrained(tmp_path)
    assert showo_hf.EntropyBoundScheduler.from_pretrained(tmp_path).config.entropy_bound == 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_names_of_the_command_line_are_the_classes(name):
    cls = SCHEDULERS[name]
    assert cls.__name__.lower() == name.replace("-", "") + "scheduler"
    assert getattr(showo_hf, cls.__name__) is cls and cls.__name__ in showo_hf.__all__
