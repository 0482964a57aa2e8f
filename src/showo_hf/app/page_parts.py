"""What the tabs share on the page: the gallery of the visit, and the ways from one tab to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from .components import PaintedImage, UploadedImage
from .settings import Refusal
from .space import Space, refused
from .uploads import read_upload


#: Presses the tab of a name in the browser. A narrow page keeps some tabs in a menu, where they have a label alone.
OPEN_TAB = """
(name) => {
  if (!name) return;
  const bar = document.querySelector('.showo-tabs > .tab-wrapper');
  const tabs = [...bar.querySelectorAll('[role=tab], .overflow-dropdown button')];
  tabs.find((tab) => tab.textContent.trim().toLowerCase() === name)?.click();
}
"""
#: Scrolls to the status line of the open tab if it is out of sight, as on a phone.
SHOW_STATUS = """
() => {
  const line = [...document.querySelectorAll('.showo-status-box')].find((one) => one.offsetParent);
  const { top, bottom } = line.getBoundingClientRect();
  if (top >= 0 && bottom <= window.innerHeight / 2) return;
  const still = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
  line.scrollIntoView({ behavior: still ? 'auto' : 'smooth', block: 'start' });
}
"""
EDITOR_SIDE = 480  # pixels: small images are enlarged to this side, so that a brush can paint on them


@dataclass
class Talk:
    """
    One conversation of a tab.

    Args:
        shown (`list`): the messages that the chatbot shows.
        messages (`list`): what the model remembers.
        over (`bool`): whether a new conversation has begun. The answer ends then.
        waits (`bool`): whether the status line waits for the end of an answer.
        stops (`int`): how often the visitor pressed "Stop".
        turn (`asyncio.Lock`): held by the answer that now runs.
    """

    shown: list[Any] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    over: bool = False
    waits: bool = False
    stops: int = field(default=0, compare=False)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    def show(self, messages: list) -> list:
        """Set what the chatbot shows. Returns it."""
        self.shown = messages
        return messages

    async def updates(self, answer: AsyncGenerator[dict]) -> AsyncGenerator[dict]:
        """
        What an answer sends, until the conversation is over.

        It begins when the answer before has ended, and so it reads what that one has added to the conversation. "Stop" ends
        those that wait too.
        """
        stops = self.stops
        async with self.turn, aclosing(answer):
            if self.over or self.stops > stops:
                return
            self.waits = True
            async for update in answer:
                if self.over:
                    return
                yield update
            self.waits = False


@dataclass
class Talks:
    """
    What a `gr.State` holds for a tab: the conversation of now. Events change it in place, and set no other object.

    So a new conversation begins at once, and an answer that still runs changes the old one, which nobody sees. It stays on
    the server: what a chatbot sends back could name any component.
    """

    now: Talk = field(default_factory=Talk)

    def begin(self) -> Talk:
        """Begin a new conversation. Returns the old one."""
        old, self.now = self.now, Talk()
        old.over = True
        return old

    async def stop(self, space: Space, request: gr.Request) -> str:
        """Stop the visitor's jobs, and the answers that wait for another one. Returns the status line."""
        self.now.stops += 1
        return await space.stop(request)


@dataclass
class Shared:
    """
    Components that several tabs use. The tabs set `editor` and `ask_image` while they are built.

    Args:
        space ([`Space`]): the app behind the page.
        visit (`gr.State`): the images of the visit, as pairs of a path and a caption.
    """

    space: Space
    visit: gr.State
    visit_gallery: gr.Gallery | None = None
    editor: PaintedImage | None = None
    ask_image: UploadedImage | None = None
    new_image: list[tuple[Callable, list[Any]]] = field(default_factory=list)

    def action_row(self, image: str = "this image") -> dict[str, gr.Button]:
        """Buttons that take an image to another tab."""
        with gr.Row():
            return {
                "edit": gr.Button(f"Edit {image}", size="sm", min_width=120),
                "ask": gr.Button(f"Ask about {image}", size="sm", min_width=120),
            }

    def wire_actions(self, buttons: dict[str, gr.Button], chosen: gr.State, status: gr.HTML) -> None:
        """Connect the buttons of [`action_row`] to the image whose path `chosen` holds."""
        # The browser opens the tab. If the tabs were an output, Gradio would first upload the painting again.
        opened = gr.Textbox(visible=False)
        hidden: dict[str, Any] = {**without_progress(status), "queue": False}

        def open_in(name: str, target: Any, value: Callable[[str], Any]) -> None:
            async def take(path: str | None) -> dict:
                try:
                    if path is None:
                        raise Refusal("There is no image yet.")
                    return {target: await self.space.read(value, path), opened: name}
                except Refusal as error:
                    return {status: refused(error), opened: ""}

            done = buttons[name].click(take, chosen, [target, opened, status], **hidden)
            done.then(None, opened, None, js=OPEN_TAB, show_progress="hidden", api_visibility="private")

        open_in("edit", self.editor, partial(for_editor, max_bytes=self.space.max_bytes))
        open_in("ask", self.ask_image, str)

    def build_visit(self) -> None:
        """Make the gallery of the visit, below the tabs."""
        with gr.Accordion("Images of this visit", open=False):
            gr.Markdown("Press an image to choose it.")
            self.visit_gallery.render()
            self.visit_status = gr.HTML("", elem_classes="showo-status-box")
            self.visit_chosen = gr.State(None)
            self.visit_actions = self.action_row()

    def wire(self) -> None:
        """Connect the gallery of the visit."""
        hidden: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.visit_gallery.select(choose_visited, self.visit, self.visit_chosen, **hidden)
        self.wire_actions(self.visit_actions, self.visit_chosen, self.visit_status)


def show_status(*events: Callable[..., Any]) -> None:
    """Let the browser scroll to the status line at these events."""
    gr.on(events, None, js=SHOW_STATUS, show_progress="hidden", api_visibility="private")


def cancel_at(event: Callable[..., Any], *running: Any) -> None:
    """
    Let the browser drop what these running events still send, as soon as an event happens.

    Call this before the event gets its handler: the browser goes through them in their order.
    """
    event(None, cancels=list(running), show_progress="hidden", api_visibility="private")


def without_progress(status: gr.HTML) -> dict[str, Any]:
    """
    Options of an event that sets the editor: Gradio shows its progress on the status line, where nothing is seen.

    By default Gradio tells every output how far an event is, and the editor answers by uploading its painting.
    """
    return {"show_progress": "hidden", "show_progress_on": status, "api_visibility": "private"}


def choose_visited(visit: list, event: gr.SelectData) -> Any:
    """The image of the visit that was pressed."""
    return visit[event.index][0] if isinstance(event.index, int) and event.index < len(visit) else gr.skip()


def for_editor(source: Any, max_bytes: int) -> dict[str, Any]:
    """An image as the value of the editor, large enough to paint on. Raises `Refusal` if it cannot be read."""
    image = read_upload(source, max_bytes)
    factor = EDITOR_SIDE / max(image.size)
    if factor > 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)))
    return {"background": image, "layers": [], "composite": None}
