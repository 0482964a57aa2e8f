"""Fixtures of the benchmarks. Scripts such as benchmarks/t2i.py are imported as top-level modules."""

import sys
from pathlib import Path

import pytest
import small_world
import tiny


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A saved pipeline."""
    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline(tiny.processor()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def world_folder(objects, tmp_path_factory) -> Path:
    """What [`small_world`] writes."""
    folder = tmp_path_factory.mktemp("world")
    small_world.write(folder, objects)
    return folder
