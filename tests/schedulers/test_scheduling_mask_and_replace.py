"""MaskAndReplaceScheduler: samples, options and interface."""

import copy
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
from showo_hf.schedulers.mask_and_replace_diffusion import log_posterior, transition_matrix
from showo_hf.schedulers.scheduling_mask_and_replace import MaskAndReplaceScheduler


CODEBOOK_SIZE = 16
MASK = CODEBOOK_SIZE
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


def make_scheduler(steps=None, times=10, codebook_size=CODEBOOK_SIZE, **options) -> MaskAndReplaceScheduler:
    made = MaskAndReplaceScheduler(mask_token_id=codebook_size, num_train_timesteps=times, **options)
    if steps is not None:
        made.set_timesteps(steps)
    return made


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(batch=2, tokens=12, seed=0):
    return 3 * torch.randn(batch, tokens, CODEBOOK_SIZE, generator=generator(seed))


def all_masked(batch=2, tokens=12):
    return torch.full((batch, tokens), MASK)


def some_sample(batch=2, tokens=12, seed=0):
    """Random token ids and masks."""
    return torch.randint(CODEBOOK_SIZE + 1, (batch, tokens), generator=generator(seed))


def run(made, given_sample=None, seed=0, output=None):
    """Run as a pipeline does: sample the prior, then take all steps and restore the given tokens after each."""
    sample = all_masked() if given_sample is None else given_sample
    is_masked, draws = sample == MASK, generator(seed)
    tokens = torch.where(is_masked, made.initial_sample(sample, draws), sample)
    for index, timestep in enumerate(made.timesteps):
        values = logits(*sample.shape, seed=index) if output is None else output
        values = torch.where(is_masked[..., None], values, 0.0)
        step = made.step(values, timestep, tokens, generator=draws)
        tokens = torch.where(is_masked, step.prev_sample, sample)
        assert step.finished or index < len(made.timesteps) - 1
        if step.finished:
            break
    return tokens


# Samples


@settings(max_examples=40, deadline=None)
@given(options, st.integers(1, 10), seeds)
def test_no_mask_is_left_after_the_last_step_and_given_tokens_stay(chosen, steps, seed):
    made, sample = make_scheduler(steps, **chosen), some_sample(seed=seed)
    found = run(made, sample, seed)
    assert found.min() >= 0 and found.max() < CODEBOOK_SIZE
    assert torch.equal(found[sample != MASK], sample[sample != MASK])
    assert torch.equal(found, run(made, sample, seed))


@KINDS
def test_different_seeds_give_different_images(mask_share):
    made = make_scheduler(4, mask_share=mask_share)
    assert not torch.equal(run(made), run(made, seed=1))


@KINDS
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_certain_model_gives_its_image(mask_share, steps):
    wanted = torch.randint(CODEBOOK_SIZE, (2, 12), generator=generator(5))
    certain = torch.nn.functional.one_hot(wanted, CODEBOOK_SIZE) * 100.0
    assert torch.equal(run(make_scheduler(steps, mask_share=mask_share), output=certain), wanted)


def test_samples_follow_the_data_distribution():
    """With one token and the optimal model, samples follow the data for any number of steps."""
    truth, codebook_size, count = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 3, 40_000
    made = make_scheduler(times=12, codebook_size=codebook_size, mask_share=0.6)
    tables = []
    for t in range(13):
        at = made.cumulative_at(torch.tensor([t]))
        matrix = transition_matrix(type(at)(at.keep[0, 0], at.replace[0, 0], at.mask[0, 0]), codebook_size)
        tables.append((truth[:, None] * matrix[:codebook_size]).clamp(min=1e-300).T.log().float())
    for steps in (2, 5, 12):
        made.set_timesteps(steps)
        draws = generator()
        sample = made.initial_sample(torch.full((1, count), codebook_size), draws)
        for timestep in made.timesteps:
            sample = made.step(tables[int(timestep)][sample], timestep, sample, generator=draws).prev_sample
        assert (sample.flatten().bincount(minlength=codebook_size) / count - truth).abs().max() < 0.012


