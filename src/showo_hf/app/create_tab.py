"""The tab "Create": images from words, step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from .components import DrawControls, stage_component, status_line
from .engine import Confidence, Drawn, Step
from .model_card import ModelFacts
from .page_parts import Shared, show_status
from .previews import status, to_uri
from .settings import MAX_PROMPT_LENGTH, DrawSettings, Refusal
from .space import Film, Space, add_to_visit, progress, refused
from .uploads import read_settings


#: Puts the settings into the address of the page, and that on the clipboard. `settings_of_link` reads it.
COPY_LINK = """
(prompt, negative, steps, guidance, temperature, sampler, height, width, count, fresh, seed) => {
  const query = new URLSearchParams({prompt, negative, steps, guidance, temperature, sampler, height, width, count, seed});
  const link = new URL(window.location.href);
  link.search = query.toString();
  window.history.replaceState(null, '', link);
  if (navigator.clipboard) navigator.clipboard.writeText(link.href).catch(() => {});
  return '<p class="showo-status" role="status">The link is copied; the address of this page has it too.</p>';
}
"""


#: Marks the page once it listens and has the settings of its link, for programs that drive it.
LISTENS = "() => { document.documentElement.dataset.listens = ''; }"


class CreateTab:
    """The layout of the tab, and what its buttons do."""

    def __init__(self, space: Space, shared: Shared):
        self.space, self.shared = space, shared

    def build(self) -> None:
        """Make the components at the present place of the layout."""
        facts: ModelFacts = self.space.facts
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompt = gr.Textbox(
                    label="What to show", placeholder=facts.examples[0], max_length=MAX_PROMPT_LENGTH, lines=2
                )
                with gr.Row():
                    self.make = gr.Button("Make", variant="primary", min_width=120)
                    self.stop = gr.Button("Stop", variant="stop", min_width=80)
                gr.Markdown("Press an example to use its words.", visible=bool(self.space.thumbnails))
                self.examples = gr.Gallery(
                    value=list(self.space.thumbnails) or None,
                    label="Examples",
                    show_label=False,
                    columns=3,
                    allow_preview=False,
                    interactive=False,
                    format="png",
                    buttons=[],
                    object_fit="contain",
                    elem_classes="showo-examples",
                    visible=bool(self.space.thumbnails),
                )
                if not self.space.thumbnails:
                    gr.Examples(facts.examples, inputs=prompt, label="Things to try", cache_examples=False)
                with gr.Accordion("Settings", open=False):
                    self.controls = DrawControls.build(self.space.engine, prompt)
                    with gr.Row():
                        self.keep = gr.Button("Keep this seed", size="sm")
                        self.link = gr.Button("Copy a link to these settings", size="sm")
                    self.restore = gr.File(
                        label="Restore settings from a PNG",
                        file_types=[".png"],
                        type="filepath",
                        height=110,
                    )
            with gr.Column(scale=3, min_width=320):
                self.status = status_line()
                self.stage = stage_component("Steps of the image")
                self.gallery = gr.Gallery(
                    label="Finished images",
                    show_label=False,
                    columns=2,
                    height="auto",
                    format="png",
                    object_fit="contain",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="showo-results",
                    visible=False,
                )
                self.paths = gr.State([])
                self.chosen = gr.State(None)
                self.actions = self.shared.action_row()

    # What the buttons do

    async def draw(self, request: gr.Request, visit: list, *values: Any) -> AsyncIterator[dict]:
        """Make images, and show each step."""
        space, controls = self.space, self.controls
        try:
            settings = controls.settings(space.engine, values)
            yield {self.status: status("Starting ..."), controls.seed: settings.seed}
            film, stopped = Film(settings.prompt), False
            work = partial(space.engine.draw, settings=settings, confidence=True)
            async for event in space.run(request, "images", work):
                line = progress(event)
                if isinstance(event, Step):
                    yield {self.status: line, self.stage: await film.add(event)}
                elif isinstance(event, Drawn) and event.images:
                    pairs = [
                        (await space.save(image, settings.with_seed(settings.seed + number), "create"), number)
                        for number, image in enumerate(event.images)
                    ]
                    shown = [(path, f"{settings.prompt}, seed {settings.seed + number}") for path, number in pairs]
                    for path, caption in shown:
                        visit = add_to_visit(visit, path, caption)
                    yield {
                        self.status: status(f"Done in {event.seconds:.1f} s. Seed {settings.seed}."),
                        self.stage: film.end(),
                        self.gallery: gr.Gallery(shown, visible=True, columns=min(2, len(shown))),
                        self.paths: [path for path, _ in pairs],
                        self.chosen: pairs[0][0],
                        self.shared.visit: visit,
                        self.shared.visit_gallery: visit,
                    }
                elif isinstance(event, Confidence):
                    text = f"Confidence map: the model gives its cells a mean probability of {event.mean:.0%}"
                    yield {self.stage: film.end(confidence=(to_uri(event.image), text))}
                elif isinstance(event, Drawn):
                    stopped = True
                    yield {self.status: line, self.stage: film.end()}
                elif line:
                    yield {self.status: line}
            if not film.frames and not stopped:
                yield {self.status: status("Stopped.")}
        except Refusal as error:
            yield {self.status: refused(error)}

    async def restored(self, file: str | None) -> dict:
        """Show the settings that a PNG holds."""
        if file is None:
            return {self.status: gr.skip()}
        try:
            found = await self.space.read(read_settings, file, self.space.max_bytes)
            settings = self.space.engine.usable(found)
        except Refusal as error:
            return {self.status: refused(error)}
        return {**self.controls.restored(settings), self.status: status("The settings of this image are restored.")}

    def linked(self, request: gr.Request) -> dict:
        """Show the settings of the link that opened the page."""
        query = dict(request.query_params)
        if not query.get("prompt"):
            return {self.status: gr.skip()}
        try:
            settings = self.space.engine.usable(settings_of_link(query, self.space.engine.usual))
        except Refusal as error:
            return {self.status: refused(error)}
        return {**self.controls.restored(settings), self.status: status("The settings of the link are set.")}

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components."""
        controls = self.controls
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        drawn = [
            self.status,
            self.stage,
            self.gallery,
            controls.seed,
            self.paths,
            self.chosen,
            self.shared.visit,
            self.shared.visit_gallery,
        ]
        gr.on(
            [self.make.click, controls.prompt.submit],
            self.draw,
            inputs=[self.shared.visit, *controls.components],
            outputs=drawn,
            **hidden,
        )
        show_status(self.make.click, controls.prompt.submit)
        self.stop.click(self.space.stop, outputs=self.status, queue=False, **hidden)
        self.keep.click(lambda: False, outputs=controls.new_seed, queue=False, **hidden)
        self.link.click(None, inputs=controls.components, outputs=self.status, js=COPY_LINK, **hidden)
        updated = [*controls.components, self.status]
        self.restore.upload(self.restored, self.restore, updated, queue=False, **hidden)
        demo.load(self.linked, None, updated, queue=False, **hidden).then(None, js=LISTENS)
        self.examples.select(self.use_example, None, controls.prompt, queue=False, **hidden)
        self.gallery.select(choose, self.paths, self.chosen, queue=False, **hidden)
        self.shared.wire_actions(self.actions, self.chosen, self.status)

    def use_example(self, event: gr.SelectData) -> str:
        """The words of the example that was pressed."""
        return self.space.thumbnails[event.index][1]


def choose(paths: list, event: gr.SelectData) -> Any:
    """The image of a gallery that was pressed."""
    return paths[event.index] if isinstance(event.index, int) and event.index < len(paths) else gr.skip()


def settings_of_link(query: dict[str, str], usual: dict[str, Any]) -> DrawSettings:
    """
    Settings from the query of a link. What it lacks is as in `usual`, or has its default.

    Raises:
        Refusal: for values that are no numbers.
    """
    kinds = {
        "steps": int,
        "guidance": float,
        "temperature": float,
        "height": int,
        "width": int,
        "count": int,
        "seed": int,
    }
    values: dict[str, Any] = {"prompt": query["prompt"], "negative_prompt": query.get("negative", "")}
    try:
        values |= {name: kind(query[name]) for name, kind in kinds.items() if query.get(name)}
    except ValueError:
        raise Refusal("The link holds settings that are no numbers.") from None
    if query.get("sampler"):
        values["sampler"] = query["sampler"]
    return DrawSettings(**{**usual, **values})
