"""The model card of a trained model: README.md and the images it shows."""

import html
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from ..utils.argument_types import HUB_NAME
from ..utils.embedded_model import EMBEDDED_MODEL
from .curves import plot_curves


EMBEDDED = Path(EMBEDDED_MODEL).resolve()
PLACEHOLDER = "folder-or-repository"
PACKAGES = ("showo-hf", "torch", "transformers", "diffusers", "accelerate", "datasets")
KINDS = ("pipeline", "adapter", "image-tokenizer", "diffusion-decoder", "image-classifier")
MEANINGS = {
    "loss_t2i": "text to image: the masked image tokens",
    "loss_lm": "text: the next token",
    "loss_mmu": "understanding: the next token of answers",
    "loss": "the weighted sum",
}
# Settings that say where files are or how to log in, and nothing about the model.
LEFT_OUT = re.compile(
    r"(output|output_dir|logging_dir|resume|push_to_hub|hub_.*|run_name|(.*_)?(token|key|secret|password))"
)
# A path of a file, but not the path of a web address.
PATH = re.compile(r"(?:file:(?=/)|(?<![\w/.])(?!(?<=:)//)(?:~|\.{1,2}|[A-Za-z]:)?)(?:[/\\]+[^\s/\\,;:'\"]+)+[/\\]*")
LONGEST = 300  # characters of a prompt or an answer
MOST = 12  # samples, and answers
# Identifiers of the Hub. It refuses a card with another word.
LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bsd bsd-2-clause bsd-3-clause cc cc0-1.0 "
    "cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 mpl-2.0 unlicense "
    "wtfpl artistic-2.0 llama2 llama3 gemma unknown other"
).split()


@dataclass(frozen=True)
class DataSource:
    """
    One source of the training data.

    Args:
        name: a repository of the Hub, or a folder or file. Of a local path, the card has only the last name.
        samples: how many samples it has; None if unknown, as in streaming.
        licence: its licence; None if unknown.
        task: "t2i", "lm", "mmu" or "mixed"; "" if there is one task only.
    """

    name: str
    samples: int | None = None
    licence: str | None = None
    task: str = ""


@dataclass(frozen=True)
class FinalLoss:
    """
    One loss at the end of the training, in nats.

    Args:
        name: "loss_t2i", "loss_lm", "loss_mmu" or "loss".
        train: the loss of the training, averaged over the last steps; None if it is not logged.
        validation: the loss of the validation; None without one.
        blind_guess: the loss of a model that knows nothing; None if unknown.
    """

    name: str
    train: float | None = None
    validation: float | None = None
    blind_guess: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """
    What the card of a training run tells.

    Args:
        recipe: name of the shipped recipe, or of the user's YAML file.
        kind: "pipeline", "adapter", "image-tokenizer", "diffusion-decoder" or "image-classifier".
        settings: the settings of the run, in the keys of the recipe.
        base_model: what the training started from: a repository of the Hub, or a folder. Of a diffusion decoder, the model
            whose tokens it decodes. "" for none.
        steps: optimizer steps, including those before a resume.
        samples_seen: samples in all batches of all processes.
        seconds: the time of the training.
        device: the hardware, for example "4 x NVIDIA H100" or "CPU, 2 threads".
        dtype: the dtype of the computation, for example "bfloat16".
        trained_parameters, total_parameters: numbers of parameters; None if unknown.
        data: the training data.
        losses: the losses at the end.
        samples: pairs of a prompt and the file of the image generated for it.
        answers: pairs of a question and the model's answer.
        tasks: the tasks of the batches: "t2i", "lm", "mmu", "mixed".
        shipped_settings: the settings of the shipped recipe; empty for a recipe of the user.
        licence: licence of the result, best an identifier of the Hub; None if unknown.
        seed: the seed of the run.
        resumed: whether the run was resumed from a checkpoint.
        title: the heading; by default the last part of the repository's name.

    Raises:
        ValueError: if `kind` is another word.
    """

    recipe: str
    kind: str
    settings: Mapping[str, Any]
    base_model: str
    steps: int
    samples_seen: int
    seconds: float
    device: str
    dtype: str
    trained_parameters: int | None = None
    total_parameters: int | None = None
    data: Sequence[DataSource] = ()
    losses: Sequence[FinalLoss] = ()
    samples: Sequence[tuple[str, str | Path]] = ()
    answers: Sequence[tuple[str, str]] = ()
    tasks: Sequence[str] = ("t2i",)
    shipped_settings: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    seed: int | None = None
    resumed: bool = False
    title: str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {self.kind!r}")


