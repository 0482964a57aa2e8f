"""Write a saved pipeline as ONNX graphs, which run without torch on small machines. Run as

python -m showo_hf.conversion.export_onnx FOLDER --output FOLDER_ONNX

The output is whole by itself: the graphs `transformer`, `image_encoder` and `image_decoder` (.onnx), the tokenizer and the
processor's files, `onnx_config.json`, and `generate.py`, which needs numpy, onnxruntime, pillow and tokenizers alone.
"""

import argparse
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.schedulers import MaskGITScheduler
from showo_hf.utils.atomic_folder import atomic_folder

from .command import conversion_main
from .errors import ConversionError
from .onnx_graphs import (
    Graph,
    image_decoder_graph,
    image_encoder_graph,
    quantize_image_tokenizer,
    quantize_transformer,
    transformer_graph,
    write_graph,
)
from .output import check_output


DTYPES = ("float32", "float16")
QUANTIZATIONS = ("int8",)
CONFIG_FILE = "onnx_config.json"
RUNNER = "generate.py"

#: How far a graph's outputs may lie from the model's, as `difference` tells it: rounding, and no more.
TOLERANCE = {"float32": 1e-3, "float16": 5e-2}


@dataclass
class Part:
    """One file of the output: what makes its graph from a pipeline, and what quantizes it."""

    name: str
    make: Callable[[ShowoT2IPipeline], Graph]
    quantize: Callable[[Path, Path], None]


PARTS = (
    Part("transformer", lambda pipe: transformer_graph(pipe.model), quantize_transformer),
    Part("image_encoder", lambda pipe: image_encoder_graph(pipe.image_tokenizer), quantize_image_tokenizer),
    Part("image_decoder", lambda pipe: image_decoder_graph(pipe.image_tokenizer), quantize_image_tokenizer),
)


