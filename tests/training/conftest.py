from pathlib import Path

import pytest
import small_run


@pytest.fixture
def not_loaded(monkeypatch):
    """Fails when a model is loaded."""

    def load_pipeline(config):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("showo_hf.training.run.load_pipeline", load_pipeline)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    small_run.run(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished run of 6 steps, checkpoints at 4 and 6, and the best weights."""
    folder = tmp_path_factory.mktemp("finished")
    small_run.run(folder, **small_run.validated())
    return folder


@pytest.fixture(scope="module")
def checkpoint(finished) -> Path:
    return finished / "out-checkpoints" / "checkpoint-4"
