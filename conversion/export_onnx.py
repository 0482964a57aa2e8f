"""Write a saved pipeline as ONNX graphs, which run without torch on small machines. Run as

python -m showo_hf.conversion.export_onnx FOLDER --output FOLDER_ONNX

The output contains the graphs `transformer`, `image_encoder` and `image_decoder` (.onnx), the files of the processor,
`onnx_config.json`, and the script `generate.py`. The script needs only numpy, onnxruntime, pillow and tokenizers.
"""

import argparse
import importlib.util
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.schedulers import MaskGITScheduler

from .command_line import report_errors, run_conversion
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
from .output import check_output, output_folder


DTYPES = ("float32", "float16")
QUANTIZATIONS = ("int8",)
CONFIG_FILE = "onnx_config.json"
SCRIPT = "generate.py"

#: The settings of the scheduler that the script knows.
SCHEDULER_SETTINGS = ("masking_schedule", "temperature", "temperature_rule")

#: The largest `difference` between a graph's outputs and the model's that rounding explains.
TOLERANCE = {"float32": 1e-3, "float16": 5e-2}


@dataclass
class Part:
    """One graph of the output: its name, how to build it from a pipeline, and how to quantize it."""

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
    Export a saved pipeline and return the report.

    Args:
        folder: a folder that `ShowoT2IPipeline.save_pretrained` wrote.
        output: the folder to write. It is complete or absent.
        dtype: "float32", or "float16" for half the size, on runtimes that use a GPU.
        quantize: "int8" for weights of 8 bits and a fourth of the size; None for no quantization.
        overwrite: replace an `output` that holds a model.
        external_data: write the weights to files of their own; by default only if they do not fit into the graph's.

    Raises:
        ConversionError: if `folder` is not a pipeline or has no image tokenizer, if the script does not support the
            scheduler or one of its settings, if `output` exists and is not a model, if a package is missing, or if the
            outputs of a graph differ from the model's.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    check_arguments(Path(folder), dtype, quantize)
    check_output(output, overwrite, [Path(folder)])
    pipe = load_pipeline(Path(folder), dtype)
    lines = []
    with (
        output_folder(output, overwrite, [Path(folder)]) as target,
        tempfile.TemporaryDirectory(dir=target) as scratch,
    ):
        for part in PARTS:
            graph = part.make(pipe)
            place = Path(scratch) if quantize else target
            write_graph(graph, place / f"{part.name}.onnx", external_data)
            error = check_graph(graph, place / f"{part.name}.onnx", part.name, TOLERANCE[dtype])
            if quantize:
                part.quantize(place / f"{part.name}.onnx", target / f"{part.name}.onnx")
            size = sum(file.stat().st_size for file in target.glob(f"{part.name}.onnx*"))
            before = " before quantization" if quantize else ""
            lines.append(f"{part.name}: {size / 1e6:.1f} MB, differs from the model by {error:.1g}{before}")
        pipe.processor.save_pretrained(target)
        config = script_config(pipe) | {"dtype": dtype, "quantize": quantize}
        (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("onnx_generate.py"), target / SCRIPT)
    if pipe.image_decoder is not None:
        lines.append(
            "the pipeline's diffusion decoder is left out: image_decoder.onnx is the image tokenizer's decoder"
        )
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
    """Load the pipeline, and refuse what cannot be exported."""
    pipe = ShowoT2IPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    if pipe.image_tokenizer is None:
        raise ConversionError(f"`folder` must hold a model with an image tokenizer, but '{folder}' has none")
    check_scheduler(pipe.scheduler)
    pipe.check_components()
    pipe.model.eval().requires_grad_(False)
    return pipe


def check_scheduler(scheduler: SchedulerMixin):
    """Raise `ConversionError` for a scheduler or a setting that the script would ignore."""
    from .onnx_generate import masked_share, temperatures  # needs onnxruntime

    if type(scheduler) is not MaskGITScheduler:
        raise ConversionError(f"the scheduler must be a MaskGITScheduler, got {type(scheduler).__name__}")
    for name, parameter in inspect.signature(MaskGITScheduler).parameters.items():
        value = scheduler.config[name]
        if name not in ("mask_token_id", *SCHEDULER_SETTINGS) and value != parameter.default:
            raise ConversionError(
                f"the scheduler's `{name}` must be {parameter.default}, because {SCRIPT} does not support it, got {value!r}"
            )
    try:
        masked_share(scheduler.config.masking_schedule, 0.5)
        temperatures(scheduler.config.temperature, 1, scheduler.config.temperature_rule)
    except ValueError as error:
        raise ConversionError(f"{SCRIPT} does not support the scheduler: {error}") from error


def script_config(pipe: ShowoT2IPipeline) -> dict:
    """The ids, sizes and settings of the scheduler that `generate.py` needs."""
    special = ("mask", "pad", "soi", "eoi", "t2i", "sot", "eot")
    names = ["max_text_length", "codebook_size", "image_token_offset", *(f"{token}_token_id" for token in special)]
    steps, guidance = pipe.with_defaults(None, None)
    return {
        "format": "showo-onnx",
        **{name: getattr(pipe.processor, name) for name in names},
        "grid": list(pipe.default_grid),
        "downsampling": pipe.image_tokenizer.config.downsampling,
        **{name: pipe.scheduler.config[name] for name in SCHEDULER_SETTINGS},
        "steps": steps,
        "guidance_scale": guidance,
    }


def check_graph(graph: Graph, path: Path, name: str, tolerance: float) -> float:
    """
    The largest [`difference`] between the outputs of a graph and of its module, on larger inputs than the traced ones.

    Raises:
        ConversionError: if it is above `tolerance`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {key: other_size(value, graph.axes[key]) for key, value in graph.inputs.items()}
    with torch.no_grad():
        expected = graph.module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(list(graph.outputs), {key: value.numpy() for key, value in inputs.items()})
    errors = [difference(ours, theirs.numpy()) for ours, theirs in zip(found, expected, strict=True)]
    worst = float(np.max(errors))  # NaN if any is NaN
    if not worst <= tolerance:
        raise ConversionError(
            f"the graph of {name} differs from the model by {worst:.1g}, allowed is {tolerance}; these versions of "
            "torch and onnxscript may export it wrongly"
        )
    return worst


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference divided by the largest number; for image tokens, a tenth of the share of unequal ones."""
    if found.shape != expected.shape:
        return np.inf
    if found.dtype.kind == "i":  # a bit of a token flips if its latent is close to zero
        return float((found != expected).mean()) / 10
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def other_size(example: torch.Tensor, axes: dict) -> torch.Tensor:
    """An input like `example`, twice as long along each dynamic axis."""
    for axis in axes:
        example = example.repeat_interleave(2, dim=axis)
    return example


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    add = parser.add_argument
    add("folder", help="a saved pipeline")
    add("--output", required=True, metavar="FOLDER", help="output folder, written atomically")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the weights and of the computation")
    add("--quantize", choices=QUANTIZATIONS, help="integer weights: a fourth of the size, and faster on a CPU")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.parse_args(arguments)

    def export() -> str:
        return export_onnx(options.folder, options.output, options.dtype, options.quantize, options.overwrite)

    return report_errors(lambda: run_conversion(export, options.output))


if __name__ == "__main__":
    raise SystemExit(main())
