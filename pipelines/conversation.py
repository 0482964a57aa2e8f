"""What a conversation is made of: its messages, what the model has read of them, and the pieces of an answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache, PreTrainedTokenizerBase, TextStreamer

from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.omni_attention import image_block_ids
from showo_hf.processing.images import is_token_grid, load_image

from .caches import crop_cache
from .encoded_prompts import EncodedPrompts


Message: TypeAlias = dict[str, Any]

ROLES = ("system", "user", "assistant")
IMAGE_KEYS = ("image", "url", "path", "base64")


# Pieces of an answer, in the order in which they come


@dataclass(frozen=True)
class TextPiece:
    """Some whole words of the answer. The pieces between two images, put together, are the text there."""

    text: str


@dataclass(frozen=True, eq=False)
class ImageStep:
    """
    An image after one more step.

    Args:
        index (`int`): which image of the answer, from 0.
        step, num_steps (`int`): which step, from 0, and how many there are at most.
        tokens (`torch.LongTensor` of shape `(h, w)`): its codes so far, the codebook size where unknown; on the CPU.
    """

    index: int
    step: int
    num_steps: int
    tokens: torch.LongTensor


@dataclass(frozen=True, eq=False)
class ImageDone:
    """
    A finished image.

    Args:
        index (`int`): which image of the answer, from 0.
        image: as `output_type` says: a PIL image; `np.ndarray` (H, W, 3) or `torch.Tensor` (3, H, W) in [0, 1]; or the
            token grid.
        tokens (`torch.LongTensor` of shape `(h, w)`): its codes; on the CPU.
    """

    index: int
    image: Image.Image | np.ndarray | torch.Tensor
    tokens: torch.LongTensor


@dataclass(frozen=True, eq=False)
class AnswerDone:
    """
    The end of an answer.

    Args:
        message (`dict`): the answer as a message, its images as token grids, to go on with.
        finish_reason (`str`): "stop" where the model ended it, "length" where a limit did.
    """

    message: Message
    finish_reason: str


Event: TypeAlias = TextPiece | ImageStep | ImageDone | AnswerDone


def add_part(content: list[dict], event: Event, image: Any):
    """Put a piece of text behind the text that it goes on with, and a finished image, as `image`, at the end."""
    if isinstance(event, ImageDone):
        content.append({"type": "image", "image": image})
    elif isinstance(event, TextPiece) and content and content[-1]["type"] == "text":
        content[-1]["text"] += event.text
    elif isinstance(event, TextPiece):
        content.append({"type": "text", "text": event.text})


class TextPieces(TextStreamer):
    """
    transformers' streamer, whose pieces are taken out rather than printed.

    Args:
        tokenizer: the text tokenizer.
        opens_answer (`bool`): leave out the white space at the beginning, as chat templates have it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, opens_answer: bool):
        super().__init__(tokenizer, clean_up_tokenization_spaces=False)
        self.token_cache: list[int] = []
        self.at_start = opens_answer
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False):
        text = text.lstrip() if self.at_start else text
        if text:
            self.at_start = False
            self.pieces.append(text)

    def take(self) -> Iterator[TextPiece]:
        """The pieces since the last time."""
        pieces, self.pieces = self.pieces, []
        return map(TextPiece, pieces)

    def add(self, token: int) -> Iterator[TextPiece]:
        """What an id completes."""
        self.put(torch.tensor([token]))
        if not self.token_cache:
            # The streamer starts anew behind a line break. Some tokenizers drop the space before the first word, so the
            # break stays, for the next word not to be the first.
            self.token_cache = [token]
            self.print_len = len(self.tokenizer.decode([token], **self.decode_kwargs))
        return self.take()

    def close(self) -> Iterator[TextPiece]:
        """What is left."""
        self.end()
        return self.take()


