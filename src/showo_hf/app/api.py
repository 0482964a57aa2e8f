"""The named endpoints, for `gradio_client` and MCP: the same jobs as the page's, without previews."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import gradio as gr

from .chat_tab import MAX_CHAT_IMAGES
from .components import UploadedImage
from .edit_tab import DIRECTIONS, NOTHING_PAINTED, check_directions
from .engine import Answered, Drawn, Words
from .settings import (
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_PROMPT_LENGTH,
    MAX_ROUNDS,
    MAX_SEED,
    MAX_STEPS,
    MAX_TEMPERATURE,
    DrawSettings,
    Refusal,
    check_text,
    number,
    whole,
)
from .space import Space, new_seed
from .uploads import read_masked, read_upload


class Api:
    """
    The endpoints `/generate`, `/inpaint`, `/extend`, `/vary`, `/ask` and `/chat`.

    Their docstrings are what clients and language models read, so they name every range. A call yields at every event of its
    job, so that the job of a client that is gone ends: Gradio sees that between two of them.
    """

    def __init__(self, space: Space):
        self.space = space

    # Endpoints

    async def generate(
        self,
        request: gr.Request,
        prompt: str,
        steps: int = 18,
        guidance: float = 2.75,
        temperature: float | None = None,
        seed: int | None = None,
        count: int = 1,
        negative_prompt: str = "",
        sampler: str = "the model's own",
        height: int | None = None,
        width: int | None = None,
    ) -> AsyncIterator[tuple]:
        """
        Draw images from words.

        Args:
            prompt: what to show, in English, 1 to 300 characters.
            steps: number of denoising steps, 1 to 50.
            guidance: how closely to follow the prompt, 1 (not at all) to 20.
            temperature: randomness, 0 to 10; leave it out for the sampler's own.
            seed: 0 to 2147483647; image i has seed + i, in the same range. A random one if left out.
            count: number of images, 1 to 4.
            negative_prompt: what not to show, up to 300 characters.
            sampler: one of the samplers that the page lists.
            height: in pixels; the trained size if left out, or 1.5 or 2 times that.
            width: in pixels, as the height.

        Returns:
            the images, as PNG files with their settings inside, and the seed of the first.
        """
        settings = self.settings(
            prompt=prompt,
            steps=steps,
            guidance=guidance,
            temperature=temperature,
            seed=seed,
            count=count,
            negative_prompt=negative_prompt,
            sampler=sampler,
            height=height,
            width=width,
        )
        work = partial(self.space.engine.draw, settings=settings, previews=False)
        async for images in self.images(request, settings, "create", work):
            yield images and [(path, f"seed {settings.seed + i}") for i, path in enumerate(images)], settings.seed

    async def inpaint(
        self,
        request: gr.Request,
        image: str,
        mask: str,
        prompt: str,
        strength: float = 1.0,
        steps: int = 18,
        guidance: float = 2.75,
        seed: int | None = None,
    ) -> AsyncIterator[tuple]:
        """
        Draw a part of an image again.

        Args:
            image: the image, a file of at most 10 MB and 16 million pixels.
            mask: an image of the same shape, white where the image changes; transparent pixels are black.
            prompt: what the finished image shows, 1 to 300 characters.
            strength: share of the marked part to draw again, 0.1 to 1.
            steps: number of denoising steps, 1 to 50.
            guidance: how closely to follow the prompt, 1 to 20.
            seed: 0 to 2147483647; a random one if left out.

        Returns:
            the image, as a PNG file, and the seed.
        """
        settings = self.settings(prompt=prompt, steps=steps, guidance=guidance, seed=seed)
        share = refusals_as_errors(number, "The strength", strength, 0.1, 1)

        def prepare() -> tuple:
            picture, marked = read_masked(image, mask, self.space.max_bytes)
            if not marked.point([0] * 128 + [255] * 128).getbbox():
                raise Refusal(NOTHING_PAINTED)
            return settings, picture, marked, share, False

        async for paths in self.images(request, settings, "repainted", self.space.engine.inpaint, prepare):
            yield paths[0] if paths else None, settings.seed

    async def extend(
        self,
        request: gr.Request,
        image: str,
        prompt: str,
        directions: list[str] | None = None,
        rounds: int = 1,
        steps: int = 18,
        guidance: float = 2.75,
        seed: int | None = None,
    ) -> AsyncIterator[tuple]:
        """
        Make an image larger.

        Args:
            image: the image, a file of at most 10 MB and 16 million pixels.
            prompt: what the finished image shows, 1 to 300 characters.
            directions: to which sides: "left", "right", "up" and "down"; to the right if left out.
            rounds: how often, 1 to 3; each time by half of the trained size.
            steps: number of denoising steps, 1 to 50.
            guidance: how closely to follow the prompt, 1 to 20.
            seed: 0 to 2147483647; a random one if left out.

        Returns:
            the image, as a PNG file, and the seed.
        """
        settings = self.settings(prompt=prompt, steps=steps, guidance=guidance, seed=seed)
        sides = refusals_as_errors(check_directions, ["right"] if directions is None else directions)
        times = refusals_as_errors(whole, "The rounds", rounds, 1, MAX_ROUNDS)

        def prepare() -> tuple:
            return settings, read_upload(image, self.space.max_bytes), sides, times, False

        async for paths in self.images(request, settings, "extended", self.space.engine.extend, prepare):
            yield paths[0] if paths else None, settings.seed

    async def vary(
        self,
        request: gr.Request,
        image: str,
        prompt: str,
        strength: float = 0.7,
        steps: int = 18,
        guidance: float = 2.75,
        seed: int | None = None,
    ) -> AsyncIterator[tuple]:
        """
        Draw the least certain part of an image again.

        Args:
            image: the image, a file of at most 10 MB and 16 million pixels.
            prompt: what the finished image shows, 1 to 300 characters.
            strength: share of the image to draw again, 0.1 to 1.
            steps: number of denoising steps, 1 to 50.
            guidance: how closely to follow the prompt, 1 to 20.
            seed: 0 to 2147483647; a random one if left out.

        Returns:
            the image, as a PNG file, and the seed.
        """
        settings = self.settings(prompt=prompt, steps=steps, guidance=guidance, seed=seed)
        share = refusals_as_errors(number, "The strength", strength, 0.1, 1)

        def prepare() -> tuple:
            return settings, read_upload(image, self.space.max_bytes), share, False

        async for paths in self.images(request, settings, "varied", self.space.engine.vary, prepare):
            yield paths[0] if paths else None, settings.seed

    async def ask(self, request: gr.Request, image: str, question: str = "what is this?") -> AsyncIterator[str]:
        """
        Answer a question about an image.

        Args:
            image: the image, a file of at most 10 MB and 16 million pixels.
            question: 1 to 300 characters.

        Returns:
            the answer, up to 64 tokens.
        """
        question = refusals_as_errors(check_text, question, "Please write a question.")
        said = ""

        def prepare() -> tuple:
            return [], read_upload(image, self.space.max_bytes), question

        async for event in self.events(request, "words", self.space.engine.ask, prepare):
            said += event.text if isinstance(event, Words) else ""
            yield said

    async def chat(
        self,
        request: gr.Request,
        messages: list,
        message: str,
        image: str | None = None,
        new: bool = False,
        seed: int | None = None,
    ) -> AsyncIterator[tuple]:
        """
        Answer a message in text and images. A client's session remembers the conversation.

        Args:
            message: 1 to 300 characters.
            image: an image to send with it, a file of at most 10 MB and 16 million pixels; may be left out.
            new: start a new conversation.
            seed: 0 to 2147483647; a random one if left out.

        Returns:
            the text of the answer, and its images as PNG files.
        """
        text = refusals_as_errors(check_text, message, "Please write a message.")
        seed = new_seed() if seed is None else refusals_as_errors(whole, "Seed", seed, 0, MAX_SEED)
        earlier = [] if new else messages
        said, paths = "", []

        def prepare() -> tuple:
            pictures = [{"type": "image", "image": read_upload(image, self.space.max_bytes)}] if image else []
            return earlier, {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}

        work = partial(self.space.engine.answer, max_images=MAX_CHAT_IMAGES, seed=seed, previews=False)
        async for event in self.events(request, "images", work, prepare):
            if isinstance(event, Words):
                said += event.text
            elif isinstance(event, Drawn) and event.images:
                paths.append(
                    await self.space.save(
                        event.images[0], DrawSettings(text, seed=seed, **self.space.engine.usual), "chat"
                    )
                )
            elif isinstance(event, Answered):
                earlier = event.messages
            yield said, list(paths), earlier

    # What they share

    def settings(self, seed: int | None = None, **values: Any) -> DrawSettings:
        """Checked settings. Raises `gr.Error` for what is not allowed."""
        seed = new_seed() if seed is None else seed
        return refusals_as_errors(self.space.engine.checked, DrawSettings(seed=seed, **values))

    async def events(
        self, request: gr.Request, kind: str, work: Callable[..., Any], prepare: Callable[[], tuple] = tuple
    ) -> AsyncIterator[Any]:
        """The events of a job. Raises `gr.Error` with the sentence of a `Refusal`."""
        try:
            async for event in self.space.run(request, kind, work, prepare):
                yield event
        except Refusal as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def images(
        self,
        request: gr.Request,
        settings: DrawSettings,
        name: str,
        work: Callable[..., Any],
        prepare: Callable[[], tuple] = tuple,
    ) -> AsyncIterator[list[str]]:
        """The paths of the finished images; an empty list while the job waits and works."""
        async for event in self.events(request, "images", work, prepare):
            if isinstance(event, Drawn):
                if event.stopped:
                    raise gr.Error("The job was stopped.", print_exception=False)
                yield [
                    await self.space.save(image, settings.with_seed(settings.seed + number), name)
                    for number, image in enumerate(event.images)
                ]
            else:
                yield []

    # Layout

    def build(self) -> None:
        """Make the hidden components that describe the arguments, and the endpoints."""
        with gr.Row(visible=False):
            button = gr.Button("API")
            prompt = gr.Textbox(label="prompt: 1 to 300 characters", max_length=MAX_PROMPT_LENGTH)
            negative = gr.Textbox("", label="negative_prompt: up to 300 characters", max_length=MAX_PROMPT_LENGTH)
            steps = gr.Slider(1, MAX_STEPS, self.space.engine.usual_steps, step=1, precision=0, label="steps")
            guidance = gr.Slider(1.0, MAX_GUIDANCE, self.space.engine.usual_guidance, step=0.01, label="guidance")
            temperature = gr.Number(
                None, minimum=0, maximum=MAX_TEMPERATURE, label=f"temperature: 0 to {MAX_TEMPERATURE:g}"
            )
            seed = gr.Number(None, minimum=0, maximum=MAX_SEED, precision=0, label=f"seed: 0 to {MAX_SEED}")
            count = gr.Slider(1, MAX_IMAGES, 1, step=1, precision=0, label="count")
            samplers = self.space.engine.samplers
            sampler = gr.Dropdown(samplers, value=samplers[0], label="sampler")
            trained = self.space.engine.trained_size
            height, width = (gr.Dropdown(self.space.engine.sizes(one), value=one, label="pixels") for one in trained)
            image = UploadedImage(label="image: at most 10 MB", type="filepath")
            sent = UploadedImage(label="image: at most 10 MB; may be left out", type="filepath")
            mask = UploadedImage(label="mask: white where the image changes", type="filepath")
            strength = gr.Slider(0.1, 1.0, 1.0, step=0.01, label="strength")
            variation = gr.Slider(0.1, 1.0, 0.7, step=0.01, label="strength")
            directions = gr.CheckboxGroup(list(DIRECTIONS), value=["right"], label="directions")
            rounds = gr.Slider(1, MAX_ROUNDS, 1, step=1, precision=0, label="rounds")
            question = gr.Textbox("what is this?", label="question: 1 to 300 characters", max_length=MAX_PROMPT_LENGTH)
            message = gr.Textbox(label="message: 1 to 300 characters", max_length=MAX_PROMPT_LENGTH)
            new = gr.Checkbox(False, label="new: start a new conversation")
            images = gr.Gallery(label="images", format="png")
            result = gr.Image(label="image", type="filepath", format="png")
            used = gr.Number(label="seed", precision=0)
            answer = gr.Textbox(label="answer")
            memory = gr.State([])
        drawing = [steps, guidance, temperature, seed, count, negative, sampler, height, width]
        changing = [steps, guidance, seed]
        for function, inputs, outputs in (
            (self.generate, [prompt, *drawing], [images, used]),
            (self.inpaint, [image, mask, prompt, strength, *changing], [result, used]),
            (self.extend, [image, prompt, directions, rounds, *changing], [result, used]),
            (self.vary, [image, prompt, variation, *changing], [result, used]),
            (self.ask, [image, question], answer),
            (self.chat, [memory, message, sent, new, seed], [answer, images, memory]),
        ):
            button.click(function, inputs, outputs, api_name=function.__name__, show_progress="hidden")


def refusals_as_errors(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a check, with a `Refusal` as a `gr.Error`."""
    try:
        return function(*arguments)
    except Refusal as error:
        raise gr.Error(str(error), print_exception=False) from None
