"""An answer being generated, and its events."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from .messages import Message


@dataclass(frozen=True)
class TextPiece:
    """A piece of the answer's text, of whole characters. The pieces between two images add up to the text there."""

    text: str


@dataclass(frozen=True, eq=False)
class ImageStep:
    """
    An image after one more step.

    Args:
        index (`int`): number of the image in the answer, from 0.
        step, num_steps (`int`): number of the step, from 0, and the maximum number of steps.
        tokens (`torch.LongTensor` of shape `(h, w)`): image tokens, the codebook size where masked; on the CPU.
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
        index (`int`): number of the image in the answer, from 0.
        image: as `output_type` says: a PIL image; `np.ndarray` (H, W, 3) or `torch.Tensor` (3, H, W) in [0, 1]; or the
            token grid.
        tokens (`torch.LongTensor` of shape `(h, w)`): image tokens; on the CPU.
    """

    index: int
    image: Image.Image | np.ndarray | torch.Tensor
    tokens: torch.LongTensor


@dataclass(frozen=True, eq=False)
class AnswerDone:
    """
    The end of an answer.

    Args:
        message (`dict`): the answer as a message with images as token grids, to continue the conversation with.
        finish_reason (`str`): "stop" if the model ended it, "length" if a limit did, "interrupted" if a callback did.
        content (`list[dict]`): the parts of the answer, with images as `output_type` says.
    """

    message: Message
    finish_reason: str
    content: list[dict]


Event: TypeAlias = TextPiece | ImageStep | ImageDone | AnswerDone


def add_text(content: list[dict], text: str):
    """Append text to the `content` of a message, to its last part if that is text."""
    if content and content[-1]["type"] == "text":
        content[-1]["text"] += text
    else:
        content.append({"type": "text", "text": text})


class TextStream:
    """
    Decode token ids one at a time.

    Args:
        tokenizer: the text tokenizer.
        opens_answer (`bool`): drop leading white space, as chat templates do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, opens_answer: bool):
        self.tokenizer = tokenizer.backend_tokenizer
        self.at_start = opens_answer
        self.restart()

    def restart(self):
        """Forget the ids so far."""
        self.decoder = DecodeStream(skip_special_tokens=False)
        self.ids: list[int] = []
        self.text = ""  # decoded from the ids

    def add(self, token: int) -> Iterator[TextPiece]:
        """Give the text that a token id completes."""
        try:
            text = self.decoder.step(self.tokenizer, token)
        except Exception:  # the bytes so far are not valid UTF-8
            yield from self.close()
            self.restart()
            text = self.decoder.step(self.tokenizer, token)
        self.ids.append(token)
        yield from self.pieces(text or "")

    def close(self) -> Iterator[TextPiece]:
        """Give what is left, such as the bytes of an incomplete character."""
        return self.pieces(self.tokenizer.decode(self.ids, skip_special_tokens=False).removeprefix(self.text))

    def pieces(self, text: str) -> Iterator[TextPiece]:
        self.text += text
        text = text.lstrip() if self.at_start else text
        if text:
            self.at_start = False
            yield TextPiece(text)


class Answer:
    """
    An answer being generated, and its events.

    Args:
        tokenizer: the text tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.content: list[dict] = []  # with images as `output_type` says
        self.message_content: list[dict] = []  # with images as token grids
        self.num_words = self.num_images = 0
        self.text = TextStream(tokenizer, opens_answer=True)

    def add_word(self, token: int) -> Iterator[TextPiece]:
        """Append a token id of text."""
        self.num_words += 1
        return self.note(self.text.add(token))

    def close_text(self) -> Iterator[TextPiece]:
        """End the text, before an image or at the end of the answer."""
        return self.note(self.text.close())

    def note(self, pieces: Iterator[TextPiece]) -> Iterator[TextPiece]:
        """Append the pieces to the content, and pass them on."""
        for piece in pieces:
            add_text(self.content, piece.text)
            add_text(self.message_content, piece.text)
            yield piece

    def add_image(self, image: Any, tokens: torch.LongTensor) -> ImageDone:
        """Append a finished image. Call `close_text` first."""
        done = ImageDone(self.num_images, image, tokens)
        self.content.append({"type": "image", "image": image})
        self.message_content.append({"type": "image", "image": tokens})
        self.num_images += 1
        self.text = TextStream(self.tokenizer, opens_answer=False)
        return done

    def finish(self, finish_reason: str) -> AnswerDone:
        """The whole answer as a message."""
        message = {"role": "assistant", "content": self.message_content}
        return AnswerDone(message, finish_reason, self.content)