@KINDS
def test_a_step_samples_from_the_mixture(mask_share):
    """Sampling x_0, then the posterior given x_0, samples from the mixture, for every token and a stride above 1."""
    codebook_size, count = 4, 40_000
    made = make_scheduler(2, codebook_size=codebook_size, mask_share=mask_share)
    row = torch.randn(codebook_size, generator=generator(3))
    draws = generator()
    for token in range(codebook_size + 1):
        sample = torch.full((1, count), token)
        found = made.step(row.expand(1, count, codebook_size), 10, sample, generator=draws).prev_sample
        log_p0 = row.log_softmax(-1)[None, None]
        wanted = log_posterior(
            log_p0, sample[:, :1], made.cumulative_at(torch.tensor([5])), made.cumulative_at(torch.tensor([10]))
        ).exp()[0, 0]
        assert (found.flatten().bincount(minlength=codebook_size + 1) / count - wanted).abs().max() < 0.012


@KINDS
def test_sampling_starts_from_the_prior(mask_share):
    sample = torch.full((2, 20_000), MASK)
    sample[:, ::2] = 3
    found = make_scheduler(mask_share=mask_share).initial_sample(sample, generator())
    assert (found[:, ::2] == 3).all()
    shares = found[:, 1::2].flatten().bincount(minlength=CODEBOOK_SIZE + 1) / 20_000
    wanted = torch.tensor([(1 - mask_share) / CODEBOOK_SIZE] * CODEBOOK_SIZE + [mask_share])
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.012)


@KINDS
@pytest.mark.parametrize("time", [0, 3, 10])
def test_add_noise_samples_from_the_cumulative_transition(mask_share, time):
    made = make_scheduler(mask_share=mask_share, masking_schedule="cosine")
    found = made.add_noise(torch.full((2, 20_000), 5), torch.tensor([time, 0]), generator())
    at = made.cumulative_at(torch.tensor([time]))
    wanted = transition_matrix(type(at)(at.keep[0, 0], at.replace[0, 0], at.mask[0, 0]), CODEBOOK_SIZE)[5].float()
    torch.testing.assert_close(found[0].bincount(minlength=CODEBOOK_SIZE + 1) / 20_000, wanted, rtol=0, atol=0.012)
    assert (found[1] == 5).all()


def test_absorbing_diffusion_changes_only_masked_tokens_and_stops_without_them():
    made, sample = make_scheduler(3, mask_share=1.0), some_sample()
    assert not made.needs_all_logits and make_scheduler(mask_share=0.9).needs_all_logits
    known = sample != MASK
    output = made.step(logits(), 10, sample, generator=generator())
    other = torch.where(known[..., None], 50 * torch.randn(2, 12, CODEBOOK_SIZE), logits())
    again = made.step(other, 10, sample, generator=generator())
    for result in (output, again):
        assert torch.equal(result.prev_sample[known], sample[known])
        assert torch.equal(result.pred_original_sample[known], sample[known])
    assert torch.equal(output.prev_sample, again.prev_sample) and not output.finished
    known_tokens = torch.zeros(2, 12, dtype=torch.long)
    assert made.step(logits(), 10, known_tokens).finished
    assert not make_scheduler(3).step(logits(), 10, known_tokens).finished  # these may still be replaced


@pytest.mark.parametrize("masking_schedule", ["linear", "cosine", "sigmoid", "pow2", "pow0.5"])
def test_absorbing_diffusion_masks_the_same_share_as_maskgit(masking_schedule):
    maskgit = MaskGITScheduler(masking_schedule=masking_schedule)
    made = make_scheduler(5, mask_share=1.0, masking_schedule=masking_schedule)
    for step, timestep in enumerate(made.timesteps):
        wanted = maskgit.mask_ratio(step / 5).item()
        assert made.cumulative_at(timestep[None]).mask.item() == pytest.approx(wanted, abs=1e-5)


# Sampling options


def test_truncation_keeps_the_most_likely_tokens():
    row = torch.tensor([0.5, 0.25, 0.15, 0.1])
    made = make_scheduler(1, codebook_size=4, truncation_rate=0.7)
    found = made.step(
        row.log().expand(1, 20_000, 4), 10, torch.full((1, 20_000), 4), generator=generator()
    ).prev_sample
    shares = found.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=0.012)


