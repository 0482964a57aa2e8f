"""Files of conversations: `/save` of `showo-hf chat` writes them, and `--load` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..utils.argument_types import quoted
from ..utils.messages import one_sentence
from .errors import UsageError
from .image_files import limit_hint


Message = dict[str, Any]
MOST_CODES = 2**31  # more than any codebook has


def conversation_text(messages: Iterable[Message], sources: Iterable[dict[str, str]]) -> str:
    """
    Format a conversation as JSON, one message per line.

    An image is written with its path or URL, which any pipeline can read, and with its tokens, which are lossless.

    Args:
        messages: the messages of a session. Their images are token grids, or images that are not encoded yet.
        sources: the `{"path": ...}` or `{"url": ...}` of every image, in order.
    """
    sources_left = iter(sources)
    lines = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [image_entry(part, next(sources_left, {})) if is_image(part) else part for part in content]
        lines.append(json.dumps({"role": message["role"], "content": content}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"


def image_entry(part: dict[str, Any], source: dict[str, str]) -> dict[str, Any]:
    """The entry of an image in a file."""
    from ..processing.images import is_token_grid

    image = part["image"]
    return {"type": "image", **source, **({"tokens": image.tolist()} if is_token_grid(image) else {})}


def read_conversation(option: str, path: Path) -> list[Message]:
    """
    Read the messages of a file as it has them. Needs no torch.

    Only the structure of the file and the tokens are checked. [`open_conversation`] checks the contents.

    Raises:
        UsageError: if the file cannot be read, or has another format. `option` is the option that named the file.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"`{option}` must be a file that can be read, got {quoted(path)}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`{option}` must be a file that /save wrote, but {quoted(path)} is not JSON") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"`{option}` must be a file that /save wrote, but {quoted(path)} is not a list of messages")
    for number, message in enumerate(messages, start=1):
        for part in parts_of(message):
            if is_image(part) and "tokens" in part and not is_grid(part["tokens"]):
                raise UsageError(
                    f"`{option}`, message {number} of {quoted(path)}: tokens must be rows of integers, all of one "
                    f"length, got {part['tokens']!r:.40}"
                )
    return messages


def open_conversation(
    option: str, path: Path, messages: list[Message], codebook_size: int | None, max_pixels: int
) -> tuple[list[Message], list[dict[str, str]]]:
    """
    Check the messages of [`read_conversation`], and read their images.

    Args:
        option, path: the option that named the file, and the file, for messages.
        messages: the messages as the file has them.
        codebook_size: of the model; None if it is not known yet. Then any tokens pass.
        max_pixels: image files with more pixels are refused.

    Returns:
        the messages as a session takes them, and the source of each of their images.

    Raises:
        UsageError: for something that is not a message, and an image that cannot be read.
    """
    from showo_hf.pipelines.messages import load_message_images, normalize_messages

    sources = [image_source(part) for message in messages for part in parts_of(message) if is_image(part)]
    try:
        found = [
            {**message, "content": [with_grid(part) if is_image(part) else part for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]
        normal = normalize_messages(found, MOST_CODES if codebook_size is None else codebook_size)
        return load_message_images(normal, max_pixels), sources
    except (ValueError, TypeError) as error:
        reason = one_sentence(error).rstrip(".") + limit_hint(error.__cause__)
        raise UsageError(f"`{option}` cannot continue {quoted(path)}: {reason}") from error


def parts_of(message: Message) -> list[Any]:
    """The parts of a message; none for a text."""
    content = message.get("content")
    return content if isinstance(content, list) else []


def is_grid(rows: Any) -> bool:
    """Whether `rows` are image tokens: lists of integers, all of one length, not empty."""
    if not (isinstance(rows, list) and rows and all(isinstance(row, list) and row for row in rows)):
        return False
    return len({len(row) for row in rows}) == 1 and all(
        type(token) is int and abs(token) < MOST_CODES for row in rows for token in row
    )


def image_source(part: dict[str, Any]) -> dict[str, str]:
    """The source of an image: all fields of its entry except the tokens."""
    return {name: value for name, value in part.items() if name not in ("type", "tokens")}


def with_grid(part: dict[str, Any]) -> dict[str, Any]:
    """An image entry with its tokens as a tensor, int64 (h, w)."""
    import torch

    return {"type": "image", "image": torch.tensor(part["tokens"])} if "tokens" in part else part
