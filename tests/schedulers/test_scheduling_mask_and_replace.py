"""The scheduler of mask-and-replace diffusion: its draws, its options and its interface."""

import inspect
import logging

import pytest
import tiny
import torch
from diffusers.utils import logging as diffusers_logging
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf import MaskGITScheduler
from showo_hf.schedulers import TokenSchedulerOutput
from showo_hf.schedulers.mask_and_replace import log_posterior, transition_matrix
from showo_hf.schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler


CODES = 16
MASK = CODES
OPTIONS = set(inspect.signature(MaskAndReplaceScheduler.__init__).parameters) - {"self"}
KINDS = pytest.mark.parametrize("mask_share", [0.0, 0.6, 1.0])

seeds = st.integers(0, 2**31)
options = st.fixed_dictionaries(
    {
        "mask_share": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        "purity": st.booleans(),
        "purity_weight": st.sampled_from([0.0, 2.0]),
        "truncation_rate": st.sampled_from([0.2, 0.8, 1.0]),
        "masking_schedule": st.sampled_from(["linear", "cosine", "sigmoid", "pow2", "pow0.5"]),
    }
)


def scheduler(steps=None, times=10, codes=CODES, **options) -> MaskAndReplaceScheduler:
    made = MaskAndReplaceScheduler(mask_token_id=codes, num_train_timesteps=times, **options)
    if steps is not None:
        made.set_timesteps(steps)
    return made


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(batch=2, tokens=12, seed=0):
    return 3 * torch.randn(batch, tokens, CODES, generator=generator(seed))


def unknown(batch=2, tokens=12):
    return torch.full((batch, tokens), MASK)


def some_sample(batch=2, tokens=12, seed=0):
    """Codes and masks."""
    return torch.randint(CODES + 1, (batch, tokens), generator=generator(seed))


def run(made, given_sample=None, seed=0, output=None):
    """What a pipeline does: the prior, then all steps, with the given tokens written back."""
    sample = unknown() if given_sample is None else given_sample
    is_unknown, draws = sample == MASK, generator(seed)
    tokens = torch.where(is_unknown, made.initial_sample(sample, draws), sample)
    for index, timestep in enumerate(made.timesteps):
        values = logits(*sample.shape, seed=index) if output is None else output
        values = torch.where(is_unknown[..., None], values, 0.0)
        step = made.step(values, timestep, tokens, generator=draws)
        tokens = torch.where(is_unknown, step.prev_sample, sample)
        assert step.finished or index < len(made.timesteps) - 1
        if step.finished:
            break
    return tokens


# What comes out


@settings(max_examples=40, deadline=None)
@given(options, st.integers(1, 10), seeds)
def test_after_the_last_step_no_mask_is_left_and_given_tokens_stay(chosen, steps, seed):
    made, sample = scheduler(steps, **chosen), some_sample(seed=seed)
    found = run(made, sample, seed)
    assert found.min() >= 0 and found.max() < CODES
    assert torch.equal(found[sample != MASK], sample[sample != MASK])
    assert torch.equal(found, run(made, sample, seed))


@KINDS
def test_another_seed_gives_another_image(mask_share):
    made = scheduler(4, mask_share=mask_share)
    assert not torch.equal(run(made), run(made, seed=1))


@KINDS
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_sure_model_gets_its_image(mask_share, steps):
    wanted = torch.randint(CODES, (2, 12), generator=generator(5))
    sure = torch.nn.functional.one_hot(wanted, CODES) * 100.0
    assert torch.equal(run(scheduler(steps, mask_share=mask_share), output=sure), wanted)


def test_samples_have_the_data_s_distribution():
    """One token and the true model: what comes out is distributed as the data, whatever the number of steps."""
    truth, codes, count = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 3, 40_000
    made = scheduler(times=12, codes=codes, mask_share=0.6)
    tables = []
    for t in range(13):
        at = made.at(torch.tensor([t]))
        matrix = transition_matrix(type(at)(at.keep[0, 0], at.replace[0, 0], at.mask[0, 0]), codes)
        tables.append((truth[:, None] * matrix[:codes]).clamp(min=1e-300).T.log().float())
    for steps in (2, 5, 12):
        made.set_timesteps(steps)
        draws = generator()
        sample = made.initial_sample(torch.full((1, count), codes), draws)
        for timestep in made.timesteps:
            sample = made.step(tables[int(timestep)][sample], timestep, sample, generator=draws).prev_sample
        assert (sample.flatten().bincount(minlength=codes) / count - truth).abs().max() < 0.012


