"""Text and images to text and images."""

from collections.abc import Callable, Generator, Sequence, Sized
from dataclasses import dataclass, fields

import torch
from diffusers.utils import BaseOutput
from transformers import LogitsProcessorList

from showo_hf.processing.images import is_token_grid
from showo_hf.schedulers.scheduling_utils import Generators, sample_categorical
from showo_hf.utils.validation import check_count

from .answers import AnswerDone, Event
from .call_state import SamplingParams, one_offloaded_call
from .conversation import Conversation
from .messages import Message, check_order, copy_messages, image_parts, load_message_images, normalize_messages
from .showo_pipeline import ShowoPipeline
from .text_sampling import TextOnly, warpers


@dataclass
class ShowoAnyToAnyPipelineOutput(BaseOutput):
    """
    Output of [`ShowoAnyToAnyPipeline`].

    Args:
        content (`list[dict]`): the parts of the answer, `{"type": "text", "text": ...}` and `{"type": "image", "image":
            ...}` with images as `output_type` says: PIL; `np.ndarray` (H, W, 3) or `torch.Tensor` (3, H, W) in [0, 1]; or,
            for "latent", the token grid, `torch.LongTensor` (h, w).
        message (`dict`): the answer as a message, with images as token grids. Appended to the messages that it answers,
            it continues the conversation without loss.
        finish_reason (`str`): "stop" if the model ended the answer, "length" if a limit did, "interrupted" if a callback
            did. An unfinished image is not part of the answer.
    """

    content: list[dict]
    message: Message
    finish_reason: str


@dataclass(frozen=True)
class AnswerParams:
    """Parameters of an answer; see [`ShowoAnyToAnyPipeline.__call__`]."""

    num_inference_steps: int
    guidance_scale: float
    max_new_tokens: int = 256
    max_images: int = 4
    temperature: float | None = None
    do_sample: bool = False
    text_temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: Generators = None
    decoder_steps: int | None = None
    output_type: str = "pil"
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)

    @property
    def sampling(self) -> SamplingParams:
        """Sampling parameters of the images."""
        return SamplingParams(
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            temperature=self.temperature,
            generator=self.generator,
            callback_on_step_end=self.callback_on_step_end,
            callback_on_step_end_tensor_inputs=self.callback_on_step_end_tensor_inputs,
            decoder_steps=self.decoder_steps,
        )


