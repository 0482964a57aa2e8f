"""The app with the embedded model, served locally."""

import pytest


pytest.importorskip("gradio")

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline  # noqa: E402
from showo_hf.app import SpaceOptions, build_demo, build_space, launch  # noqa: E402


@pytest.fixture(scope="session")
def pipe():
    """The embedded model. A test that changes it must restore it."""
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def space(pipe):
    options = SpaceOptions(jobs_per_session=8, jobs_per_address=8, jobs_per_minute=1000, requests_per_minute=10_000)
    return build_space(pipe, options, warm_up=False)


@pytest.fixture(scope="session")
def served(space):
    """The app of the page, and its address."""
    demo = build_demo(space)
    app, url, _ = launch(demo, space, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield app, url
    demo.close(verbose=False)


@pytest.fixture(scope="session")
def url(served):
    """The address of the page."""
    return served[1]