@KINDS
def test_a_step_has_the_frequencies_of_the_whole_table(mask_share):
    """Draws of x_0 and of the posterior given it are draws of the mixture, for every token; the step skips times."""
    codes, count = 4, 40_000
    made = scheduler(2, codes=codes, mask_share=mask_share)
    row = torch.randn(codes, generator=generator(3))
    draws = generator()
    for token in range(codes + 1):
        sample = torch.full((1, count), token)
        found = made.step(row.expand(1, count, codes), 10, sample, generator=draws).prev_sample
        log_p0 = row.log_softmax(-1)[None, None]
        wanted = log_posterior(log_p0, sample[:, :1], made.at(torch.tensor([5])), made.at(torch.tensor([10]))).exp()[
            0, 0
        ]
        assert (found.flatten().bincount(minlength=codes + 1) / count - wanted).abs().max() < 0.012


@KINDS
def test_sampling_starts_at_the_prior(mask_share):
    sample = torch.full((2, 20_000), MASK)
    sample[:, ::2] = 3
    found = scheduler(mask_share=mask_share).initial_sample(sample, generator())
    assert (found[:, ::2] == 3).all()
    shares = found[:, 1::2].flatten().bincount(minlength=CODES + 1) / 20_000
    wanted = torch.tensor([(1 - mask_share) / CODES] * CODES + [mask_share])
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.012)


@KINDS
@pytest.mark.parametrize("time", [0, 3, 10])
def test_add_noise_draws_from_the_cumulative_transition(mask_share, time):
    made = scheduler(mask_share=mask_share, masking_schedule="cosine")
    found = made.add_noise(torch.full((2, 20_000), 5), torch.tensor([time, 0]), generator())
    at = made.at(torch.tensor([time]))
    wanted = transition_matrix(type(at)(at.keep[0, 0], at.replace[0, 0], at.mask[0, 0]), CODES)[5].float()
    torch.testing.assert_close(found[0].bincount(minlength=CODES + 1) / 20_000, wanted, rtol=0, atol=0.012)
    assert (found[1] == 5).all()


def test_absorbing_diffusion_changes_masks_only_and_stops_when_there_are_none():
    made, sample = scheduler(3, mask_share=1.0), some_sample()
    assert not made.needs_all_logits and scheduler(mask_share=0.9).needs_all_logits
    known = sample != MASK
    output = made.step(logits(), 10, sample, generator=generator())
    other = torch.where(known[..., None], 50 * torch.randn(2, 12, CODES), logits())
    again = made.step(other, 10, sample, generator=generator())
    for result in (output, again):
        assert torch.equal(result.prev_sample[known], sample[known])
        assert torch.equal(result.pred_original_sample[known], sample[known])
    assert torch.equal(output.prev_sample, again.prev_sample) and not output.finished
    codes = torch.zeros(2, 12, dtype=torch.long)
    assert made.step(logits(), 10, codes).finished
    assert not scheduler(3).step(logits(), 10, codes).finished  # these may still change


@pytest.mark.parametrize("masking_schedule", ["linear", "cosine", "sigmoid", "pow2", "pow0.5"])
def test_absorbing_diffusion_masks_as_large_a_share_as_maskgit_before_each_step(masking_schedule):
    maskgit = MaskGITScheduler(masking_schedule=masking_schedule)
    made = scheduler(5, mask_share=1.0, masking_schedule=masking_schedule)
    for step, timestep in enumerate(made.timesteps):
        wanted = maskgit.mask_ratio(step / 5).item()
        assert made.at(timestep[None]).mask.item() == pytest.approx(wanted, abs=1e-5)


# Options of sampling


def test_truncation_leaves_the_most_likely_codes():
    row = torch.tensor([0.5, 0.25, 0.15, 0.1])
    made = scheduler(1, codes=4, truncation_rate=0.7)
    found = made.step(
        row.log().expand(1, 20_000, 4), 10, torch.full((1, 20_000), 4), generator=generator()
    ).prev_sample
    shares = found.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=0.012)


def test_purity_weight_sharpens_where_the_model_is_sure():
    row = torch.tensor([0.5, 0.25, 0.15, 0.1])
    made = scheduler(1, codes=4, purity_weight=4.0)
    found = made.step(
        row.log().expand(1, 20_000, 4), 10, torch.full((1, 20_000), 4), generator=generator()
    ).prev_sample
    wanted = row ** (1 + 4.0 * 0.5)
    shares = found.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, wanted / wanted.sum(), rtol=0, atol=0.012)


def test_a_large_purity_weight_draws_the_likeliest():
    made = scheduler(1, codes=4, purity_weight=1e4)
    row = torch.tensor([0.2, 0.5, 0.3, 0.0])
    found = made.step(row.log().expand(1, 50, 4), 10, torch.full((1, 50), 4), generator=generator()).prev_sample
    assert (found == 1).all()


