"""The behaviour that pipelines rely on, for all schedulers of masked diffusion."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_schedulers import (
    CODEBOOK_SIZE,
    KINDS,
    MASK,
    all_masked,
    final_sample,
    generator,
    grids,
    kinds,
    logits,
    make_scheduler,
    run,
    schedules,
    seeds,
)

from showo_hf import HaltonScheduler, MaskGITScheduler
from showo_hf.schedulers import TokenSchedulerOutput


EACH = pytest.mark.parametrize("kind", KINDS)
steps_strategy = st.integers(1, 8)


# Complete runs


@settings(deadline=None, max_examples=150)
@given(kinds, grids(), schedules, steps_strategy, seeds)
def test_all_tokens_are_unmasked_and_known_tokens_stay(kind, grid, schedule, steps, seed):
    size, sample = grid
    scheduler = make_scheduler(kind, steps, size, masking_schedule=schedule)
    count = 0
    for before, after, output in run(scheduler, sample, generator(seed)):
        count += 1
        given_tokens, guess = sample != MASK, output.pred_original_sample
        assert torch.equal(after[given_tokens], sample[given_tokens])
        assert torch.equal(guess[before != MASK], before[before != MASK])
        assert guess.min() >= 0 and guess.max() < CODEBOOK_SIZE and after.max() <= MASK
        assert torch.equal(after[after != MASK], guess[after != MASK])
        if not kind.startswith(("mask-predict", "remdm")):
            assert torch.equal(after[before != MASK], before[before != MASK]), "unmasked tokens stay"
    assert output.finished and count <= steps
    assert (after != MASK).all()


@EACH
def test_logits_with_gradients_are_accepted(kind):
    scheduler, sample = make_scheduler(kind, 3, (3, 3)), all_masked()
    timestep = scheduler.timesteps[0]
    expected = scheduler.step(logits(sample.shape), timestep, sample, generator=generator()).prev_sample
    scheduler = make_scheduler(kind, 3, (3, 3))
    tracked = logits(sample.shape).requires_grad_()
    assert torch.equal(scheduler.step(tracked, timestep, sample, generator=generator()).prev_sample, expected)


@settings(deadline=None, max_examples=60)
@given(kinds, grids(), steps_strategy, seeds)
def test_a_list_of_generators_gives_each_sample_its_own_draws(kind, grid, steps, seed):
    size, sample = grid
    draws = [generator(seed + i) for i in range(len(sample))]
    together = make_scheduler(kind, steps, size)
    alone = [make_scheduler(kind, steps, size) for _ in sample]
    rows, own_draws = list(sample.split(1)), [generator(seed + i) for i in range(len(sample))]
    for step, timestep in enumerate(together.timesteps):
        x = logits(sample.shape, step)
        sample = together.step(x, timestep, sample, generator=draws).prev_sample
        for i, scheduler in enumerate(alone):
            rows[i] = scheduler.step(x[i : i + 1], timestep, rows[i], generator=own_draws[i]).prev_sample
        assert torch.equal(sample, torch.cat(rows))
    for one, other in zip(draws, own_draws, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@settings(deadline=None, max_examples=60)
@given(kinds, grids(), grids(), steps_strategy, seeds)
def test_the_generator_state_does_not_depend_on_the_tokens(kind, grid, other_grid, steps, seed):
    size, sample = grid
    other = other_grid[1].flatten()
    other = other.repeat(sample.numel() // len(other) + 1)[: sample.numel()].view_as(sample)
    runs = []
    for tokens, model_seed in ((sample, 0), (other, 100)):
        scheduler, draws, states = make_scheduler(kind, steps, size), generator(seed), []
        for step, timestep in enumerate(scheduler.timesteps):
            tokens = scheduler.step(
                logits(tokens.shape, model_seed + step), timestep, tokens, generator=draws
            ).prev_sample
            states.append(draws.get_state())
        runs.append(states)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@settings(deadline=None, max_examples=100)
@given(kinds, grids(max_masked=4), st.integers(1, 12), seeds, st.booleans())
def test_noop_steps_can_be_skipped(kind, grid, steps, seed, listed):
    """Tokens and generators are the same after each step, whether no-op steps run or are skipped."""
    size, sample = grid
    runs = []
    for skip in (False, True):
        draws = [generator(seed + i) for i in range(len(sample))] if listed else generator(seed)
        scheduler, trace = make_scheduler(kind, steps, size), []
        for _, after, _ in run(scheduler, sample, draws, skip=skip):
            trace.append((after, [one.get_state() for one in (draws if listed else [draws])]))
        runs.append(trace)
    assert len(runs[0]) == len(runs[1])
    for (one, states), (other, other_states) in zip(*runs, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(*pair) for pair in zip(states, other_states, strict=True))


@settings(deadline=None, max_examples=40)
@given(kinds, grids(), steps_strategy, seeds, st.booleans())
def test_advance_generator_consumes_the_draws_of_a_step(kind, grid, steps, seed, listed):
    size, sample = grid
    states = []
    for skip in (False, True):
        draws = [generator(seed + i) for i in range(len(sample))] if listed else generator(seed)
        scheduler = make_scheduler(kind, steps, size)
        for step, timestep in enumerate(scheduler.timesteps):
            if skip:
                scheduler.advance_generator(timestep, sample, draws)
            else:
                scheduler.step(logits(sample.shape, step), timestep, sample, generator=draws)
        states.append([one.get_state() for one in (draws if listed else [draws])])
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


@pytest.mark.parametrize("kind", ["maskgit", "halton", "halton, roll"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_noop_first_step_can_be_skipped(kind, listed):
    sample = torch.zeros(2, 9, dtype=torch.int64)
    sample[0, 4] = sample[1, 7] = MASK
    runs = []
    for skip in (False, True):
        draws = [generator(1), generator(2)] if listed else generator(1)
        trace = list(run(make_scheduler(kind), sample, draws, skip=skip))
        runs.append((trace[-1][1], [one.get_state() for one in (draws if listed else [draws])]))
        assert [output is None for *_, output in trace] == [skip] * 5 + [False]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("kind", ["maskgit", "halton", "halton, roll"])
def test_inpainting_few_tokens_needs_few_model_calls(kind):
    """8 of 256 tokens in 16 steps: seven steps unmask one token each, and the last step the eighth."""
    sample = torch.zeros(1, 256, dtype=torch.int64)
    sample[:, 100:108] = MASK
    outputs = [output for _, _, output in run(make_scheduler(kind, 16), sample, generator(), skip=True)]
    assert [output is None for output in outputs] == [False] * 7 + [True] * 8 + [False]
    assert outputs[-1].finished


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["maskgit", "halton"]), grids(), steps_strategy, seeds, st.data())
def test_is_noop_tells_whether_a_step_changes_a_token(kind, grid, steps, seed, data):
    size, sample = grid
    scheduler = make_scheduler(kind, steps, size)
    timestep = data.draw(st.integers(0, steps - 1))
    is_noop = scheduler.is_noop(timestep, sample)
    after = scheduler.step(logits(sample.shape), timestep, sample, generator=generator(seed)).prev_sample
    assert is_noop is torch.equal(after, sample)


@EACH
def test_the_same_seed_gives_the_same_tokens(kind):
    runs = [final_sample(make_scheduler(kind), all_masked(), generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@EACH
def test_a_scheduler_can_be_reused(kind):
    scheduler = make_scheduler(kind, 5)
    first = final_sample(scheduler, all_masked(2, 9), generator())
    scheduler.set_timesteps(3, grid_size=(4, 3))
    next(run(scheduler, all_masked(3, 12), generator()))  # leave a run unfinished
    scheduler.set_timesteps(5)
    assert torch.equal(final_sample(scheduler, all_masked(2, 9), generator()), first)


@EACH
def test_a_deep_copy_has_its_own_state(kind):
    """Pipelines run each call on a copy, so that threads do not share state."""
    scheduler, draws = make_scheduler(kind), generator()
    sample = scheduler.step(logits((2, 9)), 5, all_masked(), generator=draws).prev_sample
    copied, copied_draws = copy.deepcopy(scheduler), generator()
    copied_draws.set_state(draws.get_state())
    copied_sample = sample.clone()
    for step, timestep in enumerate(scheduler.timesteps[1:]):
        x = logits((2, 9), seed=step)
        copied_sample = copied.step(x, timestep, copied_sample, generator=copied_draws).prev_sample
    copied.set_timesteps(2)
    for step, timestep in enumerate(scheduler.timesteps[1:]):
        x = logits((2, 9), seed=step)
        sample = scheduler.step(x, timestep, sample, generator=draws).prev_sample
    assert torch.equal(sample, copied_sample) and len(scheduler) == 6
    assert copied.config == scheduler.config


# Single steps


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(kind, dtype):
    half = logits((2, 9)).to(dtype)
    outputs = [make_scheduler(kind).step(x, 5, all_masked(2, 9), generator=generator()) for x in (half, half.float())]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
    assert torch.equal(outputs[0].pred_original_sample, outputs[1].pred_original_sample)


@EACH
def test_logits_of_known_tokens_are_ignored(kind):
    sample, x = all_masked(2, 9), logits((2, 9))
    sample[:, 3] = 7
    corrupted = x.clone()
    corrupted[:, 3] = torch.nan
    outputs = [make_scheduler(kind).step(one, 5, sample, generator=generator()) for one in (x, corrupted)]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)


@EACH
def test_shapes_and_dtypes_of_the_output(kind):
    x, sample = logits((2, 9)), all_masked(2, 9)
    output = make_scheduler(kind).step(x, torch.tensor(5), sample, generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 9)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = make_scheduler(kind).step(x, 5, sample, generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False
    assert torch.equal(x, logits((2, 9))) and torch.equal(sample, all_masked(2, 9))


@EACH
def test_an_empty_batch(kind):
    output = make_scheduler(kind).step(logits((0, 9)), 5, all_masked(0, 9), generator=generator())
    assert output.prev_sample.shape == (0, 9) and output.finished


@EACH
def test_a_token_of_probability_zero_is_never_sampled(kind):
    x = torch.full((2, 9, CODEBOOK_SIZE), -torch.inf)
    x[..., 5] = x[..., 11] = 0.0
    assert set(sample_with_constant_logits(make_scheduler(kind), x).flatten().tolist()) == {5, 11}


def sample_with_constant_logits(scheduler, x):
    """Run all steps with the same logits `x`."""
    sample, draws = torch.full(x.shape[:2], MASK), generator()
    for timestep in scheduler.timesteps:
        sample = scheduler.step(x, timestep, sample, generator=draws).prev_sample
    return sample


@pytest.mark.gpu
@EACH
def test_a_cpu_generator_gives_the_same_tokens_on_a_gpu(kind):
    ours = make_scheduler(kind).step(logits((2, 9)), 5, all_masked(2, 9), generator=generator())
    theirs = make_scheduler(kind).step(logits((2, 9)).cuda(), 5, all_masked(2, 9).cuda(), generator=generator())
    assert theirs.prev_sample.device.type == "cuda"
    assert torch.equal(theirs.prev_sample.cpu(), ours.prev_sample)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["maskgit", "halton, roll"])
def test_noop_steps_can_be_skipped_on_a_gpu(kind):
    draws = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
    sample = torch.zeros(2, 256, dtype=torch.int64, device="cuda")
    sample[:, 7] = MASK
    make_scheduler(kind).step(logits((2, 256)).cuda(), 5, sample, generator=draws[0])
    make_scheduler(kind).advance_generator(5, sample, draws[1])
    assert torch.equal(draws[0].get_state(), draws[1].get_state())


# Settings


@EACH
def test_save_and_load(kind, tmp_path):
    scheduler = make_scheduler(kind, masking_schedule="pow2")
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    public = [{name: value for name, value in one.config.items() if name[0] != "_"} for one in (scheduler, loaded)]
    assert public[0] == public[1]
    loaded.set_timesteps(6)
    assert torch.equal(
        final_sample(scheduler, all_masked(2, 9), generator()),
        final_sample(loaded, all_masked(2, 9), generator()),
    )


@EACH
def test_timesteps_count_down_to_zero(kind):
    scheduler = make_scheduler(kind, 7)
    assert scheduler.timesteps.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert len(scheduler) == scheduler.num_inference_steps == 7


@EACH
def test_add_noise_masks_as_many_tokens_as_the_schedule(kind):
    scheduler, tokens = make_scheduler(kind, 4, masking_schedule="linear"), torch.zeros(3, 16, dtype=torch.int64)
    noised = scheduler.add_noise(tokens, torch.tensor([3, 2, 0]), generator=generator())
    assert (noised == MASK).sum(-1).tolist() == [16, 12, 4]
    assert (noised[noised != MASK] == 0).all()


@pytest.mark.parametrize("kind", ["halton", "entropy bound"])
def test_the_temperature_argument_replaces_the_configured_one(kind):
    cold, configured = make_scheduler(kind), make_scheduler(kind, token_temperature=0.0)
    cold.set_timesteps(6, temperature=0.0)
    x = logits((2, 9))
    most_likely = x.argmax(-1)
    for scheduler in (cold, configured):
        assert torch.equal(
            scheduler.step(x, 5, all_masked(2, 9), generator=generator()).pred_original_sample, most_likely
        )
    warm = make_scheduler(kind).step(x, 5, all_masked(2, 9), generator=generator()).pred_original_sample
    assert not torch.equal(warm, most_likely)


@pytest.mark.parametrize("kind", ["maskgit", "halton", "entropy bound", "mask-predict"])
def test_top_k_and_top_p_restrict_the_samples(kind):
    x = torch.tensor([0.4, 0.3, 0.2, 0.1] + [0.0] * (CODEBOOK_SIZE - 4)).log().repeat(4, 400, 1)
    cls = KINDS[kind][0]
    for options in ({"top_k": 2}, {"top_p": 0.65}):
        scheduler = cls(mask_token_id=MASK, **options)
        scheduler.set_timesteps(1)
        sample = scheduler.step(x, 0, all_masked(4, 400), generator=generator()).prev_sample
        assert set(sample.flatten().tolist()) == {0, 1}
        assert (sample == 0).float().mean() == pytest.approx(4 / 7, abs=0.05)


# Bad input


@EACH
@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda s: s.set_timesteps(0),
            "`num_inference_steps` must be an integer of at least 1, got 0",
        ),
        (
            lambda s: s.set_timesteps(2.5),
            "`num_inference_steps` must be an integer of at least 1, got 2.5",
        ),
        (
            lambda s: s.set_timesteps(3, temperature=-1.0),
            "`temperature` must be a finite number .* got -1.0",
        ),
        (
            lambda s: s.step(logits((2, 9)), 6, all_masked(2, 9)),
            "`timestep` must be from 0 to 5, .* got 6",
        ),
        (
            lambda s: s.step(logits((2, 9))[0], 0, all_masked(2, 9)),
            r"`model_output` must be \(batch, tokens, codebook",
        ),
        (
            lambda s: s.step(logits((2, 5)), 0, all_masked(2, 9)),
            r"got \(2, 5, 16\) and \(2, 9\)",
        ),
        (
            lambda s: s.step(logits((2, 9))[..., 1:], 0, all_masked(2, 9)),
            "must have 16 logits per token, .* got 15",
        ),
        (
            lambda s: s.step(logits((2, 9)), 0, all_masked(2, 9).float()),
            "integer token ids, got torch.float32",
        ),
        (
            lambda s: s.step(logits((2, 9)), 0, all_masked(2, 9), [generator()]),
            "a list of 2, got a list of 1",
        ),
        (
            lambda s: s.step(logits((2, 9)) * torch.nan, 0, all_masked(2, 9)),
            "`model_output` must hold finite",
        ),
        (lambda s: s.step(logits((2, 9)), 0, all_masked() + 1), "token ids from 0 to `mask_token_id`, 16, got 17"),
        (lambda s: s.step(logits((2, 9)), 0, all_masked() - 17), "token ids from 0 to `mask_token_id`, 16, got -1"),
        (lambda s: s.add_noise(all_masked(), 6), "`timestep` must be from 0 to 5, .* got 6"),
        (
            lambda s: type(s)().step(logits((2, 9)), 0, all_masked(2, 9)),
            "Call `set_timesteps` before `step`",
        ),
        (lambda s: type(s)().add_noise(all_masked(), 0), "Call `set_timesteps` before `add_noise`"),
        (lambda s: type(s)(masking_schedule="sine"), "`masking_schedule` must be one of"),
        (lambda s: type(s)(top_k=0), "`top_k` must be an integer of at least 1, got 0"),
        (lambda s: type(s)(top_p=1.5), "`top_p` must be above 0 and at most 1, or None, got 1.5"),
    ],
)
def test_wrong_input_is_refused(kind, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_scheduler(kind))


def test_is_noop_requires_set_timesteps():
    sample = torch.tensor([[3, MASK, 5]])
    for cls in (MaskGITScheduler, HaltonScheduler):
        with pytest.raises(ValueError, match="Call `set_timesteps`"):
            cls(mask_token_id=MASK).is_noop(0, sample)
