"""The tab "Ask": a conversation about an image."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from .components import UploadedImage, status_line
from .engine import CAPTION, Answered, Words
from .page_parts import Shared, Talk, Talks, cancel_at
from .previews import status
from .settings import MAX_PROMPT_LENGTH, Refusal, check_text
from .space import Space, progress, refused
from .uploads import read_upload


#: What the page says for a model that reads images as continuous features.
NO_MEMORY = "This model answers each question by itself: it does not remember the questions before."


class AskTab:
    """The layout of the tab, and what its buttons do."""

    def __init__(self, space: Space, shared: Shared):
        self.space, self.shared = space, shared

    def build(self) -> None:
        """Make the components at the present place of the layout."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.image = self.shared.ask_image = UploadedImage(
                    label="Image",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    height=320,
                    buttons=["fullscreen"],
                    alt_text="The image that the questions are about",
                    elem_id="showo-ask-image",
                    placeholder="Drop an image file here to upload",
                )
                self.caption = gr.Button("Caption")
            with gr.Column(scale=3, min_width=320):
                if self.space.engine.reads_features:
                    gr.Markdown(NO_MEMORY)
                self.chat = gr.Chatbot(
                    label="Conversation about the image",
                    height=320,
                    buttons=[],
                    feedback_options=None,
                    render_markdown=False,
                    placeholder="Choose an image, then ask about it.",
                )
                questions = self.space.facts.questions
                self.question = gr.Textbox(label="Question", placeholder=questions[-1], max_length=MAX_PROMPT_LENGTH)
                with gr.Row():
                    self.send = gr.Button("Ask", variant="primary", min_width=100)
                    self.stop = gr.Button("Stop", variant="stop", min_width=80)
                    self.restart = gr.Button("New conversation", min_width=140)
                gr.Examples(questions, inputs=self.question, label="Questions to try", cache_examples=False)
                self.status = status_line("Choose an image, or take one from another tab.")
        self.talks = gr.State(Talks())

    # What the buttons do

    async def reply(self, request: gr.Request, image: str | None, question: str, talks: Talks) -> AsyncGenerator[dict]:
        """Answer a question."""
        yield {self.talks: talks}  # only what is set is forgotten an hour after the page is closed
        async with aclosing(talks.now.updates(self.updates(request, image, question, talks.now))) as updates:
            async for update in updates:
                yield update

    async def describe(self, request: gr.Request, image: str | None, talks: Talks) -> AsyncGenerator[dict]:
        """Ask what the image shows."""
        async with aclosing(self.reply(request, image, CAPTION, talks)) as updates:
            async for update in updates:
                yield update

    async def updates(self, request: gr.Request, image: str | None, question: str, talk: Talk) -> AsyncGenerator[dict]:
        """The updates of an answer, which grows word by word."""
        space, before = self.space, talk.shown
        try:
            question = check_text(question, "Please write a question.")
            if not image:
                raise Refusal("Please choose an image.")

            def prepare() -> tuple:
                return talk.messages, read_upload(image, space.max_bytes), question

            asked = [*before, {"role": "user", "content": question}]
            said = ""
            yield {self.status: status("Reading the image ..."), self.chat: talk.show(asked)}
            async for event in space.run(request, "words", space.engine.ask, prepare):
                line = progress(event)
                if isinstance(event, Words):
                    said += event.text
                    answered = [*asked, {"role": "assistant", "content": said}]
                    yield {self.chat: talk.show(answered), self.status: status("...")}
                elif isinstance(event, Answered):
                    talk.messages = event.messages
                    done: dict[Any, Any] = {
                        self.status: status("Stopped." if event.stopped else "Ready."),
                        self.question: "",
                    }
                    if not said:
                        done[self.chat] = talk.show([*asked, {"role": "assistant", "content": "(no answer)"}])
                    yield done
                elif line:
                    yield {self.status: line}
        except Refusal as error:
            yield {self.status: refused(error), self.chat: talk.show(before)}

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.chat, self.question, self.talks, self.status]
        asked = gr.on(
            [self.send.click, self.question.submit],
            self.reply,
            [self.image, self.question, self.talks],
            outputs,
            **hidden,
        )
        described = self.caption.click(self.describe, [self.image, self.talks], outputs, **hidden)
        self.stop.click(self.stopped, self.talks, self.status, queue=False, **hidden)

        fresh: dict[str, Any] = {"queue": False, **hidden}
        for event in (self.restart.click, self.image.change):
            cancel_at(event, asked, described)
        self.restart.click(self.begin, self.talks, [self.chat, self.status], **fresh)
        self.image.change(self.begin_with_image, self.talks, [self.chat, self.status], **fresh)
        self.image.upload(self.uploaded, self.image, [self.image, self.status], queue=False, **hidden)

    async def stopped(self, request: gr.Request, talks: Talks) -> str:
        """Stop all answers."""
        return await talks.stop(self.space, request)

    async def begin(self, talks: Talks) -> dict:
        """Begin a new conversation."""
        talks.begin()
        return {self.chat: [], self.status: status("Ready.")}

    async def begin_with_image(self, talks: Talks) -> dict:
        """Begin a new conversation. The status line stays if it may say why the image was refused."""
        return {self.chat: [], self.status: status("Ready.") if talks.begin().waits else gr.skip()}

    async def uploaded(self, image: str | None) -> dict:
        """Check an upload at once."""
        try:
            await self.space.read(read_upload, image, self.space.max_bytes)
        except Refusal as error:
            return {self.image: None, self.status: refused(error)}
        return {self.status: status("Ready.")}