def test_purity_weight_sharpens_certain_distributions():
    row = torch.tensor([0.5, 0.25, 0.15, 0.1])
    made = make_scheduler(1, codebook_size=4, purity_weight=4.0)
    found = made.step(
        row.log().expand(1, 20_000, 4), 10, torch.full((1, 20_000), 4), generator=generator()
    ).prev_sample
    wanted = row ** (1 + 4.0 * 0.5)
    shares = found.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, wanted / wanted.sum(), rtol=0, atol=0.012)


def test_a_large_purity_weight_gives_the_most_likely_token():
    made = make_scheduler(1, codebook_size=4, purity_weight=1e4)
    row = torch.tensor([0.2, 0.5, 0.3, 0.0])
    found = made.step(row.log().expand(1, 50, 4), 10, torch.full((1, 50), 4), generator=generator()).prev_sample
    assert (found == 1).all()


@pytest.mark.parametrize("mask_share", [0.7, 1.0])
def test_purity_unmasks_where_the_model_is_certain(mask_share):
    certain = torch.zeros(1, 6000, CODEBOOK_SIZE)
    certain[:, :3000, 0] = 50.0  # the first half
    sample = all_masked(1, 6000)
    sample[:, ::3] = 0
    masked = sample[0] == MASK
    results = {}
    for purity in (True, False):
        made = make_scheduler(2, mask_share=mask_share, purity=purity)
        results[purity] = made.step(certain, 10, sample, generator=generator()).prev_sample[0]
    pure, plain = ((found != MASK) & masked for found in (results[True], results[False]))
    assert pure.sum() == plain.sum() > 1000
    assert pure[:3000].sum() > 0.85 * pure.sum() and plain[:3000].sum() < 0.55 * plain.sum()
    assert torch.equal(results[True][~masked], results[False][~masked])
    # Randomly replaced tokens are chosen independently of purity.
    early = made.cumulative_at(torch.tensor([5]))
    replaced = 15 * early.replace / (early.keep + 16 * early.replace)
    there = results[True][:3000][pure[:3000]]
    assert (there != 0).double().mean().item() == pytest.approx(replaced.item(), abs=0.03)


# Random draws


@settings(max_examples=30, deadline=None)
@given(options, st.integers(1, 10), seeds)
def test_a_batch_gives_the_same_as_each_sample_alone(chosen, steps, seed):
    made, sample, values = make_scheduler(steps, **chosen), some_sample(3, seed=seed), logits(3, seed=seed)
    timestep = made.timesteps[0]
    draws = [generator(i) for i in range(3)]
    start = made.initial_sample(sample, draws)
    together = made.step(values, timestep, start, generator=draws).prev_sample
    noised = made.add_noise(together % CODEBOOK_SIZE, timestep, draws)
    for i in range(3):
        row, draw = slice(i, i + 1), generator(i)
        alone = made.step(values[row], timestep, made.initial_sample(sample[row], draw), generator=draw).prev_sample
        assert torch.equal(together[row], alone)
        assert torch.equal(noised[row], made.add_noise(alone % CODEBOOK_SIZE, timestep, draw))


@settings(max_examples=30, deadline=None)
@given(options, seeds)
def test_the_generator_state_does_not_depend_on_tokens_or_logits(chosen, seed):
    made = make_scheduler(3, **chosen)
    states = []
    for sample, values in ((some_sample(seed=seed), logits(seed=seed)), (all_masked(), 50 * logits(seed=1))):
        draws = generator(seed)
        made.step(values, made.timesteps[0], made.initial_sample(sample, draws), generator=draws)
        states.append(draws.get_state())
    assert torch.equal(*states)


@settings(max_examples=30, deadline=None)
@given(options, seeds)
def test_advance_generator_consumes_the_draws_of_a_step(chosen, seed):
    made, sample = make_scheduler(3, **chosen), some_sample(seed=seed)
    draws, skipped = generator(seed), generator(seed)
    made.step(logits(seed=seed), made.timesteps[0], sample, generator=draws)
    made.advance_generator(made.timesteps[0], sample, skipped)
    assert torch.equal(draws.get_state(), skipped.get_state())


