"""The log of a run."""

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showo_hf.training.logs import RunLog


@pytest.fixture
def log(tmp_path) -> RunLog:
    return RunLog(tmp_path / "new" / "run-log.jsonl")


def test_rows_come_back(log):
    assert log.read() == [] and log.last_step() is None
    log.append({"step": 0, "blind_guess": {"loss_t2i": 6.93}})
    log.append({"step": 10, "loss": torch.tensor(1.5), "learning_rate": np.float32(0.25), "note": None})
    log.append({"step": 10, "eval_loss_t2i": 2.0})
    assert log.read() == [
        {"step": 0, "blind_guess": {"loss_t2i": 6.93}},
        {"step": 10, "loss": 1.5, "learning_rate": 0.25, "note": None},
        {"step": 10, "eval_loss_t2i": 2.0},
    ]
    assert log.last_step() == 10


def test_numbers_that_are_not_finite_are_valid_json(log):
    log.append({"step": 1, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf})
    assert b"NaN," not in log.file.read_bytes().replace(b'"', b"!")  # only as strings
    (row,) = log.read()
    assert math.isnan(row["loss"]) and row["grad_norm"] == math.inf and row["low"] == -math.inf


@pytest.mark.parametrize("row", [{}, {"step": -1}, {"step": 1.0}, {"step": True}, {"step": "1"}])
def test_a_row_needs_a_step(log, row):
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        log.append(row)
    assert not log.file.exists()


def test_a_value_that_json_cannot_hold_is_refused(log):
    log.append({"step": 1})
    with pytest.raises(ValueError, match="can hold what JSON can hold"):
        log.append({"step": 2, "loss": object()})
    assert log.read() == [{"step": 1}]


def test_a_half_written_last_line_does_not_count(log):
    log.append({"step": 1, "loss": 2.0})
    with open(log.file, "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert log.read() == [{"step": 1, "loss": 2.0}]
    log.append({"step": 2, "loss": 1.0})
    assert log.file.read_bytes() == b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_a_long_half_written_line_is_removed(log):
    log.append({"step": 1})
    with open(log.file, "ab") as file:
        file.write(b'{"step": 2, "text": "' + b"a" * 10_000)
    log.append({"step": 2})
    assert [row["step"] for row in log.read()] == [1, 2]


def test_a_broken_line_is_named_when_read_and_dropped_when_resumed(log, caplog):
    for step in (1, 2):
        log.append({"step": step})
    content = log.file.read_bytes()
    log.file.write_bytes(content.replace(b'{"step": 1}', b"\0\0\xff{"))
    with pytest.raises(ValueError, match="line 1 of '.*run-log.jsonl' is not a row"):
        log.read()
    assert log.truncate_after(5) == 1
    assert log.read() == [{"step": 2}] and "cannot be read" in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(0, 20), max_size=12).map(sorted),
    resumed=st.integers(-1, 25),
    cut=st.integers(0, 400),
)
def test_a_resumed_run_logs_each_step_once(log, steps, resumed, cut):
    log.file.unlink(missing_ok=True)
    for step in steps:
        log.append({"step": step, "loss": step / 7})
    if log.file.exists():
        os.truncate(log.file, min(cut, log.file.stat().st_size))  # a kill
    before = log.read()
    log.truncate_after(resumed)
    kept = log.read()
    assert kept == [row for row in before if row["step"] <= max(resumed, 0)]
    for step in range(max(resumed, 0) + 1, 23):
        log.append({"step": step, "loss": 0.0})
    rows = log.read()
    assert [row["step"] for row in rows] == [*(row["step"] for row in kept), *range(max(resumed, 0) + 1, 23)]
    assert not list(log.file.parent.glob(".*"))


def test_nothing_is_written_where_nothing_changes(log):
    assert log.truncate_after(3) == 0 and not log.file.exists()
    log.append({"step": 3})
    before = log.file.stat()
    assert log.truncate_after(3) == 0
    assert log.file.stat().st_ino == before.st_ino
    assert log.truncate_after(2) == 1 and log.read() == []


PROGRAM = """
import itertools, sys
from showo_hf.training.logs import RunLog
log = RunLog(sys.argv[1])
print("ready", flush=True)
for step in itertools.count(1):
    log.append({"step": step, "loss": 1 / step, "text": "a" * (step % 50)})
    if step % 50 == 0:
        log.truncate_after(step - 10)
        for again in range(step - 9, step + 1):
            log.append({"step": again, "loss": 0.5})
"""


@pytest.mark.slow
def test_after_a_kill_all_lines_but_the_last_are_whole(tmp_path):
    for trial in range(5):
        log = RunLog(tmp_path / f"{trial}.jsonl")
        with subprocess.Popen([sys.executable, "-c", PROGRAM, log.file], stdout=subprocess.PIPE) as process:
            try:
                process.stdout.readline()
                end = time.monotonic() + 60
                while (not log.file.exists() or log.file.read_bytes().count(b"\n") <= 40) and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(0.07 * trial)
            finally:
                process.kill()
        steps = [row["step"] for row in log.read()]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20
        log.truncate_after(len(steps) - 5)
        assert log.last_step() == len(steps) - 5
