"""What a pipeline can count on with any scheduler that fills in masked tokens."""

import pytest
import torch
from filling import (
    CODES,
    KINDS,
    MASK,
    final,
    generator,
    grids,
    kinds,
    logits,
    run,
    scheduler,
    schedules,
    seeds,
    unknown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf import HaltonScheduler, MaskGITScheduler
from showo_hf.schedulers import TokenSchedulerOutput


EACH = pytest.mark.parametrize("kind", KINDS)
steps_strategy = st.integers(1, 8)


# A run


@settings(deadline=None, max_examples=150)
@given(kinds, grids(), schedules, steps_strategy, seeds)
def test_all_is_filled_in_and_what_is_known_stays(kind, grid, schedule, steps, seed):
    size, sample = grid
    made = scheduler(kind, steps, size, masking_schedule=schedule)
    count = 0
    for before, after, output in run(made, sample, generator(seed)):
        count += 1
        given_tokens, guess = sample != MASK, output.pred_original_sample
        assert torch.equal(after[given_tokens], sample[given_tokens])
        assert torch.equal(guess[before != MASK], before[before != MASK])
        assert guess.min() >= 0 and guess.max() < CODES and after.max() <= MASK
        assert torch.equal(after[after != MASK], guess[after != MASK])
        if not kind.startswith(("mask-predict", "remdm")):
            assert torch.equal(after[before != MASK], before[before != MASK]), "what was chosen is not taken back"
    assert output.finished and count <= steps
    assert (after != MASK).all()


@EACH
def test_logits_with_gradients_are_taken(kind):
    made, sample = scheduler(kind, 3, (3, 3)), unknown()
    timestep = made.timesteps[0]
    expected = made.step(logits(sample.shape), timestep, sample, generator=generator()).prev_sample
    made = scheduler(kind, 3, (3, 3))
    tracked = logits(sample.shape).requires_grad_()
    assert torch.equal(made.step(tracked, timestep, sample, generator=generator()).prev_sample, expected)


@settings(deadline=None, max_examples=60)
@given(kinds, grids(), steps_strategy, seeds)
def test_a_list_of_generators_gives_what_each_gives_alone(kind, grid, steps, seed):
    size, sample = grid
    draws = [generator(seed + i) for i in range(len(sample))]
    together = scheduler(kind, steps, size)
    alone = [scheduler(kind, steps, size) for _ in sample]
    rows, own_draws = list(sample.split(1)), [generator(seed + i) for i in range(len(sample))]
    for step, timestep in enumerate(together.timesteps):
        x = logits(sample.shape, step)
        sample = together.step(x, timestep, sample, generator=draws).prev_sample
        for i, made in enumerate(alone):
            rows[i] = made.step(x[i : i + 1], timestep, rows[i], generator=own_draws[i]).prev_sample
        assert torch.equal(sample, torch.cat(rows))
    for one, other in zip(draws, own_draws, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@settings(deadline=None, max_examples=60)
@given(kinds, grids(), grids(), steps_strategy, seeds)
def test_the_state_of_a_generator_tells_nothing_of_the_content(kind, grid, other_grid, steps, seed):
    size, sample = grid
    other = other_grid[1].flatten()
    other = other.repeat(sample.numel() // len(other) + 1)[: sample.numel()].view_as(sample)
    runs = []
    for tokens, model_seed in ((sample, 0), (other, 100)):
        made, draws, states = scheduler(kind, steps, size), generator(seed), []
        for step, timestep in enumerate(made.timesteps):
            tokens = made.step(logits(tokens.shape, model_seed + step), timestep, tokens, generator=draws).prev_sample
            states.append(draws.get_state())
        runs.append(states)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@settings(deadline=None, max_examples=100)
@given(kinds, grids(most_unknown=4), st.integers(1, 12), seeds, st.booleans())
def test_idle_steps_can_be_skipped(kind, grid, steps, seed, listed):
    """Equal tokens and generators after each step, whether the steps that fill in nothing are made or skipped."""
    size, sample = grid
    runs = []
    for skip in (False, True):
        draws = [generator(seed + i) for i in range(len(sample))] if listed else generator(seed)
        made, trace = scheduler(kind, steps, size), []
        for _, after, _ in run(made, sample, draws, skip=skip):
            trace.append((after, [one.get_state() for one in (draws if listed else [draws])]))
        runs.append(trace)
    assert len(runs[0]) == len(runs[1])
    for (one, states), (other, other_states) in zip(*runs, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(*pair) for pair in zip(states, other_states, strict=True))


@settings(deadline=None, max_examples=40)
@given(kinds, grids(), steps_strategy, seeds, st.booleans())
def test_a_skipped_step_draws_what_a_step_draws(kind, grid, steps, seed, listed):
    size, sample = grid
    states = []
    for skip in (False, True):
        draws = [generator(seed + i) for i in range(len(sample))] if listed else generator(seed)
        made = scheduler(kind, steps, size)
        for step, timestep in enumerate(made.timesteps):
            if skip:
                made.advance_generator(timestep, sample, draws)
            else:
                made.step(logits(sample.shape, step), timestep, sample, generator=draws)
        states.append([one.get_state() for one in (draws if listed else [draws])])
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


@pytest.mark.parametrize("kind", ["maskgit", "halton", "halton, roll"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_first_step_that_is_idle_can_be_skipped(kind, listed):
    sample = torch.zeros(2, 9, dtype=torch.int64)
    sample[0, 4] = sample[1, 7] = MASK
    runs = []
    for skip in (False, True):
        draws = [generator(1), generator(2)] if listed else generator(1)
        trace = list(run(scheduler(kind), sample, draws, skip=skip))
        runs.append((trace[-1][1], [one.get_state() for one in (draws if listed else [draws])]))
        assert [output is None for *_, output in trace] == [skip] * 5 + [False]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("kind", ["maskgit", "halton", "halton, roll"])
def test_repainting_few_tokens_needs_few_calls_of_the_model(kind):
    """8 of 256 tokens in 16 steps: seven steps of one token each, then none until the last."""
    sample = torch.zeros(1, 256, dtype=torch.int64)
    sample[:, 100:108] = MASK
    outputs = [output for _, _, output in run(scheduler(kind, 16), sample, generator(), skip=True)]
    assert [output is None for output in outputs] == [False] * 7 + [True] * 8 + [False]
    assert outputs[-1].finished


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["maskgit", "halton"]), grids(), steps_strategy, seeds, st.data())
def test_a_step_is_idle_when_no_logits_would_change_a_token(kind, grid, steps, seed, data):
    size, sample = grid
    made = scheduler(kind, steps, size)
    timestep = data.draw(st.integers(0, steps - 1))
    idle = made.is_noop(timestep, sample)
    after = made.step(logits(sample.shape), timestep, sample, generator=generator(seed)).prev_sample
    assert idle is torch.equal(after, sample)


@EACH
def test_one_generator_makes_a_run_repeatable(kind):
    runs = [final(scheduler(kind), unknown(), generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@EACH
def test_a_scheduler_can_be_used_again(kind):
    made = scheduler(kind, 5)
    first = final(made, unknown(2, 9), generator())
    made.set_timesteps(3, grid_size=(4, 3))
    next(run(made, unknown(3, 12), generator()))  # a run that is not brought to its end
    made.set_timesteps(5)
    assert torch.equal(final(made, unknown(2, 9), generator()), first)


# A step


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(kind, dtype):
    half = logits((2, 9)).to(dtype)
    outputs = [scheduler(kind).step(x, 5, unknown(2, 9), generator=generator()) for x in (half, half.float())]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
    assert torch.equal(outputs[0].pred_original_sample, outputs[1].pred_original_sample)


@EACH
def test_logits_of_known_tokens_are_not_looked_at(kind):
    sample, x = unknown(2, 9), logits((2, 9))
    sample[:, 3] = 7
    spoilt = x.clone()
    spoilt[:, 3] = torch.nan
    outputs = [scheduler(kind).step(one, 5, sample, generator=generator()) for one in (x, spoilt)]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)


@EACH
def test_shapes_dtypes_and_inputs(kind):
    x, sample = logits((2, 9)), unknown(2, 9)
    output = scheduler(kind).step(x, torch.tensor(5), sample, generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 9)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = scheduler(kind).step(x, 5, sample, generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False
    assert torch.equal(x, logits((2, 9))) and torch.equal(sample, unknown(2, 9))


@EACH
def test_a_code_without_any_probability_is_never_drawn(kind):
    x = torch.full((2, 9, CODES), -torch.inf)
    x[..., 5] = x[..., 11] = 0.0
    assert set(final_of(scheduler(kind), x).flatten().tolist()) == {5, 11}


def final_of(made, x):
    """A run in which the model always says `x`."""
    sample, draws = torch.full(x.shape[:2], MASK), generator()
    for timestep in made.timesteps:
        sample = made.step(x, timestep, sample, generator=draws).prev_sample
    return sample


@pytest.mark.gpu
@EACH
def test_a_cpu_generator_draws_the_same_for_a_gpu(kind):
    ours = scheduler(kind).step(logits((2, 9)), 5, unknown(2, 9), generator=generator())
    theirs = scheduler(kind).step(logits((2, 9)).cuda(), 5, unknown(2, 9).cuda(), generator=generator())
    assert theirs.prev_sample.device.type == "cuda"
    assert torch.equal(theirs.prev_sample.cpu(), ours.prev_sample)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["maskgit", "halton, roll"])
def test_idle_steps_can_be_skipped_on_a_gpu(kind):
    draws = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
    sample = torch.zeros(2, 256, dtype=torch.int64, device="cuda")
    sample[:, 7] = MASK
    scheduler(kind).step(logits((2, 256)).cuda(), 5, sample, generator=draws[0])
    scheduler(kind).advance_generator(5, sample, draws[1])
    assert torch.equal(draws[0].get_state(), draws[1].get_state())


# Settings


@EACH
def test_save_and_load(kind, tmp_path):
    made = scheduler(kind, masking_schedule="pow2")
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path)
    public = [{name: value for name, value in one.config.items() if name[0] != "_"} for one in (made, loaded)]
    assert public[0] == public[1]
    loaded.set_timesteps(6)
    assert torch.equal(final(made, unknown(2, 9), generator()), final(loaded, unknown(2, 9), generator()))


@EACH
def test_timesteps_count_down_to_zero(kind):
    made = scheduler(kind, 7)
    assert made.timesteps.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert len(made) == made.num_inference_steps == 7


@EACH
def test_add_noise_masks_as_many_as_are_unknown_then(kind):
    made, codes = scheduler(kind, 4, masking_schedule="linear"), torch.zeros(3, 16, dtype=torch.int64)
    noised = made.add_noise(codes, torch.tensor([3, 2, 0]), generator=generator())
    assert (noised == MASK).sum(-1).tolist() == [16, 12, 4]
    assert (noised[noised != MASK] == 0).all()


@pytest.mark.parametrize("kind", ["halton", "entropy bound"])
def test_the_temperature_of_the_call_replaces_the_config_s(kind):
    cold, configured = scheduler(kind), scheduler(kind, token_temperature=0.0)
    cold.set_timesteps(6, temperature=0.0)
    x = logits((2, 9))
    likeliest = x.argmax(-1)
    for made in (cold, configured):
        assert torch.equal(made.step(x, 5, unknown(2, 9), generator=generator()).pred_original_sample, likeliest)
    warm = scheduler(kind).step(x, 5, unknown(2, 9), generator=generator()).pred_original_sample
    assert not torch.equal(warm, likeliest)


@pytest.mark.parametrize("kind", ["maskgit", "halton", "entropy bound", "mask-predict"])
def test_top_k_and_top_p_bound_what_is_drawn(kind):
    x = torch.tensor([0.4, 0.3, 0.2, 0.1] + [0.0] * (CODES - 4)).log().repeat(4, 400, 1)
    cls = KINDS[kind][0]
    for options in ({"top_k": 2}, {"top_p": 0.65}):
        made = cls(mask_token_id=MASK, **options)
        made.set_timesteps(1)
        sample = made.step(x, 0, unknown(4, 400), generator=generator()).prev_sample
        assert set(sample.flatten().tolist()) == {0, 1}
        assert (sample == 0).float().mean() == pytest.approx(4 / 7, abs=0.05)


# Bad input


@EACH
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda made: made.set_timesteps(0), "`num_inference_steps` must be an integer of at least 1, got 0"),
        (lambda made: made.set_timesteps(2.5), "`num_inference_steps` must be an integer of at least 1, got 2.5"),
        (lambda made: made.set_timesteps(3, temperature=-1.0), "`temperature` must be a finite number .* got -1.0"),
        (lambda made: made.step(logits((2, 9)), 6, unknown(2, 9)), "`timestep` must be from 0 to 5, .* got 6"),
        (
            lambda made: made.step(logits((2, 9))[0], 0, unknown(2, 9)),
            r"`model_output` must be \(batch, tokens, codebook",
        ),
        (lambda made: made.step(logits((2, 5)), 0, unknown(2, 9)), r"got \(2, 5, 16\) and \(2, 9\)"),
        (lambda made: made.step(logits((2, 9))[..., 1:], 0, unknown(2, 9)), "logits of 16 codes, .* got 15"),
        (lambda made: made.step(logits((2, 9)), 0, unknown(2, 9).float()), "integer codes, got torch.float32"),
        (lambda made: made.step(logits((2, 9)), 0, unknown(2, 9), [generator()]), "a list of 2, got a list of 1"),
        (lambda made: made.step(logits((2, 9)) * torch.nan, 0, unknown(2, 9)), "`model_output` must hold finite"),
        (lambda made: made.add_noise(unknown(), 6), "`timestep` must be from 0 to 5, .* got 6"),
        (lambda made: type(made)().step(logits((2, 9)), 0, unknown(2, 9)), "Call `set_timesteps` before `step`"),
        (lambda made: type(made)().add_noise(unknown(), 0), "Call `set_timesteps` before `add_noise`"),
        (lambda made: type(made)(masking_schedule="sine"), "`masking_schedule` must be one of"),
        (lambda made: type(made)(top_k=0), "`top_k` must be an integer of at least 1, got 0"),
        (lambda made: type(made)(top_p=1.5), "`top_p` must be above 0 and at most 1, or None, got 1.5"),
    ],
)
def test_wrong_input_is_refused(kind, call, message):
    with pytest.raises(ValueError, match=message):
        call(scheduler(kind))


def test_an_idle_step_is_told_by_a_scheduler_that_is_ready():
    sample = torch.tensor([[3, MASK, 5]])
    for cls in (MaskGITScheduler, HaltonScheduler):
        with pytest.raises(ValueError, match="Call `set_timesteps`"):
            cls(mask_token_id=MASK).is_noop(0, sample)