@pytest.mark.parametrize("mask_share", [0.7, 1.0])
def test_purity_fills_in_where_the_model_is_sure(mask_share):
    sure = torch.zeros(1, 6000, CODES)
    sure[:, :3000, 0] = 50.0  # of the first half
    sample = unknown(1, 6000)
    sample[:, ::3] = 0
    masked = sample[0] == MASK
    results = {}
    for purity in (True, False):
        made = scheduler(2, mask_share=mask_share, purity=purity)
        results[purity] = made.step(sure, 10, sample, generator=generator()).prev_sample[0]
    pure, plain = ((found != MASK) & masked for found in (results[True], results[False]))
    assert pure.sum() == plain.sum() > 1000
    assert pure[:3000].sum() > 0.85 * pure.sum() and plain[:3000].sum() < 0.55 * plain.sum()
    assert torch.equal(results[True][~masked], results[False][~masked])
    # Tokens that are filled in at random are no purer than others.
    early = made.at(torch.tensor([5]))
    replaced = 15 * early.replace / (early.keep + 16 * early.replace)
    there = results[True][:3000][pure[:3000]]
    assert (there != 0).double().mean().item() == pytest.approx(replaced.item(), abs=0.03)


# Draws


@settings(max_examples=30, deadline=None)
@given(options, st.integers(1, 10), seeds)
def test_a_batch_gives_what_each_sample_gives_alone(chosen, steps, seed):
    made, sample, values = scheduler(steps, **chosen), some_sample(3, seed=seed), logits(3, seed=seed)
    timestep = made.timesteps[0]
    draws = [generator(i) for i in range(3)]
    start = made.initial_sample(sample, draws)
    together = made.step(values, timestep, start, generator=draws).prev_sample
    noised = made.add_noise(together % CODES, timestep, draws)
    for i in range(3):
        row, draw = slice(i, i + 1), generator(i)
        alone = made.step(values[row], timestep, made.initial_sample(sample[row], draw), generator=draw).prev_sample
        assert torch.equal(together[row], alone)
        assert torch.equal(noised[row], made.add_noise(alone % CODES, timestep, draw))


@settings(max_examples=30, deadline=None)
@given(options, seeds)
def test_a_generator_s_state_does_not_depend_on_what_is_known_or_predicted(chosen, seed):
    made = scheduler(3, **chosen)
    states = []
    for sample, values in ((some_sample(seed=seed), logits(seed=seed)), (unknown(), 50 * logits(seed=1))):
        draws = generator(seed)
        made.step(values, made.timesteps[0], made.initial_sample(sample, draws), generator=draws)
        states.append(draws.get_state())
    assert torch.equal(*states)


@settings(max_examples=30, deadline=None)
@given(options, seeds)
def test_a_skipped_step_draws_what_a_step_draws(chosen, seed):
    made, sample = scheduler(3, **chosen), some_sample(seed=seed)
    draws, skipped = generator(seed), generator(seed)
    made.step(logits(seed=seed), made.timesteps[0], sample, generator=draws)
    made.advance_generator(made.timesteps[0], sample, skipped)
    assert torch.equal(draws.get_state(), skipped.get_state())


@pytest.mark.gpu
@settings(max_examples=20, deadline=None)
@given(options)
def test_a_cpu_generator_draws_the_same_for_a_gpu(chosen):
    made = scheduler(3, **chosen)
    ours = made.step(logits(), 10, some_sample(), generator=generator()).prev_sample
    theirs = made.step(logits().cuda(), 10, some_sample().cuda(), generator=generator()).prev_sample
    assert theirs.device.type == "cuda"
    assert (theirs.cpu() == ours).float().mean() > 0.9  # the softmax of a GPU may round otherwise
    times = torch.tensor([4, 7])
    noised = made.add_noise(ours % CODES, times, generator())
    there = made.add_noise((ours % CODES).cuda(), times.cuda(), generator())
    assert torch.equal(there.cpu(), noised)
    loss, on_gpu = (
        made.training_loss(logits().to(device), (ours % CODES).to(device), noised.to(device), times.to(device)).loss
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu.cpu(), loss, rtol=1e-4, atol=1e-3)


# In place of another scheduler


@pytest.fixture
def warnings_of_diffusers(caplog):
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    diffusers_logging.disable_propagation()


def test_schedulers_take_each_other_s_place_without_warnings(warnings_of_diffusers):
    first = MaskGITScheduler(mask_token_id=MASK, temperature=3.0, masking_schedule="pow2")
    ours = MaskAndReplaceScheduler.from_config(first.config, mask_share=1.0)
    assert (ours.config.mask_token_id, ours.config.mask_share, ours.config.masking_schedule) == (MASK, 1.0, "pow2")
    back = MaskGITScheduler.from_config(ours.config)
    assert (back.config.mask_token_id, back.config.temperature) == (MASK, 3.0)
    assert MaskAndReplaceScheduler.from_config(back.config).config.mask_share == 1.0
    assert not warnings_of_diffusers.records


