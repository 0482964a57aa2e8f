"""What the page says about the model: read from its model card and its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from yaml import YAMLError


#: For models whose card has none under `widget`: prompts, questions about an image, and requests of a conversation.
GENERAL_EXAMPLES = [
    "a red apple on a wooden table",
    "an owl on a branch at night",
    "a lighthouse at dusk",
    "a bowl of soup, top view",
    "a rocket above the clouds",
    "a cat asleep in the sun",
]
GENERAL_QUESTIONS = ["what is this?", "what is the main color?"]
GENERAL_REQUESTS = ["show me a red apple, then a pear.", "draw an owl."]
MOST = 6  # of each that the page shows


@dataclass(frozen=True)
class ModelFacts:
    """
    What the page says about a model.

    Args:
        name (`str`): its name.
        knows (`str`): one sentence of its card: what it can do.
        licence (`str`): the licence of its card.
        parameters (`int`): number of weights.
        examples (`list[str]`): prompts that it is known to draw.
        questions (`list[str]`): questions about an image that it can answer.
        requests (`list[str]`): messages that it answers in text and images.
    """

    name: str
    knows: str = ""
    licence: str = "not stated"
    parameters: int = 0
    examples: list[str] = field(default_factory=lambda: list(GENERAL_EXAMPLES))
    questions: list[str] = field(default_factory=lambda: list(GENERAL_QUESTIONS))
    requests: list[str] = field(default_factory=lambda: list(GENERAL_REQUESTS))

    def line(self, seconds: float | None = None, device: str = "") -> str:
        """The one line about the model, as Markdown."""
        speed = "" if seconds is None else f" About {seconds:.1f} s an image on this {device}."
        size = f", {self.parameters / 1e6:,.0f} million weights" if self.parameters else ""
        return f"**{self.name}**{size}. {self.knows}{speed} Licence: {self.licence}."


def read_card(model: str) -> ModelCard | None:
    """The model card of a folder or a Hub name; None if it has none or it cannot be read."""
    try:
        folder = Path(model)
        path = folder / "README.md" if folder.is_dir() else Path(hf_hub_download(model, "README.md"))
        return ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError, HfHubHTTPError):
        return None


def model_facts(model: str, pipe: Any) -> ModelFacts:
    """
    Read the facts of a model.

    The examples of a card stand under `widget`, in the Hub's form: a prompt is a `text`, a question is a `text` with the
    `src` of an image, and a request is the first of some `messages`.

    Args:
        model (`str`): its folder or Hub name.
        pipe: its pipeline.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]  # with a diffusion decoder
    parameters = sum(weight.numel() for part in parts for weight in part.parameters())
    name = model.rstrip("/") if "/" in model and not Path(model).exists() else Path(model).name
    card = read_card(model)
    if card is None:
        return ModelFacts(name, parameters=parameters)
    data = card.data.to_dict()
    named = zip(("examples", "questions", "requests"), listed(data.get("widget")), strict=True)
    heading = re.search(r"^# +(.+)$", card.text, re.MULTILINE)
    return ModelFacts(
        heading.group(1).strip() if heading else name,
        first_sentence(card.text),
        str(data.get("license_name") or data.get("license") or "not stated"),
        parameters,
        **{kind: texts for kind, texts in named if texts},
    )


def listed(widget: Any) -> tuple[list[str], list[str], list[str]]:
    """The prompts, questions and requests of a card's `widget`, at most `MOST` of each."""
    entries = [entry for entry in widget if isinstance(entry, dict)] if isinstance(widget, list) else []
    prompts = texts_of(entry for entry in entries if not entry.get("src"))
    questions = texts_of(entry for entry in entries if entry.get("src"))
    requests = texts_of({"text": first_message(entry.get("messages"))} for entry in entries)
    return prompts[:MOST], questions[:MOST], requests[:MOST]


def texts_of(entries: Iterable[dict]) -> list[str]:
    """The texts of entries of a card's `widget` that have one."""
    return [text for entry in entries if isinstance(text := entry.get("text"), str) and text.strip()]


def first_message(messages: Any) -> Any:
    """What the first of the messages says; None if this is no list of messages."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return first.get("content") if isinstance(first, dict) else None


def first_sentence(text: str) -> str:
    """The first sentence of a card's first paragraph that is plain text, at most 240 characters; empty if none is."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        if paragraph and paragraph[0] not in "#-|<!`*[>":
            sentence = re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0]
            return sentence if len(sentence) <= 240 else sentence[:239].rstrip() + "…"
    return ""
