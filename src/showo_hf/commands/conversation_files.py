"""Files of conversations: `/save` of `showo-hf chat` writes them, and `--load` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import quoted
from .errors import UsageError


if TYPE_CHECKING:
    import torch


Message = dict[str, Any]


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


def read_conversation(option: str, path: Path) -> tuple[list[Message], list[dict[str, str]]]:
    """
    Read the messages of a file, as a session takes them, and the source of each of their images.

    Only the structure of the file and the tokens are checked. The session checks the contents of the messages.

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
    found, sources = [], []
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        if isinstance(content, list):
            sources += [image_source(part) for part in content if is_image(part)]
            try:
                content = [with_grid(part) if is_image(part) else part for part in content]
            except ValueError as error:
                raise UsageError(f"`{option}`, message {number} of {quoted(path)}: {error}") from error
            message = {**message, "content": content}
        found.append(message)
    return found, sources


def image_source(part: dict[str, Any]) -> dict[str, str]:
    """The source of an image: all fields of its entry except the tokens."""
    return {name: value for name, value in part.items() if name not in ("type", "tokens")}


def with_grid(part: dict[str, Any]) -> dict[str, Any]:
    """An image entry with its tokens as a tensor. Raises `ValueError` if the tokens are not valid."""
    if "tokens" not in part:
        return part
    return {"type": "image", "image": token_grid(part["tokens"])}


def token_grid(rows: Any) -> torch.LongTensor:
    """Convert rows of image tokens to a tensor (h, w). Raises `ValueError` if they are something else."""
    import torch

    from ..processing.images import is_token_grid

    try:
        grid = torch.tensor(rows)
    except (ValueError, TypeError, RuntimeError):
        grid = None
    if grid is None or not is_token_grid(grid):
        raise ValueError(f"tokens must be rows of integers, all of one length, got {rows!r:.40}")
    return grid
