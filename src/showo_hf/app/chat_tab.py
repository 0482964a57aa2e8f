"""The tab "Chat": text and images in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr

from .components import status_line
from .engine import Answered, Drawn, Step, Words
from .line import Working
from .page_parts import Shared, Talk, Talks, cancel_at
from .previews import picture, status, to_uri
from .settings import DrawSettings, Refusal, check_text
from .space import Space, add_to_visit, new_seed, progress, refused
from .uploads import read_upload


MAX_CHAT_IMAGES = 2  # in one answer
MAX_SENT_IMAGES = 2  # in one message


class ChatTab:
    """The layout of the tab, and what its buttons do."""

    def __init__(self, space: Space, shared: Shared):
        self.space, self.shared = space, shared

    def build(self) -> None:
        """Make the components at the present place of the layout."""
        self.chat = gr.Chatbot(
            label="Conversation in text and images",
            height=460,
            buttons=[],
            feedback_options=None,
            placeholder="Ask for an image, or send one. Answers mix text and images.",
        )
        self.box = gr.MultimodalTextbox(
            label="Message",
            placeholder=min(self.space.facts.requests, key=len),  # a phone shows one line
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            elem_id="showo-chat-box",
            submit_btn=True,
        )
        with gr.Row(equal_height=True):
            self.stop = gr.Button("Stop", variant="stop", min_width=80)
            self.restart = gr.Button("New conversation", min_width=140)
        gr.Examples(
            [{"text": text, "files": []} for text in self.space.facts.requests],
            self.box,
            label="Messages to try",
            cache_examples=False,
        )
        self.status = status_line()
        self.chosen = gr.State(None)
        self.actions = self.shared.action_row()
        self.talks = gr.State(Talks())

    # What the buttons do

    async def say(self, request: gr.Request, box: dict | None, talks: Talks, visit: list) -> AsyncGenerator[dict]:
        """Answer a message."""
        yield {self.talks: talks}  # only what is set is forgotten an hour after the page is closed
        async with aclosing(talks.now.updates(self.updates(request, box, talks.now, visit))) as updates:
            async for update in updates:
                yield update

    async def updates(self, request: gr.Request, box: dict | None, talk: Talk, visit: list) -> AsyncGenerator[dict]:
        """The updates of an answer; words and steps of images appear as they come."""
        space, before = self.space, talk.shown
        try:
            text = check_text((box or {}).get("text"), None)
            files = list((box or {}).get("files") or [])
            if not text and not files:
                raise Refusal("Please write a message.")
            if len(files) > MAX_SENT_IMAGES:
                raise Refusal(f"Please send at most {MAX_SENT_IMAGES} images in a message.")
            if space.engine.reads_features or not space.engine.has_images:
                raise Refusal("This model cannot chat in text and images.")
            seed = new_seed()

            def prepare() -> tuple:
                images = [{"type": "image", "image": read_upload(file, space.max_bytes)} for file in files]
                words = [{"type": "text", "text": text}] if text else []
                return talk.messages, {"role": "user", "content": images + words}

            sent: list = [{"path": file, "alt_text": "The image that you sent"} for file in files]
            asked = [*before, {"role": "user", "content": [*sent, *([text] if text else [])]}]
            parts: list[Any] = []
            yield {self.status: status("Reading ..."), self.chat: talk.show(asked), self.box: None}
            work = partial(space.engine.answer, max_images=MAX_CHAT_IMAGES, seed=seed)
            async for event in space.run(request, "images", work, prepare):
                line = progress(event)
                if isinstance(event, Working):
                    continue
                if isinstance(event, Words):
                    if not parts or not isinstance(parts[-1], str):
                        parts.append("")
                    parts[-1] += event.text
                elif isinstance(event, Step):
                    uri = await asyncio.to_thread(to_uri, event.image)
                    frame = picture(uri, f"Image after step {event.step} of {event.steps}", 'class="showo-chat-step"')
                    if not parts or not isinstance(parts[-1], gr.HTML):
                        parts.append(None)
                    parts[-1] = gr.HTML(frame)
                elif isinstance(event, Drawn) and event.images:
                    path = await space.save(
                        event.images[0], DrawSettings(text, seed=seed, **space.engine.usual), "chat"
                    )
                    if parts and isinstance(parts[-1], gr.HTML):
                        parts.pop()
                    parts.append({"path": path, "alt_text": f"Image in the answer to: {text}"})
                    visit = add_to_visit(visit, path, f"{text}, in a chat")
                    yield {self.chosen: path, self.shared.visit: visit, self.shared.visit_gallery: visit}
                elif isinstance(event, Answered):
                    talk.messages = event.messages
                    yield {
                        self.status: status("Stopped." if event.stopped else "Ready."),
                        self.chat: talk.show([*asked, answer_of(parts or ["(no answer)"])]),
                    }
                    continue
                update = {self.chat: talk.show([*asked, answer_of(parts)])} if parts else {}
                if line or update:
                    yield {**update, self.status: line or status("...")}
        except Refusal as error:
            yield {self.status: refused(error), self.chat: talk.show(before)}

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [
            self.chat,
            self.box,
            self.talks,
            self.status,
            self.chosen,
            self.shared.visit,
            self.shared.visit_gallery,
        ]
        said = self.box.submit(self.say, [self.box, self.talks, self.shared.visit], outputs, **hidden)
        self.stop.click(self.stopped, self.talks, self.status, queue=False, **hidden)
        cancel_at(self.restart.click, said)
        self.restart.click(self.begin, self.talks, [self.chat, self.status], queue=False, **hidden)
        self.shared.wire_actions(self.actions, self.chosen, self.status)

    async def stopped(self, request: gr.Request, talks: Talks) -> str:
        """Stop all answers."""
        return await talks.stop(self.space, request)

    async def begin(self, talks: Talks) -> dict:
        """Begin a new conversation."""
        talks.begin()
        return {self.chat: [], self.status: status("Ready.")}


def answer_of(parts: list[Any]) -> dict:
    """An answer as a message of the chatbot."""
    return {"role": "assistant", "content": list(parts)}
