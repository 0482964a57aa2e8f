"""Compare torch and ONNX Runtime on a small machine. Prints the table of docs/onnx.md. Run as

    python benchmarks/onnx_t2i.py

The embedded model, or `--model FOLDER`, generates the same image with torch and with ONNX Runtime, each in its own
processes and in turn, in the model's own number of steps and with its own guidance scale. Both leave a diffusion decoder
out. (The script is not called onnx.py, because it would hide the package of that name.)
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path


# No torch at the top: the processes that measure ONNX Runtime run this file too.
PROMPT = "a red apple to the left of a blue car"
WAYS = ("eager fp32", "ONNX fp32", "ONNX int8")
ONNX_PACKAGES = ("numpy", "onnxruntime", "pillow", "tokenizers")  # the imports of generate.py


# A separate process for each way


def eager_maker(folder: str, threads: int) -> Callable[[], object]:
    """A function that generates an image with torch, without a diffusion decoder, which is not exported."""
    import torch

    torch.set_num_threads(threads)
    pipe = load_eager(folder)
    return lambda: pipe(PROMPT, decoder_steps=0).images[0]


def load_eager(folder: str):
    """The pipeline in float32 without progress bars."""
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging

    from showo_hf import ShowoT2IPipeline

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    pipe = ShowoT2IPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def onnx_runner(folder: Path):
    """The module generate.py in an exported folder."""
    spec = importlib.util.spec_from_file_location("generate", folder / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # its dataclasses look here
    spec.loader.exec_module(module)
    return module


def onnx_maker(folder: str, threads: int) -> Callable[[], object]:
    """A function that generates an image with ONNX Runtime."""
    model = onnx_runner(Path(folder)).OnnxShowo(folder, threads)
    return lambda: model([PROMPT])[0]


def report_child(way: str, folder: str, threads: int, repeats: int, started: float):
    """Print as JSON: seconds to the first image, seconds of a later image, and peak memory of the process."""
    make = (eager_maker if way == WAYS[0] else onnx_maker)(folder, threads)
    make()
    first = time.time() - started
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        make()
        times.append(time.perf_counter() - start)
    if way != WAYS[0] and "torch" in sys.modules:
        raise RuntimeError("torch was imported by the ONNX script.")
    print(json.dumps({"first": first, "image": min(times), "peak": peak_bytes()}))


def peak_bytes() -> int:
    """Peak memory of this process on Linux; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure_in_turn(folders: dict[str, Path], rounds: int, threads: int, repeats: int) -> dict[str, list[dict]]:
    """Reports of `rounds` processes for each way. They run in turn, so that all see the same drift of the machine."""
    from measuring import in_child

    found: dict[str, list[dict]] = {way: [] for way in folders}
    for _ in range(rounds):
        for way, folder in folders.items():
            options = ["--threads", threads, "--repeats", repeats, "--started", time.time()]
            found[way].append(in_child(__file__, "--child", way, "--folder", str(folder), *map(str, options)))
    return found


# Sizes


def installed_bytes(*names: str) -> int:
    """Size of installed packages and their dependencies; 0 for packages that are not installed."""
    from packaging.requirements import Requirement

    seen: dict[str, int] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen[name] = 0
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        paths = {Path(str(file.locate())) for file in distribution.files or ()}
        seen[name] = sum(path.stat().st_size for path in paths if path.is_file())
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return sum(seen.values())


# Quality


def quality(model: str, folder: Path) -> dict[str, float]:
    """
    Agreement with torch: the share of equal most probable tokens over all steps of an image, the share of equal tokens
    after encoding this image, and the PSNR of the decoder in dB.
    """
    import torch

    from showo_hf.utils.metrics import psnr

    pipe = load_eager(model)
    small = onnx_runner(folder).OnnxShowo(folder)
    mask_token_id = pipe.model.config.codebook_size
    states = [torch.full((1, *pipe.default_grid), mask_token_id)]

    def remember(pipe, step, timestep, tensors):
        states.append(tensors["latents"].clone())
        return {}

    generator = torch.Generator().manual_seed(0)
    _, guidance = pipe.with_defaults(None, None)
    tokens = pipe(PROMPT, generator=generator, output_type="latent", callback_on_step_end=remember).images
    encoded = small.encode_prompts([PROMPT, ""])
    equal = []
    for state in (state.flatten(1) for state in states[:-1]):
        best = guided_logits(pipe, state, guidance).argmax(-1)
        small_best = small.predict_logits(state.numpy(), encoded, guidance).argmax(-1)
        equal += (best.numpy() == small_best)[(state == mask_token_id).numpy()].tolist()
    with torch.no_grad():
        pixels = pipe.image_tokenizer.decode(tokens).sample
        again = pipe.image_tokenizer.encode(pixels).image_tokens.numpy()
    (small_pixels,) = small.image_decoder.run(None, {"image_tokens": tokens.numpy()})
    (small_again,) = small.image_encoder.run(None, {"pixel_values": pixels.numpy()})
    return {
        "tokens": statistics.mean(equal),
        "encoder": float((again == small_again).mean()),
        "psnr": psnr(torch.from_numpy(small_pixels), pixels).mean().item(),
    }


