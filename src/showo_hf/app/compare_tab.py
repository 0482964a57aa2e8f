"""The tab "Compare": two samplers or settings side by side, from the same seed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from .components import stage_component, status_line
from .engine import Drawn, Step
from .page_parts import Shared, show_status
from .previews import status
from .settings import MAX_GUIDANCE, MAX_PROMPT_LENGTH, MAX_SEED, MAX_STEPS, DrawSettings, Refusal
from .space import Film, Space, add_to_visit, new_seed, progress, refused


class CompareTab:
    """The layout of the tab, and what its buttons do."""

    def __init__(self, space: Space, shared: Shared):
        self.space, self.shared = space, shared

    def build(self) -> None:
        """Make the components at the present place of the layout."""
        engine = self.space.engine
        self.prompt = gr.Textbox(
            label="What to show", placeholder=self.space.facts.examples[0], max_length=MAX_PROMPT_LENGTH
        )
        with gr.Row(equal_height=True):
            self.new_seed = gr.Checkbox(True, label="New seed each time", min_width=140)
            self.seed = gr.Number(0, minimum=0, maximum=MAX_SEED, precision=0, label="Seed of both images")
        with gr.Row():
            self.make = gr.Button("Compare", variant="primary", min_width=120)
            self.stop = gr.Button("Stop", variant="stop", min_width=80)
        self.status = status_line()
        self.sides: list[list[Any]] = []
        self.stages: list[gr.HTML] = []
        self.chosen: list[gr.State] = []
        self.actions: list[dict[str, gr.Button]] = []
        choices = (
            engine.samplers[0],
            next((one for one in engine.samplers[1:] if one == "halton"), engine.samplers[-1]),
        )
        with gr.Row():
            for letter, sampler in zip("AB", choices, strict=True):
                with gr.Column(min_width=280):
                    self.sides.append(
                        [
                            gr.Dropdown(engine.samplers, value=sampler, label=f"Sampler {letter}"),
                            gr.Slider(1, MAX_STEPS, engine.usual_steps, step=1, precision=0, label=f"Steps {letter}"),
                            gr.Slider(1.0, MAX_GUIDANCE, engine.usual_guidance, step=0.25, label=f"Guidance {letter}"),
                        ]
                    )
                    self.stages.append(stage_component(f"Image {letter}"))
                    self.chosen.append(gr.State(None))
                    self.actions.append(self.shared.action_row(f"image {letter}"))

    # What the buttons do

    async def compare(
        self, request: gr.Request, prompt: str, fresh: bool, seed: float | None, visit: list, *values: Any
    ) -> AsyncIterator[dict]:
        """Draw both images, one after the other."""
        space = self.space
        try:
            first: Any = new_seed() if fresh or seed is None else seed  # `checked` refuses what is no whole number
            both = [
                space.engine.checked(DrawSettings(prompt, steps=steps, guidance=guidance, sampler=sampler, seed=first))
                for sampler, steps, guidance in (values[:3], values[3:])
            ]
            times: list[str] = []
            yield {self.status: status("Starting ..."), self.seed: first}
            for letter, settings, stage, chosen in zip("AB", both, self.stages, self.chosen, strict=True):
                film = Film(f"{letter}: {settings.prompt}, {settings.sampler}")
                finished = False
                async for event in space.run(request, "images", partial(space.engine.draw, settings=settings)):
                    line = progress(event)
                    if isinstance(event, Step):
                        yield {self.status: line, stage: await film.add(event)}
                    elif isinstance(event, Drawn) and event.images:
                        finished = True
                        path = await space.save(event.images[0], settings, "compare")
                        caption = (
                            f"{settings.prompt}, {settings.sampler}, {settings.steps} steps, seed {settings.seed}"
                        )
                        visit = add_to_visit(visit, path, caption)
                        times.append(f"{letter} {event.seconds:.1f} s")
                        yield {
                            stage: film.end(),
                            chosen: path,
                            self.shared.visit: visit,
                            self.shared.visit_gallery: visit,
                        }
                    elif line:
                        yield {self.status: line}
                if not finished:
                    yield {self.status: status("Stopped.")}
                    return
            yield {self.status: status(f"Done: {', '.join(times)}. Seed {first}.")}
        except Refusal as error:
            yield {self.status: refused(error)}

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        shared = [self.shared.visit, self.shared.visit_gallery]
        outputs = [self.status, self.seed, *self.stages, *self.chosen, *shared]
        inputs = [self.prompt, self.new_seed, self.seed, self.shared.visit, *self.sides[0], *self.sides[1]]
        gr.on([self.make.click, self.prompt.submit], self.compare, inputs, outputs, **hidden)
        show_status(self.make.click, self.prompt.submit)
        self.stop.click(self.space.stop, outputs=self.status, queue=False, **hidden)
        for actions, chosen in zip(self.actions, self.chosen, strict=True):
            self.shared.wire_actions(actions, chosen, self.status)