@pytest.mark.gpu
@settings(max_examples=20, deadline=None)
@given(options)
def test_a_cpu_generator_gives_the_same_tokens_on_a_gpu(chosen):
    made = make_scheduler(3, **chosen)
    ours = made.step(logits(), 10, some_sample(), generator=generator()).prev_sample
    theirs = made.step(logits().cuda(), 10, some_sample().cuda(), generator=generator()).prev_sample
    assert theirs.device.type == "cuda"
    assert (theirs.cpu() == ours).float().mean() > 0.9  # the softmax of a GPU may round differently
    times = torch.tensor([4, 7])
    noised = made.add_noise(ours % CODEBOOK_SIZE, times, generator())
    there = made.add_noise((ours % CODEBOOK_SIZE).cuda(), times.cuda(), generator())
    assert torch.equal(there.cpu(), noised)
    loss, on_gpu = (
        made.training_loss(
            logits().to(device), (ours % CODEBOOK_SIZE).to(device), noised.to(device), times.to(device)
        ).loss
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu.cpu(), loss, rtol=1e-4, atol=1e-3)


# Swapping


@pytest.fixture
def warnings_of_diffusers(caplog):
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    diffusers_logging.disable_propagation()


def test_schedulers_replace_each_other_without_warnings(warnings_of_diffusers):
    first = MaskGITScheduler(mask_token_id=MASK, temperature=3.0, masking_schedule="pow2")
    ours = MaskAndReplaceScheduler.from_config(first.config, mask_share=1.0)
    assert (ours.config.mask_token_id, ours.config.mask_share, ours.config.masking_schedule) == (MASK, 1.0, "pow2")
    back = MaskGITScheduler.from_config(ours.config)
    assert (back.config.mask_token_id, back.config.temperature) == (MASK, 3.0)
    assert MaskAndReplaceScheduler.from_config(back.config).config.mask_share == 1.0
    assert not warnings_of_diffusers.records


@KINDS
def test_a_pipeline_runs_with_the_scheduler(mask_share):
    pipe = tiny.pipeline(tiny.processor())
    pipe.scheduler = MaskAndReplaceScheduler.from_config(pipe.scheduler.config, mask_share=mask_share)
    latents = torch.full((1, tiny.SIDE, tiny.SIDE), tiny.CODES)
    latents[:, 0] = 7
    call = {"num_inference_steps": 5, "output_type": "latent", "latents": latents, "guidance_scale": 2.0}
    found, again = (pipe("two hearts", generator=generator(), **call).images for _ in range(2))
    assert torch.equal(found, again) and (found[:, 0] == 7).all()
    assert found.min() >= 0 and found.max() < tiny.CODES


# What diffusers' scheduler tests check


def test_save_and_load(tmp_path):
    made = make_scheduler(times=7, mask_share=0.3, masking_schedule="pow2", purity=True)
    made.save_pretrained(tmp_path)
    loaded = MaskAndReplaceScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in OPTIONS} == {name: made.config[name] for name in OPTIONS}
    for one in (made, loaded):
        one.set_timesteps(4)
    assert torch.equal(run(made), run(loaded))


@given(st.integers(1, 40), st.data())
def test_timesteps_count_down_from_the_last_time(times, data):
    steps = data.draw(st.integers(1, times))
    made = make_scheduler(steps, times=times)
    found = made.timesteps.tolist()
    assert found[0] == times and len(found) == steps == made.num_inference_steps
    assert found == sorted(set(found), reverse=True) and found[-1] >= 1
    strides = [early - late for early, late in zip(found, [*found[1:], 0], strict=True)]
    assert max(strides) - min(strides) <= 1
    assert len(made) == times