class ShowoAnyToAnyPipeline(ShowoPipeline):
    r"""
    Answers in text and images (Show-o, arXiv:2408.12528, section 3: one sequence of both).

    The model writes text until it opens an image with `soi`. The scheduler fills in the image's tokens in place, `eoi`
    closes the image, and the text goes on. The key-value cache keeps what was said and shown: a step runs the model on
    `soi image eoi` only, and a word on itself only.

    Guided logits are `g c - (g - 1) u`. c is the image behind the conversation. u is the same image behind the empty
    text-to-image prompt, at the positions of text-to-image.

    Args:
        model ([`ShowoForCausalLM`]): the transformer, with its image tokenizer.
        processor ([`ShowoProcessor`]): text tokenizer and chat template.
        scheduler ([`MaskGITScheduler`] or another discrete scheduler): decides which tokens are filled in at each step.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline
    >>> pipe = ShowoAnyToAnyPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> answer = pipe("show me a red apple, then a blue car")
    >>> session = pipe.start()  # or turn by turn: earlier turns stay in the key-value cache
    >>> answer = session.send("draw a dog on the grass.")
    >>> answer = session.send("make it night")
    ```
    """

    # Checks

    def check_inputs(self, *, messages: Sequence[Message], params: AnswerParams):
        """Raise `ValueError` or `TypeError` for arguments that are not allowed. The messages are normalized ones."""
        self.check_components()
        if self.model.mm_projector is not None:
            raise ValueError(
                "`model` must read images as image tokens, got one that reads continuous features: it could not see the "
                "images that it generates."
            )
        check_count("max_new_tokens", params.max_new_tokens)
        check_count("max_images", params.max_images, least=0)
        self.check_sampling_params(params.sampling, 1)
        self.check_text_sampling(
            "text_temperature", params.do_sample, params.text_temperature, params.top_k, params.top_p
        )
        self.check_output_type(params.output_type)
        check_order(messages)
        self.check_length(messages)

    def check_length(self, messages: Sequence[Message]):
        """Raise `ValueError` if images need a missing image tokenizer, or the context has no room for an answer."""
        images = [part["image"] for part in image_parts(messages)]
        if self.image_tokenizer is None and not all(map(is_token_grid, images)):
            raise ValueError("`messages` must have token grids as images for a model without an image tokenizer.")
        # Only the length counts here, so any image tokens will do.
        messages, any_tokens = copy_messages(messages), torch.zeros(self.default_grid, dtype=torch.int64)
        for part in image_parts(messages):
            part["image"] = part["image"] if is_token_grid(part["image"]) else any_tokens
        length = len(self.token_ids(messages))
        if length >= self.context_length:
            raise ValueError(
                f"`messages` must take fewer positions than the model's {self.context_length}, got {length}; "
                "leave out early messages or images."
            )

    # Parts of an answer

    @property
    def context_length(self) -> int:
        """Number of positions of the model."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def image_length(self) -> int:
        """Number of positions of `soi image eoi`."""
        return self.model.config.num_image_tokens + 2

    def has_room(self, read: Sized, num_new: int) -> bool:
        """Whether the context has room for `num_new` more ids."""
        return len(read) + num_new <= self.context_length

    def encode_message_images(self, messages: Sequence[Message]) -> list[Message]:
        """Replace loaded images by token grids."""
        messages = copy_messages(messages)
        parts = [part for part in image_parts(messages) if not is_token_grid(part["image"])]
        if parts:
            pixels = self.processor.image_processor([part["image"] for part in parts], return_tensors="pt")
            grids = self.model.encode_images(pixels["pixel_values"].to(self._execution_device))
            for part, grid in zip(parts, grids.cpu(), strict=True):
                part["image"] = grid
        return messages

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation whose images are token grids, up to the beginning of the answer."""
        inputs = self.processor.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return inputs["input_ids"][0].tolist()

    def prepare_latents(self) -> torch.LongTensor:
        """A fully masked image, (1, h, w)."""
        return torch.full((1, *self.default_grid), self.mask_token_id, device=self._execution_device)

    def text_processors(self, params: AnswerParams, may_draw: bool) -> LogitsProcessorList:
        """The processors of the next id's logits. Of all special tokens, they allow `eot` and, if `may_draw`, `soi`."""
        processors = LogitsProcessorList([TextOnly(self.processor, [self.processor.soi_token_id] if may_draw else [])])
        if params.do_sample:
            processors += warpers(params.text_temperature, params.top_k, params.top_p)
        return processors

    def choose_token(self, logits: torch.Tensor, processors: LogitsProcessorList, params: AnswerParams) -> int:
        """Choose the next id from logits (vocab_size,): the likeliest one, or one draw of `torch.multinomial`."""
        # Image tokens and the mask come after the text ids in the vocabulary.
        scores = processors(None, logits[None, : self.model.config.image_token_offset].float())  # (1, ids)
        if not params.do_sample:
            return int(scores.argmax())
        return int(sample_categorical(scores.softmax(-1)[None], params.generator))

    # Calls

    def answer_params(self, **options) -> AnswerParams:
        """The arguments of a call as one object. `TypeError` for other names."""
        allowed = [field.name for field in fields(AnswerParams)]
        unknown = sorted(options.keys() - set(allowed))
        if unknown:
            raise TypeError(f"An answer has no argument {unknown}; its arguments are {allowed}.")
        steps, guidance = self.with_defaults(options.get("num_inference_steps"), options.get("guidance_scale"))
        return AnswerParams(**{**options, "num_inference_steps": steps, "guidance_scale": guidance})

    def start(self, messages: str | Message | Sequence[Message] = ()) -> Conversation:
        """
        Start a conversation that stays in the key-value cache between its turns.

        Args:
            messages: earlier messages: a system message, or turns. They are read with the first turn.
        """
        return Conversation(self, messages)

    def stream(self, messages: str | Message | Sequence[Message], **options) -> Generator[Event, None, None]:
        """
        Return the events of an answer: [`TextPiece`], [`ImageStep`] and [`ImageDone`] as they come, then [`AnswerDone`].

        It takes the arguments of [`~ShowoAnyToAnyPipeline.__call__`], except `return_dict`. Invalid arguments raise here,
        not at the first event.
        """
        params = self.answer_params(**options)
        messages = normalize_messages(messages, self.mask_token_id)
        self.check_inputs(messages=messages, params=params)
        *earlier, message = load_message_images(messages)
        return Conversation(self, earlier).answer(message, params)

    @staticmethod
    def output(done: Event, return_dict: bool = True) -> ShowoAnyToAnyPipelineOutput | tuple:
        """The output of a call, from the last event of its answer."""
        assert isinstance(done, AnswerDone)
        if not return_dict:
            return (done.content, done.message, done.finish_reason)
        return ShowoAnyToAnyPipelineOutput(done.content, done.message, done.finish_reason)

    @one_offloaded_call
    @torch.no_grad()
    def __call__(
        self,
        messages: str | Message | Sequence[Message],
        max_new_tokens: int = 256,
        max_images: int = 4,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        do_sample: bool = False,
        text_temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        decoder_steps: int | None = None,
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
                path, a URL, or a token grid, an int64 tensor (h, w). A text alone is a user's message.
            max_new_tokens (`int`, defaults to 256): maximum number of text ids in the answer; images do not count.
            max_images (`int`, defaults to 4): maximum number of images in the answer; 0 for text only. After that, or
                without room for a whole image in the context, the model cannot open an image.
            num_inference_steps (`int`, *optional*): number of steps per image, at least 1. By default the model's own,
                `model.config.image_num_inference_steps`.
            guidance_scale (`float`, *optional*): g in `g c - (g - 1) u` on the logits of images. Values up to 1 turn
                guidance off. By default the model's own, `model.config.image_guidance_scale`.
            temperature (`float`, *optional*): noise on the choice of image tokens; the scheduler's own by default.
            do_sample (`bool`, defaults to `False`): sample the words instead of taking the likeliest.
            text_temperature (`float`, defaults to 1.0), top_k (`int`, *optional*), top_p (`float`, *optional*): how to
                sample the words, as in transformers.
            generator (`torch.Generator`, *optional*): makes the answer repeatable. All draws come from it in the order of
                the answer: with `do_sample` one per text id, `soi` and `eot` included; the scheduler's at each step; and
                the image decoder's after each image.
            decoder_steps (`int`, *optional*): steps of the image decoder, if the pipeline has one. By default the number in
                the decoder's config; 0 leaves it out.
            output_type (`str`, defaults to `"pil"`): "pil", "np", "pt", or "latent" for token grids.
            return_dict (`bool`, defaults to `True`): return a [`ShowoAnyToAnyPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipe, step, timestep, tensors)` after each step of
                each image; see [`ShowoT2IPipeline.__call__`]. `pipe._interrupt = True` ends the answer.
            callback_on_step_end_tensor_inputs (`list[str]`): names of its tensors; "latents" is the grid (1, h, w).

        Raises:
            ValueError, TypeError: for arguments that are not allowed, images that cannot be read, a conversation that
                leaves no room in the model's context, and a model that reads images as continuous features; before the
                model runs.
            RuntimeError: if the scheduler or the callback leaves tokens masked.
        """
        # 1. Check inputs. Raise an error before any work starts
        params = self.answer_params(
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
            decoder_steps=decoder_steps,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        messages = normalize_messages(messages, self.mask_token_id)
        self.check_inputs(messages=messages, params=params)

        # 2. Load the images of the messages
        *earlier, message = load_message_images(messages)

        # 3. Write the answer: text, and images that are denoised in place
        *_, done = Conversation(self, earlier).answer(message, params)  # the last event is the whole answer

        return self.output(done, return_dict)