def write_training_card(
    folder: str | Path, summary: RunSummary, repo_id: str | None = None, log_file: str | Path | None = None
) -> Path:
    """
    Write README.md, and the plots and samples in `assets/` that it shows.

    The card has no path of this machine and none of its tokens. Prompts and answers are shown as they are: no markup in
    them has an effect.

    Args:
        folder: the finished pipeline or adapter.
        repo_id: the repository where it will be; a placeholder by default.
        log_file: the run's log, for the plot of the losses; without it, or without a loss in it, there is no plot.

    Returns:
        The path of README.md.

    Raises:
        FileNotFoundError: if an image of `summary.samples` does not exist.
    """
    folder = Path(folder)
    sections = [heading(summary, repo_id), loading(summary, repo_id)]
    sections += [sample_section(folder, summary), answer_section(summary)]
    sections += [training_section(summary), data_section(summary), loss_section(summary)]
    sections += [curve_section(folder, summary, log_file), settings_section(summary), versions_section(summary)]
    sections += [f"## Licence\n\n{licence_text(summary)}"]
    text = "\n\n".join(section for section in sections if section)
    header = card_data(summary).to_yaml()
    card = ModelCard(f"---\n{header}\n---\n\n{text}\n", ignore_metadata_errors=False)
    card.save(folder / "README.md")
    return folder / "README.md"


def card_data(summary: RunSummary) -> ModelCardData:
    """The header that the Hub reads."""
    adapter = summary.kind == "adapter"
    base = summary.base_model if is_hub_id(summary.base_model) else None
    options: dict[str, Any] = {**hub_licence(summary.licence)}
    if base:
        options |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    if datasets := sorted({source.name for source in summary.data if is_hub_id(source.name)}):
        options["datasets"] = datasets
    tags = ["show-o", "showo-hf", *(["lora"] if adapter else [])]
    return ModelCardData(library_name="diffusers", pipeline_tag=pipeline_tag(summary), tags=tags, **options)


def hub_licence(licence: str | None) -> dict[str, str]:
    """A licence as entries of the header that the Hub reads."""
    if not licence:
        return {}
    name = licence.lower()
    if name in LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-") or "other"}


def pipeline_tag(summary: RunSummary) -> str:
    tasks = set(summary.tasks) - {"lm"}
    if tasks == {"mmu"}:
        return "image-text-to-text"
    return "text-to-image" if tasks <= {"t2i"} else "any-to-any"


def heading(summary: RunSummary, repo_id: str | None) -> str:
    title = summary.title or (repo_id or f"Show-o, {last_name(summary.recipe)}").split("/")[-1]
    what = "A LoRA adapter for" if summary.kind == "adapter" else "A Show-o model, trained from"
    recipe = code(last_name(summary.recipe))
    return f"# {plain(title)}\n\n{what} {base_name(summary)}. It was trained with showo-hf and the recipe {recipe}."


def loading(summary: RunSummary, repo_id: str | None) -> str:
    """How to load the result, and a first call."""
    here, kind = repo_id or PLACEHOLDER, "ShowoMMUPipeline" if pipeline_tag(summary) == "image-text-to-text" else ""
    kind = kind or "ShowoT2IPipeline"
    lines = [f"from showo_hf import {kind}", ""]
    if summary.kind == "adapter":
        base = json.dumps(summary.base_model if is_hub_id(summary.base_model) else "folder-of-the-base-model")
        if is_embedded(summary.base_model):
            lines[0] = f"from showo_hf import EMBEDDED_MODEL, {kind}"
            base = "EMBEDDED_MODEL"
        lines += [f"pipe = {kind}.from_pretrained({base})", f"pipe.load_lora_weights({json.dumps(here)})"]
    else:
        lines += [f"pipe = {kind}.from_pretrained({json.dumps(here)})"]
    if kind == "ShowoMMUPipeline":
        question = short(summary.answers[0][0]) if summary.answers else "What is this?"
        lines += [f'print(pipe("image.png", {json.dumps(question, ensure_ascii=False)}).texts)']
    else:
        prompt = short(summary.samples[0][0]) if summary.samples else "a red apple"
        lines += [f'pipe({json.dumps(prompt, ensure_ascii=False)}).images[0].save("image.png")']
    packages = "showo-hf peft" if summary.kind == "adapter" else "showo-hf"
    return f"## How to load it\n\n```bash\npip install {packages}\n```\n\n" + fenced("\n".join(lines), "python")


