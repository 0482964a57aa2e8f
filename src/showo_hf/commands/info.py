"""`showo-hf info`: installed versions, devices, and the embedded model."""

from __future__ import annotations

import argparse
import json
import math
import platform
import struct
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .model_loading import DTYPES, accelerators


REQUIRED = "torch transformers diffusers accelerate huggingface_hub safetensors tokenizers numpy pillow".split()
OPTIONAL = {"gradio": "the app", "peft": "adapters in training", "pytest": "the tests"}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "info",
        help="versions, devices, and the embedded model",
        description="Show the installed versions, the devices with their dtypes, and facts about the embedded model.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the facts as text or as JSON."""
    facts = collect_facts()
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(fact_lines(facts)))
    return 0


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def collect_facts() -> dict[str, Any]:
    """Versions, devices and the embedded model, as plain types."""
    from showo_hf import EMBEDDED_MODEL

    versions = {"showo-hf": package_version("showo-hf"), "python": platform.python_version()}
    return {
        "versions": versions | {name: package_version(name) for name in REQUIRED},
        "optional": {name: package_version(name) for name in OPTIONAL},
        "devices": [device_facts(name) for name in ("cpu", *accelerators())],
        "embedded_model": model_facts(Path(EMBEDDED_MODEL)),
    }


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
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    text, tokenizer = config.get("text_config") or {}, config.get("image_tokenizer_config") or {}
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
    }


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
    yield from table("embedded model", facts["embedded_model"] or {"folder": "not installed"})


def table(heading: str, rows: dict[str, Any]) -> Iterator[str]:
    yield heading
    for name, value in rows.items():
        if isinstance(value, int):
            value = f"{value:,}"
        yield f"  {name.replace('_', ' '):16} {'unknown' if value is None else value}"