def guided_logits(pipe, tokens, guidance):
    """Guided logits (1, tokens, codebook_size) of image tokens (1, tokens), by the model on whole sequences."""
    import torch

    config = pipe.model.config
    inputs = pipe.processor.text_to_image([PROMPT, ""], tokens.repeat(2, 1))
    with torch.no_grad():
        logits = pipe.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    start = config.image_token_offset
    conditional, unconditional = logits[:, -1 - tokens.shape[1] : -1, start : start + config.codebook_size].chunk(2)
    return guidance * conditional - (guidance - 1) * unconditional


# The table


def rows(model: str, scratch: Path, rounds: int, threads: int, repeats: int) -> list[tuple[str, ...]]:
    """The rows of the table: the measurement, and a cell for each way."""
    from measuring import folder_bytes

    from showo_hf.conversion.export_onnx import export_onnx

    folders = dict(zip(WAYS, (Path(model), scratch / "fp32", scratch / "int8"), strict=True))
    export_onnx(model, folders["ONNX fp32"])
    export_onnx(model, folders["ONNX int8"], quantize="int8")
    found = measure_in_turn(folders, rounds, threads, repeats)
    close = {way: quality(model, folders[way]) for way in WAYS[1:]}
    packages = [installed_bytes("showo-hf"), *[installed_bytes(*ONNX_PACKAGES)] * 2]
    return [
        ("time of an image / eager's", *ratio_cells(found, "image", "s")),
        ("start of Python to the first image / eager's", *ratio_cells(found, "first", "s")),
        ("peak memory of the process / eager's", *ratio_cells(found, "peak", "MB", 1e-6)),
        ("size of the model's folder", *megabytes(map(folder_bytes, folders.values()), 1)),
        ("size of the required packages", *megabytes(packages)),
        ("most probable tokens equal to eager's, all steps", "", *(f"{close[way]['tokens']:.1%}" for way in WAYS[1:])),
        ("encoded tokens equal to eager's", "", *(f"{close[way]['encoder']:.1%}" for way in WAYS[1:])),
        ("PSNR of decoded images against eager's", "", *(f"{close[way]['psnr']:.0f} dB" for way in WAYS[1:])),
    ]


def ratio_cells(found: dict[str, list[dict]], key: str, unit: str, scale: float = 1.0) -> list[str]:
    """A cell for each way: the median ratio to eager, and the median."""
    from measuring import median_ratio

    values = {way: [report[key] for report in found[way]] for way in WAYS}
    if not all(map(all, values.values())):
        return ["not measured here"] * len(WAYS)
    own = {way: f"{statistics.median(values[way]) * scale:.{0 if scale != 1 else 2}f} {unit}" for way in WAYS}
    return [f"{median_ratio(values[way], values[WAYS[0]]):.2f} ({own[way]})" for way in WAYS]


def megabytes(sizes: Iterable[int], digits: int = 0) -> list[str]:
    """Sizes in bytes as cells."""
    return [f"{size / 1e6:.{digits}f} MB" for size in sizes]


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="a pipeline folder (default: the embedded model)")
    add("--rounds", type=int, default=5, help="number of processes for each way")
    add("--repeats", type=int, default=5, help="images of a process after the first; the fastest counts")
    add("--threads", type=int, default=os.cpu_count())
    add("--child", choices=WAYS, help="measure one way in this process")
    add("--folder", help="the folder that the child loads")
    add("--started", type=float, default=0.0, help="start time of the child")
    options = parser.parse_args(arguments)
    if options.child:
        report_child(options.child, options.folder, options.threads, options.repeats, options.started)
        return
    import onnxruntime
    import torch
    from measuring import print_table

    from showo_hf import EMBEDDED_MODEL

    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{versions}, {options.threads} threads, {platform.machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        table = rows(options.model or EMBEDDED_MODEL, Path(scratch), options.rounds, options.threads, options.repeats)
    print_table(("measurement", *WAYS), table)


if __name__ == "__main__":
    main()
