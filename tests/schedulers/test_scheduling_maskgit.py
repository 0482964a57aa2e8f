"""MaskGITScheduler: counts and draws compared with the formulas, and the checks of diffusers' scheduler tests."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf import MaskGITScheduler
from showo_hf.schedulers import TokenSchedulerOutput


CODEBOOK_SIZE = 16
MASK = CODEBOOK_SIZE

schedules = st.sampled_from(["cosine", "linear", "sigmoid", "pow2", "pow0.5"])
seeds = st.integers(0, 2**31)


def make_scheduler(steps=6, **options) -> MaskGITScheduler:
    scheduler = MaskGITScheduler(mask_token_id=MASK, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(batch=2, tokens=12, seed=0):
    return 3 * torch.randn(batch, tokens, CODEBOOK_SIZE, generator=generator(seed))


def all_masked(batch=2, tokens=12):
    return torch.full((batch, tokens), MASK)


@st.composite
def samples(draw):
    """Samples with random known tokens and at least one masked token each."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    known = torch.rand(batch, tokens, generator=generator(draw(seeds))) < draw(st.floats(0, 0.9))
    known[:, draw(st.integers(0, tokens - 1))] = False
    token_ids = torch.randint(CODEBOOK_SIZE, (batch, tokens), generator=generator(draw(seeds)))
    return torch.where(known, token_ids, MASK)


def run(scheduler, sample, seed=0, model_seed=0):
    """Run all steps with different logits at each. Yield the sample before and the output."""
    draws = generator(seed)
    for step, timestep in enumerate(scheduler.timesteps):
        output = scheduler.step(logits(*sample.shape, model_seed + step), timestep, sample, generator=draws)
        yield sample, output
        sample = output.prev_sample


# Counts


def floor_of(value: torch.Tensor) -> int:
    """In float32, as in the original: half of 16 tokens may be 7.9999."""
    assert value.dtype == torch.float32
    return int(value.floor())


@settings(deadline=None, max_examples=80)
@given(samples(), schedules, st.integers(1, 9), seeds)
def test_the_number_of_masked_tokens_follows_the_formula(sample, schedule, steps, seed):
    scheduler = make_scheduler(steps, masking_schedule=schedule)
    tokens = sample.shape[1]
    for step, (before, output) in enumerate(run(scheduler, sample, seed)):
        share = floor_of(tokens * scheduler.mask_ratio((step + 1) / steps))
        for row, after in zip(before, output.prev_sample, strict=True):
            left = int((row == MASK).sum())
            wanted = max(1, min(left - 1, share))
            masked = int((after == MASK).sum())
            if step == steps - 1:
                assert masked == 0
            elif left > 1:
                assert masked == wanted
            else:  # the last masked token stays masked until the last step, unless it is the whole image
                assert masked == (1 if tokens > 1 else 0)
    assert output.finished


@settings(deadline=None, max_examples=50)
@given(samples(), st.integers(1, 6), seeds)
def test_known_tokens_never_change(sample, steps, seed):
    for before, output in run(make_scheduler(steps), sample, seed):
        known = before != MASK
        assert torch.equal(output.prev_sample[known], before[known])
        assert torch.equal(output.pred_original_sample[known], before[known])
        assert (output.pred_original_sample < CODEBOOK_SIZE).all() and (output.prev_sample <= MASK).all()
        filled = output.prev_sample != MASK
        assert torch.equal(output.prev_sample[filled], output.pred_original_sample[filled])
        assert output.finished is not bool((output.prev_sample == MASK).any())


def test_the_least_confident_tokens_are_masked_again():
    """Without noise, these are the tokens with the lowest probability."""
    probabilities = torch.tensor([0.9, 0.3, 0.6, 0.8, 0.5, 0.7])
    rest = ((1 - probabilities) / (CODEBOOK_SIZE - 1)).log()
    output = rest[None, :, None].repeat(1, 1, CODEBOOK_SIZE)
    scheduler = make_scheduler(2, masking_schedule="linear", temperature=0.0)
    for seed in range(20):
        output[..., 0] = probabilities.log()
        guess = scheduler.step(output, 1, all_masked(1, 6), generator=generator(seed))
        chosen = output.softmax(-1).gather(-1, guess.pred_original_sample[..., None])[0, :, 0]
        masked = guess.prev_sample[0] == MASK
        assert masked.sum() == 3 and chosen[masked].max() <= chosen[~masked].min()


def test_samples_follow_the_distribution_of_the_model():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125] + [0.0] * (CODEBOOK_SIZE - 4))
    output = probabilities.clamp(1e-30).log().repeat(4, 5000, 1)
    token_ids = make_scheduler(1).step(output, 0, all_masked(4, 5000), generator=generator()).prev_sample
    shares = torch.bincount(token_ids.flatten(), minlength=CODEBOOK_SIZE) / token_ids.numel()
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.015)


# Random draws


