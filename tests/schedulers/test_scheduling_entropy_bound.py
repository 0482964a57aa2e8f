"""EntropyBoundScheduler: which tokens a step unmasks, and how many."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_schedulers import (
    CODEBOOK_SIZE,
    MASK,
    all_masked,
    generator,
    grids,
    logits,
    make_scheduler,
    run,
    schedules,
    seeds,
)

from showo_hf import EntropyBoundScheduler, MaskGITScheduler


def entropies_of(x: torch.Tensor) -> torch.Tensor:
    log_p = x.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@settings(deadline=None, max_examples=80)
@given(grids(), schedules, st.integers(1, 8), st.floats(0, 20), st.sampled_from(["entropy", "confidence"]), seeds)
def test_a_step_unmasks_the_most_certain_tokens_within_the_bound(grid, schedule, steps, bound, sort_by, seed):
    size, sample = grid
    options = {"masking_schedule": schedule, "entropy_bound": bound, "sort_by": sort_by}
    scheduler = make_scheduler("entropy bound", steps, size, **options)
    for step, (before, after, _) in enumerate(run(scheduler, sample, generator(seed), model_seed=seed)):
        x = logits(sample.shape, seed + step)
        uncertainty = entropies_of(x) if sort_by == "entropy" else -x.softmax(-1).amax(-1)
        share = int((sample.shape[1] * scheduler.mask_ratio((step + 1) / steps)).floor())
        for row in range(len(sample)):
            masked_positions = (before[row] == MASK).nonzero().flatten()
            queue = masked_positions[uncertainty[row][masked_positions].argsort()]
            unmasked = (after[row][queue] != MASK).tolist()
            count = sum(unmasked)
            assert unmasked == [True] * count + [False] * (len(queue) - count), "the most certain first"
            if step == steps - 1:
                assert count == len(queue)
                continue
            h = entropies_of(x)[row][queue]
            lost = [h[:k].sum().item() - h[:k].max().item() for k in range(1, len(queue) + 1)]
            due = len(queue) - max(1, share)
            if count > max(due, 1):
                assert lost[count - 1] <= bound + 1e-4
            if count < len(queue):
                assert lost[count] > bound - 1e-4
            assert count >= min(1, len(queue)) and count >= due
    assert (after != MASK).all()


def test_an_easy_image_takes_one_step():
    x = torch.full((2, 9, CODEBOOK_SIZE), -50.0)
    x[..., 3] = 50.0
    output = make_scheduler("entropy bound", 20).step(x, 19, all_masked(), generator=generator())
    assert output.finished and (output.prev_sample == 3).all()


def test_a_larger_bound_needs_fewer_steps():
    def steps(bound):
        scheduler = make_scheduler("entropy bound", 64, entropy_bound=bound)
        return len(list(run(scheduler, all_masked(1, 64), generator())))

    counts = [steps(bound) for bound in (0.0, 2.0, 8.0, 1e4)]
    assert counts[0] > counts[1] > counts[2] > counts[3] == 1


@given(schedules, st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_a_bound_of_zero_takes_as_many_steps_as_maskgit(schedule, steps):
    tight = make_scheduler("entropy bound", steps, entropy_bound=0.0, masking_schedule=schedule)
    plain = MaskGITScheduler(mask_token_id=MASK, masking_schedule=schedule)
    plain.set_timesteps(steps)
    counts = [
        [(after == MASK).sum().item() for _, after, _ in run(scheduler, all_masked(1, 25), generator())]
        for scheduler in (tight, plain)
    ]
    # The last masked token is unmasked at once. MaskGIT waits for the last step.
    assert [max(1, count) for count in counts[0]] == [max(1, count) for count in counts[1]][: len(counts[0])]


def test_the_bound_is_in_nats():
    """Tokens of entropy log 2: k tokens need a bound of (k - 1) log 2."""
    x = torch.full((1, 9, CODEBOOK_SIZE), -torch.inf)
    x[..., :2] = 0.0
    for count in (1, 2, 5):
        scheduler = make_scheduler("entropy bound", 100, entropy_bound=(count - 1) * math.log(2) + 0.01)
        output = scheduler.step(x, 99, all_masked(1), generator=generator())
        assert (output.prev_sample != MASK).sum() == count


def test_the_largest_entropy_does_not_count_wherever_it_is():
    """Sorted by confidence, a token with 0.6 and a flat rest comes before one with 0.5 and 0.5, which has less entropy."""
    x = torch.full((1, 9, CODEBOOK_SIZE), 1e-9)
    x[:, 0], x[:, 0, 0] = 0.4 / (CODEBOOK_SIZE - 1), 0.6
    x[:, 1, :2] = 0.5
    x[:, 2:] = 1 / CODEBOOK_SIZE
    first, second = entropies_of(x.log())[0, :2].tolist()
    assert second + 0.1 < first
    scheduler = make_scheduler("entropy bound", 100, sort_by="confidence", entropy_bound=second + 0.05)
    output = scheduler.step(x.log(), 99, all_masked(1), generator=generator())
    assert (output.prev_sample[0] != MASK).nonzero().flatten().tolist() == [0, 1]


def test_entropies_are_computed_after_top_k():
    """With `top_k=1` all entropies are 0, so one step unmasks all tokens."""
    scheduler = make_scheduler("entropy bound", 9, top_k=1, entropy_bound=0.0)
    output = scheduler.step(logits((2, 9)), 8, all_masked(), generator=generator())
    assert output.finished
    assert torch.equal(output.prev_sample, logits((2, 9)).argmax(-1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"entropy_bound": -0.1}, "`entropy_bound` must be a finite number that is not negative, got -0.1"),
        ({"sort_by": "margin"}, "`sort_by` must be 'entropy' or 'confidence', got 'margin'"),
        ({"token_temperature": math.inf}, "`token_temperature` must be a finite number .* got inf"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EntropyBoundScheduler(**options)
