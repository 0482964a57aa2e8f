"""`TEST_MINUTES`: no test starts after so many minutes, and those that are left say why they did not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "words"), [("0", "not run: the tests before it took 0 minutes"), ("9", " passed")]
)
def test_tests_after_the_limit_are_skipped_with_the_reason(minutes, words):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_private_names.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TEST_MINUTES": minutes}, capture_output=True, text=True
    )
    assert done.returncode == 0 and words in done.stdout, done.stdout
    assert (" passed" in done.stdout) != (" skipped" in done.stdout)
