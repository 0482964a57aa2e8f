"""The scheduler: its counts and draws against the formulas, and what diffusers' scheduler tests check."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf import MaskGITScheduler
from showo_hf.schedulers import TokenSchedulerOutput


CODES = 16
MASK = CODES

schedules = st.sampled_from(["cosine", "linear", "sigmoid", "pow2", "pow0.5"])
seeds = st.integers(0, 2**31)


def scheduler(steps=6, **options) -> MaskGITScheduler:
    made = MaskGITScheduler(mask_token_id=MASK, **options)
    made.set_timesteps(steps)
    return made


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(batch=2, tokens=12, seed=0):
    return 3 * torch.randn(batch, tokens, CODES, generator=generator(seed))


def unknown(batch=2, tokens=12):
    return torch.full((batch, tokens), MASK)


@st.composite
def samples(draw):
    """Grids in which some tokens are known, at least one unknown in each."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    known = torch.rand(batch, tokens, generator=generator(draw(seeds))) < draw(st.floats(0, 0.9))
    known[:, draw(st.integers(0, tokens - 1))] = False
    codes = torch.randint(CODES, (batch, tokens), generator=generator(draw(seeds)))
    return torch.where(known, codes, MASK)


def run(made, sample, seed=0, model_seed=0):
    """All steps, with other logits at each; yields the sample before and the output."""
    draws = generator(seed)
    for step, timestep in enumerate(made.timesteps):
        output = made.step(logits(*sample.shape, model_seed + step), timestep, sample, generator=draws)
        yield sample, output
        sample = output.prev_sample


# Counts


def floor_of(value: torch.Tensor) -> int:
    """In float32, as in the original: half of 16 tokens may be 7.9999."""
    assert value.dtype == torch.float32
    return int(value.floor())


@settings(deadline=None, max_examples=80)
@given(samples(), schedules, st.integers(1, 9), seeds)
def test_the_number_of_masked_tokens_is_the_formula_s(sample, schedule, steps, seed):
    made = scheduler(steps, masking_schedule=schedule)
    tokens = sample.shape[1]
    for step, (before, output) in enumerate(run(made, sample, seed)):
        share = floor_of(tokens * made.mask_ratio((step + 1) / steps))
        for row, after in zip(before, output.prev_sample, strict=True):
            left = int((row == MASK).sum())
            wanted = max(1, min(left - 1, share))
            masked = int((after == MASK).sum())
            if step == steps - 1:
                assert masked == 0
            elif left > 1:
                assert masked == wanted
            else:  # the last unknown token waits for the last step, unless it is the whole image
                assert masked == (1 if tokens > 1 else 0)
    assert output.finished


@settings(deadline=None, max_examples=50)
@given(samples(), st.integers(1, 6), seeds)
def test_a_known_token_never_changes(sample, steps, seed):
    for before, output in run(scheduler(steps), sample, seed):
        known = before != MASK
        assert torch.equal(output.prev_sample[known], before[known])
        assert torch.equal(output.pred_original_sample[known], before[known])
        assert (output.pred_original_sample < CODES).all() and (output.prev_sample <= MASK).all()
        filled = output.prev_sample != MASK
        assert torch.equal(output.prev_sample[filled], output.pred_original_sample[filled])
        assert output.finished is not bool((output.prev_sample == MASK).any())


def test_the_least_confident_are_masked_again():
    """Without noise on the confidences: the tokens with the lowest probability."""
    probabilities = torch.tensor([0.9, 0.3, 0.6, 0.8, 0.5, 0.7])
    rest = ((1 - probabilities) / (CODES - 1)).log()
    output = rest[None, :, None].repeat(1, 1, CODES)
    made = scheduler(2, masking_schedule="linear", temperature=0.0)
    for seed in range(20):
        output[..., 0] = probabilities.log()
        guess = made.step(output, 1, unknown(1, 6), generator=generator(seed))
        chosen = output.softmax(-1).gather(-1, guess.pred_original_sample[..., None])[0, :, 0]
        masked = guess.prev_sample[0] == MASK
        assert masked.sum() == 3 and chosen[masked].max() <= chosen[~masked].min()


def test_samples_follow_the_model_s_distribution():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125] + [0.0] * (CODES - 4))
    output = probabilities.clamp(1e-30).log().repeat(4, 5000, 1)
    codes = scheduler(1).step(output, 0, unknown(4, 5000), generator=generator()).prev_sample
    shares = torch.bincount(codes.flatten(), minlength=CODES) / codes.numel()
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.015)


# Draws


