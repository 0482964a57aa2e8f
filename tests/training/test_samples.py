"""Samples in trackers."""

import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import tiny

from showo_hf.training.samples import LogSamples


class Tracker(ModuleType):
    """In the place of wandb, which counts rows as steps, and drops what is logged for an earlier step."""

    def __init__(self):
        super().__init__("wandb")
        self.step, self.rows = 0, []

    def Image(self, array, caption):
        return array.shape, caption

    def log(self, row, step=None):
        if step is None or step >= self.step:
            self.step = 1 + (self.step if step is None else step)
            self.rows.append(row)


@pytest.fixture
def tracker(monkeypatch):
    module = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_tracker_with_more_rows_than_steps_has_the_samples(tmp_path, tracker):
    """With a row of training and one of validation at each step, as transformers logs them."""
    for step in (1, 2):
        for name in ("train/loss", "eval/loss"):
            tracker.log({name: 1.0, "train/global_step": step})
    pipe = tiny.pipeline(tiny.processor())
    samples = LogSamples(pipe, tmp_path, ["a red apple"], [], trackers=("tensorboard", "wandb"))
    samples.make(2, nullcontext())
    side = tiny.SIDE * tiny.FACTOR
    assert tracker.rows[-1] == {"samples": [((side, side, 3), "a red apple")], "train/global_step": 2}
