"""What the files of a saved pipeline say about it, read without torch: for the help, and for checks before any work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..utils.argument_types import HUB_NAME, user_name
from ..utils.embedded_model import EMBEDDED_MODEL
from .hub_names import downloaded_folder
from .texts import exists


# The defaults of configs that have none of their own; a test compares them with the class.
STEPS, GUIDANCE = 18, 2.75
MAX_GRID = 256  # `pipelines.showo_pipeline.MAX_GRID`, which a test compares


@dataclass(frozen=True)
class SavedModel:
    """Facts about a pipeline folder; None for what its files do not say."""

    patch: int | None = None  # pixels of a token along each side
    size: tuple[int, int] | None = None  # height and width in pixels
    most_pixels: int | None = None  # of the largest image that the pipelines make
    scheduler: str | None = None  # the class
    temperature: float | None = None
    train_timesteps: int | None = None  # of a scheduler that is trained for a number of steps
    codebook_size: int | None = None
    steps: int | None = None
    guidance: float | None = None
    has_image_decoder: bool | None = None


def read_saved_model(model: str | None) -> SavedModel:
    """
    Read the facts about a model.

    Args:
        model: folder or name on the Hub; None for the embedded model. A model on the Hub has facts if it was downloaded
            before and is not known to have changed since, because reading them would need the network.
    """
    folder = Path(EMBEDDED_MODEL if model is None else model)
    if model is not None and HUB_NAME.fullmatch(model) and not exists(folder):
        found = downloaded_folder(model)
        if found is None:
            return SavedModel()
        folder = found
    config = read_json(folder / "model" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    steps = config.get("image_num_inference_steps", STEPS) if config else None
    guidance = config.get("image_guidance_scale", GUIDANCE) if config else None
    tokens, codes = config.get("num_image_tokens"), config.get("codebook_size")
    tokenizer = config.get("image_tokenizer_config")
    stages = tokenizer.get("encoder_block_out_channels") if isinstance(tokenizer, dict) else None
    patch = 2 ** (len(stages) - 1) if isinstance(stages, list) and 0 < len(stages) < 16 else None
    size = most = None
    if patch and isinstance(tokens, int) and 0 < tokens < 10**9:
        rows = round(tokens**0.5)
        size = rows * patch, tokens // rows * patch
        most = MAX_GRID * tokens * patch**2
    components = read_json(folder / "model_index.json")
    temperature, train_timesteps = scheduler.get("temperature"), scheduler.get("num_train_timesteps")
    return SavedModel(
        patch=patch,
        size=size,
        most_pixels=most,
        scheduler=scheduler.get("_class_name"),
        temperature=temperature if isinstance(temperature, (int, float)) else None,
        train_timesteps=train_timesteps if isinstance(train_timesteps, int) else None,
        codebook_size=codes if isinstance(codes, int) else None,
        steps=steps if isinstance(steps, int) else None,
        guidance=guidance if isinstance(guidance, (int, float)) else None,
        has_image_decoder=has_image_decoder(components) if components else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def has_image_decoder(components: dict[str, Any]) -> bool:
    """Whether a `model_index.json` names a diffusion decoder. diffusers writes two nulls for a component that is None."""
    found = components.get("image_decoder")
    return isinstance(found, list) and bool(found) and found[0] is not None


def asked_model(arguments: list[str]) -> str | None:
    """The value of `--model` among the arguments of the command, before they are parsed. None without one."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == "--model" and following:
            return user_name(following)
        if word.startswith("--model="):
            return user_name(word.partition("=")[2])
    return None


def help_numbers(model: str | None) -> dict[str, str]:
    """What stands for the words in braces in a help text: the defaults of the model that is asked for."""
    saved = read_saved_model(model)
    size = "the model's" if saved.size is None else "x".join(map(str, saved.size))
    temperature = "the model's" if saved.temperature is None else f"{saved.temperature:g}"
    return {
        "{patch}": "the model's patch" if saved.patch is None else str(saved.patch),
        "{steps}": "the model's" if saved.steps is None else str(saved.steps),
        "{guidance}": "the model's" if saved.guidance is None else f"{saved.guidance:g}",
        "{size}": size,
        "{temperature}": temperature,
    }