def test_logits_of_known_tokens_are_ignored_but_random_numbers_are_drawn_for_them():
    sample = all_masked()
    sample[:, 3] = 7
    one, other = logits(seed=1), logits(seed=1)
    other[:, 3] = logits(seed=2)[:, 3]
    other[:, 3, 0] = 50.0
    draws = generator(), generator()
    outputs = [make_scheduler().step(x, 5, sample, generator=g) for x, g in zip((one, other), draws, strict=True)]
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    everything = generator()
    make_scheduler().step(one, 5, all_masked(), generator=everything)
    assert torch.equal(everything.get_state(), draws[0].get_state())


def test_random_numbers_are_drawn_in_the_order_of_the_original():
    """One multinomial draw for every position, then uniform noise for every position, from one generator."""
    scheduler, draws = make_scheduler(6), generator(5)
    x = logits(1, 12)
    p = x.softmax(-1)
    drawn = torch.multinomial(p[0], 1, generator=draws)[:, 0]
    uniform = torch.zeros(1, 12).uniform_(0, 1, generator=draws)
    gumbel = -torch.log(-torch.log(uniform))
    confidence = p[0].gather(-1, drawn[:, None])[:, 0].log() + (1 - 1 / 6) * gumbel[0]
    masked = math.floor(12 * math.cos(math.pi / 12))
    expected = drawn.clone()
    expected[confidence.argsort()[:masked]] = MASK
    ours = scheduler.step(x, 5, all_masked(1, 12), generator=generator(5)).prev_sample
    assert torch.equal(ours[0], expected)


def test_the_same_seed_gives_the_same_tokens():
    runs = [list(run(make_scheduler(), all_masked(), seed))[-1][1].prev_sample for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@settings(deadline=None, max_examples=20)
@given(samples(), st.integers(1, 4))
def test_a_list_of_generators_gives_each_sample_its_own_draws(sample, steps):
    batch, tokens = sample.shape
    together, scheduler = sample, make_scheduler(steps)
    draws = [generator(i) for i in range(batch)]
    for step, timestep in enumerate(scheduler.timesteps):
        together = scheduler.step(logits(batch, tokens, step), timestep, together, generator=draws).prev_sample
    for i in range(batch):
        alone, draw = sample[i : i + 1], generator(i)
        for step, timestep in enumerate(scheduler.timesteps):
            x = logits(batch, tokens, step)[i : i + 1]
            alone = scheduler.step(x, timestep, alone, generator=draw).prev_sample
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_tokens_on_a_gpu():
    ours = make_scheduler().step(logits(), 5, all_masked(), generator=generator()).prev_sample
    theirs = make_scheduler().step(logits().cuda(), 5, all_masked().cuda(), generator=generator()).prev_sample
    assert theirs.device.type == "cuda"
    assert torch.equal(theirs.cpu(), ours)


def test_tokens_equal_those_of_multinomial_if_some_are_known():
    """The original samples every position. Here the distributions of known tokens are not computed."""
    sample, x, draws = all_masked(2, 12), logits(2, 12), generator(5)
    sample[:, ::3] = 7
    drawn = torch.multinomial(x.softmax(-1).flatten(0, 1), 1, generator=draws).view(2, 12)
    guess = make_scheduler().step(x, 5, sample, generator=generator(5)).pred_original_sample
    assert torch.equal(guess, torch.where(sample == MASK, drawn, sample))


def test_top_k_does_not_change_confidences():
    """With `top_k=1`, every token is the most likely one, and the least certain ones are masked again."""
    scheduler, x = make_scheduler(2, masking_schedule="linear", temperature=0.0, top_k=1), logits(1, 12)
    output = scheduler.step(x, 1, all_masked(1, 12), generator=generator())
    confidence, most_likely = x.softmax(-1).max(-1)
    assert torch.equal(output.pred_original_sample, most_likely)
    masked = output.prev_sample == MASK
    assert masked.sum() == 6 and confidence[masked].max() < confidence[~masked].min()


def test_top_k_and_top_p_without_a_limit_change_nothing():
    plain = list(run(make_scheduler(), all_masked()))[-1][1].prev_sample
    for options in ({"top_k": CODEBOOK_SIZE}, {"top_p": 1.0}):
        assert torch.equal(list(run(make_scheduler(**options), all_masked()))[-1][1].prev_sample, plain)


# Temperature


@given(st.integers(1, 30), st.floats(0, 10))
def test_temperature_rules(steps, temperature):
    linear = make_scheduler(1, temperature_rule="linear", temperature=temperature)
    linear.set_timesteps(steps)
    assert linear.temperatures == pytest.approx([temperature * (1 - (i + 1) / steps) for i in range(steps)])
    compound = make_scheduler(1)
    compound.set_timesteps(steps, temperature=temperature)
    product = [math.prod(1 - (j + 1) / steps for j in range(i + 1)) for i in range(steps)]
    assert compound.temperatures == pytest.approx([temperature * factor for factor in product])


def test_temperature_changes_which_tokens_are_kept():
    cold, hot = (
        make_scheduler(4, temperature=t).step(logits(), 3, all_masked(), generator=generator()) for t in (0.0, 50.0)
    )
    assert torch.equal(cold.pred_original_sample, hot.pred_original_sample)
    assert not torch.equal(cold.prev_sample, hot.prev_sample)


# What diffusers' scheduler tests check


def test_save_and_load(tmp_path):
    scheduler = make_scheduler(masking_schedule="pow2", temperature=2.5, temperature_rule="linear")
    scheduler.save_pretrained(tmp_path)
    loaded = MaskGITScheduler.from_pretrained(tmp_path)
    for name in ("mask_token_id", "masking_schedule", "temperature", "temperature_rule", "top_k", "top_p"):
        assert loaded.config[name] == scheduler.config[name]
    loaded.set_timesteps(6)
    runs = [list(run(one, all_masked()))[-1][1].prev_sample for one in (scheduler, loaded)]
    assert torch.equal(*runs)


def test_from_config_keeps_settings():
    swapped = MaskGITScheduler.from_config(make_scheduler(temperature=3.0).config, masking_schedule="linear")
    assert swapped.config.masking_schedule == "linear"
    assert (swapped.config.temperature, swapped.config.mask_token_id) == (3.0, MASK)


@given(st.integers(1, 50))
def test_timesteps_count_down_to_zero(steps):
    scheduler = make_scheduler(steps)
    assert scheduler.timesteps.tolist() == list(range(steps - 1, -1, -1))
    assert len(scheduler) == scheduler.num_inference_steps == steps


def test_set_timesteps_can_be_called_again():
    scheduler = make_scheduler(3)
    scheduler.set_timesteps(5, device="cpu", grid_size=(3, 4))
    assert len(scheduler.timesteps) == len(scheduler.temperatures) == 5


def test_shapes_and_dtypes():
    output = make_scheduler().step(logits(), torch.tensor(5), all_masked(), generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 12)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = make_scheduler().step(logits(), 5, all_masked(), generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    half = logits().to(dtype)
    ours = make_scheduler().step(half, 5, all_masked(), generator=generator())
    assert torch.equal(
        ours.prev_sample, make_scheduler().step(half.float(), 5, all_masked(), generator=generator()).prev_sample
    )


def test_the_inputs_are_not_changed():
    x, sample = logits(), all_masked()
    make_scheduler().step(x, 5, sample, generator=generator())
    assert torch.equal(x, logits()) and torch.equal(sample, all_masked())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 8), schedules, st.data())
