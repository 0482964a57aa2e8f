"""Conversations in files: what `/save` of `showo-hf chat` writes, and its `--load` reads again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError


if TYPE_CHECKING:
    import torch


Message = dict[str, Any]


def conversation_text(messages: Iterable[Message], sources: Iterable[dict[str, str]]) -> str:
    """
    A conversation as JSON, one message a line.

    An image is written as where it lies, which any pipeline can read, and as its tokens, so that nothing is lost.

    Args:
        messages: those of a session; their images are token grids, or were not read yet.
        sources: where each image lies, `{"path": ...}` or `{"url": ...}`, in their order.
    """
    places = iter(sources)
    lines = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [written(part, next(places, {})) if is_image(part) else part for part in content]
        lines.append(json.dumps({"role": message["role"], "content": content}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"


def written(part: dict[str, Any], source: dict[str, str]) -> dict[str, Any]:
    """An image as a file has it."""
    from ..processing.images import is_token_grid

    image = part["image"]
    return {"type": "image", **source, **({"tokens": image.tolist()} if is_token_grid(image) else {})}


def read_conversation(option: str, path: Path) -> tuple[list[Message], list[dict[str, str]]]:
    """
    The messages in a file, as a session takes them, and where each of their images lies.

    Raises:
        UsageError: if the file cannot be read or holds something else; `option` is what named it. What the messages
            hold, apart from tokens, is left to the session to check.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"`{option}` must be a file that can be read, got '{path}': {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"`{option}` must be a file that /save wrote, but '{path}' is no JSON") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"`{option}` must be a file that /save wrote, but '{path}' is no list of messages")
    found, sources = [], []
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        if isinstance(content, list):
            sources += [image_source(part) for part in content if is_image(part)]
            try:
                content = [with_grid(part) if is_image(part) else part for part in content]
            except ValueError as error:
                raise UsageError(f"`{option}`, message {number} of '{path}': {error}") from error
            message = {**message, "content": content}
        found.append(message)
    return found, sources


def image_source(part: dict[str, Any]) -> dict[str, str]:
    """Where an image lies: all that its part says but its tokens."""
    return {name: value for name, value in part.items() if name not in ("type", "tokens")}


def with_grid(part: dict[str, Any]) -> dict[str, Any]:
    """The part with its image as a token grid, if it has tokens. `ValueError` if these are something else."""
    if "tokens" not in part:
        return part
    return {"type": "image", "image": token_grid(part["tokens"])}


def token_grid(rows: Any) -> torch.LongTensor:
    """Rows of codes as a tensor (h, w). `ValueError` if they are something else."""
    import torch

    from ..processing.images import is_token_grid

    try:
        grid = torch.tensor(rows)
    except (ValueError, TypeError, RuntimeError):
        grid = None
    if grid is None or not is_token_grid(grid):
        raise ValueError(f"tokens must be rows of whole numbers, all of one length, got {rows!r:.40}")
    return grid
