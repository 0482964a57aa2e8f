"""`showo-hf info`: installed versions, devices, cache and disk, and the embedded model; `--check` tries it."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import struct
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.argument_types import DTYPES
from ..utils.messages import one_sentence
from .model_loading import accelerators, load_package, load_pipeline, say_loading
from .saved_model import has_image_decoder


REQUIRED = "torch transformers diffusers accelerate huggingface_hub safetensors tokenizers numpy pillow".split()
OPTIONAL = {"gradio": "the app", "peft": "adapters in training", "pytest": "the tests"}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "info",
        help="versions, devices, and the embedded model",
        description="Show the installed versions, the devices with their dtypes, the cache of downloads, the free disk "
        "space, and facts about the embedded model.",
    )
    parser.add_argument(
        "--check", action="store_true", help="also make an image on each device, and say how long it takes"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the facts as text or as JSON."""
    say_loading("the libraries", quiet=options.json)
    load_package()
    facts = collect_facts()
    if options.check:
        facts["image"] = {device["name"]: image_seconds(device["name"]) for device in facts["devices"]}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(fact_lines(facts)))
    return 1 if any(isinstance(took, str) for took in facts.get("image", {}).values()) else 0


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    from importlib import metadata  # here, so that the command starts fast

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def collect_facts() -> dict[str, Any]:
    """Versions, devices and the embedded model, as plain types."""
    from showo_hf import EMBEDDED_MODEL

    versions = {"showo-hf": package_version("showo-hf"), "python": platform.python_version()}
    return {
        "versions": versions | {name: package_version(name) for name in REQUIRED},
        "optional": {name: package_version(name) for name in OPTIONAL},
        "devices": [device_facts(name) for name in ("cpu", *accelerators())],
        "cache": cache_facts(),
        "free_disk": {name: free_bytes(folder) for name, folder in disk_folders().items()},
        "embedded_model": model_facts(Path(EMBEDDED_MODEL)),
    }


def cache_facts() -> dict[str, Any]:
    """Where downloads of the Hub are kept, how many models are there, and whether the Hub is asked at all."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return {
        "folder": str(folder),
        "models": len(list(folder.glob("models--*"))),
        "offline": constants.HF_HUB_OFFLINE,
    }


def disk_folders() -> dict[str, Path]:
    """The folders that need space: that of downloads, that of temporary files, and the current one."""
    from huggingface_hub import constants

    return {"cache": Path(constants.HF_HUB_CACHE), "temporary": Path(tempfile.gettempdir()), "here": Path.cwd()}


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the disk of `folder`, or of its nearest parent that exists. None if the system does not tell."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def image_seconds(device: str) -> float | str:
    """Seconds that the embedded model takes to make an image after the first one; or why it does not make any."""
    import torch

    try:
        pipe = load_pipeline(None, "float32", device, quiet=True)
        for _ in range(2):  # the first call includes what is done once
            start = time.perf_counter()
            pipe("a red apple", generator=torch.Generator().manual_seed(0))
            seconds = time.perf_counter() - start
        return round(seconds, 3)
    except Exception as error:  # drivers fail in many ways, and the report is the point of this command
        return one_sentence(error)


def device_facts(name: str) -> dict[str, Any]:
    """Describe a device and the dtypes in which it can multiply matrices."""
    import torch

    if name == "cpu":
        kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    elif name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        kind = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        kind = name.split(":")[0]
    return {"name": name, "kind": kind, "dtypes": [dtype for dtype in DTYPES if multiplies(name, dtype)]}


def multiplies(device: str, dtype: str) -> bool:
    import torch

    matrix = torch.ones(8, 8, device=device)
    try:
        matrix.to(getattr(torch, dtype)) @ matrix.to(getattr(torch, dtype))
    except (RuntimeError, TypeError):
        return False
    return True


def model_facts(folder: Path) -> dict[str, Any] | None:
    """Facts about a saved pipeline, without loading its weights. None if `folder` has no pipeline."""
    if not (folder / "model_index.json").is_file():
        return None
    config, index = read_json(folder / "model" / "config.json"), read_json(folder / "model_index.json")
    text, tokenizer = config.get("text_config") or {}, config.get("image_tokenizer_config") or {}
    processor = read_json(folder / "processor" / "processor_config.json")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "folder": str(folder),
        "pipeline": index.get("_class_name"),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "parameters": sum(count_parameters(path) for path in files if path.suffix == ".safetensors"),
        "backbone": text.get("model_type"),
        "layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "image_size": tokenizer.get("sample_size"),
        "image_tokens": config.get("num_image_tokens"),
        "codebook_size": config.get("codebook_size"),
        "longest_prompt": config.get("max_text_length"),
        **(decoder_facts(folder, index) if has_image_decoder(index) else {}),
        **({"known_words": processor["known_words"]} if processor.get("known_words") else {}),
    }


def decoder_facts(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The class of a saved pipeline's diffusion decoder, and the number of its steps."""
    steps = read_json(folder / "image_decoder" / "config.json").get("num_inference_steps")
    return {"image_decoder": index["image_decoder"][-1], "decoder_steps": steps}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def count_parameters(path: Path) -> int:
    """Count the parameters of a .safetensors file from its header: an 8-byte length, then JSON with the shapes."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def fact_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Format the facts as text with headings."""
    yield from table("versions", facts["versions"])
    optional = {name: f"{found or 'not installed'} ({OPTIONAL[name]})" for name, found in facts["optional"].items()}
    yield from table("optional", optional)
    devices = {device["name"]: f"{device['kind']}; {', '.join(device['dtypes'])}" for device in facts["devices"]}
    yield from table("devices", devices)
    cache = facts["cache"]
    yield from table("cache", {**cache, "offline": "yes" if cache["offline"] else "no"})
    free = facts["free_disk"].items()
    yield from table("free disk", {name: None if size is None else f"{size / 1e9:,.1f} GB" for name, size in free})
    if "image" in facts:
        taken = facts["image"].items()
        yield from table(
            "an image", {name: took if isinstance(took, str) else f"{took:.2f} s" for name, took in taken}
        )
    model = dict(facts["embedded_model"] or {"folder": "not installed"})
    known_words: dict[str, list[str]] = model.pop("known_words", {})
    yield from table("embedded model", model)
    for group, words in known_words.items():
        yield from textwrap.wrap(f"{group}: {', '.join(words)}", 100, initial_indent="  ", subsequent_indent="    ")


def table(heading: str, rows: dict[str, Any]) -> Iterator[str]:
    yield heading
    for name, value in rows.items():
        if isinstance(value, int):
            value = f"{value:,}"
        yield f"  {name.replace('_', ' '):16} {'unknown' if value is None else value}"
