"""What all tabs share: the model, the line, the visitors, and files of finished images."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from showo_hf.pipelines.call_state import is_offloaded

from . import zero_gpu
from .engine import Drawn, Engine, Step
from .gate import address_of
from .line import Line, Visitor, Waiting
from .model_card import ModelFacts
from .previews import stage, status, to_uri
from .settings import MAX_IMAGES, MAX_SEED, DrawSettings, SpaceOptions
from .uploads import with_settings


MAX_VISIT = 60  # images of a visit that the gallery keeps
MAX_FRAMES = 60  # of a film: all of them are in the page at its end


@dataclass
class Space:
    """
    The app behind the page.

    Args:
        engine ([`Engine`]): the pipelines.
        options ([`SpaceOptions`]): the limits.
        facts ([`ModelFacts`]): what the page says about the model.
        seconds (`float`, *optional*): how long an image took at the start.
        thumbnails (`list`): examples, as pairs of an image and its prompt.
    """

    engine: Engine
    options: SpaceOptions
    facts: ModelFacts
    seconds: float | None = None
    thumbnails: list[tuple[Image.Image, str]] = field(default_factory=list)

    def __post_init__(self):
        # A job with a lent GPU computes in another process. A call of a model whose weights accelerate moves keeps all
        # others out, so it must not wait for one of them between its steps.
        alone = zero_gpu.LENDS or is_offloaded(self.engine.pipe)
        options = replace(self.options, jobs_at_once=1) if alone else self.options
        self.line = Line(options, kinds_together=alone or self.engine.pipe.model.device.type != "cpu")
        self.cache = gr.Image(render=False).GRADIO_CACHE  # Gradio serves and deletes the files there

    @property
    def max_bytes(self) -> int:
        return int(self.options.file_megabytes * 1e6)

    def visitor(self, request: gr.Request) -> Visitor:
        """Who sent a request."""
        host = request.client.host if request.client else None
        headers = {name.lower(): value for name, value in dict(request.headers).items()}
        address = address_of(headers, host, self.options)
        return Visitor(request.session_hash or address, address)

    def run(
        self, request: gr.Request, kind: str, work: Callable[..., Any], prepare: Callable[[], tuple] = tuple
    ) -> AsyncIterator[Any]:
        """The events of a job; see [`Line.run`]."""
        return self.line.run(self.visitor(request), kind, self.lent(work), prepare)

    def lent(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Work that borrows a GPU while it runs, where GPUs are lent."""
        return partial(zero_gpu.run_lent, work, self.options.gpu_seconds) if zero_gpu.LENDS else work

    async def read(self, reader: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that reads an upload. It counts among the few uploads that are read at once. Raises as it does."""
        return await asyncio.get_running_loop().run_in_executor(self.line.readers, reader, *arguments)

    async def stop(self, request: gr.Request) -> str:
        """Stop the visitor's jobs. Returns the status line."""
        found = self.line.stop(self.visitor(request).session)
        return status("Stopping ..." if found else "There is nothing to stop.")

    async def save(self, image: Image.Image, settings: DrawSettings, name: str) -> str:
        """Write an image with its settings to a PNG that Gradio serves and deletes after a while. Returns its path."""
        name = f"showo-{name}-{settings.seed}"
        return await asyncio.to_thread(
            save_pil_to_cache, with_settings(image, settings), cache_dir=self.cache, name=name, format="png"
        )


class Film:
    """
    The frames of one stage, as they come.

    At most `MAX_FRAMES` are kept. When there are more, every second one goes, and only every second one of those that follow
    stays. The newest one always stays.
    """

    def __init__(self, subject: str):
        self.subject = subject
        self.frames: dict[int, tuple[str, str]] = {}  # by their numbers, from 1
        self.count = 0
        self.stride = 1

    async def add(self, event: Step) -> str:
        """Append a step. Returns the HTML that shows it."""
        uri = await asyncio.to_thread(to_uri, event.image)
        text = f"{self.subject} after step {event.step} of {event.steps}, {event.filled:.0%} of the cells filled in"
        if (self.count - 1) % self.stride:
            del self.frames[self.count]  # it stayed as the newest one
        self.count += 1
        self.frames[self.count] = (uri, text)
        if len(self.frames) > MAX_FRAMES:
            self.stride *= 2
            kept = [number for number in self.frames if number == self.count or (number - 1) % self.stride == 0]
            self.frames = {number: self.frames[number] for number in kept}
        return stage(self.frames)

    def end(self, confidence: tuple[str, str] | None = None) -> str:
        """The HTML of the whole film, with its time line."""
        return stage(self.frames, confidence, finished=True)


def progress(event: Any) -> str | None:
    """The status line of an event; None if it changes nothing."""
    if isinstance(event, Waiting):
        return status(f"You are number {event.place} of {event.length} in the line.")
    if isinstance(event, Step):
        return status(f"Step {event.step} of {event.steps}")
    if isinstance(event, Drawn) and event.stopped:
        return status("Stopped.")
    return None


def refused(error: Exception) -> str:
    """The status line of a [`Refusal`]."""
    return status(str(error), "error")


def new_seed() -> int:
    """A random seed, of the first of as many images as one request may ask for."""
    return random.randint(0, MAX_SEED - MAX_IMAGES + 1)


def add_to_visit(visit: list, path: str, caption: str) -> list:
    """The images of a visit with one more, the newest first."""
    return [(path, caption), *visit][:MAX_VISIT]