def export_onnx(
    folder: str | Path,
    output: str | Path,
    dtype: str = "float32",
    quantize: str | None = None,
    overwrite: bool = False,
    external_data: bool | None = None,
) -> str:
    """
    Export a saved pipeline; returns the report.

    Args:
        folder: what `ShowoT2IPipeline.save_pretrained` wrote.
        output: the folder to write; it is whole or not there.
        dtype: "float32", or "float16" for half the size, which suits runtimes on a GPU.
        quantize: "int8" for weights of 8 bits, a fourth of the size; None for none.
        external_data: weights in files of their own; by default only where one file cannot hold them.

    Raises:
        ConversionError: if `folder` is no pipeline, has no image tokenizer or a scheduler that the runner does not
            know, if `output` holds something else than a model, if a package is missing, or if a graph does
            not compute what the model does.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    check_arguments(Path(folder), dtype, quantize)
    check_output(output, overwrite, [Path(folder)])
    pipe = load_pipeline(Path(folder), dtype)
    lines = []
    with atomic_folder(output, overwrite) as target, tempfile.TemporaryDirectory(dir=target) as scratch:
        for part in PARTS:
            graph = part.make(pipe)
            place = Path(scratch) if quantize else target
            write_graph(graph, place / f"{part.name}.onnx", external_data)
            away = check_graph(graph, place / f"{part.name}.onnx", part.name, TOLERANCE[dtype])
            if quantize:
                part.quantize(place / f"{part.name}.onnx", target / f"{part.name}.onnx")
            size = sum(file.stat().st_size for file in target.glob(f"{part.name}.onnx*"))
            before = " before quantization" if quantize else ""
            lines.append(f"{part.name}: {size / 1e6:.1f} MB, differs from the model by {away:.1g}{before}")
        pipe.processor.save_pretrained(target)
        config = runner_config(pipe) | {"dtype": dtype, "quantize": quantize}
        (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("onnx_generate.py"), target / RUNNER)
    return "\n".join(lines)


def check_arguments(folder: Path, dtype: str, quantize: str | None):
    """Raise for wrong arguments and missing packages, before any work."""
    if dtype not in DTYPES:
        raise ConversionError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ConversionError(f"`quantize` must be one of {', '.join(QUANTIZATIONS)} or None, got {quantize!r}")
    if quantize and dtype != "float32":
        raise ConversionError(f"`quantize` needs the `dtype` float32, got {dtype}")
    if not (folder / "model_index.json").is_file():
        raise ConversionError(f"`folder` must be a saved pipeline with a model_index.json, got '{folder}'")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConversionError(f"the export needs {', '.join(missing)}: pip install 'showo-hf[onnx]'")


def load_pipeline(folder: Path, dtype: str) -> ShowoT2IPipeline:
    """Load the pipeline and refuse what cannot be exported."""
    pipe = ShowoT2IPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    if pipe.image_tokenizer is None:
        raise ConversionError(f"`folder` must hold a model with an image tokenizer, '{folder}' has none")
    if not isinstance(pipe.scheduler, MaskGITScheduler):
        raise ConversionError(f"the scheduler must be a MaskGITScheduler, got {type(pipe.scheduler).__name__}")
    for name in ("top_k", "top_p"):
        if pipe.scheduler.config[name] is not None:
            raise ConversionError(
                f"the scheduler's `{name}` must be None, which the runner does not know, got {pipe.scheduler.config[name]}"
            )
    pipe.check_components()
    pipe.model.eval().requires_grad_(False)
    return pipe


def runner_config(pipe: ShowoT2IPipeline) -> dict:
    """What `generate.py` has to know: ids, sizes, and how the scheduler is set."""
    special = ("mask", "pad", "soi", "eoi", "t2i", "sot", "eot")
    names = ["max_text_length", "codebook_size", "image_token_offset", *(f"{token}_token_id" for token in special)]
    settings = ("masking_schedule", "temperature", "temperature_rule")
    return {
        "format": "showo-onnx",
        **{name: getattr(pipe.processor, name) for name in names},
        "grid": list(pipe.default_grid),
        "downsampling": pipe.image_tokenizer.config.downsampling,
        **{name: pipe.scheduler.config[name] for name in settings},
    }


def check_graph(graph: Graph, path: Path, name: str, tolerance: float) -> float:
    """
    How far the outputs of a graph lie from its module's, on inputs of another size than was traced.

    Raises:
        ConversionError: if that is more than rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {key: other_size(value, graph.axes[key]) for key, value in graph.inputs.items()}
    with torch.no_grad():
        expected = graph.module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(list(graph.outputs), {key: value.numpy() for key, value in inputs.items()})
    away = [difference(ours, theirs.numpy()) for ours, theirs in zip(found, expected, strict=True)]
    worst = float(np.max(away))  # NaN if one is
    if not worst <= tolerance:
        raise ConversionError(
            f"the graph of {name} differs from the model by {worst:.1g}, allowed is {tolerance}; perhaps these versions "
            "of torch and onnxscript translate it wrongly"
        )
    return worst


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest number; for codes a tenth of the share that is not equal."""
    if found.shape != expected.shape:
        return np.inf
    if found.dtype.kind == "i":  # a bit flips where a latent is almost zero, and its code is then quite another
        return float((found != expected).mean()) / 10
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def other_size(example: torch.Tensor, axes: dict) -> torch.Tensor:
    """An input like `example`, twice as long along each axis that may change."""
    for axis in axes:
        example = example.repeat_interleave(2, dim=axis)
    return example


def add_arguments(parser: argparse.ArgumentParser):
    """The options of this command."""
    add = parser.add_argument
    add("folder", help="a saved pipeline")
    add("--output", required=True, metavar="FOLDER", help="the folder to write; it is whole or not there")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights and of what is computed")
    add("--quantize", choices=QUANTIZATIONS, help="integer weights: a fourth of the size, and faster on a CPU")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    parser.set_defaults(push_to_hub=None)


def run(options: argparse.Namespace) -> str:
    """Export; returns the report."""
    return export_onnx(options.folder, options.output, options.dtype, options.quantize, options.overwrite)


def main(arguments: list[str] | None = None) -> int:
    return conversion_main(__doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
