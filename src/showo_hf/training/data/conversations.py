"""Conversations of data sets, as messages in the format of the chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...processing.processing_showo import SPECIAL_TOKENS
from .examples import BrokenExample, Message, check_unicode


PLACEHOLDER = "<image>"  # the place of the image in LLaVA's texts
LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES = ("user", "assistant", "system")


def llava_messages(conversations: Any, image: Any = None) -> list[Message]:
    """
    LLaVA's `[{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "..."}]` as messages.

    `<image>` becomes a content part with `image`. A row with an image and no `<image>` gets it before its first question.

    Raises:
        BrokenExample: if a turn has another form or speaker, or there is an `<image>` and no image; and as [`checked`].
    """
    if not isinstance(conversations, list) or not conversations:
        raise BrokenExample("`conversations` must be a list of turns")
    images = list(image) if isinstance(image, list) else [] if image is None else [image]
    given = iter(images)
    missing = images and not any(PLACEHOLDER in str(turn) for turn in conversations)
    messages = []
    for turn in conversations:
        role = LLAVA_ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise BrokenExample(
                f"a turn of `conversations` must have `from` ({', '.join(LLAVA_ROLES)}) and `value`, got {turn!r:.80}"
            )
        parts: list[dict[str, Any]] = []
        if missing and role == "user":
            parts += [{"type": "image", "image": one} for one in given]
            missing = False
        for text in re.split(f"({PLACEHOLDER})", turn["value"]):
            if text == PLACEHOLDER:
                parts.append({"type": "image", "image": next(given, None)})
            elif text.strip():
                parts.append({"type": "text", "text": text.strip()})
        only_text = all(part["type"] == "text" for part in parts)
        content: Any = " ".join(part["text"] for part in parts) if only_text else parts
        messages.append({"role": role, "content": content})
    return checked(messages)


def ready_messages(messages: Any, images: Any = None) -> list[Message]:
    """
    Check messages of a data set. Image parts without an image take the next of `images`. Empty fields, which tables fill in,
    are dropped.

    Raises:
        BrokenExample: if they have not the format of the chat template; and as [`checked`].
    """
    if not isinstance(messages, list) or not messages:
        raise BrokenExample("`messages` must be a list of messages")
    given = iter(images if isinstance(images, list) else [] if images is None else [images])
    ready = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BrokenExample(f"a message must have a `role` ({', '.join(ROLES)}), got {message!r:.80}")
        content = message.get("content")
        if isinstance(content, list):
            content = [ready_part(part, given) for part in content]
        elif not isinstance(content, str):
            raise BrokenExample(f"the content of a message must be a text or a list of parts, got {content!r:.80}")
        ready.append({"role": message["role"], "content": content})
    return checked(ready)


def checked(messages: list[Message]) -> list[Message]:
    """
    The messages, which the chat template and the tokenizer can take.

    Raises:
        BrokenExample: if a system prompt is not the first message, or a text is not valid Unicode or names a special token,
            which would become one.
    """
    if any(message["role"] == "system" for message in messages[1:]):
        raise BrokenExample("a message with the role 'system' must be the first one")
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        check_unicode(texts)
        for token in SPECIAL_TOKENS:
            if any(token in text for text in texts):
                raise BrokenExample(f"a text must not contain the special token '{token}'")
    return messages


def ready_part(part: Any, given: Iterator[Any]) -> dict[str, Any]:
    """One checked content part."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, dict) and part.get("type") == "image":
        for name in ("image", "image_tokens", "path"):
            if part.get(name) is not None:
                return {"type": "image", "image": part[name]}
        return {"type": "image", "image": next(given, None)}
    raise BrokenExample(f"a content part must be a text or an image, got {part!r:.80}")


def with_images(messages: list[Message], load: Callable[[Any], Any]) -> list[Message]:
    """The messages with `load(image)` in place of each image. Lists of lists of integers become grids, int64 (h, w)."""
    loaded = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = [
                {"type": "image", "image": load(part["image"])} if part["type"] == "image" else part
                for part in content
            ]
        loaded.append({"role": message["role"], "content": content})
    return loaded


def token_grid(value: Any) -> torch.LongTensor:
    """Image tokens of a data set, lists of integers, as int64 (h, w). `BrokenExample` for anything else."""
    try:
        grid = torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BrokenExample(f"image tokens must be rows of integers: {error}") from error
    if grid.ndim != 2 or grid.is_floating_point() or grid.is_complex() or not grid.numel():
        raise BrokenExample(f"image tokens must be integers (h, w), got {grid.dtype} of shape {tuple(grid.shape)}")
    return grid.long()
