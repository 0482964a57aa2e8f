"""The benchmark of the schedulers runs and prints one table. Its numbers are not tested."""

import contextlib
import io

import pytest
import schedulers
import torch
from diffusers import AmusedScheduler

from showo_hf import MaskGITScheduler


def run_benchmark(*arguments: str) -> list[list[str]]:
    """Run the small benchmark and return the cells of its table, with the head as the first row."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        schedulers.main(["--small", "--repeats", "1", *arguments])
    heading, empty, head, rule, *rows = printed.getvalue().strip().splitlines()
    assert heading.startswith("torch ") and "logits (2, 8, 32)" in heading and empty == ""
    assert set(rule) == set("|- ")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]


def test_it_prints_one_table():
    head, *rows = run_benchmark()
    assert head == ["what", "device", "measured", "target"]
    assert len({what for what, *_ in rows}) == len(rows) == 7
    assert [target for *_, target in rows] == ["at least 2", "at most 1.3", *["reported"] * 3, "1", "reported"]
    for _, device, measured, _ in rows:
        ratio, *medians = measured.replace("(", "").replace(")", "").replace(",", "").split()
        assert device == "cpu" and all(float(number) >= 0 for number in (ratio, medians[0], medians[2]))


def test_half_of_the_tokens_are_masked_and_every_function_accepts_them():
    logits, sample = schedulers.inputs(schedulers.Sizes(4, 64, 32), "cpu")
    assert logits.shape == (4, 64, 32) and 0.4 < (sample == 32).float().mean() < 0.6
    assert sample.max() == 32 and sample.min() >= 0
    for name, way in schedulers.mask_and_replace_ways(schedulers.SMALL, "cpu").items():
        output = way()
        assert name == "floor" or output.prev_sample.shape == (2, 8)


def test_the_two_maskgit_schedulers_do_the_same_work():
    """With the same random numbers and no confidence noise, they give the same tokens."""
    logits, sample = schedulers.inputs(schedulers.SMALL, "cpu")
    ours, theirs = MaskGITScheduler(32), AmusedScheduler(32)
    ours.set_timesteps(8, temperature=0.0)
    theirs.set_timesteps(8, temperature=(0, 0))
    one, other = (
        made.step(logits, ours.timesteps[4], sample, generator=torch.Generator().manual_seed(0)).prev_sample
        for made in (ours, theirs)
    )
    assert torch.equal(one, other)


@pytest.mark.gpu
def test_it_runs_on_a_gpu():
    _, *rows = run_benchmark("--device", "cuda")
    assert {device for _, device, _, _ in rows} == {"cuda"}
