"""Random draws shared by the schedulers, and swapping schedulers with `from_config`."""

import inspect
import logging

import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from diffusers import schedulers as diffusers_schedulers
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_schedulers import generator, seeds

import showo_hf
from showo_hf import EntropyBoundScheduler, HaltonScheduler, MaskGITScheduler
from showo_hf.schedulers import SCHEDULERS
from showo_hf.schedulers.scheduling_utils import (
    NOISE_ROWS,
    advance_categorical,
    sample_categorical,
    sample_categorical_at,
    top_k_top_p_filtering,
)


# Random draws


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70), st.booleans(), seeds)
def test_sampling_at_some_positions_equals_sampling_at_all(batch, tokens, codebook_size, listed, seed):
    """Tokens and generator states are those of `torch.multinomial`, even if no position is selected."""
    numbers = generator(seed)
    probabilities = torch.rand(batch, tokens, codebook_size, generator=numbers).softmax(-1)
    selected = torch.rand(batch, tokens, generator=numbers) < torch.rand((), generator=numbers)
    draws = [[generator(seed + i) for i in range(batch)] if listed else generator(seed) for _ in range(3)]
    expected = sample_categorical(probabilities, draws[0])
    assert torch.equal(sample_categorical_at(probabilities[selected], selected, draws[1]), expected[selected])
    advance_categorical(selected, codebook_size, draws[2])
    states = [[one.get_state() for one in (some if listed else [some])] for some in draws]
    for first, *others in zip(*states, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("tokens", [40, NOISE_ROWS, 2 * NOISE_ROWS + 1])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_sampling_with_the_codebook_of_the_published_models(tokens, every):
    probabilities = torch.randn(1, tokens, 8192, generator=generator(1)).softmax(-1)
    selected, draws = torch.arange(tokens)[None] % every == 0, [generator() for _ in range(3)]
    expected = torch.multinomial(probabilities[0], 1, generator=draws[0])[:, 0]
    assert torch.equal(sample_categorical_at(probabilities[selected], selected, draws[1]), expected[selected[0]])
    advance_categorical(selected, 8192, draws[2])
    assert all(torch.equal(draws[0].get_state(), one.get_state()) for one in draws)


def test_the_default_generator_is_used_if_none_is_given():
    selected = torch.tensor([[True, False, True]])
    torch.manual_seed(3)
    expected = sample_categorical(torch.full((1, 3, 5), 0.2))
    torch.manual_seed(3)
    assert torch.equal(sample_categorical_at(torch.full((2, 5), 0.2), selected), expected[selected])


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 30), st.integers(1, 40), st.floats(0.01, 1), seeds)
def test_filtering_keeps_the_most_likely_tokens(codebook_size, top_k, top_p, seed):
    p = torch.randn(3, codebook_size, generator=generator(seed)).mul(2).softmax(-1)
    by_count, by_sum = top_k_top_p_filtering(p, top_k=top_k), top_k_top_p_filtering(p, top_p=top_p)
    for row, counted, summed in zip(p, by_count, by_sum, strict=True):
        assert counted.count_nonzero() == min(top_k, codebook_size)
        for kept in (counted, summed):
            assert torch.equal(kept[kept > 0], row[kept > 0])
            assert kept[kept > 0].min() >= row[kept == 0].max() if (kept == 0).any() else True
        assert summed.sum() >= top_p - 1e-5
        assert summed.sum() - summed[summed > 0].min() < top_p + 1e-5, (
            "without the least likely one, the sum is too low"
        )
    assert torch.equal(top_k_top_p_filtering(p), p)


# Swapping


def non_default_settings(cls) -> dict:
    """Values other than the defaults for the arguments that several schedulers have."""
    shared = {
        "mask_token_id": 64,
        "masking_schedule": "pow3",
        "temperature": 2.5,
        "temperature_rule": "linear",
        "token_temperature": 0.75,
        "top_k": 7,
        "top_p": 0.5,
    }
    names = inspect.signature(cls.__init__).parameters
    return {name: value for name, value in shared.items() if name in names}


@pytest.fixture
def warnings_of_diffusers():
    """Warnings that the logger of diffusers wrote."""

    class Messages(logging.Handler):
        def emit(self, record):
            self.messages.append(record.getMessage())

    handler = Messages(logging.WARNING)
    handler.messages = []
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


def same_entries(one, other, names) -> bool:
    return all(one.config[name] == other.config[name] for name in names)


