"""The model card of an image tokenizer, of a diffusion decoder and of an image classifier: README.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .training_card import (
    PLACEHOLDER,
    RunSummary,
    code,
    curve_section,
    data_section,
    fenced,
    hub_licence,
    is_embedded,
    is_hub_id,
    last_name,
    licence_text,
    link,
    number,
    plain,
    settings_section,
    training_section,
    versions_section,
)


WHAT = {
    "image-tokenizer": "An image tokenizer for Show-o models",
    "diffusion-decoder": "A diffusion decoder for the tokens of an image tokenizer",
    "image-classifier": "An image classifier",
}
# What a row of the log says about the run, and not about the model.
_ABOUT_THE_RUN = ("step", "epoch", "learning_rate", "grad_norm", "seconds_per_step", "images_per_second", "total_flos")


def write_image_card(
    folder: str | Path,
    summary: RunSummary,
    class_name: str,
    size: int,
    log: Sequence[Mapping[str, Any]] = (),
    repo_id: str | None = None,
    log_file: str | Path | None = None,
) -> Path:
    """
    Write README.md, and the plot of the losses in `assets/` that it shows.

    The card has no path of this machine and none of its tokens.

    Args:
        folder: the finished model.
        summary: what the card tells about the run. Its `kind` is a key of `WHAT`.
        class_name: the model's class.
        size: width and height of the training images in pixels.
        log: the rows of the log. The last values are shown.
        repo_id: the repository where it will be; a placeholder by default.
        log_file: the run's log, for the plot; without it, or without a loss in it, there is no plot.

    Returns:
        The path of README.md.
    """
    folder = Path(folder)
    title = repo_id.split("/")[-1] if repo_id else f"{WHAT[summary.kind]}, {last_name(summary.recipe)}"
    head = f"# {plain(title)}\n\n{WHAT[summary.kind]}{start(summary)}."
    head += f" It was trained with showo-hf and the recipe {code(last_name(summary.recipe))}."
    sections = [head, loading(summary, class_name, size, repo_id or PLACEHOLDER), training_section(summary)]
    sections += [data_section(summary), measure_section(log), curve_section(folder, summary, log_file)]
    sections += [settings_section(summary), versions_section(summary), f"## Licence\n\n{licence_text(summary)}"]
    tags = ["show-o", "showo-hf", summary.kind]
    options: dict[str, Any] = {**hub_licence(summary.licence)}
    if summary.kind == "image-classifier":
        options["pipeline_tag"] = "image-classification"
    if datasets := sorted({source.name for source in summary.data if is_hub_id(source.name)}):
        options["datasets"] = datasets
    header = ModelCardData(library_name="transformers", tags=tags, **options).to_yaml()
    text = "\n\n".join(section for section in sections if section)
    ModelCard(f"---\n{header}\n---\n\n{text}\n", ignore_metadata_errors=False).save(folder / "README.md")
    return folder / "README.md"


def start(summary: RunSummary) -> str:
    """What the model belongs to, or what the training started from."""
    if not summary.base_model:
        return ""
    name = "the model embedded in showo-hf" if is_embedded(summary.base_model) else link(summary.base_model)
    return f" of {name}" if summary.kind == "diffusion-decoder" else f", which started from {name}"


def loading(summary: RunSummary, class_name: str, size: int, here: str) -> str:
    """How to load the result, and a first call."""
    folder = json.dumps(here)
    if summary.kind == "image-tokenizer":
        lines = [
            "import torch",
            f"from showo_hf import {class_name}",
            "",
            f"tokenizer = {class_name}.from_pretrained({folder}).eval()",
            "with torch.no_grad():",
            f"    tokens = tokenizer.encode(torch.zeros(1, 3, {size}, {size})).image_tokens  # pixels in [-1, 1]",
            "    pixels = tokenizer.decode(tokens).sample",
        ]
    elif summary.kind == "diffusion-decoder":
        name = json.dumps(summary.base_model if is_hub_id(summary.base_model) else "folder-of-the-model")
        embedded = is_embedded(summary.base_model)
        lines = [
            f"from showo_hf import {'EMBEDDED_MODEL, ' if embedded else ''}{class_name}, ShowoT2IPipeline",
            "",
            f"decoder = {class_name}.from_pretrained({folder})",
            f"pipe = ShowoT2IPipeline.from_pretrained({'EMBEDDED_MODEL' if embedded else name}, image_decoder=decoder)",
            'pipe("a red apple").images[0].save("image.png")',
        ]
    else:
        lines = [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("image-classification", model={folder})',
            'classify("image.png")',
        ]
    return "## How to load it\n\n```bash\npip install showo-hf\n```\n\n" + fenced("\n".join(lines), "python")


def measure_section(log: Sequence[Mapping[str, Any]]) -> str:
    """A table of the last logged values, of the training and of the validation."""
    last: dict[str, float] = {}
    for row in log:
        last |= {name: value for name, value in row.items() if isinstance(value, int | float)}
    names = [name for name in last if not name.startswith(("eval_", "train_")) and name not in _ABOUT_THE_RUN]
    names += [name.removeprefix("eval_") for name in last if name.startswith("eval_")]
    measured = [name for name in dict.fromkeys(names) if name not in _ABOUT_THE_RUN]
    rows = [f"| {plain(name)} | {number(last.get(name))} | {number(last.get(f'eval_{name}'))} |" for name in measured]
    head = "## Measures\n\n| at the end | training | validation |\n| --- | --- | --- |\n"
    return head + "\n".join(rows) if rows else ""
