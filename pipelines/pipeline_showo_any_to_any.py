"""Text and images to text and images."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput, logging
from transformers import LogitsProcessorList

from showo_hf.pipelines.text_sampling import TextOnly, warpers
from showo_hf.processing.images import is_token_grid
from showo_hf.schedulers.scheduling_utils import Generators, sample_categorical
from showo_hf.utils.validation import check_count, check_number

from .caches import crop_cache
from .conversation import (
    Answer,
    AnswerDone,
    Event,
    ImageDone,
    ImageStep,
    Memory,
    Message,
    add_part,
    check_order,
    copied,
    image_parts,
    load_message,
    load_messages,
)
from .encoded_prompts import join_prompts
from .pipeline_utils import FillingOptions, ShowoPipelineBase


logger = logging.get_logger(__name__)


@dataclass
class ShowoAnyToAnyPipelineOutput(BaseOutput):
    """
    Output of [`ShowoAnyToAnyPipeline`].

    Args:
        content (`list[dict]`): the parts of the answer, `{"type": "text", "text": ...}` and `{"type": "image", "image":
            ...}` with images as `output_type` says: PIL; `np.ndarray` (H, W, 3) or `torch.Tensor` (3, H, W) in [0, 1];
            or, for "latent", the token grid, `torch.LongTensor` (h, w).
        message (`dict`): the answer as a message, its images as token grids. Behind the messages that it answers it
            makes the conversation that goes on, without loss.
        finish_reason (`str`): "stop" where the model ended the answer, "length" where a limit did.
    """

    content: list[dict]
    message: Message
    finish_reason: str


@dataclass(frozen=True)
class AnswerOptions:
    """What can be asked of an answer; see [`ShowoAnyToAnyPipeline.__call__`]."""

    max_new_tokens: int = 256
    max_images: int = 4
    num_inference_steps: int = 18
    guidance_scale: float = 2.75
    temperature: float | None = None
    do_sample: bool = False
    text_temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: Generators = None
    output_type: str = "pil"
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)

    @property
    def filling(self) -> FillingOptions:
        """Those of them that are about the steps of an image."""
        return FillingOptions.pick(vars(self))


class ShowoAnyToAnyPipeline(ShowoPipelineBase):
    r"""
    Answers in text and images (Show-o, arXiv:2408.12528, section 3: one sequence of both).

    The model writes text until it opens an image with `soi`. The image's tokens are filled in by the scheduler, in
    place; `eoi` closes it, and the text goes on. What was said and shown stays in the key-value cache: a step runs the
    model on `soi image eoi` alone, and a word on itself alone.

    Guided logits are `g c - (g - 1) u`: c is the image behind the conversation, u the same image behind the empty
    text-to-image prompt, at the positions that text-to-image uses.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and chat template.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in when.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline
    >>> pipe = ShowoAnyToAnyPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> answer = pipe("show me a red apple, then a pear.")
    >>> session = pipe.start()  # or with turns: what was said stays read
    >>> answer = session.send("draw an owl.")
    >>> answer = session.send("in which style is it drawn?")
    ```
    """

    def check_inputs(self, messages: Sequence[Message], options: AnswerOptions):
        """Raise `ValueError` or `TypeError` for wrong arguments, before any work. The messages are loaded ones."""
        self.check_components()
        if self.model.mm_projector is not None:
            raise ValueError(
                "`model` must read images by their codes, got one that reads continuous features: it could not see the "
                "images that it makes."
            )
        check_count("max_new_tokens", options.max_new_tokens)
        check_count("max_images", options.max_images, least=0)
        self.check_filling(options.filling, 1)
        self.check_sampling(options)
        self.check_output_type(options.output_type)
        self.set_timesteps(options.num_inference_steps, self.default_grid, options.temperature)
        check_order(messages)
        self.check_length(messages)

    def check_sampling(self, options: AnswerOptions):
        """Raise `ValueError` for wrong options of the text's sampling; warn of those that change nothing."""
        check_number("text_temperature", options.text_temperature)
        if options.text_temperature == 0:
            raise ValueError(
                "`text_temperature` must be above 0, got 0; use `do_sample=False` for the likeliest words."
            )
        if options.top_k is not None:
            check_count("top_k", options.top_k)
        if options.top_p is not None:
            check_number("top_p", options.top_p)
            if not 0 < options.top_p <= 1:
                raise ValueError(f"`top_p` must be above 0 and at most 1, got {options.top_p!r}.")
        if not options.do_sample and warpers(options.text_temperature, options.top_k, options.top_p):
            logger.warning("`text_temperature`, `top_k` and `top_p` have no effect with `do_sample=False`.")

    def check_length(self, messages: Sequence[Message]):
        """Raise `ValueError` if images cannot be read, or the context has no room for the messages and an answer."""
        images = [part["image"] for part in image_parts(messages)]
        if self.image_tokenizer is None and not all(map(is_token_grid, images)):
            raise ValueError("`messages` must have token grids as images for a model without image tokenizer.")
        # Images are only counted here, so any codes will do.
        messages, any_codes = copied(messages), torch.zeros(self.default_grid, dtype=torch.int64)
        for part in image_parts(messages):
            part["image"] = part["image"] if is_token_grid(part["image"]) else any_codes
        length = len(self.encode_prompt(messages))
        if length >= self.context_length:
            raise ValueError(
                f"`messages` must take fewer positions than the model's {self.context_length}, got {length}; "
                "leave out early messages or images."
            )

    @property
    def context_length(self) -> int:
        """Positions that the model has."""
        return self.model.config.text_config.max_position_embeddings

    def encode_images(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with all images as token grids."""
        messages = copied(messages)
        parts = [part for part in image_parts(messages) if not is_token_grid(part["image"])]
        if parts:
            pixels = self.processor.image_processor([part["image"] for part in parts], return_tensors="pt")
            self.load_offloaded()
            grids = self.image_tokenizer.encode(pixels["pixel_values"].to(self._execution_device)).image_tokens
            for part, grid in zip(parts, grids.cpu(), strict=True):
                part["image"] = grid
        return messages

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation whose images are token grids, up to where the answer begins."""
        inputs = self.processor.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return inputs["input_ids"][0].tolist()

    def prepare_latents(self) -> torch.LongTensor:
        """An image of which nothing is known, (1, h, w)."""
        return torch.full((1, *self.default_grid), self.unknown_code, device=self._execution_device)

    # Text

    def text_processors(self, options: AnswerOptions, may_draw: bool) -> LogitsProcessorList:
        """What is done to the scores of the next id: of all special tokens only `eot` and, if allowed, `soi` are left."""
        allowed = [self.processor.soi_token_id] if may_draw else []
        processors = LogitsProcessorList([TextOnly(self.processor, allowed)])
        if options.do_sample:
            processors += warpers(options.text_temperature, options.top_k, options.top_p)
        return processors

    def choose_id(self, logits: torch.Tensor, processors: LogitsProcessorList, options: AnswerOptions) -> int:
        """The next id from scores (vocab_size,): the likeliest one, or one draw by `torch.multinomial`."""
        # Image codes and the mask stand behind the text and are no words.
        scores = processors(None, logits[None, : self.model.config.image_token_offset].float())  # (1, ids)
        if not options.do_sample:
            return int(scores.argmax())
        return int(sample_categorical(scores.softmax(-1)[None], options.generator))

    # Images

    def has_room(self, memory: Memory, num_new: int) -> bool:
        """Whether the context has places for `num_new` ids more."""
        return len(memory) + num_new <= self.context_length

    def make_image(
        self, memory: Memory, index: int, options: AnswerOptions
    ) -> Generator[ImageStep, None, torch.LongTensor]:
        """
        Fill in an image behind what was read; (1, h, w) codes are returned, and nothing is read of it.

        Raises:
            RuntimeError: if scheduler or callback leave it unfinished.
        """
        prompts = [memory.as_prompt(self._execution_device)]
        if options.guidance_scale > 1:
            prompts.append(self.unconditional_prompt(memory))
        latents = self.prepare_latents()
        for step, num_steps, filled in self.fill_in(latents, join_prompts(prompts), options.filling):
            latents = filled
            yield ImageStep(index, step, num_steps, latents[0].cpu())
        return latents

    def unconditional_prompt(self, memory: Memory):
        """The empty text-to-image prompt, read once for a conversation."""
        if memory.unconditional is None:
            memory.unconditional = self.encode_rows([""], [0])
        crop_cache(memory.unconditional.cache, memory.unconditional.attention_mask.shape[1])
        return memory.unconditional

    # Answers

    def write(self, memory: Memory, unread: list[int], options: AnswerOptions) -> Iterator[Event]:
        """
        Write an answer behind what `memory` has and the ids that are `unread` still.

        What is written is read when the next id is asked for; so the last word of an answer never is.
        """
        self._guidance_scale = options.guidance_scale
        device = self._execution_device
        processors = {may_draw: self.text_processors(options, may_draw) for may_draw in (False, True)}
        image_length = self.model.config.num_image_tokens + 2
        answer = Answer(self.processor.tokenizer)
        finish_reason = "length"
        while answer.num_words < options.max_new_tokens and self.has_room(memory, len(unread) + 1):
            logits = memory.read(unread, device)
            may_draw = answer.num_images < options.max_images and self.has_room(memory, image_length)
            token = self.choose_id(logits, processors[may_draw], options)
            if token == self.processor.eot_token_id:
                finish_reason = "stop"
                break
            if token == self.processor.soi_token_id:
                yield from answer.close_text()
                latents = yield from self.make_image(memory, answer.num_images, options)
                image = self.decode_latents(latents, options.output_type)[0]
                yield answer.add_image(image, latents[0].cpu())
                # Read in one piece, now that it is finished: its positions see each other.
                unread = self.image_input_ids(latents.flatten(1))[0].tolist()
            else:
                yield from answer.add_word(token)
                unread = [token]
        yield from answer.close_text()
        yield answer.finish(finish_reason)

    def start(self, messages: str | Message | Sequence[Message] = ()) -> "Conversation":
        """
        Begin a conversation that stays read between its turns.

        Args:
            messages: what came before: a system message, or turns. They are read with the first turn.
        """
        return Conversation(self, messages)

    def stream(self, messages: str | Message | Sequence[Message], **options) -> Generator[Event, None, None]:
        """
        An answer piece by piece: [`TextPiece`], [`ImageStep`] and [`ImageDone`] as they come, at last [`AnswerDone`].

        Arguments and errors are those of [`~ShowoAnyToAnyPipeline.__call__`]; wrong arguments are refused by this call
        already. A pipeline makes one image at a time, as it has one scheduler.
        """
        loaded = load_messages(messages, self.model.config.codebook_size)
        check_order(loaded)
        return self.start(loaded[:-1]).stream(loaded[-1], **options)

    @torch.no_grad()
    def __call__(
        self,
        messages: str | Message | Sequence[Message],
        max_new_tokens: int = 256,
        max_images: int = 4,
        num_inference_steps: int = 18,
        guidance_scale: float = 2.75,
        temperature: float | None = None,
        do_sample: bool = False,
        text_temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
    ) -> ShowoAnyToAnyPipelineOutput | tuple:
        r"""
        Answer a conversation.

        Args:
            messages (`str`, `dict` or `list[dict]`): the conversation, in transformers' form: `{"role": "user" |
                "assistant" | "system", "content": ...}` with a text, or a list of `{"type": "text", "text": ...}` and
                `{"type": "image", "image": ...}` (or "path", "url", "base64"). An image is PIL, an array, a tensor, a
                path, a URL, or a grid of codes, an int64 tensor (h, w). A text alone is a user's.
            max_new_tokens (`int`, defaults to 256): most ids of text in the answer; images do not count.
            max_images (`int`, defaults to 4): most images in the answer; 0 for text alone. Then, and where the model's
                context has no room for a whole one, the model cannot open an image.
            num_inference_steps (`int`, defaults to 18): steps of each image, at least 1.
            guidance_scale (`float`, defaults to 2.75): g in `g c - (g - 1) u` on the logits of images; 1 or less turns
                it off.
            temperature (`float`, *optional*): noise on the choice of image tokens; the scheduler's own by default.
            do_sample (`bool`, defaults to `False`): draw the words rather than take the likeliest.
            text_temperature (`float`, defaults to 1.0), top_k (`int`, *optional*), top_p (`float`, *optional*): how to draw
                the words, as in transformers.
            generator (`torch.Generator`, *optional*): makes the answer repeatable. All draws are taken from it in the order
                of the answer: with `do_sample` one for each id of text, `soi` and `eot` with them; and those of the
                scheduler at each step of an image.
            output_type (`str`, defaults to `"pil"`): "pil", "np", "pt", or "latent" for token grids.
            return_dict (`bool`, defaults to `True`): give a [`ShowoAnyToAnyPipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipe, step, timestep, tensors)` after each step of
                each image; a dict that it returns replaces the tensors.
            callback_on_step_end_tensor_inputs (`list[str]`): its tensors; "latents" is the image's grid (1, h, w).

        Raises:
            ValueError, TypeError: for arguments that are wrong, images that cannot be read, a conversation that leaves
                no room in the model's context, and a model that reads images by continuous features; before any work
                starts.
            RuntimeError: if the scheduler or the callback leave an image unfinished.
        """
        loaded = load_messages(messages, self.model.config.codebook_size)
        check_order(loaded)
        return self.start(loaded[:-1]).send(
            loaded[-1],
            return_dict=return_dict,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            do_sample=do_sample,
            text_temperature=text_temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )


class Conversation:
    """
    A conversation with a [`ShowoAnyToAnyPipeline`] whose turns stay in the key-value cache; see its `start`.

    A turn reads its new ids alone. They are those that the chat template gives for the whole conversation: where it
    writes an answer in other ids than the model did (an `eot` behind an answer that met a limit, say), what differs is
    read again. A turn that fails, is interrupted, or is not heard to its end leaves the conversation as it was before.

    Args:
        pipe ([`ShowoAnyToAnyPipeline`]): the model must not change while the conversation goes on.
        messages: what came before.
    """

    def __init__(self, pipe: ShowoAnyToAnyPipeline, messages: str | Message | Sequence[Message] = ()):
        self._pipe = pipe
        self._messages = load_messages(messages, pipe.model.config.codebook_size)
        self._memory = Memory(pipe.model)
        self._answering = False

    @property
    def messages(self) -> list[Message]:
        """All messages so far, those of answers with token grids; what users showed is as well, once it was read."""
        return copied(self._messages)

    def send(self, message: str | Message, return_dict: bool = True, **options) -> ShowoAnyToAnyPipelineOutput | tuple:
        """
        Say something, and get the answer.

        Args:
            message (`str` or `dict`): a user's text or message.
            options: those of the pipeline's call.

        Raises:
            ValueError, TypeError, RuntimeError: as the pipeline's call.
        """
        content: list[dict[str, Any]] = []
        for event in self.stream(message, **options):
            if isinstance(event, AnswerDone):
                output = ShowoAnyToAnyPipelineOutput(content, event.message, event.finish_reason)
            else:
                add_part(content, event, event.image if isinstance(event, ImageDone) else None)
        return output if return_dict else (output.content, output.message, output.finish_reason)

    def stream(self, message: str | Message, **options) -> Generator[Event, None, None]:
        """
        Say something, and get the answer piece by piece, as the pipeline's `stream`.

        Raises:
            ValueError, TypeError: as the pipeline's call, from this call already.
            RuntimeError: while another answer is being streamed.
        """
        self.check_free()
        chosen = AnswerOptions(**options)
        loaded = load_message(message, self._pipe.model.config.codebook_size)
        self._pipe.check_inputs([*self._messages, loaded], chosen)
        return self.turn(loaded, chosen)

    def check_free(self):
        """Raise `RuntimeError` while an answer is being streamed."""
        if self._answering:
            raise RuntimeError(
                "An answer is being streamed: take it to its end, or `close()` it, before the next turn."
            )

    @torch.no_grad()
    def turn(self, message: Message, options: AnswerOptions) -> Generator[Event, None, None]:
        """A turn with a message that was loaded and checked."""
        self.check_free()
        known = len(self._memory)
        try:
            self._answering = True
            messages = self._pipe.encode_images([*self._messages, message])
            unread = self._memory.recall(self._pipe.encode_prompt(messages))
            known = min(known, len(self._memory))
            for event in self._pipe.write(self._memory, unread, options):
                if isinstance(event, AnswerDone):
                    # Before anybody hears of it, who might then not ask for more.
                    self._messages, known = [*messages, event.message], len(self._memory)
                yield event
        finally:
            self._answering = False
            self._memory.keep(known)
            self._pipe.maybe_free_model_hooks()