@pytest.mark.parametrize("theirs", SCHEDULERS.values())
@pytest.mark.parametrize("ours", SCHEDULERS.values())
def test_any_scheduler_replaces_any_other(ours, theirs, tmp_path, warnings_of_diffusers):
    made = theirs(**non_default_settings(theirs))
    made.save_pretrained(tmp_path)
    shared = non_default_settings(ours).keys() & non_default_settings(theirs).keys()
    assert "mask_token_id" in shared
    for swapped in (ours.from_config(made.config), ours.from_pretrained(tmp_path)):
        assert type(swapped) is ours and same_entries(swapped, made, shared)
        back = theirs.from_config(swapped.config)
        assert same_entries(back, made, non_default_settings(theirs)), "swapping back restores all settings"
    assert warnings_of_diffusers == []
    assert set(made.compatibles) >= set(SCHEDULERS.values()) - {theirs}


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_the_mask_token_id_is_always_kept(cls):
    for made in (cls(64), cls(mask_token_id=64)):
        for other in SCHEDULERS.values():
            assert other.from_config(made.config).config.mask_token_id == 64
    assert AmusedScheduler.from_config(cls().config).config.mask_token_id == cls().config.mask_token_id


def test_defaults_are_not_kept():
    """Arguments that were not passed take the defaults of the new class, also after a detour over a third class."""
    assert HaltonScheduler.from_config(MaskGITScheduler().config).config.masking_schedule == "arccos"
    assert MaskGITScheduler.from_config(HaltonScheduler(64).config).config.masking_schedule == "cosine"
    theirs = diffusers_schedulers.scheduling_entropy_bound.EntropyBoundScheduler()
    between = MaskGITScheduler.from_config(theirs.config)
    assert EntropyBoundScheduler.from_config(between.config).config.entropy_bound == 4.0
    assert EntropyBoundScheduler.from_config(theirs.config).config.entropy_bound == 4.0


def test_arguments_that_equal_the_default_are_kept():
    """Positional arguments count as explicit, as keywords do."""
    for made in (MaskGITScheduler(8192, "cosine"), MaskGITScheduler(masking_schedule="cosine")):
        assert HaltonScheduler.from_config(made.config).config.masking_schedule == "cosine"


def test_from_config_returns_what_it_does_not_use(warnings_of_diffusers):
    config = MaskGITScheduler(64, temperature=3.0).config
    made, unused = HaltonScheduler.from_config(config, return_unused_kwargs=True, roll=True, speed=2)
    assert made.config.roll and unused["speed"] == 2 and unused["temperature"] == 3.0
    assert "roll" not in unused and "mask_token_id" not in unused and warnings_of_diffusers == []


def test_from_config_takes_arguments_in_place_of_entries():
    swapped = HaltonScheduler.from_config(MaskGITScheduler(64, "pow3", 2.0).config, masking_schedule="linear")
    assert swapped.config.masking_schedule == "linear"
    assert MaskGITScheduler.from_config(swapped.config).config.temperature == 2.0


def test_from_config_accepts_a_plain_dict(warnings_of_diffusers):
    made = HaltonScheduler.from_config({"mask_token_id": 64, "temperature": 3.0})
    assert (made.config.mask_token_id, made.config.masking_schedule) == (64, "arccos")
    assert warnings_of_diffusers == []


@pytest.mark.parametrize(
    "arguments, message", [((64, "cosine", 1.0, "linear", None, None, 7), "too many"), ((), "sped")]
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        MaskGITScheduler(*arguments, **({} if arguments else {"sped": 1}))


def test_from_config_with_a_path_is_deprecated(tmp_path):
    MaskGITScheduler(64).save_pretrained(tmp_path)
    with pytest.warns(FutureWarning, match="deprecated to pass a pretrained model name or path"):
        assert MaskGITScheduler.from_config(str(tmp_path)).config.mask_token_id == 64


def test_a_scheduler_is_true_before_set_timesteps():
    assert len(MaskGITScheduler()) == 0 and MaskGITScheduler()


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_numpy_numbers_can_be_saved(cls, tmp_path):
    plain = non_default_settings(cls)
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


def test_the_entropy_bound_of_diffusers_is_kept(tmp_path):
    theirs = diffusers_schedulers.scheduling_entropy_bound.EntropyBoundScheduler(entropy_bound=0.5)
    theirs.save_pretrained(tmp_path)
    for cls in SCHEDULERS.values():
        cls.from_pretrained(tmp_path)
    assert EntropyBoundScheduler.from_pretrained(tmp_path).config.entropy_bound == 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_command_line_names_match_the_class_names(name):
    cls = SCHEDULERS[name]
    assert cls.__name__.lower() == name.replace("-", "") + "scheduler"
    assert getattr(showo_hf, cls.__name__) is cls and cls.__name__ in showo_hf.__all__
