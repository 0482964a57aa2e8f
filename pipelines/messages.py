"""Validate conversation messages and load their images."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from showo_hf.processing.image_reader import MAX_PIXELS
from showo_hf.processing.images import is_token_grid, load_image
from showo_hf.processing.processing_showo import check_texts
from showo_hf.utils.validation import shown


Message: TypeAlias = dict[str, Any]

ROLES = ("system", "user", "assistant")
IMAGE_KEYS = ("image", "url", "path", "base64")


def normalize_messages(messages: Any, codebook_size: int) -> list[Message]:
    """
    Check a text, a message or several, and return them in one form. Images are not read.

    Returns:
        messages with a text as content, or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`.

    Raises:
        ValueError, TypeError: for anything that is not a message.
    """
    if isinstance(messages, (str, dict)):
        messages = [messages]
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"`messages` must be a text, a message or a list of messages, got {type(messages).__name__}.")
    return [normalize_message(message, codebook_size) for message in messages]


def normalize_message(message: Any, codebook_size: int) -> Message:
    """Check one message, or the text of a user; see [`normalize_messages`]."""
    if isinstance(message, str):
        message = {"role": "user", "content": message}
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise TypeError(f"`messages` must hold dicts with 'role' and 'content', got {shown(message)}.")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"`messages` must have roles among {list(ROLES)}, got {shown(role)}.")
    if isinstance(content, (list, tuple)):
        content = [normalize_part(part, codebook_size) for part in content]
        if role == "system" and any(part["type"] == "image" for part in content):
            raise ValueError("`messages` can have images from 'user' and 'assistant', got one from 'system'.")
    elif not isinstance(content, str):
        raise TypeError(f"`messages` must have a text or a list of parts as 'content', got {type(content).__name__}.")
    else:
        check_texts("messages", content)
    return {"role": role, "content": content}


def normalize_part(part: Any, codebook_size: int) -> dict[str, Any]:
    """Check one part of a message; see [`normalize_messages`]."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        check_texts("messages", part["text"])
        return {"type": "text", "text": part["text"]}
    images = [part[key] for key in IMAGE_KEYS if part.get(key) is not None] if kind == "image" else []
    if len(images) != 1:
        raise ValueError(
            "`messages` must have parts {'type': 'text', 'text': ...} or {'type': 'image'} with one of "
            f"{list(IMAGE_KEYS)}, got {shown(part)}."
        )
    image = images[0]
    if is_token_grid(image) and (image.numel() == 0 or image.min() < 0 or image.max() >= codebook_size):
        raise ValueError(
            f"`messages` must have token grids with image tokens from 0 to {codebook_size - 1}, got {image!r:.80}."
        )
    return {"type": "image", "image": image}


def load_message_images(messages: Sequence[Message], max_pixels: int = MAX_PIXELS) -> list[Message]:
    """
    Read the images of normalized messages: token grids are moved to the CPU, everything else becomes PIL images in RGB.

    Files with more than `max_pixels` are refused.

    Raises:
        ValueError, TypeError: for an image that cannot be read.
    """
    messages = copy_messages(messages)
    for part in image_parts(messages):
        image = part["image"]
        part["image"] = image.cpu() if is_token_grid(image) else load_image(image, "messages", max_pixels=max_pixels)
    return messages


def check_order(messages: Sequence[Message]):
    """Raise `ValueError` unless the last message is a user's, and only the first is a system message."""
    if not messages or messages[-1]["role"] != "user":
        got = f"a message of {messages[-1]['role']!r}" if messages else "none"
        raise ValueError(f"`messages` must end with a message of 'user', got {got}.")
    if any(message["role"] == "system" for message in messages[1:]):
        raise ValueError("`messages` may have a message of 'system' at the beginning only, got one further on.")


def image_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The parts of messages that are images, in order."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if part["type"] == "image"]


def copy_messages(messages: Sequence[Message]) -> list[Message]:
    """Copy the lists and dicts of messages. Images are shared."""
    return [
        {**message, "content": content if isinstance(content, str) else [dict(part) for part in content]}
        for message in messages
        for content in [message["content"]]
    ]
