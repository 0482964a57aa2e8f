import pytest


@pytest.fixture
def not_loaded(monkeypatch):
    """Fails when a model is loaded."""

    def load_pipeline(config):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("showo_hf.training.run.load_pipeline", load_pipeline)