def test_logits_of_known_tokens_are_not_looked_at_yet_numbers_are_drawn_for_them():
    sample = unknown()
    sample[:, 3] = 7
    one, other = logits(seed=1), logits(seed=1)
    other[:, 3] = logits(seed=2)[:, 3]
    other[:, 3, 0] = 50.0
    draws = generator(), generator()
    outputs = [scheduler().step(x, 5, sample, generator=g) for x, g in zip((one, other), draws, strict=True)]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    everything = generator()
    scheduler().step(one, 5, unknown(), generator=everything)
    assert torch.equal(everything.get_state(), draws[0].get_state())


def test_the_order_of_the_draws_is_the_original_s():
    """One multinomial over every position, then uniform noise over every position, from one generator."""
    made, draws = scheduler(6), generator(5)
    x = logits(1, 12)
    p = x.softmax(-1)
    drawn = torch.multinomial(p[0], 1, generator=draws)[:, 0]
    uniform = torch.zeros(1, 12).uniform_(0, 1, generator=draws)
    gumbel = -torch.log(-torch.log(uniform))
    confidence = p[0].gather(-1, drawn[:, None])[:, 0].log() + (1 - 1 / 6) * gumbel[0]
    masked = math.floor(12 * math.cos(math.pi / 12))
    expected = drawn.clone()
    expected[confidence.argsort()[:masked]] = MASK
    ours = made.step(x, 5, unknown(1, 12), generator=generator(5)).prev_sample
    assert torch.equal(ours[0], expected)


def test_one_generator_makes_a_run_repeatable():
    runs = [list(run(scheduler(), unknown(), seed))[-1][1].prev_sample for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@settings(deadline=None, max_examples=20)
@given(samples(), st.integers(1, 4))
def test_a_list_of_generators_gives_what_each_gives_alone(sample, steps):
    batch, tokens = sample.shape
    together, made = sample, scheduler(steps)
    draws = [generator(i) for i in range(batch)]
    for step, timestep in enumerate(made.timesteps):
        together = made.step(logits(batch, tokens, step), timestep, together, generator=draws).prev_sample
    for i in range(batch):
        alone, draw = sample[i : i + 1], generator(i)
        for step, timestep in enumerate(made.timesteps):
            x = logits(batch, tokens, step)[i : i + 1]
            alone = made.step(x, timestep, alone, generator=draw).prev_sample
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.gpu
def test_a_cpu_generator_draws_the_same_for_a_gpu():
    ours = scheduler().step(logits(), 5, unknown(), generator=generator()).prev_sample
    theirs = scheduler().step(logits().cuda(), 5, unknown().cuda(), generator=generator()).prev_sample
    assert theirs.device.type == "cuda"
    assert torch.equal(theirs.cpu(), ours)


def test_draws_are_those_of_multinomial_where_some_tokens_are_known():
    """The original draws for every position; here the distributions of known tokens are not even made."""
    sample, x, draws = unknown(2, 12), logits(2, 12), generator(5)
    sample[:, ::3] = 7
    drawn = torch.multinomial(x.softmax(-1).flatten(0, 1), 1, generator=draws).view(2, 12)
    guess = scheduler().step(x, 5, sample, generator=generator(5)).pred_original_sample
    assert torch.equal(guess, torch.where(sample == MASK, drawn, sample))


def test_top_k_changes_no_confidence():
    """With `top_k=1` all tokens are the likeliest ones, and those that the model is least sure of are masked again."""
    made, x = scheduler(2, masking_schedule="linear", temperature=0.0, top_k=1), logits(1, 12)
    output = made.step(x, 1, unknown(1, 12), generator=generator())
    confidence, likeliest = x.softmax(-1).max(-1)
    assert torch.equal(output.pred_original_sample, likeliest)
    masked = output.prev_sample == MASK
    assert masked.sum() == 6 and confidence[masked].max() < confidence[~masked].min()


def test_top_k_and_top_p_that_allow_all_change_nothing():
    plain = list(run(scheduler(), unknown()))[-1][1].prev_sample
    for options in ({"top_k": CODES}, {"top_p": 1.0}):
        assert torch.equal(list(run(scheduler(**options), unknown()))[-1][1].prev_sample, plain)


# Temperature


@given(st.integers(1, 30), st.floats(0, 10))
def test_temperature_rules(steps, temperature):
    linear = scheduler(1, temperature_rule="linear", temperature=temperature)
    linear.set_timesteps(steps)
    assert linear.temperatures == pytest.approx([temperature * (1 - (i + 1) / steps) for i in range(steps)])
    compound = scheduler(1)
    compound.set_timesteps(steps, temperature=temperature)
    product = [math.prod(1 - (j + 1) / steps for j in range(i + 1)) for i in range(steps)]
    assert compound.temperatures == pytest.approx([temperature * factor for factor in product])


def test_temperature_changes_which_tokens_are_kept():
    cold, hot = (scheduler(4, temperature=t).step(logits(), 3, unknown(), generator=generator()) for t in (0.0, 50.0))
    assert torch.equal(cold.pred_original_sample, hot.pred_original_sample)
    assert not torch.equal(cold.prev_sample, hot.prev_sample)


# What diffusers' scheduler tests check


def test_save_and_load(tmp_path):
    made = scheduler(masking_schedule="pow2", temperature=2.5, temperature_rule="linear")
    made.save_pretrained(tmp_path)
    loaded = MaskGITScheduler.from_pretrained(tmp_path)
    for name in ("mask_token_id", "masking_schedule", "temperature", "temperature_rule", "top_k", "top_p"):
        assert loaded.config[name] == made.config[name]
    loaded.set_timesteps(6)
    runs = [list(run(one, unknown()))[-1][1].prev_sample for one in (made, loaded)]
    assert torch.equal(*runs)


def test_from_config_takes_another_s_settings():
    swapped = MaskGITScheduler.from_config(scheduler(temperature=3.0).config, masking_schedule="linear")
    assert swapped.config.masking_schedule == "linear"
    assert (swapped.config.temperature, swapped.config.mask_token_id) == (3.0, MASK)


@given(st.integers(1, 50))
def test_timesteps_count_down_to_zero(steps):
    made = scheduler(steps)
    assert made.timesteps.tolist() == list(range(steps - 1, -1, -1))
    assert len(made) == made.num_inference_steps == steps


def test_a_second_call_starts_anew():
    made = scheduler(3)
    made.set_timesteps(5, device="cpu", grid_size=(3, 4))
    assert len(made.timesteps) == len(made.temperatures) == 5


def test_shapes_and_dtypes():
    output = scheduler().step(logits(), torch.tensor(5), unknown(), generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 12)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = scheduler().step(logits(), 5, unknown(), generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    half = logits().to(dtype)
    ours = scheduler().step(half, 5, unknown(), generator=generator())
    assert torch.equal(
        ours.prev_sample, scheduler().step(half.float(), 5, unknown(), generator=generator()).prev_sample
    )


def test_the_inputs_stay_as_they_are():
    x, sample = logits(), unknown()
    scheduler().step(x, 5, sample, generator=generator())
    assert torch.equal(x, logits()) and torch.equal(sample, unknown())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 8), schedules, st.data())