@KINDS
def test_a_pipeline_runs_with_it(mask_share):
    pipe = tiny.pipeline(tiny.processor())
    pipe.scheduler = MaskAndReplaceScheduler.from_config(pipe.scheduler.config, mask_share=mask_share)
    latents = torch.full((1, tiny.SIDE, tiny.SIDE), tiny.CODES)
    latents[:, 0] = 7
    call = {"num_inference_steps": 5, "output_type": "latent", "latents": latents, "guidance_scale": 2.0}
    found, again = (pipe("two hearts", generator=generator(), **call).images for _ in range(2))
    assert torch.equal(found, again) and (found[:, 0] == 7).all()
    assert found.min() >= 0 and found.max() < tiny.CODES


# What diffusers' scheduler tests check


def test_it_is_saved_and_loaded(tmp_path):
    made = scheduler(times=7, mask_share=0.3, masking_schedule="pow2", purity=True)
    made.save_pretrained(tmp_path)
    loaded = MaskAndReplaceScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in OPTIONS} == {name: made.config[name] for name in OPTIONS}
    for one in (made, loaded):
        one.set_timesteps(4)
    assert torch.equal(run(made), run(loaded))


@given(st.integers(1, 40), st.data())
def test_timesteps_count_down_from_the_last_time(times, data):
    steps = data.draw(st.integers(1, times))
    made = scheduler(steps, times=times)
    found = made.timesteps.tolist()
    assert found[0] == times and len(found) == steps == made.num_inference_steps
    assert found == sorted(set(found), reverse=True) and found[-1] >= 1
    strides = [early - late for early, late in zip(found, [*found[1:], 0], strict=True)]
    assert max(strides) - min(strides) <= 1
    assert len(made) == times


def test_shapes_and_dtypes():
    made = scheduler(2)
    output = made.step(logits(), torch.tensor(10), unknown(), generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 12)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = made.step(logits(), 10, unknown(), generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    made, half = scheduler(2, truncation_rate=0.8), logits().to(dtype)
    found = made.step(half, 10, unknown(), generator=generator()).prev_sample
    assert torch.equal(found, made.step(half.float(), 10, unknown(), generator=generator()).prev_sample)


def test_the_inputs_stay_as_they_are():
    x, sample = logits(), some_sample()
    made = scheduler(2, purity=True, purity_weight=1.0, truncation_rate=0.5)
    made.step(x, 10, made.initial_sample(sample, generator()), generator=generator())
    assert torch.equal(x, logits()) and torch.equal(sample, some_sample())


# Bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scheduler(times=0), "`num_train_timesteps` must be at least 1, got 0"),
        (lambda: scheduler(mask_share=1.5), "`mask_share` must be from 0 to 1, got 1.5"),
        (lambda: scheduler(truncation_rate=0.0), "`truncation_rate` must be above 0 and at most 1, got 0.0"),
        (
            lambda: scheduler(purity_weight=-1.0),
            "`purity_weight` must be a finite number that is not negative, got -1",
        ),
        (lambda: scheduler(auxiliary_weight=float("nan")), "`auxiliary_weight` must be a finite number"),
        (lambda: scheduler(masking_schedule="cubic"), "`masking_schedule` must be one of .*, got 'cubic'"),
        (lambda: scheduler(11), "`num_inference_steps` must be from 1 to `num_train_timesteps` .10., got 11"),
        (lambda: scheduler(0), "`num_inference_steps` must be from 1 to"),
        (lambda: scheduler().step(logits(), 10, unknown()), "Call `set_timesteps` before `step`"),
        (
            lambda: scheduler(2).step(logits(), 7, unknown()),
            r"`timestep` must be one of `timesteps`, \[10, 5\], got 7",
        ),
        (lambda: scheduler(2).step(logits()[0], 10, unknown()), r"`model_output` must be \(batch, tokens, codebook\)"),
        (lambda: scheduler(2).step(logits()[..., 1:], 10, unknown()), "a logit for each of the 16 codes .*, got 15"),
        (lambda: scheduler(2).step(logits(), 10, unknown().float()), "integer codes, got torch.float32"),
        (lambda: scheduler(2).step(logits(), 10, unknown(), [generator()]), "a list of 2, got a list of 1"),
        (lambda: scheduler().add_noise(unknown(), 11), r"`timesteps` must be from 0 to 10, got \[11\]"),
        (lambda: scheduler().add_noise(unknown(), torch.tensor([1, 2, 3])), r"must be of shape \(2,\), got \(3,\)"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
