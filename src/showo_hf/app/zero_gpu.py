"""
ZeroGPU Spaces of the Hugging Face Hub: a GPU is lent to one job at a time.

There, the package `spaces` runs a decorated function in a process of its own, which is forked from this one and has the GPU
for a number of seconds. The job and its events are pickled; [`Engine`] goes there as a reference. Elsewhere, the decorator
of `spaces` changes nothing.
"""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import torch

from .engine import Engine
from .line import Job, as_refusal
from .settings import Refusal


try:  # before anything uses CUDA: on ZeroGPU, it replaces functions of torch
    import spaces
except ImportError:
    spaces = None


logger = logging.getLogger(__name__)

#: Whether GPUs are lent here. The Hub installs `spaces` on its other machines too.
LENDS = spaces is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")

#: Part of the lent time that a job may use. The rest is for the start of the process and for moving the weights.
JOB_SHARE = 0.75
COMPILE_SECONDS = 900  # a GPU is lent for so long to compile


def best_device() -> torch.device | str:
    """The device of the model. On ZeroGPU, `torch.accelerator` sees no GPU outside of the jobs, but "cuda" is right."""
    if torch.cuda.is_available():
        return "cuda"
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found


class StopFile:
    """An event that another process can set: it is set as soon as a file exists."""

    def __init__(self, path: str):
        self.path = Path(path)

    def set(self) -> None:
        self.path.touch()

    def is_set(self) -> bool:
        return self.path.exists()


def events_of(work: Callable[..., Any], prepared: tuple, seconds: float, stop: str) -> Iterator[Any]:
    """
    Run a piece of work, in the process that has the GPU.

    Args:
        work: called as `work(job, *prepared)`.
        prepared: what the work needs.
        seconds (`float`): how long the GPU is lent.
        stop (`str`): the work ends at its next step once this file exists.

    Returns:
        an iterator over the events of the work. A failure is the last event, as a [`Refusal`]: from there, `spaces` would
        tell no more than the exception's type.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()
    end = object()
    job = Job(events.put, seconds * JOB_SHARE, StopFile(stop))

    def work_in_thread() -> None:
        try:
            work(job, *prepared)
        except BaseException as error:
            events.put(as_refusal(error))
        finally:
            events.put(end)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work_in_thread,))
    thread.start()
    try:
        while (event := events.get()) is not end:
            yield event
    finally:
        if event is not end:
            job.stop_requested.set()
        thread.join()


def lent_seconds(work: Any, prepared: Any, seconds: float, stop: Any) -> float:
    """How long `spaces` lends the GPU to a call of [`events_of`]."""
    return seconds


def compiled_decoder(engine: Engine) -> tuple[Any, torch.Size]:
    """
    Compile the image tokenizer's decoder ahead of time, for one image of the trained size.

    Returns:
        the compiled decoder, and the shape of the input that it takes.
    """
    pipe = engine.pipe
    decoder = pipe.image_tokenizer.decoder
    tokens = torch.zeros((1, *pipe.default_grid), dtype=torch.long, device=pipe.model.device)
    with torch.no_grad():
        with spaces.aoti_capture(decoder) as call:
            pipe.model.decode_images(tokens)
        program = torch.export.export(decoder, call.args, call.kwargs)
    return spaces.aoti_compile(program), call.args[0].shape


if spaces is not None:
    lent_events = spaces.GPU(duration=lent_seconds)(events_of)
    lent_compiled_decoder = spaces.GPU(duration=COMPILE_SECONDS)(compiled_decoder)


def run_lent(work: Callable[..., Any], seconds: float, job: Job, *prepared: Any) -> None:
    """
    Run a piece of work with a lent GPU, and emit its events here.

    Args:
        work: called as `work(job, *prepared)`, with another job; both are pickled.
        seconds (`float`): how long the GPU is lent.
        job ([`Job`]): gets the events, and stops the work.
        prepared: what the work needs.

    Raises:
        Refusal: as the work, and for a visitor who has used up the time that the Hub grants.
    """
    with TemporaryDirectory(prefix="showo-") as folder:
        stop = StopFile(str(Path(folder) / "stop"))
        try:
            for event in lent_events(work, prepared, seconds, str(stop.path)):
                if isinstance(event, Refusal):
                    raise event
                job.emit(event)
                if job.stop_requested.is_set():
                    stop.set()
        except gr.Error as error:  # of `spaces`, for the visitor; its links are HTML
            raise Refusal(re.sub(r"<[^>]*>", "", str(error.message))) from error


class DecoderOfOneShape:
    """
    The `forward` of a decoder: compiled for inputs of one shape, as before for all others.

    Args:
        compiled: the compiled decoder.
        shape (`torch.Size`): of its input.
        usual: the `forward` of the module.
    """

    def __init__(self, compiled: Callable[..., Any], shape: torch.Size, usual: Callable[..., Any]):
        self.compiled, self.shape, self.usual = compiled, shape, usual

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return (self.compiled if hidden.shape == self.shape else self.usual)(hidden)


def compile_ahead(engine: Engine) -> bool:
    """
    Let the image tokenizer decode single images of the trained size with code that is compiled now.

    Each job on ZeroGPU has a new process, so `torch.compile` would compile again and again. If this fails, all stays as it
    was, and the log says why.

    Returns:
        whether it worked.
    """
    if spaces is None or not engine.has_images:
        logger.warning("Nothing is compiled: that needs the package `spaces` and a model with an image tokenizer.")
        return False
    decoder = engine.pipe.image_tokenizer.decoder
    try:
        compiled, shape = lent_compiled_decoder(engine)
        decoder.forward = DecoderOfOneShape(compiled, shape, decoder.forward)
    except Exception:
        logger.exception("The decoder could not be compiled")
        return False
    return True