def test_shapes_and_dtypes():
    made = make_scheduler(2)
    output = made.step(logits(), torch.tensor(10), all_masked(), generator=generator())
    assert isinstance(output, TokenSchedulerOutput)
    assert output.prev_sample.shape == output.pred_original_sample.shape == (2, 12)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == torch.int64
    as_tuple = made.step(logits(), 10, all_masked(), generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and as_tuple[2] is output.finished is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    made, half = make_scheduler(2, truncation_rate=0.8), logits().to(dtype)
    found = made.step(half, 10, all_masked(), generator=generator()).prev_sample
    assert torch.equal(found, made.step(half.float(), 10, all_masked(), generator=generator()).prev_sample)


def test_the_inputs_are_not_changed():
    x, sample = logits(), some_sample()
    made = make_scheduler(2, purity=True, purity_weight=1.0, truncation_rate=0.5)
    made.step(x, 10, made.initial_sample(sample, generator()), generator=generator())
    assert torch.equal(x, logits()) and torch.equal(sample, some_sample())


def test_a_deep_copy_has_its_own_state_and_history():
    made = make_scheduler(4)
    copied = copy.deepcopy(made)
    copied.set_timesteps(2)
    copied.update_history(torch.tensor([1]), torch.tensor([2.0]))
    assert len(made.timesteps) == 4 and made.loss_counts.sum() == 0
    assert torch.equal(run(made), run(copy.deepcopy(made)))


# Bad input


@KINDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, CODEBOOK_SIZE - 1])
def test_logits_that_are_not_finite_are_refused(mask_share, value, position):
    made, x = make_scheduler(2, mask_share=mask_share), logits()
    x[1, 5, position] = value
    with pytest.raises(ValueError, match="`model_output` must hold finite numbers or -inf, got nan or inf"):
        made.step(x, 10, all_masked(), generator=generator())
    x[1, 5, position] = -torch.inf
    assert (made.step(x, 10, all_masked(), generator=generator()).prev_sample <= MASK).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_scheduler(times=0), "`num_train_timesteps` must be an integer of at least 1, got 0"),
        (lambda: make_scheduler(mask_share=1.5), "`mask_share` must be a number from 0 to 1, got 1.5"),
        (lambda: make_scheduler(truncation_rate=0.0), "`truncation_rate` must be above 0 and at most 1, got 0.0"),
        (
            lambda: make_scheduler(purity_weight=-1.0),
            "`purity_weight` must be a finite number that is not negative, got -1",
        ),
        (lambda: make_scheduler(auxiliary_weight=float("nan")), "`auxiliary_weight` must be a finite number"),
        (lambda: make_scheduler(masking_schedule="cubic"), "`masking_schedule` must be one of .*, got 'cubic'"),
        (lambda: make_scheduler(11), "`num_inference_steps` must be from 1 to `num_train_timesteps` .10., got 11"),
        (lambda: make_scheduler(0), "`num_inference_steps` must be an integer of at least 1, got 0"),
        (lambda: make_scheduler().step(logits(), 10, all_masked()), "Call `set_timesteps` before `step`"),
        (
            lambda: make_scheduler(2).step(logits(), 7, all_masked()),
            r"`timestep` must be one of `timesteps`, \[10, 5\], got 7",
        ),
        (
            lambda: make_scheduler(2).step(logits()[0], 10, all_masked()),
            r"`model_output` must be \(batch, tokens, codebook\)",
        ),
        (
            lambda: make_scheduler(2).step(logits()[..., 1:], 10, all_masked()),
            "must have 16 logits per token, .* got 15",
        ),
        (lambda: make_scheduler(2).step(logits(), 10, all_masked().float()), "integer token ids, got torch.float32"),
        (lambda: make_scheduler(2).step(logits(), 10, all_masked(), [generator()]), "a list of 2, got a list of 1"),
        (
            lambda: make_scheduler(2).step(logits(), 10, all_masked() + 1),
            "token ids from 0 to `mask_token_id`, 16, got 17",
        ),
        (
            lambda: make_scheduler(2).step(logits(), 10, all_masked() - 17),
            "token ids from 0 to `mask_token_id`, 16, got -1",
        ),
        (
            lambda: make_scheduler(2).step(logits() * torch.nan, 10, all_masked()),
            "`model_output` must hold finite numbers",
        ),
        (lambda: make_scheduler().add_noise(all_masked(), 11), r"`timesteps` must be from 0 to 10, got \[11\]"),
        (
            lambda: make_scheduler().add_noise(all_masked(), torch.tensor([1, 2, 3])),
            "`timesteps` must be one or 2 integers, got 3",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
