"""Components that never decode an upload themselves, and groups of components that several tabs share."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import gradio as gr

from .engine import Engine
from .previews import EMPTY_STAGE, STAGE_SCRIPT, status
from .settings import MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT_LENGTH, MAX_SEED, MAX_STEPS, MAX_TEMPERATURE, DrawSettings


WIDE = 220  # pixels that a slider needs for its label and its number side by side
MAX_PAINTINGS = 32  # unread paintings that are kept in memory, of all visitors
WEB = ("http://", "https://")
SERVED = "/gradio_api/file="  # in a link to a file of the app, before its path
NO_LINKS = "Please upload the file itself. Links to files are not followed."


class UploadsOnly(gr.Blocks):
    """
    A `gr.Blocks` that takes the files of its requests from uploads.

    By itself, Gradio downloads a file that a request names by a link, before any component sees it: of any size, for any
    time, and for every kind of component.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list, state: Any, explicit_call: bool = False) -> list:
        """Read the inputs of an event. Raises `gr.Error` for a link to a file."""
        for file in named_files(inputs):
            if file["path"].lower().startswith(WEB):
                path = unquote(file["path"].partition(SERVED)[2])  # clients may send the link of a file of the app
                if not path or path.lower().startswith(WEB):
                    raise gr.Error(NO_LINKS, print_exception=False)
                file["path"] = path
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def named_files(data: Any) -> Iterator[dict]:
    """All dicts in JSON data that name a file. They need not be complete: components complete them."""
    left = [data]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if isinstance(one.get("path"), str):
                yield one
            left += one.values()
        elif isinstance(one, list):
            left += one


class UploadedImage(gr.Image):
    """A `gr.Image` that gives handlers the path of the file. Only `uploads.open_checked` decodes it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path


class PaintedImage(gr.ImageEditor):
    """A `gr.ImageEditor` that gives handlers paths or bytes of its files. Only `uploads.open_checked` decodes them."""

    is_template = True

    def bounded(self) -> PaintedImage:
        """This component, with a bound on the paintings that it keeps. (Gradio reads the signature of `__init__`.)"""
        self.blob_storage = LastOnes(MAX_PAINTINGS)
        return self

    def preprocess(self, payload: Any) -> Any:
        if payload is None:
            return None
        found = payload if payload.id is None else self.blob_storage.pop(payload.id, None)
        if found is None:
            return None
        return {"background": source(found.background), "layers": [source(layer) for layer in found.layers or []]}


class LastOnes(OrderedDict):
    """A dict that forgets its oldest entries."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            self.popitem(last=False)


def source(file: Any) -> str | bytes | None:
    """The bytes, or the path, of a file of a component."""
    return file if file is None or isinstance(file, bytes) else file.path


def stage_component(label: str) -> gr.HTML:
    """The place where an image comes out of its masks."""
    return gr.HTML(EMPTY_STAGE, js_on_load=STAGE_SCRIPT, label=label, elem_classes="showo-stage-box")


def status_line(text: str = "Ready.") -> gr.HTML:
    """One line that says what happens."""
    return gr.HTML(status(text), elem_classes="showo-status-box")


@dataclass(frozen=True)
class DrawControls:
    """The settings of images. `components` are the inputs of [`DrawControls.settings`], in its order."""

    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    steps: gr.Slider
    guidance: gr.Slider
    temperature: gr.Slider
    sampler: gr.Dropdown
    height: gr.Dropdown
    width: gr.Dropdown
    count: gr.Slider
    new_seed: gr.Checkbox
    seed: gr.Number

    @property
    def components(self) -> list[Any]:
        return [getattr(self, name) for name in self.__dataclass_fields__]

    @classmethod
    def build(cls, engine: Engine, prompt: gr.Textbox, sizes: bool = True, open_seed: bool = True) -> DrawControls:
        """Make the components at the present place of the layout; all but the prompt."""
        height, width = engine.trained_size
        negative = gr.Textbox(label="What not to show", max_length=MAX_PROMPT_LENGTH, placeholder="(nothing)")
        with gr.Row():
            steps = gr.Slider(1, MAX_STEPS, engine.usual_steps, step=1, precision=0, label="Steps", min_width=WIDE)
            guidance = gr.Slider(1.0, MAX_GUIDANCE, engine.usual_guidance, step=0.25, label="Guidance", min_width=WIDE)
        with gr.Row():
            sampler = gr.Dropdown(engine.samplers, value=engine.samplers[0], label="Sampler", min_width=WIDE)
            temperature = gr.Slider(
                0.0,
                MAX_TEMPERATURE,
                engine.usual_temperature(engine.samplers[0]),
                step=0.1,
                label="Temperature",
                min_width=WIDE,
                visible=engine.takes_temperature(engine.samplers[0]),
            )
        with gr.Row(visible=sizes):
            width_box = gr.Dropdown(engine.sizes(width), value=width, label="Width (pixels)")
            height_box = gr.Dropdown(engine.sizes(height), value=height, label="Height (pixels)")
        count = gr.Slider(1, MAX_IMAGES, value=1, step=1, precision=0, label="Images", visible=sizes)
        with gr.Row(equal_height=True):
            new_seed = gr.Checkbox(True, label="New seed each time", min_width=140)
            seed = gr.Number(0, minimum=0, maximum=MAX_SEED, precision=0, label="Seed of the first image")

        def show_temperature(name: str) -> Any:
            return gr.Slider(visible=name in engine.samplers and engine.takes_temperature(name))

        def reset_temperature(name: str) -> Any:
            return engine.usual_temperature(name) if name in engine.samplers else gr.skip()

        quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        sampler.change(show_temperature, sampler, temperature, **quick)
        # Not on a change: settings of a file or a link bring a temperature of their own.
        sampler.input(reset_temperature, sampler, temperature, **quick)
        return cls(
            prompt, negative, steps, guidance, temperature, sampler, height_box, width_box, count, new_seed, seed
        )

    @staticmethod
    def settings(engine: Engine, values: tuple) -> DrawSettings:
        """Checked settings from the values of the components. Raises `Refusal` for what is not allowed."""
        prompt, negative, steps, guidance, temperature, sampler, height, width, count, new_seed, seed = values
        if sampler not in engine.samplers or not engine.takes_temperature(sampler):
            temperature = None
        if new_seed or seed is None:
            seed = random.randint(0, MAX_SEED - MAX_IMAGES)
        return engine.checked(
            DrawSettings(prompt, negative, steps, guidance, temperature, sampler, height, width, count, seed)
        )

    def restored(self, settings: DrawSettings) -> dict[Any, Any]:
        """Updates that show settings, with the seed kept."""
        updates = {
            self.prompt: settings.prompt,
            self.negative_prompt: settings.negative_prompt,
            self.steps: settings.steps,
            self.guidance: settings.guidance,
            self.sampler: settings.sampler,
            self.count: settings.count,
            self.new_seed: False,
            self.seed: settings.seed,
        }
        optional = {
            self.temperature: settings.temperature,
            self.height: settings.height,
            self.width: settings.width,
        }
        return updates | {box: value for box, value in optional.items() if value is not None}
