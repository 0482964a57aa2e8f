"""The work of the app: each method is one job on the pipelines, and emits events while it runs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image

from showo_hf.pipelines import (
    AnswerDone,
    ImageDone,
    ImageStep,
    ShowoAnyToAnyPipeline,
    ShowoExtrapolatePipeline,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
    TextPiece,
)
from showo_hf.pipelines.call_state import after_each_pass, one_at_a_time_if_offloaded
from showo_hf.pipelines.scheduler_adapter import config_entry

from ..schedulers import SCHEDULERS
from .line import Job, OutOfTime, Stopped
from .previews import confidence_map, on_canvas, side_by_side, with_masked_cells
from .settings import MAX_ANSWER, MAX_SCALE, OWN_SAMPLER, DrawSettings, Refusal


CAPTION = "describe the picture."


@dataclass(frozen=True, eq=False)
class Step:
    """An image, or several side by side, after one more step; `step` counts from 1."""

    step: int
    steps: int
    filled: float
    image: Image.Image | None


@dataclass(frozen=True, eq=False)
class Drawn:
    """
    Finished images.

    Args:
        images: the images.
        seconds (`float`): how long the pipeline took.
        stopped (`bool`): there are none, because the visitor stopped the job.
        before: the image before an edit, of the same size, with what is new left plain.
    """

    images: list[Image.Image]
    seconds: float
    stopped: bool = False
    before: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class Confidence:
    """How likely the model finds each cell of the finished images: a map, and the mean probability."""

    image: Image.Image
    mean: float


@dataclass(frozen=True)
class Words:
    """More text of an answer."""

    text: str


@dataclass(frozen=True, eq=False)
class Answered:
    """The end of an answer, and all messages so far, with images as token grids."""

    messages: list[dict]
    stopped: bool


class Engine:
    """
    The pipelines of one model. Threads may share it.

    Pickled, it is a reference: a process that is forked from this one finds the same engine.

    Args:
        pipe: any pipeline of this package; all share its components.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.number = next(NUMBERS)
        ENGINES[self.number] = self
        self.usual_steps, self.usual_guidance = pipe.with_defaults(None, None)
        self.reads_features = pipe.model.mm_projector is not None
        self.has_images = pipe.image_tokenizer is not None

    def __reduce__(self) -> tuple:
        return engine_of, (self.number,)

    # What the model offers

    @property
    def samplers(self) -> list[str]:
        """The names of the samplers; the model's own first."""
        return [OWN_SAMPLER, *SCHEDULERS]

    @property
    def usual(self) -> dict[str, Any]:
        """The settings of [`DrawSettings`] that the model has its own values for."""
        return {"steps": self.usual_steps, "guidance": self.usual_guidance}

    @property
    def trained_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was trained on."""
        rows, columns = self.pipe.default_grid
        return rows * self.pipe.patch, columns * self.pipe.patch

    def sizes(self, trained: int) -> list[int]:
        """The sides that a visitor can choose: the trained one, one and a half times, and twice that."""
        patch = self.pipe.patch
        return sorted({round(trained * factor / patch) * patch for factor in (1, 1.5, MAX_SCALE)})

    def scheduler(self, sampler: str) -> Any:
        """The scheduler of a name, with the settings of the model's own where both have them."""
        own = self.pipe.scheduler
        if sampler == OWN_SAMPLER:
            return own
        kind: Any = SCHEDULERS[sampler]
        return kind.from_config(own.config, mask_token_id=self.pipe.mask_token_id)

    def takes_temperature(self, sampler: str) -> bool:
        """Whether a sampler has a temperature. The pipelines refuse one for those that have none."""
        return "temperature" in inspect.signature(self.scheduler(sampler).set_timesteps).parameters

    def usual_temperature(self, sampler: str) -> float:
        """The temperature that a sampler has by itself. It means another thing for some: of the choice, or of the tokens."""
        scheduler = self.scheduler(sampler)
        return config_entry(scheduler, "temperature", config_entry(scheduler, "token_temperature", 1.0))

    def checked(self, settings: DrawSettings) -> DrawSettings:
        """Settings that the pipelines take. Raises [`Refusal`] for others."""
        settings = settings.checked(self.samplers)
        for name, side, trained in zip(
            ("Height", "Width"), (settings.height, settings.width), self.trained_size, strict=True
        ):
            if side is not None and side not in self.sizes(trained):
                raise Refusal(f"{name} must be one of {', '.join(map(str, self.sizes(trained)))} pixels.")
        if settings.temperature is not None and not self.takes_temperature(settings.sampler):
            raise Refusal("This sampler has no temperature.")
        return settings

    def usable(self, settings: DrawSettings) -> DrawSettings:
        """Checked settings of a file or a link, whose temperature may be that of another sampler."""
        if settings.sampler in self.samplers and not self.takes_temperature(settings.sampler):
            settings = replace(settings, temperature=None)
        return self.checked(settings)

    def pipeline(self, kind: type, sampler: str = OWN_SAMPLER) -> Any:
        """A pipeline of a class with the shared components. It is new, so that its scheduler can differ."""
        pipe = kind(**{**self.pipe.components, "scheduler": self.scheduler(sampler)})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # Images

    def draw(self, job: Job, settings: DrawSettings, previews: bool = True, confidence: bool = False) -> None:
        """Text to image. Emits [`Step`], [`Drawn`] and, if `confidence`, [`Confidence`]."""
        settings = self.checked(settings)
        pipe = self.pipeline(ShowoT2IPipeline, settings.sampler)
        size = {"height": settings.height, "width": settings.width}
        tokens = self.make(job, pipe, settings, previews, size)
        if confidence and tokens is not None and not job.stopping:
            with suppress(Stopped, OutOfTime):  # the images are there all the same
                job.emit(self.confidence(job, tokens, settings))

    def inpaint(
        self, job: Job, settings: DrawSettings, image: Image.Image, mask: Image.Image, strength: float, previews: bool
    ) -> None:
        """Repaint what the mask marks. Emits [`Step`] and [`Drawn`]."""
        settings = self.checked(settings)
        pipe = self.pipeline(ShowoInpaintPipeline, settings.sampler)
        arguments = {"image": image, "mask_image": mask, "strength": strength, "preserve_pixels": True}
        self.make(job, pipe, settings, previews, arguments, self.before(pipe, image))

    def extend(
        self,
        job: Job,
        settings: DrawSettings,
        image: Image.Image,
        directions: list[str],
        rounds: int,
        previews: bool,
    ) -> None:
        """Extend an image to some sides, by half of the trained size in each round. Emits [`Step`] and [`Drawn`]."""
        settings = self.checked(settings)
        pipe = self.pipeline(ShowoExtrapolatePipeline, settings.sampler)
        extent = min(pipe.default_grid) // 2 * pipe.patch
        grown = {one: extent * rounds * (one in directions) for one in ("left", "right", "up", "down")}
        height, width = pipe.working_size((image.height, image.width), None, None)
        canvas = (width + grown["left"] + grown["right"], height + grown["up"] + grown["down"])
        before = on_canvas(image, (width, height), (grown["left"], grown["up"]), canvas)
        arguments = {"image": image, "direction": directions, "rounds": rounds, "extent": extent}
        self.make(job, pipe, settings, previews, {**arguments, "preserve_pixels": True}, before)

    def vary(self, job: Job, settings: DrawSettings, image: Image.Image, strength: float, previews: bool) -> None:
        """Draw a part of an image again. Emits [`Step`] and [`Drawn`]."""
        settings = self.checked(settings)
        pipe = self.pipeline(ShowoImg2ImgPipeline, settings.sampler)
        arguments = {"image": image, "strength": strength}
        self.make(job, pipe, settings, previews, arguments, self.before(pipe, image))

    def before(self, pipe: Any, image: Image.Image) -> Image.Image:
        """The image at the size at which it is edited."""
        height, width = pipe.working_size((image.height, image.width), None, None)
        return on_canvas(image, (width, height), (0, 0), (width, height))

    def make(
        self,
        job: Job,
        pipe: Any,
        settings: DrawSettings,
        previews: bool,
        arguments: dict[str, Any],
        before: Image.Image | None = None,
    ) -> torch.LongTensor | None:
        """
        Call an image pipeline for all seeds of the settings.

        Returns:
            the token grids (images, h, w); None if the job was stopped.

        Raises:
            OutOfTime: if the job took too long.
        """
        last = {}

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            latents = tensors["latents"]
            masked = latents == pipe.mask_token_id
            picture = self.preview(pipe, latents) if previews else None
            job.emit(Step(step + 1, pipe.num_timesteps, 1 - masked.float().mean().item(), picture))
            last["latents"] = latents
            job.end_step()
            return tensors

        options = {} if settings.temperature is None else {"temperature": settings.temperature}
        seeds = range(settings.seed, settings.seed + settings.count)
        start = job.turn.seconds
        try:
            with after_each_pass(job.end_step):
                images = pipe(
                    settings.prompt,
                    negative_prompt=settings.negative_prompt or None,
                    num_inference_steps=settings.steps,
                    guidance_scale=settings.guidance,
                    num_images_per_prompt=settings.count,
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    callback_on_step_end=on_step_end,
                    **options,
                    **arguments,
                ).images
        except Stopped:
            job.emit(Drawn([], job.turn.seconds - start, stopped=True))
            return None
        job.emit(Drawn(images, job.turn.seconds - start, before=before))
        return last.get("latents")

    def preview(self, pipe: Any, latents: torch.LongTensor) -> Image.Image:
        """Unfinished images side by side, with the masked cells drawn. Only finished ones are worth an image decoder."""
        images = pipe.decode_latents(latents, "pil", decoder_steps=0)
        masked = (latents == pipe.mask_token_id).cpu().numpy()
        return side_by_side([with_masked_cells(one, cells) for one, cells in zip(images, masked, strict=True)])

    def confidence(self, job: Job, tokens: torch.LongTensor, settings: DrawSettings) -> Confidence:
        """How likely the model finds each token of finished images, given the other tokens and the prompt."""
        pipe = self.pipeline(ShowoImg2ImgPipeline)
        with one_at_a_time_if_offloaded(pipe), after_each_pass(job.end_step), torch.no_grad():
            prompts = pipe.encode_prompt(
                settings.prompt,
                num_images_per_prompt=len(tokens),
                do_classifier_free_guidance=False,
                grid_size=tuple(tokens.shape[1:]),
            )
            generator = torch.Generator("cpu").manual_seed(0)
            shares = pipe.token_log_likelihoods(tokens, prompts, generator).exp()
        maps = [confidence_map(one, self.pipe.patch) for one in shares.float().cpu().numpy()]
        return Confidence(side_by_side(maps), shares.float().mean().item())

    # Words

    def answer(
        self,
        job: Job,
        messages: Sequence[dict],
        message: dict,
        max_images: int,
        seed: int,
        max_new_tokens: int = MAX_ANSWER,
        previews: bool = True,
    ) -> None:
        """
        Answer a message in text and images, after earlier messages.

        Emits [`Words`], [`Step`], [`Drawn`] (one image each) and [`Answered`].
        """
        pipe = self.pipeline(ShowoAnyToAnyPipeline)
        conversation = pipe.start(list(messages))
        options: dict[str, Any] = {"max_images": max_images, "max_new_tokens": max_new_tokens}
        options["generator"] = torch.Generator("cpu").manual_seed(seed)
        try:
            events = conversation.stream(message, **options)
        except ValueError as error:
            if "positions" in str(error):
                raise Refusal("This conversation is full. Please start a new one.") from error
            raise
        stopped, start = False, job.turn.seconds
        with one_at_a_time_if_offloaded(pipe), closing(events), torch.no_grad():
            try:
                for event in events:
                    if isinstance(event, AnswerDone):
                        break
                    self.emit_event(job, pipe, event, previews, start)
                    job.end_step()
            except Stopped:
                stopped = True
        job.emit(Answered(list(messages) if stopped else conversation.messages, stopped))

    def emit_event(self, job: Job, pipe: Any, event: Any, previews: bool, start: float) -> None:
        """Pass on an event of an answer that began after `start` seconds of the job."""
        if isinstance(event, TextPiece):
            job.emit(Words(event.text))
        elif isinstance(event, ImageStep):
            grid = event.tokens[None]
            picture = self.preview(pipe, grid) if previews else None
            filled = 1 - (grid == pipe.mask_token_id).float().mean().item()
            job.emit(Step(event.step + 1, event.num_steps, filled, picture))
        elif isinstance(event, ImageDone):
            assert isinstance(event.image, Image.Image)  # as `output_type` is "pil"
            job.emit(Drawn([event.image], job.turn.seconds - start))

    def ask(self, job: Job, messages: Sequence[dict], image: Image.Image | None, question: str) -> None:
        """
        Answer a question about an image, after earlier questions about it. Emits [`Words`] and [`Answered`].

        A model that reads images as continuous features answers each question by itself.

        Args:
            messages: earlier messages; empty at the first question.
            image: the image.
            question (`str`): the question.
        """
        if self.reads_features:
            self.ask_once(job, image, question)
            return
        content: list[dict] = [] if messages else [{"type": "image", "image": image}]
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        self.answer(job, messages, message, max_images=0, seed=0)

    def ask_once(self, job: Job, image: Image.Image | None, question: str) -> None:
        """Answer one question without memory."""
        streamer = EmittingStreamer(job, self.pipe.processor.tokenizer)
        pipe = self.pipeline(ShowoMMUPipeline)
        stopped = False
        try:
            pipe(image, question, max_new_tokens=MAX_ANSWER, streamer=streamer)
        except Stopped:
            stopped = True
        job.emit(Answered([], stopped))


NUMBERS = itertools.count()
ENGINES: WeakValueDictionary[int, Engine] = WeakValueDictionary()  # of this process


def engine_of(number: int) -> Engine:
    """The engine of this process, or of the one that it was forked from, that has a number."""
    return ENGINES[number]


class EmittingStreamer:
    """A streamer of transformers' `generate` that emits the text of one answer as it grows."""

    def __init__(self, job: Job, tokenizer: Any):
        self.job, self.tokenizer = job, tokenizer
        self.ids: list[int] = []
        self.said = ""
        self.is_prompt = True

    def put(self, ids: torch.Tensor) -> None:
        if self.is_prompt:  # `generate` gives the prompt first
            self.is_prompt = False
            return
        self.ids += ids.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may take several ids
            self.job.emit(Words(text[len(self.said) :]))
            self.said = text
        self.job.end_step()

    def end(self) -> None:
        pass


def collect(work: Callable[[Job], None], seconds: float = 600.0) -> list[Any]:
    """Run a piece of work here and give all its events."""
    events: list[Any] = []
    work(Job(events.append, seconds))
    return events