def test_add_noise_masks_as_many_tokens_as_the_schedule(tokens, steps, schedule, data):
    scheduler = make_scheduler(steps, masking_schedule=schedule)
    token_ids = torch.randint(CODEBOOK_SIZE, (3, tokens), generator=generator(1))
    steps_done = data.draw(st.lists(st.integers(0, steps - 1), min_size=3, max_size=3))
    timesteps = torch.tensor([steps - 1 - step for step in steps_done])
    noised = scheduler.add_noise(token_ids, timesteps, generator=generator(2))
    for row, original, step in zip(noised, token_ids, steps_done, strict=True):
        assert (row == MASK).sum() == max(1, floor_of(tokens * scheduler.mask_ratio(step / steps)))
        assert torch.equal(row[row != MASK], original[row != MASK])
    assert torch.equal(noised, scheduler.add_noise(token_ids, timesteps, generator=generator(2)))
    same = scheduler.add_noise(token_ids, steps - 1, generator=generator(2))
    assert (same == MASK).all(), "before the first step all tokens are masked"


def test_add_noise_depends_on_the_seed():
    scheduler, token_ids = make_scheduler(), torch.zeros(1, 40, dtype=torch.int64)
    one, other = (scheduler.add_noise(token_ids, 2, generator=generator(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)


# Bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MaskGITScheduler(masking_schedule="sine"), "`masking_schedule` must be one of"),
        (lambda: MaskGITScheduler(temperature_rule="none"), "`temperature_rule` must be 'compound' or 'linear'"),
        (lambda: make_scheduler(0), "`num_inference_steps` must be an integer of at least 1, got 0"),
        (
            lambda: make_scheduler().set_timesteps(3, temperature=-1.0),
            "`temperature` must be a finite number .* got -1.0",
        ),
        (lambda: MaskGITScheduler().step(logits(), 0, all_masked()), "Call `set_timesteps` before `step`"),
        (lambda: MaskGITScheduler().add_noise(all_masked(), 0), "Call `set_timesteps` before `add_noise`"),
        (
            lambda: make_scheduler().step(logits()[0], 0, all_masked()),
            r"`model_output` must be \(batch, tokens, codebook\)",
        ),
        (lambda: make_scheduler().step(logits(tokens=5), 0, all_masked()), r"got \(2, 5, 16\) and \(2, 12\)"),
        (lambda: make_scheduler().step(logits(), 0, all_masked().float()), "integer token ids, got torch.float32"),
        (lambda: make_scheduler().step(logits(), 0, all_masked(), [generator()]), "a list of 2, got a list of 1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
