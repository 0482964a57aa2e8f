"""The order of the Halton sequence, and unmasking in this order."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_schedulers import (
    MASK,
    all_masked,
    final_sample,
    generator,
    grids,
    logits,
    make_scheduler,
    run,
    schedules,
    seeds,
)

from showo_hf import HaltonScheduler
from showo_hf.schedulers.scheduling_halton import halton_order


sides = st.integers(1, 20)


# The order


@settings(deadline=None, max_examples=60)
@given(sides, sides)
def test_the_order_visits_each_position_once(height, width):
    assert sorted(halton_order(height, width).tolist()) == list(range(height * width))


def radical_inverse(number: int, base: int) -> float:
    inverse, unit = 0.0, 1.0
    while number:
        unit /= base
        inverse += unit * (number % base)
        number //= base
    return inverse


@pytest.mark.parametrize("height, width", [(16, 16), (8, 16), (32, 4)])
def test_positions_are_sorted_by_the_first_point_in_them(height, width):
    """Computed with the textbook formula in floating point, which is exact enough for these sizes."""
    points = ((radical_inverse(i, 2), radical_inverse(i, 3)) for i in range(1, 5000))
    visits = [int(down * height) * width + int(across * width) for down, across in points]
    assert halton_order(height, width).tolist() == list(dict.fromkeys(visits))


def test_positions_do_not_depend_on_rounding():
    """The first points across are 1/3, 2/3, 1/9, 4/9: the second, third, first and second of three columns."""
    columns = (halton_order(64, 3) % 3).tolist()
    assert columns[:4] == [1, 2, 0, 1]


def discrepancy(positions: torch.LongTensor, side: int) -> float:
    """The squared L2 star discrepancy of positions of a square grid (Warnock's formula)."""
    points = torch.stack([positions // side, positions % side], -1).double().add(0.5) / side
    count = len(points)
    pairs = (1 - torch.maximum(points[:, None], points[None])).prod(-1)
    return (1 / 9 - (1 - points**2).prod(-1).sum() / (2 * count) + pairs.sum() / count**2).item()


@pytest.mark.parametrize("count", [16, 32, 64, 128])
def test_the_first_positions_are_more_even_than_random_ones(count):
    """The idea of the paper: after each step, the known tokens cover the image."""
    randomly = [discrepancy(torch.randperm(256, generator=generator(i))[:count], 16) for i in range(40)]
    ours = discrepancy(halton_order(16, 16)[:count], 16)
    assert ours < min(randomly) and ours < 0.5 * sum(randomly) / len(randomly)


# Steps


def unmasked_positions(scheduler, sample, draws):
    """The positions that each step unmasks in each sample, as sets."""
    for before, after, _ in run(scheduler, sample, draws):
        yield [set(row.nonzero().flatten().tolist()) for row in (before == MASK) & (after != MASK)]


@settings(deadline=None, max_examples=60)
@given(grids(), schedules, st.integers(1, 8), seeds)
def test_a_step_unmasks_the_next_masked_positions_of_the_order(grid, schedule, steps, seed):
    (height, width), sample = grid
    scheduler = make_scheduler("halton", steps, (height, width), masking_schedule=schedule)
    order = halton_order(height, width).tolist()
    waiting = [[position for position in order if row[position] == MASK] for row in sample]
    for step, unmasked in enumerate(unmasked_positions(scheduler, sample, generator(seed))):
        for positions, queue in zip(unmasked, waiting, strict=True):
            share = int((height * width * scheduler.mask_ratio((step + 1) / steps)).floor())
            left = max(1, min(len(queue) - 1, share)) if height * width > 1 else 0
            if queue:
                assert len(positions) == len(queue) - (0 if step == steps - 1 else left)
            assert positions == set(queue[: len(positions)])
            del queue[: len(positions)]
    assert not any(waiting)


def test_counts_match_the_paper():
    """After step i of n, `floor(N (1 - 2 arccos((i + 1) / n) / pi))` tokens are known, within one for rounding."""
    known = [
        (after != MASK).sum().item()
        for _, after, _ in run(make_scheduler("halton", 8), all_masked(1, 256), generator())
    ]
    expected = [256 * (1 - 2 * torch.arccos(torch.tensor((i + 1) / 8)).item() / torch.pi) for i in range(8)]
    assert known == pytest.approx(expected, abs=1)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), seeds)
def test_rolled_samples_start_at_their_own_position_and_wrap_around(height, width, steps, seed):
    scheduler = make_scheduler("halton, roll", steps, (height, width))
    tokens = height * width
    order = halton_order(height, width).tolist()
    sequences = [[], [], []]
    for unmasked in unmasked_positions(scheduler, all_masked(3, tokens), generator(seed)):
        for sequence, positions in zip(sequences, unmasked, strict=True):
            sequence.append(positions)
    for sequence in sequences:
        ends = torch.tensor([0] + [len(positions) for positions in sequence]).cumsum(0).tolist()
        rolled = [order[-shift:] + order[:-shift] for shift in range(tokens)]
        assert any(
            all(set(one[a:b]) == positions for (a, b), positions in zip(pairwise(ends), sequence, strict=True))
            for one in rolled
        )


def test_rolls_differ_between_samples_and_seeds():
    starts = set()
    for seed in range(4):
        unmasked = next(unmasked_positions(make_scheduler("halton, roll", 256), all_masked(4, 256), generator(seed)))
        starts |= {position for positions in unmasked for position in positions}
    assert len(starts) > 10


def test_without_roll_each_sample_starts_at_the_first_position():
    unmasked = next(unmasked_positions(make_scheduler("halton", 256), all_masked(4, 256), generator()))
    assert unmasked == [{halton_order(16, 16)[0].item()}] * 4


# Bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: make_scheduler("halton").step(logits((1, 12)), 5, all_masked(1, 12)),
            "`grid_size` .* the 12 tokens .* got None",
        ),
        (
            lambda: make_scheduler("halton", grid_size=(3, 4)).step(logits((1, 9)), 5, all_masked(1, 9)),
            r"9 tokens .* got \(3, 4\)",
        ),
        (lambda: make_scheduler("halton", grid_size=(0, 4)), r"`grid_size` must be rows and columns, .* got \(0, 4\)"),
        (lambda: make_scheduler("halton", grid_size=(4,)), r"`grid_size` must be rows and columns, .* got \(4,\)"),
        (lambda: HaltonScheduler(token_temperature=-1.0), "`token_temperature` must be a finite number .* got -1.0"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_another_batch_before_the_last_step_is_refused():
    scheduler = make_scheduler("halton, roll")
    scheduler.step(logits((2, 9)), 5, all_masked(2, 9), generator=generator())
    with pytest.raises(ValueError, match="`sample` must hold 2 images, as at the first step, got 3"):
        scheduler.step(logits((3, 9)), 4, all_masked(3, 9), generator=generator())
    with pytest.raises(ValueError, match="`sample` must hold 9 tokens, as `set_timesteps` said, got 16"):
        scheduler.step(logits((2, 16)), 4, all_masked(2, 16), generator=generator())


def test_a_grid_need_not_be_square():
    assert (final_sample(make_scheduler("halton", grid_size=(2, 5)), all_masked(3, 10), generator()) < MASK).all()