def sample_section(folder: Path, summary: RunSummary) -> str:
    """Images and their prompts in a table of HTML, where Markdown has no effect. Copies the images without metadata."""
    for old in (folder / "assets").glob("sample-*.png"):
        old.unlink()
    if not summary.samples:
        return ""
    cells = []
    for number, (prompt, file) in enumerate(summary.samples[:MOST], 1):
        name = f"assets/sample-{number}.png"
        with Image.open(file) as image:
            (folder / "assets").mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(folder / name)
        cells.append(f'<td align="center"><img src="{name}" width="192" alt=""><br>{escaped(prompt)}</td>')
    rows = ["<tr>" + "".join(cells[start : start + 4]) + "</tr>" for start in range(0, len(cells), 4)]
    return "## Samples\n\nGenerated at the end of the training.\n\n<table>\n" + "\n".join(rows) + "\n</table>"


def answer_section(summary: RunSummary) -> str:
    if not summary.answers:
        return ""
    rows = [f"<tr><td>{escaped(question)}</td><td>{escaped(answer)}</td></tr>" for question, answer in summary.answers]
    head = "<tr><th>question</th><th>answer</th></tr>"
    return (
        "## Answers\n\nGiven at the end of the training.\n\n<table>\n" + "\n".join([head, *rows[:MOST]]) + "\n</table>"
    )


def training_section(summary: RunSummary) -> str:
    """The facts of the run in a table. No cell has text of the user except in code."""
    rows = {"steps": f"{summary.steps:,}" + (" (with a resume from a checkpoint)" if summary.resumed else "")}
    rows["samples seen"] = f"{summary.samples_seen:,}"
    if summary.trained_parameters is not None:
        share = ""
        if summary.total_parameters:
            share = f" of {summary.total_parameters:,} ({summary.trained_parameters / summary.total_parameters:.2%})"
        rows["trained parameters"] = f"{summary.trained_parameters:,}{share}"
    rows["hardware"] = plain(without_paths(summary.device))
    rows["time"] = duration(summary.seconds)
    if summary.seconds > 0:
        rows["speed"] = f"{summary.samples_seen / summary.seconds:.3g} samples per second"
    rows["dtype"] = plain(summary.dtype)
    if summary.seed is not None:
        rows["seed"] = str(summary.seed)
    return "## Training\n\n| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def data_section(summary: RunSummary) -> str:
    lines = []
    for source in summary.data:
        facts = [f"{source.samples:,} samples" if source.samples is not None else "number of samples unknown"]
        facts += [f"licence: {plain(source.licence)}" if source.licence else "licence unknown"]
        task = f" ({plain(source.task)})" if source.task else ""
        lines.append(f"- {link(source.name, 'datasets/')}{task}: {', '.join(facts)}")
    return "## Data\n\n" + "\n".join(lines) if lines else ""


def loss_section(summary: RunSummary) -> str:
    if not summary.losses:
        return ""
    head = "| loss, in nats | training | validation | blind guess |\n| --- | --- | --- | --- |\n"
    rows = []
    for loss in summary.losses:
        meaning = MEANINGS.get(loss.name)
        values = " | ".join(number(value) for value in (loss.train, loss.validation, loss.blind_guess))
        rows.append(f"| {plain(loss.name)}{f' ({meaning})' if meaning else ''} | {values} |")
    note = "A blind guess is a model that gives each token the same probability. Lower is better."
    return f"## Losses\n\n{head}" + "\n".join(rows) + f"\n\n{note}"


def curve_section(folder: Path, summary: RunSummary, log_file: str | Path | None) -> str:
    guesses = {loss.name: loss.blind_guess for loss in summary.losses if loss.blind_guess is not None}
    (folder / "assets" / "curves.png").unlink(missing_ok=True)
    if log_file is None or not Path(log_file).is_file():
        return ""
    try:
        plot_curves(log_file, folder / "assets" / "curves.png", guesses or None)
    except (ValueError, ImportError):  # a run of few steps logs no loss, and matplotlib is optional
        return ""
    return "![Losses and learning rate by step](assets/curves.png)"


