"""The schedulers that fill in masked tokens, and toy runs of them, for the tests of all and of each."""

import torch
from hypothesis import strategies as st

from showo_hf import EntropyBoundScheduler, HaltonScheduler, MaskGITScheduler, RemaskingScheduler


CODES = 16
MASK = CODES

#: Settings that differ in what a step does.
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


def scheduler(kind, steps=6, grid_size=None, **options):
    """One of `KINDS`, ready for its first step."""
    cls, settings = KINDS[kind]
    made = cls(mask_token_id=MASK, **(settings | options))
    made.set_timesteps(steps, grid_size=grid_size)
    return made


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(shape, seed=0) -> torch.Tensor:
    return 3 * torch.randn(*shape, CODES, generator=generator(seed))


def unknown(batch=2, tokens=9) -> torch.LongTensor:
    return torch.full((batch, tokens), MASK)


@st.composite
def grids(draw, most_unknown=None):
    """A grid's size and samples for it with some known tokens; at most `most_unknown` unknown ones in each."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    numbers = generator(draw(seeds))
    codes = torch.randint(CODES, (batch, height * width), generator=numbers)
    turns = torch.rand(codes.shape, generator=numbers).argsort(-1)
    most = height * width if most_unknown is None else min(most_unknown, height * width)
    left = torch.tensor([draw(st.integers(1, most)) for _ in range(batch)])
    return (height, width), torch.where(turns < left.unsqueeze(-1), MASK, codes)


def run(made, sample, draws, model_seed=0, skip=False):
    """Steps until `finished`, with other logits at each; yields the samples before and after, and the output or None."""
    for step, timestep in enumerate(made.timesteps):
        if skip and made.is_noop(timestep, sample):
            made.advance_generator(timestep, sample, draws)
            yield sample, sample, None
            continue
        output = made.step(logits(sample.shape, model_seed + step), timestep, sample, generator=draws)
        yield sample, output.prev_sample, output
        sample = output.prev_sample
        if output.finished:
            return


def final(made, sample, draws, **options) -> torch.LongTensor:
    """What a run comes to."""
    return list(run(made, sample, draws, **options))[-1][1]