def test_add_noise_masks_as_many_as_are_unknown_then(tokens, steps, schedule, data):
    made = scheduler(steps, masking_schedule=schedule)
    codes = torch.randint(CODES, (3, tokens), generator=generator(1))
    steps_done = data.draw(st.lists(st.integers(0, steps - 1), min_size=3, max_size=3))
    timesteps = torch.tensor([steps - 1 - step for step in steps_done])
    noised = made.add_noise(codes, timesteps, generator=generator(2))
    for row, original, step in zip(noised, codes, steps_done, strict=True):
        assert (row == MASK).sum() == max(1, floor_of(tokens * made.mask_ratio(step / steps)))
        assert torch.equal(row[row != MASK], original[row != MASK])
    assert torch.equal(noised, made.add_noise(codes, timesteps, generator=generator(2)))
    same = made.add_noise(codes, steps - 1, generator=generator(2))
    assert (same == MASK).all(), "before the first step everything is unknown"


def test_add_noise_masks_other_tokens_with_another_seed():
    made, codes = scheduler(), torch.zeros(1, 40, dtype=torch.int64)
    one, other = (made.add_noise(codes, 2, generator=generator(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)


# Bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MaskGITScheduler(masking_schedule="sine"), "`masking_schedule` must be one of"),
        (lambda: MaskGITScheduler(temperature_rule="none"), "`temperature_rule` must be 'compound' or 'linear'"),
        (lambda: scheduler(0), "`num_inference_steps` must be an integer of at least 1, got 0"),
        (lambda: scheduler().set_timesteps(3, temperature=-1.0), "`temperature` must be a finite number .* got -1.0"),
        (lambda: MaskGITScheduler().step(logits(), 0, unknown()), "Call `set_timesteps` before `step`"),
        (lambda: MaskGITScheduler().add_noise(unknown(), 0), "Call `set_timesteps` before `add_noise`"),
        (lambda: scheduler().step(logits()[0], 0, unknown()), r"`model_output` must be \(batch, tokens, codebook\)"),
        (lambda: scheduler().step(logits(tokens=5), 0, unknown()), r"got \(2, 5, 16\) and \(2, 12\)"),
        (lambda: scheduler().step(logits(), 0, unknown().float()), "integer codes, got torch.float32"),
        (lambda: scheduler().step(logits(), 0, unknown(), [generator()]), "a list of 2, got a list of 1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