def settings_section(summary: RunSummary) -> str:
    """What was changed from the shipped recipe, and all settings as a recipe."""
    settings = {key: public(value) for key, value in summary.settings.items() if not LEFT_OUT.fullmatch(str(key))}
    shipped = {key: public(value) for key, value in summary.shipped_settings.items()}
    recipe, text = code(last_name(summary.recipe)), "## Settings"
    if summary.shipped_settings:
        changed = {key: value for key, value in settings.items() if shipped.get(key) != value}
        lines = []
        for key, value in changed.items():
            before = (
                f"  # shipped: {one_line(shipped[key])}" if key in shipped else "  # not set in the shipped recipe"
            )
            lines.append(f"{one_line(key)}: {one_line(value)}{before}")
        text += f"\n\nChanged from the shipped recipe {recipe}:\n\n" if lines else f"\n\nThose of the recipe {recipe}."
        text += fenced("\n".join(lines), "yaml") if lines else ""
    if not settings:
        return text if summary.shipped_settings else ""
    every = fenced(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100).rstrip("\n"), "yaml")
    return f"{text}\n\n<details>\n<summary>All settings</summary>\n\n{every}\n\n</details>"


def versions_section(summary: RunSummary) -> str:
    names = [*PACKAGES, *(["peft"] if summary.kind == "adapter" else [])]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"## Versions\n\nPython {platform.python_version()}, {', '.join(found)}."


def licence_text(summary: RunSummary) -> str:
    if summary.licence:
        return f"{plain(summary.licence)}. The training data may add conditions of its own."
    if not summary.base_model:
        return "See the licences of the training data."
    return f"See the licence of the base model, {base_name(summary)}, and those of the training data."


# Text of the user


def short(text: str) -> str:
    """Text on one line without control characters, cut after 300 characters."""
    words = "".join(character if character.isprintable() else " " for character in str(text)).split()
    text = " ".join(words)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def escaped(text: str) -> str:
    """Text inside of a block of HTML, where Markdown has no effect."""
    return html.escape(short(text)) or "<em>(empty)</em>"


def plain(text: str) -> str:
    """Text inside of a line of Markdown: what could be markup, or the start of a link, is written as entities."""
    markup = re.compile(r"[^\w\s.,%()+/-]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)
    return markup.sub(lambda match: f"&#{ord(match[0])};", short(text))


def code(text: str) -> str:
    """Text as code inside of a line."""
    text = short(text)
    fence = "`" * (longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def fenced(text: str, language: str) -> str:
    """Text as a block of code."""
    fence = "`" * max(3, longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def one_line(value: Any) -> str:
    """A value of YAML on one line."""
    if isinstance(value, str) and value.isidentifier() and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """A time in the two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [(days, "day"), (hours, "hour"), (minutes, "minute")]
    return " ".join(f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in parts if count)


# Names without the paths of this machine


def is_hub_id(name: str) -> bool:
    return HUB_NAME.fullmatch(str(name)) is not None and not Path(name).expanduser().exists()


def is_embedded(name: str) -> bool:
    return bool(name) and Path(name).expanduser().resolve().is_relative_to(EMBEDDED)


def last_name(path: str) -> str:
    """The last part of a path of this or another system."""
    return PureWindowsPath(str(path)).name or "folder"


def base_name(summary: RunSummary) -> str:
    """The base model as the card names it."""
    if is_embedded(summary.base_model):
        return "the model embedded in showo-hf"
    return link(summary.base_model)


def link(name: str, kind: str = "") -> str:
    """A repository as a link, a local folder by its last name."""
    return f"[{plain(name)}](https://huggingface.co/{kind}{name})" if is_hub_id(name) else code(last_name(name))


def without_paths(text: str) -> str:
    """Text whose paths of files are cut to their last names."""
    return PATH.sub(lambda match: last_name(match[0]), text)


def public(value: Any) -> Any:
    """A setting in the types of YAML, without paths of this machine."""
    if isinstance(value, Mapping):
        return {str(key): public(one) for key, one in value.items() if not LEFT_OUT.fullmatch(str(key))}
    if isinstance(value, list | tuple | set | frozenset):
        return [public(one) for one in value]
    if isinstance(value, bool | int | float | None):
        return value
    text = str(value)
    if is_embedded(text):
        return EMBEDDED.name
    if not is_hub_id(text) and (Path(text).is_absolute() or "/" in text and Path(text).expanduser().exists()):
        return last_name(text)
    return without_paths(text)
