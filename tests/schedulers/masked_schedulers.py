"""Schedulers of masked diffusion and small runs of them, shared by the tests."""

import torch
from hypothesis import strategies as st

from showo_hf import EntropyBoundScheduler, HaltonScheduler, MaskGITScheduler, RemaskingScheduler


CODEBOOK_SIZE = 16
MASK = CODEBOOK_SIZE

#: Settings that change what a step does.
KINDS = {
    "maskgit": (MaskGITScheduler, {}),
    "maskgit, top_k": (MaskGITScheduler, {"top_k": 3}),
    "halton": (HaltonScheduler, {}),
    "halton, roll": (HaltonScheduler, {"roll": True, "top_p": 0.7, "token_temperature": 0.5}),
    "entropy bound": (EntropyBoundScheduler, {}),
    "entropy bound, confidence": (EntropyBoundScheduler, {"sort_by": "confidence", "entropy_bound": 1.0, "top_k": 5}),
    "mask-predict": (RemaskingScheduler, {}),
    "remdm, cap": (RemaskingScheduler, {"rule": "remdm", "eta": 0.3}),
    "remdm, rescale": (RemaskingScheduler, {"rule": "remdm", "sigma_rule": "rescale", "eta": 0.9}),
}

seeds = st.integers(0, 2**31)
kinds = st.sampled_from(list(KINDS))
schedules = st.sampled_from(["arccos", "cosine", "linear", "sigmoid", "pow2", "pow0.5"])


def make_scheduler(kind, steps=6, grid_size=None, **options):
    """One of `KINDS`, ready for its first step."""
    cls, settings = KINDS[kind]
    scheduler = cls(mask_token_id=MASK, **(settings | options))
    scheduler.set_timesteps(steps, grid_size=grid_size)
    return scheduler


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(shape, seed=0) -> torch.Tensor:
    return 3 * torch.randn(*shape, CODEBOOK_SIZE, generator=generator(seed))


def all_masked(batch=2, tokens=9) -> torch.LongTensor:
    return torch.full((batch, tokens), MASK)


@st.composite
def grids(draw, max_masked=None):
    """A grid size and samples of this size with random known tokens; at most `max_masked` masked tokens each."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    draws = generator(draw(seeds))
    tokens = torch.randint(CODEBOOK_SIZE, (batch, height * width), generator=draws)
    ranks = torch.rand(tokens.shape, generator=draws).argsort(-1)
    most = height * width if max_masked is None else min(max_masked, height * width)
    num_masked = torch.tensor([draw(st.integers(1, most)) for _ in range(batch)])
    return (height, width), torch.where(ranks < num_masked.unsqueeze(-1), MASK, tokens)


def run(scheduler, sample, draws, model_seed=0, skip=False):
    """
    Run steps until `finished`, with different logits at each. Yield the samples before and after, and the output.

    With `skip`, advance the generator instead of a no-op step. The output is None then.
    """
    for step, timestep in enumerate(scheduler.timesteps):
        if skip and scheduler.is_noop(timestep, sample):
            scheduler.advance_generator(timestep, sample, draws)
            yield sample, sample, None
            continue
        output = scheduler.step(logits(sample.shape, model_seed + step), timestep, sample, generator=draws)
        yield sample, output.prev_sample, output
        sample = output.prev_sample
        if output.finished:
            return


def final_sample(scheduler, sample, draws, **options) -> torch.LongTensor:
    """The sample after all steps."""
    return list(run(scheduler, sample, draws, **options))[-1][1]