class Answer:
    """
    An answer while it is written: its parts so far, and the events that tell of them.

    Args:
        tokenizer: the text tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.content: list[dict] = []
        self.num_words = self.num_images = 0
        self.text = TextPieces(tokenizer, opens_answer=True)

    def add_word(self, token: int) -> Iterator[TextPiece]:
        """Go on with an id of text."""
        self.num_words += 1
        return self.noted(self.text.add(token))

    def close_text(self) -> Iterator[TextPiece]:
        """End the text, before an image or at the end of the answer."""
        return self.noted(self.text.close())

    def noted(self, pieces: Iterator[TextPiece]) -> Iterator[TextPiece]:
        for piece in pieces:
            add_part(self.content, piece, None)
            yield piece

    def add_image(self, image: Any, tokens: torch.LongTensor) -> ImageDone:
        """Put a finished image behind the text, which was closed; text may follow it."""
        done = ImageDone(self.num_images, image, tokens)
        add_part(self.content, done, tokens)
        self.num_images += 1
        self.text = TextPieces(self.tokenizer, opens_answer=False)
        return done

    def finish(self, finish_reason: str) -> AnswerDone:
        """The whole answer as a message."""
        return AnswerDone({"role": "assistant", "content": self.content}, finish_reason)


# Messages


def load_messages(messages: Any, codebook_size: int) -> list[Message]:
    """
    A text, a message or several, with every image loaded: PIL images in RGB and token grids are left as "image".

    Raises:
        ValueError, TypeError: for anything that is not a message, and for images that cannot be read.
    """
    if isinstance(messages, (str, dict)):
        messages = [messages]
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"`messages` must be a text, a message or a list of messages, got {type(messages).__name__}.")
    return [load_message(message, codebook_size) for message in messages]


def load_message(message: Any, codebook_size: int) -> Message:
    """One message, or the text of a user's, checked; see [`load_messages`]."""
    if isinstance(message, str):
        message = {"role": "user", "content": message}
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise TypeError(f"`messages` must hold dicts with 'role' and 'content', got {message!r:.80}.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"`messages` must have roles among {list(ROLES)}, got {role!r}.")
    if isinstance(content, (list, tuple)):
        content = [load_part(part, codebook_size) for part in content]
        if role == "system" and any(part["type"] == "image" for part in content):
            raise ValueError("`messages` can have images from 'user' and 'assistant', got one from 'system'.")
    elif not isinstance(content, str):
        raise TypeError(f"`messages` must have a text or a list of parts as 'content', got {type(content).__name__}.")
    return {"role": role, "content": content}


def load_part(part: Any, codebook_size: int) -> dict[str, Any]:
    """A part of a message, `{"type": "text", "text": ...}` or `{"type": "image", "image": ...}`, checked and loaded."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    images = [part[key] for key in IMAGE_KEYS if part.get(key) is not None] if kind == "image" else []
    if len(images) != 1:
        raise ValueError(
            "`messages` must have parts {'type': 'text', 'text': ...} or {'type': 'image'} with one of "
            f"{list(IMAGE_KEYS)}, got {part!r:.80}."
        )
    image = images[0]
    if not is_token_grid(image):
        return {"type": "image", "image": load_image(image, "messages")}
    if image.numel() == 0 or image.min() < 0 or image.max() >= codebook_size:
        raise ValueError(
            f"`messages` must have token grids of codes from 0 to {codebook_size - 1}, got {image!r:.80}."
        )
    return {"type": "image", "image": image.cpu()}


def check_order(messages: Sequence[Message]):
    """Raise `ValueError` unless a user has the last word, and a system message comes first."""
    if not messages or messages[-1]["role"] != "user":
        got = f"a message of {messages[-1]['role']!r}" if messages else "none"
        raise ValueError(f"`messages` must end with a message of 'user', got {got}.")
    if any(message["role"] == "system" for message in messages[1:]):
        raise ValueError("`messages` may have a message of 'system' at the beginning only, got one further on.")


def image_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The parts that are images, in their order."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if part["type"] == "image"]


def copied(messages: Sequence[Message]) -> list[Message]:
    """The messages with lists and dicts of their own; images are shared."""
    return [
        {**message, "content": content if isinstance(content, str) else [dict(part) for part in content]}
        for message in messages
        for content in [message["content"]]
    ]


# What was read


class Memory:
    """
    What a model has read of a conversation: the ids, and their keys and values.

    Args:
        model ([`ShowoForCausalLM`]): whose keys and values these are.
    """

    def __init__(self, model: ShowoForCausalLM):
        self.model = model
        self.ids: list[int] = []
        self.cache = DynamicCache(config=model.config.text_config)
        #: The prompt that guidance leads away from; read when the first image is made.
        self.unconditional: EncodedPrompts | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, length: int):
        """Forget all but the first `length` ids, and what an interrupt has left behind the last one."""
        del self.ids[length:]  # first: the cache may hold more than the ids, never less
        if self.ids:
            crop_cache(self.cache, len(self.ids))
        else:
            self.cache = DynamicCache(config=self.model.config.text_config)

    def recall(self, ids: list[int]) -> list[int]:
        """
        Keep what `ids` begin with, and return what is left to read of them, one id at least.

        An image is kept whole or not at all, since its positions see each other.
        """
        pairs = zip(self.ids, ids, strict=False)
        known = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(self.ids), len(ids)))
        known = min(known, len(ids) - 1)
        block = image_block_ids(torch.tensor([ids]), self.model.config)[0].tolist()
        while known and block[known] >= 0 and block[known] == block[known - 1]:
            known -= 1
        self.keep(known)
        return ids[known:]

    def read(self, ids: list[int], device: torch.device) -> torch.Tensor:
        """Read on; the scores (vocab_size,) of the id behind the last one."""
        logits = self.model(
            torch.tensor([ids], device=device), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        self.ids += ids
        return logits[0, -1]

    def as_prompt(self, device: torch.device) -> EncodedPrompts:
        """All that was read, as the prompt of an image that follows it."""
        return EncodedPrompts(self.cache, torch.ones(1, len(self), dtype=torch.int64, device=device), len(self))
