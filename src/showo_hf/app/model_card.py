"""What the page says about the model: read from its model card and its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError


#: Prompts for models whose card has none under `widget`.
GENERAL_EXAMPLES = [
    "a red apple on a wooden table",
    "an owl on a branch at night",
    "a lighthouse at dusk",
    "a bowl of soup, top view",
    "a rocket above the clouds",
    "a cat asleep in the sun",
]
EMOJI_EXAMPLES = [
    "a red apple, flat style",
    "a red apple, 3d style",
    "an owl, noto style",
    "a rocket, flat style",
    "a pizza, noto style",
    "a cat face, 3d style",
]
QUESTIONS = ["what is this?", "is it food?", "what is the main color?", "in which style is it drawn?"]


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
    """

    name: str
    knows: str = ""
    licence: str = "not stated"
    parameters: int = 0
    examples: list[str] = field(default_factory=lambda: list(GENERAL_EXAMPLES))

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
    except (OSError, ValueError, HfHubHTTPError):
        return None


def model_facts(model: str, pipe: Any, embedded: bool = False) -> ModelFacts:
    """
    Read the facts of a model.

    Args:
        model (`str`): its folder or Hub name.
        pipe: its pipeline.
        embedded (`bool`): whether it is the embedded model, whose card names no prompts.
    """
    parameters = sum(one.numel() for one in pipe.model.parameters())
    examples = EMOJI_EXAMPLES if embedded else GENERAL_EXAMPLES
    name = model.rstrip("/") if "/" in model and not Path(model).exists() else Path(model).name
    card = read_card(model)
    if card is None:
        return ModelFacts(name, parameters=parameters, examples=list(examples))
    data = card.data.to_dict()
    prompts = [entry["text"] for entry in data.get("widget") or [] if isinstance(entry, dict) and entry.get("text")]
    heading = re.search(r"^# +(.+)$", card.text, re.MULTILINE)
    return ModelFacts(
        heading.group(1).strip() if heading else name,
        first_sentence(card.text),
        str(data.get("license_name") or data.get("license") or "not stated"),
        parameters,
        prompts[:6] or list(examples),
    )


def first_sentence(text: str) -> str:
    """The first sentence of a card's first paragraph that is plain text, at most 240 characters; empty if none is."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        if paragraph and paragraph[0] not in "#-|<!`*[>":
            sentence = re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0]
            return sentence if len(sentence) <= 240 else sentence[:239].rstrip() + "…"
    return ""
