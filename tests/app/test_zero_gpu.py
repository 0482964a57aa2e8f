"""
Jobs with a lent GPU, as on a ZeroGPU Space, with the decorator of `spaces`, which changes nothing elsewhere.

On ZeroGPU, work and events are pickled between processes, so these tests pickle them too.
"""

import threading
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image


pytest.importorskip("gradio")
spaces = pytest.importorskip("spaces")

import gradio as gr  # noqa: E402

from showo_hf.app import SpaceOptions, build_space, zero_gpu  # noqa: E402
from showo_hf.app.engine import Answered, Drawn, Engine, Step, collect  # noqa: E402
from showo_hf.app.line import FAILED, Job  # noqa: E402
from showo_hf.app.settings import DrawSettings, Refusal  # noqa: E402


SETTINGS = DrawSettings("a cat", steps=3, seed=7)


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny.pipeline(tiny.processor()))


def pickled(value):
    """The value after the way between two processes."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


@pytest.fixture
def two_processes(monkeypatch):
    """Pickles what goes to the process with the GPU and what comes back, as ZeroGPU does."""

    def lent_events(*arguments):
        for event in zero_gpu.events_of(*pickled(arguments)):
            yield pickled(event)

    monkeypatch.setattr(zero_gpu, "lent_events", lent_events)


def test_spaces_decorates_the_work():
    assert zero_gpu.spaces is spaces
    assert zero_gpu.lent_events is zero_gpu.events_of  # outside of ZeroGPU
    assert zero_gpu.lent_seconds(None, (), 60.0, "") == 60.0


def test_a_lent_job_gives_the_events_of_the_work(engine, two_processes):
    direct = collect(lambda job: engine.draw(job, SETTINGS, True, True))
    lent = collect(lambda job: zero_gpu.run_lent(engine.draw, 60.0, job, SETTINGS, True, True))
    assert [type(event) for event in lent] == [type(event) for event in direct]
    for one, other in zip(lent, direct, strict=True):
        images = [getattr(event, "image", None) or event.images[0] for event in (one, other)]
        assert images[0].tobytes() == images[1].tobytes()


def test_an_edit_and_a_conversation_cross_processes(engine, two_processes):
    image = Image.new("RGB", (16, 16), "red")
    edited = collect(lambda job: zero_gpu.run_lent(engine.vary, 60.0, job, SETTINGS, image, 0.5, True))
    assert isinstance(edited[-1], Drawn) and edited[-1].before.size == edited[-1].images[0].size
    answered = collect(lambda job: zero_gpu.run_lent(engine.ask, 60.0, job, [], image, "what is this?"))
    assert isinstance(answered[-1], Answered)
    question, answer = answered[-1].messages
    assert question["content"][0]["image"].shape == engine.pipe.default_grid and answer["role"] == "assistant"


def test_the_page_runs_its_jobs_with_a_lent_gpu(engine, two_processes, monkeypatch):
    space = build_space(engine.pipe, SpaceOptions(gpu_seconds=7), warm_up=False)
    assert space.lent(space.engine.draw) == space.engine.draw  # not on other machines
    monkeypatch.setattr(zero_gpu, "LENDS", True)
    work = space.lent(space.engine.draw)
    assert work.func is zero_gpu.run_lent and work.args[1] == 7
    assert isinstance(collect(lambda job: work(job, SETTINGS))[-1], Drawn)


def test_a_stopped_job_ends_within_a_step(engine, two_processes):
    events = []

    def emit(event):
        events.append(event)
        job.stop_requested.set()

    job = Job(emit, 60.0)
    settings = DrawSettings("a cat", steps=16)
    zero_gpu.run_lent(engine.draw, 60.0, job, settings)
    assert sum(isinstance(event, Step) for event in events) <= 3  # one shown, one begun, one on its way
    assert isinstance(events[-1], Drawn) and events[-1].stopped


def test_closing_the_events_ends_the_work(engine, tmp_path):
    before = threading.active_count()
    events = zero_gpu.events_of(engine.draw, (DrawSettings("a cat", steps=16),), 60.0, str(tmp_path / "stop"))
    assert isinstance(next(events), Step)
    events.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("error, message", [(Refusal("Too long."), "Too long."), (KeyError("secret"), FAILED)])
def test_a_failure_comes_back_as_one_sentence(error, message):
    def broken(job):
        raise error

    with pytest.raises(Refusal) as refusal:
        collect(lambda job: zero_gpu.run_lent(broken, 60.0, job))
    assert str(refusal.value) == message


def test_a_job_ends_before_the_gpu_is_taken_back(engine, two_processes):
    with pytest.raises(Refusal, match="took longer than 0.00075 s"):
        collect(lambda job: zero_gpu.run_lent(engine.draw, 0.001, job, SETTINGS))


def test_what_the_hub_says_about_the_quota_has_no_html(monkeypatch):
    def lent_events(*arguments):
        raise gr.Error('You have exceeded your quota. <a href="https://huggingface.co">Log in</a>')

    monkeypatch.setattr(zero_gpu, "lent_events", lent_events)
    with pytest.raises(Refusal) as refusal:
        collect(lambda job: zero_gpu.run_lent(print, 60.0, job))
    assert str(refusal.value) == "You have exceeded your quota. Log in"


@contextmanager
def capture(module):
    """`spaces.aoti_capture`, which needs a CUDA build of torch: the arguments of the module's next call."""

    class Caught(Exception):
        pass

    def caught(*args, **kwargs):
        call.args, call.kwargs = args, kwargs
        raise Caught

    call, usual = SimpleNamespace(), module.forward
    module.forward = caught
    try:
        yield call
    except Caught:
        pass
    finally:
        module.forward = usual


def test_the_decoder_is_compiled_for_one_shape(engine, monkeypatch):
    """With the exported program for the compiled one: compiling takes minutes on a CPU."""
    stand_in = SimpleNamespace(aoti_capture=capture, aoti_compile=lambda program: program.module())
    monkeypatch.setattr(zero_gpu, "spaces", stand_in)
    monkeypatch.setattr(zero_gpu, "lent_compiled_decoder", zero_gpu.compiled_decoder)
    decoder = engine.pipe.image_tokenizer.decoder
    one = torch.arange(16).reshape(1, *engine.pipe.default_grid) % engine.pipe.mask_token_id
    several = torch.cat([one, one])
    before = [engine.pipe.model.decode_images(tokens) for tokens in (one, several)]
    try:
        assert zero_gpu.compile_ahead(engine)
        assert decoder.forward.shape[0] == 1
        used = []
        decoder.forward.compiled = lambda hidden, run=decoder.forward.compiled: used.append(1) or run(hidden)
        after = [engine.pipe.model.decode_images(tokens) for tokens in (one, several)]
    finally:
        decoder.__dict__.pop("forward", None)
    assert used == [1]
    for found, expected in zip(after, before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_app_without_a_compiler_starts_all_the_same(engine, monkeypatch, caplog):
    def fails(engine):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(zero_gpu, "lent_compiled_decoder", fails)
    monkeypatch.setattr(zero_gpu, "spaces", SimpleNamespace())
    assert not zero_gpu.compile_ahead(engine) and "no compiler" in caplog.text
    monkeypatch.setattr(zero_gpu, "spaces", None)
    assert not zero_gpu.compile_ahead(engine)
    assert "forward" not in engine.pipe.image_tokenizer.decoder.__dict__
