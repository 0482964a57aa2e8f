"""Masking schedules as functions of the share of steps that are done."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from showo_hf.schedulers.masking_schedules import get_masking_schedule


names = st.one_of(
    st.sampled_from(["arccos", "cosine", "linear", "sigmoid"]),
    st.floats(0.1, 8).map(lambda exponent: f"pow{exponent:.3f}"),
    st.integers(1, 8).map(lambda exponent: f"pow{exponent}"),
)
ratios = st.floats(0, 1, width=32)


@given(names)
def test_schedules_start_at_one_and_end_at_zero(name):
    first, last = get_masking_schedule(name)(torch.tensor([0.0, 1.0])).tolist()
    assert first == pytest.approx(1, abs=1e-5)
    assert last == pytest.approx(0, abs=1e-5)


@given(names, ratios, ratios)
def test_schedules_decrease(name, one, other):
    earlier, later = get_masking_schedule(name)(torch.tensor(sorted([one, other]))).tolist()
    assert -1e-6 <= later <= earlier + 1e-6 <= 1 + 2e-6


@given(ratios)
def test_values(ratio):
    at = torch.tensor(ratio)
    assert get_masking_schedule("cosine")(at).item() == pytest.approx(math.cos(ratio * math.pi / 2), abs=1e-6)
    assert get_masking_schedule("arccos")(at).item() == pytest.approx(math.acos(ratio) / (math.pi / 2), abs=2e-6)
    assert get_masking_schedule("linear")(at).item() == pytest.approx(1 - ratio, abs=2e-6)
    assert get_masking_schedule("pow3")(at).item() == pytest.approx(1 - ratio**3, abs=2e-6)
    assert get_masking_schedule("pow0.5")(at).item() == pytest.approx(1 - ratio**0.5, abs=2e-6)
    first, last, here = (1 / (1 + math.exp(-x)) for x in (-3, 3, 6 * ratio - 3))
    assert get_masking_schedule("sigmoid")(at).item() == pytest.approx((last - here) / (last - first), abs=2e-6)


@pytest.mark.parametrize("name", ["arccos", "cosine", "linear", "sigmoid", "pow2", "pow0.5"])
def test_schedules_can_be_sent_to_other_processes(name):
    ratios = torch.linspace(0, 1, 5)
    schedule = get_masking_schedule(name)
    torch.testing.assert_close(pickle.loads(pickle.dumps(schedule))(ratios), schedule(ratios), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["", "cos", "Cosine", "pow", "pow0", "pow-1", "powx", "pownan", "powinf", None, 3])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="`masking_schedule` must be one of"):
        get_masking_schedule(name)
