"""The tab "Edit": repaint what is painted over, extend to any side, vary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import gradio as gr

from .components import DrawControls, PaintedImage, stage_component, status_line
from .engine import Drawn, Step
from .page_parts import Shared, for_editor, show_status, without_progress
from .previews import EMPTY_STAGE, status
from .settings import MAX_PROMPT_LENGTH, MAX_ROUNDS, Refusal, number, whole
from .space import Film, Space, add_to_visit, progress, refused
from .uploads import open_rgb, read_painting


DIRECTIONS = ("left", "right", "up", "down")
NOTHING_PAINTED = "Please paint over the part that should change."


class EditTab:
    """The layout of the tab, and what its buttons do."""

    def __init__(self, space: Space, shared: Shared):
        self.space, self.shared = space, shared

    def build(self) -> None:
        """Make the components at the present place of the layout."""
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.editor = self.shared.editor = PaintedImage(
                    label="Image",  # short: on a phone, the tools stand beside it
                    type="pil",
                    sources=("upload", "clipboard"),
                    brush=gr.Brush(colors=["#ff2d87"], color_mode="fixed", default_size=40),
                    layers=False,
                    interactive=True,
                    transforms=(),
                    canvas_size=(480, 480),
                    height=560,
                    format="png",
                    buttons=["fullscreen"],
                ).bounded()
                self.painting = PaintedImage(visible=False).bounded()
                prompt = gr.Textbox(
                    label="What the finished image should show",
                    placeholder=self.space.facts.examples[0],
                    max_length=MAX_PROMPT_LENGTH,
                )
                with gr.Tabs():
                    with gr.Tab("Repaint"):
                        gr.Markdown("Paint over a part of the image: it is drawn again. The rest stays as it is.")
                        self.repaint_strength = gr.Slider(
                            0.1, 1.0, 1.0, step=0.05, label="Share of the painted part to draw again"
                        )
                        self.repaint = gr.Button("Repaint", variant="primary")
                    with gr.Tab("Extend"):
                        gr.Markdown("Makes the image larger. What is there stays as it is.")
                        self.directions = gr.CheckboxGroup(list(DIRECTIONS), value=["right"], label="To which sides")
                        self.rounds = gr.Slider(1, MAX_ROUNDS, 1, step=1, precision=0, label="How often")
                        self.extend = gr.Button("Extend", variant="primary")
                    with gr.Tab("Vary"):
                        gr.Markdown("Draws the least certain part of the whole image again.")
                        self.vary_strength = gr.Slider(0.1, 1.0, 0.7, step=0.05, label="Share to draw again")
                        self.vary = gr.Button("Vary", variant="primary")
                self.stop = gr.Button("Stop", variant="stop", size="sm")
                with gr.Accordion("Settings", open=False):
                    self.controls = DrawControls.build(self.space.engine, prompt, sizes=False)
            with gr.Column(scale=1, min_width=320):
                self.status = status_line("Choose an image, or take one from another tab.")
                self.stage = stage_component("Steps of the edit")
                self.slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    max_height=420,
                    visible=False,
                    elem_classes="showo-slider",
                )
                self.result = gr.State(None)
                self.actions = self.shared.action_row()

    # What the buttons do

    async def edit(
        self,
        request: gr.Request,
        painting: Any,
        values: tuple,
        visit: list,
        name: str,
        work: Callable[..., Any],
        options: Callable[[], dict[str, Any]],
        needs_paint: bool = False,
    ) -> AsyncIterator[dict]:
        """Run one of the edits: `work(job, settings, image, **options())`, with the mask after the image."""
        space, controls = self.space, self.controls
        try:
            settings, checked = controls.settings(space.engine, values), options()
            yield {self.status: status("Starting ..."), controls.seed: settings.seed}

            def prepare() -> tuple:
                image, mask = read_painting(painting, space.max_bytes)
                if needs_paint and mask is None:
                    raise Refusal(NOTHING_PAINTED)
                return (settings, image, mask) if needs_paint else (settings, image)

            film = Film(settings.prompt)
            async for event in space.run(request, "images", partial(work, previews=True, **checked), prepare):
                line = progress(event)
                if isinstance(event, Step):
                    yield {self.status: line, self.stage: await film.add(event)}
                elif isinstance(event, Drawn) and event.images:
                    path = await space.save(event.images[0], settings, name)
                    before = await space.save(event.before, settings, "before")
                    visit = add_to_visit(visit, path, f"{settings.prompt}, {name}, seed {settings.seed}")
                    yield {
                        self.status: status(f"Done in {event.seconds:.1f} s. Seed {settings.seed}."),
                        self.stage: film.end() if film.frames else EMPTY_STAGE,
                        self.slider: gr.ImageSlider((before, path), visible=True),
                        self.result: path,
                        self.shared.visit: visit,
                        self.shared.visit_gallery: visit,
                    }
                elif line:
                    yield {self.status: line}
        except Refusal as error:
            yield {self.status: refused(error)}

    async def run_repaint(
        self, request: gr.Request, painting: Any, strength: float, visit: list, *values: Any
    ) -> AsyncIterator[dict]:
        """Repaint what is painted over."""

        def options() -> dict[str, Any]:
            return {"strength": number("The share", strength, 0.1, 1)}

        work = self.space.engine.inpaint
        async for update in self.edit(request, painting, values, visit, "repainted", work, options, needs_paint=True):
            yield update

    async def run_extend(
        self, request: gr.Request, painting: Any, directions: list[str], rounds: int, visit: list, *values: Any
    ) -> AsyncIterator[dict]:
        """Extend the image."""

        def options() -> dict[str, Any]:
            times = whole("How often", rounds, 1, MAX_ROUNDS)
            return {"directions": check_directions(directions), "rounds": times}

        work = self.space.engine.extend
        async for update in self.edit(request, painting, values, visit, "extended", work, options):
            yield update

    async def run_vary(
        self, request: gr.Request, painting: Any, strength: float, visit: list, *values: Any
    ) -> AsyncIterator[dict]:
        """Vary the image."""

        def options() -> dict[str, Any]:
            return {"strength": number("The share", strength, 0.1, 1)}

        work = self.space.engine.vary
        async for update in self.edit(request, painting, values, visit, "varied", work, options):
            yield update

    async def uploaded(self, painting: Any) -> dict:
        """
        Check an upload at once, and bring it to a size to paint on.

        Gradio also sends this event for an image that the app puts into the editor. Then nothing is left to change:
        setting the editor again would wipe out what the visitor has painted since.
        """
        background = (painting or {}).get("background")
        if background is None:  # it was lost on its way; the editor still has it
            return {self.status: gr.skip()}
        try:
            value = await self.space.read(for_editor, background, self.space.max_bytes)
            size = (await self.space.read(open_rgb, background, self.space.max_bytes)).size
        except Refusal as error:
            return {self.editor: None, self.status: refused(error)}
        fits = size == value["background"].size
        return {self.status: status("Ready.")} if fits else {self.editor: value, self.status: status("Ready.")}

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [
            self.status,
            self.stage,
            self.slider,
            self.result,
            self.controls.seed,
            self.shared.visit,
            self.shared.visit_gallery,
        ]
        shared = [self.shared.visit, *self.controls.components]
        for button, handler, options in (
            (self.repaint, self.run_repaint, [self.repaint_strength]),
            (self.extend, self.run_extend, [self.directions, self.rounds]),
            (self.vary, self.run_vary, [self.vary_strength]),
        ):
            inputs = [self.painting, *options, *shared]
            self.with_painting(button.click).then(handler, inputs, outputs, trigger_mode="once", **hidden)
        show_status(self.repaint.click, self.extend.click, self.vary.click)
        updated = [self.editor, self.status]
        without = without_progress(self.status)
        self.with_painting(self.editor.upload).then(self.uploaded, self.painting, updated, queue=False, **without)
        self.stop.click(self.space.stop, outputs=self.status, queue=False, **hidden)
        self.shared.wire_actions(self.actions, self.result, self.status)

    def with_painting(self, event: Callable[..., Any]) -> Any:
        """
        Let the browser upload the painting into `painting` at an event.

        An editor that is itself an input of handlers is told of every event of the page from then on, and uploads its
        painting each time.
        """
        return event(None, self.editor, self.painting, js="(painting) => painting", api_visibility="private")


def check_directions(directions: Any) -> list[str]:
    """Sides to extend an image to. Raises `Refusal` for anything else."""
    if not isinstance(directions, list) or not directions or set(directions) - set(DIRECTIONS):
        raise Refusal(f"Please choose at least one of the sides: {', '.join(DIRECTIONS)}.")
    return [one for one in DIRECTIONS if one in directions]
