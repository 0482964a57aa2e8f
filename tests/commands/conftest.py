from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Each test runs in an empty folder of its own, as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
